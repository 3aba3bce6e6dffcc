"""What an autoencoder costs in the eyes of the recognizers, by hand and by the command."""

import json

import numpy as np
import pytest
import torch

from eval.restoration import main, recognition_figures, restore
from faceclip.data.arrays import load_arrays
from faceclip.statistics import identity_bootstrap
from train_generator.towers import vae


def test_recognition_of_restored_portraits_by_hand():
    identity, index = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    real = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    restored = real[[0, 3, 2, 3]]  # the first person's other portrait has become the second's
    figures = recognition_figures({"real": real, "restored": restored}, identity, index, "A")
    assert figures["rank-1, A, real"].value == 1 and figures["rank-1, A, restored"].value == 0.5
    assert figures["cosine to the frontal portrait, A, real"].value == pytest.approx(0.8)
    assert figures["cosine to the frontal portrait, A, restored"].value == pytest.approx(0.7)
    assert figures["cosine of restored to real, A"].value == pytest.approx((3 + 0.96) / 4)
    assert figures["rank-1, A, restored"].identities == identity_bootstrap(np.ones(2), np.arange(2)).identities


def test_restored_pictures_are_those_of_whose_error_the_figure_speaks(tiny_dataset):
    model = vae.make_model(vae.AutoencoderConfig(widths=[8, 8, 16], groups=4, latent_channels=4), 32).eval()
    images = load_arrays(tiny_dataset, "test", size=32).images
    restored = restore(model, images, batch=3)
    error = np.square(restored.astype(np.float64) - images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(10 * np.log10(255**2 / error), vae.psnr(model, images), rtol=1e-4)


def test_the_command_measures_a_folder(tiny_dataset, tmp_path, capsys):
    torch.manual_seed(0)
    vae.make_model(vae.AutoencoderConfig(widths=[8, 8, 16], groups=4), 64).save_pretrained(tmp_path / "vae")
    words = ["--vae", str(tmp_path / "vae"), "--data", str(tiny_dataset), "--size", "64"]
    assert main([*words, "--people", "2", "--out", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("rank-1, recognizer", "rank-1, second recognizer", "faces found", "glasses judged rightly"):
        for which in ("real", "restored"):
            assert 0 <= figures[f"{name}, {which}"]["value"] <= 1
    assert figures["rank-1, recognizer, real"]["value"] > figures["rank-1, recognizer, restored"]["value"]
    assert main([*words, "--people", "1"]) == 2 and "--people" in capsys.readouterr().err
    assert main([*words, "--vae", str(tmp_path)]) == 2 and "--vae" in capsys.readouterr().err
