"""The published architecture in numbers, and the published file in and out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from faceclip import published
from faceclip.encoder import FaceCLIP
from faceclip.published import CONFIG, convert, export, from_published, load_faceclip, to_published
from faceclip.published_files import mention_license
from tests.faceclip.published_case import CONFIG as SMALL
from tests.faceclip.published_case import PROMPTS, faces, published_state

# Fused tokens at (position, channel) of each prompt, and pooled channels 0, 20, 47; see published_case.
PLACES = ((0, 0), (4, 7), (9, 40), (30, 63), (76, 79))
TOKENS = {
    True: [[-0.21322, -0.9352, 1.42183, 1.4524, -1.23868], [-0.33781, -0.92658, 1.32889, 1.45371, -1.22428],
           [-0.17856, -1.01919, 1.48954, 1.38859, -1.26173], [-0.22864, -0.95977, 1.02014, 1.39737, -1.18807],
           [-0.13973, -0.96073, 1.23539, 1.48845, -1.28379]],
    False: [[-0.35087, -1.58906, 1.46795, 1.30253, -1.28972], [-0.56386, -1.3947, 1.50448, 1.41801, -1.20312],
            [-0.43699, -1.56159, 1.29194, 1.19896, -1.14273], [-0.36851, -1.48472, 1.03962, 1.29487, -1.28375],
            [-0.38284, -1.19919, 0.90877, 1.49244, -1.35033]],
}  # fmt: skip
POOLED = {
    True: [[-1.57448, -0.64421, -0.57406], [-1.06503, -0.34935, -0.36221], [-1.14588, -0.87646, -0.51528],
           [-1.31593, -1.40989, -0.14002], [-1.87881, -1.22274, -0.94039]],
    False: [[-1.65638, -1.18488, -0.44732], [-2.68843, -0.60614, -0.40558], [-1.25863, -0.56156, 0.3494],
            [-2.24483, -1.09335, -0.37154], [-1.82634, -1.28143, -0.8236]],
}  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return published_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "face_clip_encoder.pt"
    torch.save({name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
                for name, tensor in state.items()}, path)  # fmt: skip
    return path


@pytest.mark.parametrize("has_face", [True, False])
def test_outputs_of_the_published_class(state, has_face):
    model = FaceCLIP(**SMALL)
    ours, _ = from_published(state, model, "state")
    model.load_state_dict(ours)
    with torch.no_grad():
        found = model.eval().encode(PROMPTS, faces() if has_face else None)
    tokens = [[float(found.tokens[b, t, c]) for t, c in PLACES] for b in range(5)]
    pooled = found.pooled[:, [0, 20, 47]]
    torch.testing.assert_close(torch.tensor(tokens), torch.tensor(TOKENS[has_face]), atol=1e-4, rtol=0)
    torch.testing.assert_close(pooled, torch.tensor(POOLED[has_face]), atol=1e-4, rtol=0)
    assert found.tokens.shape == (5, 77, 80)
    assert (found.identity is not None) == has_face


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[int]]:
    return json.loads((Path(__file__).parent / "data" / "faceclip_state_dict.json").read_text())


def test_every_published_key_has_its_place_at_full_size(shapes, tmp_path):
    """A file of all 1,686 keys and shapes, in which each tensor stores one number only."""
    assert len(shapes) == 1686
    state = {name: torch.full((), 0.5, dtype=torch.bfloat16).expand(shape) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "full.pt")
    model = load_faceclip(tmp_path / "full.pt")
    assert model.dtype == torch.bfloat16
    produced = to_published(model.state_dict(), {})
    assert all(list(tensor.shape) == shapes[name] for name, tensor in produced.items())
    unused = shapes.keys() - produced.keys()
    expected = {name: tuple(shapes[name]) for name in produced}
    known = published._unused_shapes(expected, CONFIG["fusion"]["layers"])
    assert {name: list(shape) for name, shape in known.items()} == {name: shapes[name] for name in unused}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_convert_and_export_bit_for_bit(file, tmp_path, prefix):
    source = tmp_path / "in.pt"
    original = torch.load(file, weights_only=True)
    torch.save({name.replace(".", f".{prefix}", 1): tensor for name, tensor in original.items()}, source)
    convert(source, tmp_path / "ours", config=SMALL, shard_size="100KB")
    assert len(list((tmp_path / "ours").glob("diffusion_pytorch_model-*.safetensors"))) > 1
    export(tmp_path / "ours", tmp_path / "out.pt")
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    assert back.keys() == original.keys()
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in original.items())

    direct, converted = load_faceclip(source, config=SMALL), load_faceclip(tmp_path / "ours")
    assert direct.l.identity_projection.weight.dtype == torch.bfloat16
    assert all(torch.equal(t, converted.state_dict()[n]) for n, t in direct.state_dict().items())
    stored = [n for f in (tmp_path / "ours").glob("diffusion*.safetensors") for n in load_file(f)]
    assert sum(name.startswith("face_encoder.") for name in stored) * 2 == sum(
        ".face_encoder." in name for name in original
    )


def test_license_is_mentioned_and_printed(file, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(published, "CONFIG", SMALL)
    assert published.main(["convert", str(file), str(tmp_path / "ours")]) == 0
    assert "CC-BY-NC-4.0" in capsys.readouterr().out
    for source in (file, tmp_path / "ours"):
        mention_license.cache_clear()
        caplog.clear()
        load_faceclip(source)
        load_faceclip(source)
        assert [r.getMessage().count("CC-BY-NC-4.0") for r in caplog.records] == [1]  # once in a process


def test_copy_of_the_repository(file, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "face_clip_encoder.pt").symlink_to(file)
    assert load_faceclip(tmp_path, config=SMALL, dtype=torch.float32).dtype == torch.float32


@pytest.mark.slow
def test_full_size_file(shapes, tmp_path):
    """A 3.2 GB file of the published keys and shapes: converted within 1.3 × its size, exported bit for bit."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if ".face_encoder." in name and name.startswith("face_clip_g."):
            state[name] = state[name.replace("face_clip_g.", "face_clip_l.")].clone()
        else:
            state[name] = torch.randn(shape, generator=generator).to(torch.bfloat16)
    source = tmp_path / "face_clip_encoder.pt"
    torch.save(state, source)
    size = source.stat().st_size
    del state
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom faceclip.published import convert\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(source), str(tmp_path / "ours")], check=True,
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    assert int(done.stdout.split()[-1]) <= 1.3 * size
    export(tmp_path / "ours", tmp_path / "back.pt")
    first = torch.load(source, weights_only=True, mmap=True)
    second = torch.load(tmp_path / "back.pt", weights_only=True, mmap=True)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
