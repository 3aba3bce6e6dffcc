"""The published architecture in numbers, and the published file in and out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError
from faceclip.published import checkpoint as published
from faceclip.published.__main__ import main
from faceclip.published.checkpoint import convert, export, from_published, load_faceclip, to_published
from faceclip.published.files import mention_license
from faceclip.towers.text import tokenize
from tests.faceclip.published_case import CONFIG as SMALL
from tests.faceclip.published_case import PROMPTS, faces

# Of the original classes at the small size; see published_case.
GOLDEN = Path(__file__).parent / "data" / "published_outputs.safetensors"


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "face_clip_encoder.pt"
    torch.save(
        {name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        path,
    )
    return path


@pytest.fixture(scope="module")
def model(state) -> FaceCLIP:
    model = FaceCLIP(**SMALL)
    ours, _ = from_published(state, model, "state")
    model.load_state_dict(ours)
    scales = [p for name, p in model.named_parameters() if name.endswith(("face_scale", "text_scale"))]
    assert len(scales) == 10 and all(0.2 < p.abs().mean() < 0.8 for p in scales)  # at 1e-4 mistakes would not show
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("case", ["face", "zero_face"])
def test_outputs_of_the_published_class(model, case, with_gradient):
    """Every number of L's, of G's and of the concatenated tokens, and of the pooled state, for all prompts."""
    golden = load_file(GOLDEN)
    tokens, pooled = golden[f"tokens_{case}"], golden[f"pooled_{case}"]
    with torch.set_grad_enabled(with_gradient):  # other matrix products are taken with a gradient
        found = model.encode(PROMPTS, faces() if case == "face" else None)
    assert found.tokens.shape == (6, 77, 32 + 48) and found.pooled.shape == (6, 48)
    assert tokens.abs().max() > 2 and (tokens - found.text).abs().max() > 1  # the fusion does change the text
    torch.testing.assert_close(found.tokens[..., :32], tokens[..., :32], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.tokens[..., 32:], tokens[..., 32:], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pooled, pooled, atol=1e-4, rtol=0)
    assert (found.identity is not None) == (case == "face")
    if case == "zero_face":  # the same as the release's own way to it: a picture of zeros, prompts as they are
        explicit = model.encode(tokenize(PROMPTS[:5]), torch.zeros(5, 3, 130, 130))
        torch.testing.assert_close(explicit.tokens, tokens[:5], atol=1e-4, rtol=0)


@torch.no_grad()
def test_faces_of_448_pixels_are_resized_as_published(model):
    """The encoder sees a bilinear 112 px picture without antialiasing, whatever size it is given."""
    large = torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    # align_corners=False takes a fourth of the pixels: the means of the middle 2 × 2 of each 4 × 4.
    small = sum(large[:, :, i::4, j::4] for i in (1, 2) for j in (1, 2)) / 4
    found, expected = model.face_features(large), model.face_features(small)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.identity, expected.identity, atol=1e-5, rtol=0)


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
    # What no tensor of ours stands for was known, too, by name and shape: anything else is refused.
    state["face_clip_g.logit_scale"] = torch.zeros(2)
    torch.save(state, tmp_path / "full.pt")
    with pytest.raises(CheckpointError, match=r"1 misshapen: face_clip_g\.logit_scale"):
        load_faceclip(tmp_path / "full.pt")
    assert "face_clip_g.logit_scale" not in produced


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
    assert direct.dtype == direct.l.text.dtype == torch.bfloat16
    assert direct.l.identity_projection.weight.dtype == torch.float32
    assert all(torch.equal(t, converted.state_dict()[n]) for n, t in direct.state_dict().items())
    stored = [n for f in (tmp_path / "ours").glob("diffusion*.safetensors") for n in load_file(f)]
    assert sum(name.startswith("face_encoder.") for name in stored) * 2 == sum(
        ".face_encoder." in name for name in original
    )


@torch.no_grad()
def test_a_file_with_two_face_encoders_keeps_both(state, model, tmp_path):
    """Each branch sees the face through its own encoder, as its half of a model that shares that encoder does."""
    own = {name: tensor for name, tensor in state.items() if name.startswith("face_clip_g.face_encoder.")}
    own = {name: tensor * 1.1 if tensor.is_floating_point() else tensor for name, tensor in own.items()}
    torch.save(state | own, tmp_path / "two.pt")
    pair = load_faceclip(tmp_path / "two.pt", config=SMALL)
    by_g = FaceCLIP(**SMALL).eval()
    shared = state | own | {name.replace("_g.", "_l.", 1): tensor for name, tensor in own.items()}
    by_g.load_state_dict(from_published(shared, by_g, "state")[0])
    found, left, right = (m.encode(PROMPTS, faces()) for m in (pair, model, by_g))
    assert (left.tokens - right.tokens).abs().max() > 0.01
    torch.testing.assert_close(found.tokens[..., :32], left.tokens[..., :32], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.tokens[..., 32:], right.tokens[..., 32:], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.pooled, right.pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.identity, left.identity, atol=1e-6, rtol=0)
    empty = pair.encode(PROMPTS).tokens
    torch.testing.assert_close(empty[..., 32:], by_g.encode(PROMPTS).tokens[..., 32:], atol=1e-6, rtol=0)
    again = pair.encode(PROMPTS, face_features=pair.face_features(faces()))
    torch.testing.assert_close(again.tokens, found.tokens, atol=0, rtol=0)
    alone = pair.single("g").encode(PROMPTS, faces())
    torch.testing.assert_close(alone.tokens, right.tokens[..., 32:], atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=r"face_features .*\b1 .*\b2: "):
        pair.encode(PROMPTS, face_features=model.face_features(faces()))
    with pytest.raises(ConfigError, match=r"face_features .*\b2 .*\b1\b"):
        model.encode(PROMPTS, face_features=pair.face_features(faces()))

    convert(tmp_path / "two.pt", tmp_path / "ours", config=SMALL)
    export(tmp_path / "ours", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(tensor, (state | own)[name]) for name, tensor in back.items())
    for loaded in (load_faceclip(tmp_path / "ours"), FaceCLIP.from_pretrained(tmp_path / "ours").eval()):
        assert torch.equal(loaded.encode(PROMPTS, faces()).tokens, found.tokens)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_release(file, dtype):
    """Towers in 16 bits and fusion in 32 lie nearer to the numbers of 32 bits than everything in 16 bits."""
    wanted = load_faceclip(file, config=SMALL, dtype=torch.float32).encode(PROMPTS, faces()).tokens
    mode = load_faceclip(file, config=SMALL, dtype=dtype)
    coarse = load_faceclip(file, config=SMALL, dtype=dtype, fusion_dtype=dtype)
    assert mode.dtype == dtype and mode.l.fusion.layers[0].text.query.weight.dtype == torch.float32
    found, rough = mode.encode(PROMPTS, faces()).tokens, coarse.encode(PROMPTS, faces()).tokens
    assert found.dtype == torch.float32 and rough.dtype == dtype
    assert (found - wanted).norm() < 0.5 * (rough.float() - wanted).norm()
    some = torch.tensor([True, False] * (len(PROMPTS) // 2))
    assert torch.isfinite(mode.encode(PROMPTS, faces(), has_face=some).tokens).all()


def test_license_is_mentioned_and_printed(file, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(published, "CONFIG", SMALL)
    assert main(["convert", str(file), str(tmp_path / "ours")]) == 0
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
def test_full_size_file(shapes, tmp_path, capsys):
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
    script = (  # `ru_maxrss` would begin at the peak of the process that starts this one
        "import sys\nfrom pathlib import Path\nfrom faceclip.published import convert\n"
        "def peak():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))\n"
        "before = peak()\nconvert(Path(sys.argv[1]), Path(sys.argv[2]))\nprint(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "ours")],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    )
    ratio = int(done.stdout.split()[-1]) / size
    with capsys.disabled():
        print(f"\nconverting {size / 1e9:.2f} GB: peak memory {ratio:.3f} × the file")
    assert ratio <= 1.3
    export(tmp_path / "ours", tmp_path / "back.pt")
    first = torch.load(source, weights_only=True, mmap=True)
    second = torch.load(tmp_path / "back.pt", weights_only=True, mmap=True)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
