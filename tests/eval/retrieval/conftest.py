"""Photos whose captions were made."""

from pathlib import Path

import pytest

from tests.photo_sets import write_captioned_photos


@pytest.fixture(scope="session")
def captioned_photos(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split of renders in the layout of photos of which a reader knows the regions."""
    return write_captioned_photos(tiny_dataset, tmp_path_factory.mktemp("captioned"))
