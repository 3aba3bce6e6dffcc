"""Shared by the tests of the published layout."""

import pytest
import torch

from tests.faceclip.published_case import published_state


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    """All tensors of a published checkpoint of the small size; tests that change it take a copy."""
    return published_state()
