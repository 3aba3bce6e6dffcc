"""References are cut as large as the towers read them."""

import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Encoder
from torch.nn.modules.module import register_module_forward_pre_hook

from faceclip.data.arrays import load_arrays
from faceclip.encoder import FaceCLIP
from faceclip.faces.align import align_face
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from tests.stages import save_base
from train_generator.reference_features import crop_size, reference_features


def encoder(image_size: int) -> FaceCLIP:
    torch.manual_seed(0)
    text = {"width": 32, "layers": 1, "heads": 2, "embed_dim": 16, "vocabulary": list(range(300))}
    face = FaceViT(image_size=image_size, patch_size=9, width=16, depth=1, heads=2, embedding_dim=8)
    return FaceCLIP.from_components(face, TextTower(**text), TextTower(**text), fusion={"layers": 1}).eval()


@pytest.mark.parametrize(("face", "image", "side"), [(36, 64, 112), (36, 128, 128), (144, 128, 144)])
def test_crops_are_as_large_as_the_largest_reader(face, image, side, tiny_dataset: Path, tmp_path: Path):
    joint = encoder(face)
    tower = ImageTower(image_size=image, patch_size=16, width=32, layers=2, heads=2, embed_dim=16).eval()
    found = reference_features(
        tiny_dataset,
        "test",
        size=32,
        vae=save_base(tmp_path) / "vae",
        encoder=joint,
        image_tower=tower,
        cache=tmp_path / "cache",
    )
    arrays = load_arrays(tiny_dataset, "test")
    crop = align_face(np.asarray(arrays.images[0]), np.array(arrays.landmarks_5[0], np.float64), side)
    with torch.no_grad():
        expected = tower(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255).tokens[0]
    np.testing.assert_allclose(found.image_tokens[0], expected.numpy(), atol=4e-3, rtol=0)


def test_large_portraits_are_cut_as_the_pipeline_cuts_photos():
    tower = ImageTower(image_size=64, patch_size=16, width=32, layers=2, heads=2, embed_dim=16)
    assert [crop_size(encoder(36), tower, portrait) for portrait in (64, 224, 225, 1024)] == [112, 112, 448, 448]


def test_several_processes_build_each_cache_once(tiny_dataset: Path, tmp_path: Path):
    """The ranks of a distributed run come to an empty cache at the same time."""
    processes = get_context("fork")
    together, built = processes.Barrier(3), processes.SimpleQueue()
    joint = encoder(36)
    tower = ImageTower(image_size=64, patch_size=16, width=32, layers=2, heads=2, embed_dim=16).eval()
    folder = save_base(tmp_path) / "vae"
    vae = AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():  # one whose latents no other test has left beside the data
        vae.encoder.conv_in.weight.mul_(1.01)
    vae.save_pretrained(folder)
    parts = {"size": 32, "vae": folder, "encoder": joint, "image_tower": tower}
    load_arrays(tiny_dataset, "test", size=32)

    def count(module, inputs) -> None:
        if isinstance(module, ImageTower | Encoder):
            built.put(type(module).__name__)
            time.sleep(0.3)

    def rank() -> None:
        torch.set_num_threads(1)
        register_module_forward_pre_hook(count)
        together.wait(60)
        reference_features(tiny_dataset, "test", cache=tmp_path / "cache", **parts)
        together.wait(60)

    ranks = [processes.Process(target=rank) for _ in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    names = []
    while not built.empty():
        names.append(built.get())
    assert sorted(names) == ["Encoder", "ImageTower"]
    found = reference_features(tiny_dataset, "test", cache=tmp_path / "cache", **parts)
    alone = reference_features(tiny_dataset, "test", cache=tmp_path / "alone", **parts)
    for name in ("latents", "identity", "tokens", "image_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
