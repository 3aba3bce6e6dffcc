"""Shared by the tests of the published layout and by those of the joint encoder."""

import pytest
import torch

from faceclip.encoder import FaceCLIP
from tests.faceclip.published_case import published_state
from tests.faceclip.small_encoder import SIZES


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    """All tensors of a published checkpoint of the small size; tests that change it take a copy."""
    return published_state()


@pytest.fixture(scope="module")
def model() -> FaceCLIP:
    """A joint encoder with random weights; tests that change it take a copy."""
    torch.manual_seed(0)
    return FaceCLIP(**SIZES, joint={"hidden": 16}).eval()


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    """Three aligned faces of noise, (3, 3, 50, 50) in [0, 1]."""
    return torch.rand(3, 3, 50, 50, generator=torch.Generator().manual_seed(1))
