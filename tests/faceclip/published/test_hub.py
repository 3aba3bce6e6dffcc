"""Hub ids instead of paths, against a stand-in for the hub on this machine."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from faceclip.published.checkpoint import load_faceclip
from tests.faceclip.published.test_unet import TINY
from tests.faceclip.published_case import CONFIG
from tests.hub import serving

# In a process of its own: the hub's client reads its address once, when it is imported.
LOAD = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from faceclip.published.checkpoint import load_faceclip, load_unet

folder = Path(sys.argv[1])
for load, name in ((load_faceclip, "encoder"), (load_unet, "unet")):
    model = load("owner/faces", config=json.loads((folder / f"{name}.json").read_text()))
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, folder / name)
"""


@pytest.fixture
def environment(tmp_path) -> Iterator[dict[str, str]]:
    """Serves `tmp_path`/hub; the variables that make the hub's client ask there."""
    (tmp_path / "hub" / "model").mkdir(parents=True)
    with serving(tmp_path / "hub", tmp_path / "home") as environment:
        yield environment


def test_models_are_downloaded_by_id(state, environment, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY).state_dict()
    torch.save(state, tmp_path / "hub" / "model" / "face_clip_encoder.pt")
    torch.save(unet, tmp_path / "hub" / "model" / "unet.pt")
    (tmp_path / "hub" / "README.md").write_text("not asked for")
    encoder = load_faceclip(tmp_path / "hub", config=CONFIG).state_dict()
    for name, config in (("encoder", CONFIG), ("unet", TINY)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config))

    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    for expected, name in ((encoder, "encoder"), (unet, "unet")):
        found = load_file(tmp_path / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    blobs = tmp_path / "home" / "hub" / "models--owner--faces" / "blobs"
    assert len(list(blobs.iterdir())) == 2  # these files, and nothing else of the repository
    assert "CC-BY-NC-4.0" in done.stderr
