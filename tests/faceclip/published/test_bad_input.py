"""Wrong, damaged and dangerous files: a typed error that names the file and what is wrong with it."""

import io
import json
import pickle
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError, FaceClipError
from faceclip.published.__main__ import main
from faceclip.published.checkpoint import convert, export, from_published, load_faceclip, load_unet
from faceclip.towers.face import FaceFeatures
from faceclip.towers.inputs import check_features
from tests.faceclip.published_case import CONFIG as SMALL


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "face_clip_encoder.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("converted")
    convert(file, path, config=SMALL)
    return path


def error_of(source, **options) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_faceclip(source, **{"config": SMALL} | options)
    assert str(source) in str(caught.value)
    return caught.value


def refused(source, **options) -> str:
    return str(error_of(source, **options))


def changed(state: dict, tmp_path: Path, without: str = "", **more) -> Path:
    torch.save({name: tensor for name, tensor in state.items() if name != without} | more, tmp_path / "bad.pt")
    return tmp_path / "bad.pt"


def test_an_impossible_configuration_of_a_directory(converted, tmp_path):
    """torch's attention says that by an AssertionError."""
    shutil.copytree(converted, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config["text_l"]["heads"] = 5
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"/ours .*FaceCLIP .*embed_dim.*FaceCLIP\.save_pretrained"):
        FaceCLIP.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_problems_are_listed(state, tmp_path, prefix):
    bad = dict(state)
    bad.pop("face_clip_l.proj1.weight")
    bad |= {"face_clip_g.extra": torch.zeros(1), "face_clip_g.proj1.bias": torch.zeros(3)}
    bad["face_clip_l.fuser.enc_output.weight"] = torch.zeros(2, 2)  # of no use, but not of the release either
    torch.save({prefix + name: tensor for name, tensor in bad.items()}, tmp_path / "bad.pt")
    message = refused(tmp_path / "bad.pt")
    assert "1 missing: face_clip_l.proj1.weight" in message
    assert "1 unexpected: face_clip_g.extra" in message
    assert "2 misshapen: face_clip_g.proj1.bias is (3,), expected (48,)" in message
    assert "face_clip_l.fuser.enc_output.weight is (2, 2), expected (32, 32)" in message


def test_all_names_are_carried_by_the_error(state, tmp_path):
    lost = sorted(name for name in state if name.startswith("face_clip_l.resblocks.") or ".text_layers." in name)
    wrong = "face_clip_g.proj1.bias"
    bad = {name: tensor for name, tensor in state.items() if name not in lost} | {wrong: torch.zeros(3)}
    more = {f"face_clip_l.more.{number:02d}": torch.zeros(1) for number in range(11)}
    error = error_of(changed(bad | more, tmp_path))
    assert len(lost) > 8 and f"{len(lost)} missing: {', '.join(lost[:8])} …; 11 unexpected" in str(error)
    assert error.missing == tuple(lost) and error.unexpected == tuple(more)
    assert error.misshapen == (wrong,) and error.mistyped == ()
    again = pickle.loads(pickle.dumps(error))  # as workers hand errors on
    assert str(again) == str(error) and again.missing == error.missing
    assert CheckpointError("x").missing == ()


def test_old_files_cut_anywhere(state, tmp_path):
    """The unpickler fails in another way at every place."""
    torch.save({"face_clip_l.proj1.bias": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "old.pt").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            load_faceclip(tmp_path / "cut.pt", config=SMALL)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_floating_point(state, converted, tmp_path, dtype):
    name = "face_clip_l.proj1.weight"
    bad = changed(state, tmp_path, **{name: torch.zeros(state[name].shape, dtype=dtype)})
    error = error_of(bad)
    assert f"1 mistyped: {name} is {dtype}, expected floating point" in str(error) and error.mistyped == (name,)
    with pytest.raises(CheckpointError, match=r"bad\.pt .*1 mistyped: face_clip_l\.proj1\.weight "):
        convert(bad, tmp_path / "ours", config=SMALL)
    assert not (tmp_path / "ours").exists()
    directory = tmp_path / "directory"
    shutil.copytree(converted, directory)
    weights = directory / "diffusion_pytorch_model.safetensors"
    save_file({n: t.to(dtype) if n.endswith("proj.weight") else t for n, t in load_file(weights).items()}, weights)
    assert "mistyped: face_encoder.blocks.0.attn.proj.weight" in refused(directory, config=None)


@pytest.mark.parametrize("name", ["face_clip_l.proj1.bias", "face_clip_g.logit_scale"])
def test_weights_that_are_not_finite_are_named(state, tmp_path, name):
    text = refused(changed(state, tmp_path, **{name: torch.full_like(state[name], torch.nan)}))
    assert name in text and "NaN" in text


def test_counters_may_be_integers_or_not(state, tmp_path):
    """The batch norms' counters, that is: a file cast as a whole to 16 bits has them so."""
    counters = {name for name, tensor in state.items() if not tensor.is_floating_point()}
    assert counters and all(name.endswith("num_batches_tracked") for name in counters)
    changes = {name: state[name].half() for name in counters}
    assert load_faceclip(changed(state, tmp_path, **changes), config=SMALL).dtype == torch.float32
    changes = {name: state[name].to(torch.complex64) for name in counters}
    assert error_of(changed(state, tmp_path, **changes)).mistyped == tuple(sorted(counters))


def test_unused_tensors_are_all_there_or_none(state, tmp_path):
    convert(changed(state, tmp_path), tmp_path / "full", config=SMALL)
    unused = load_file(tmp_path / "full" / "published_unused.safetensors").keys()
    of_l = {name for name in unused if name.startswith("face_clip_l.")}
    assert len(of_l) == len(unused - of_l) > 20
    for number, gone in enumerate((unused, of_l)):
        kept = {name: tensor for name, tensor in state.items() if name not in gone}
        convert(changed(kept, tmp_path), tmp_path / str(number), config=SMALL)
        export(tmp_path / str(number), tmp_path / "back.pt")
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert back.keys() == kept.keys() and all(torch.equal(back[name], kept[name]) for name in kept)
    for lost in sorted(of_l)[:: len(of_l) - 1]:
        error = error_of(changed(state, tmp_path, without=lost))
        assert error.missing == (lost,) and "holds all of a branch or nothing" in str(error)
        kept = {name: tensor for name, tensor in state.items() if name not in of_l} | {lost: state[lost]}
        assert error_of(changed(kept, tmp_path)).missing == tuple(sorted(of_l - {lost}))


def test_another_model(tmp_path):
    unet = {"conv_in.weight": torch.zeros(4, 4, 3, 3), "conv_in.bias": torch.zeros(4)}
    message = refused(changed(unet, tmp_path))
    assert "not a FaceCLIP checkpoint" in message and "2 unexpected: conv_in.bias, conv_in.weight" in message


def test_another_preset(file, converted):
    larger = SMALL | {"face": SMALL["face"] | {"width": 64}}
    assert "misshapen" in refused(file, config=larger)
    assert "misshapen" in refused(file, config=None)
    assert "another configuration: face is" in refused(converted, config=larger)
    with pytest.raises(ConfigError, match=r"^config .*'colour'"):
        load_faceclip(file, config=SMALL | {"colour": 3})


def test_tensors_twice(state, tmp_path):
    name = "face_clip_l.proj1.bias"
    assert "twice" in refused(changed(state, tmp_path, **{f"model.{name}": state[name]}))


def test_face_encoders_that_differ_do_not_fit_a_shared_one(state):
    name = "face_clip_g.face_encoder.norm.bias"
    for other in (state[name] + 1, state[name].double()):  # equal numbers of another type are not the same file
        with pytest.raises(CheckpointError, match=rf"face_clip_l.face_encoder.norm.bias and {name} differ") as caught:
            from_published(state | {name: other}, FaceCLIP(**SMALL), "state")
        assert "give one of shared_face=False" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("face", "heads", 3),
        ("text_l", "heads", 5),
        ("text_g", "heads", 7),
        ("face", "heads", 0),
        ("face", "width", -4),
        ("face", "image_size", 4),
        ("fusion", "attention_width", 33),
        ("face", "depth", "x"),
    ],
)
def test_settings_that_cannot_be(file, converted, tmp_path, part, name, value):
    config = SMALL | {part: SMALL[part] | {name: value}}
    with pytest.raises(ConfigError, match=r"^config does not describe a FaceCLIP: "):
        load_faceclip(file, config=config)
    shutil.copytree(converted, tmp_path / "ours")
    found = json.loads((converted / "config.json").read_text())
    found[part][name] = value
    (tmp_path / "ours" / "config.json").write_text(json.dumps(found))
    assert "config.json is of no use" in refused(tmp_path / "ours", config=None)


@pytest.mark.parametrize("given", [None, 3, b"face_clip_encoder.pt", ["ByteDance/FaceCLIP"]])
def test_no_path(given):
    for load in (load_faceclip, load_unet):
        with pytest.raises(
            ConfigError,
            match=rf"^path_or_hub_id .*\b{type(given).__name__}: .*ByteDance/FaceCLIP",
        ):
            load(given)


def with_a_flipped_bit(file: Path, tensor: torch.Tensor, target: Path) -> Path:
    data = bytearray(file.read_bytes())
    place = data.find(tensor.numpy().tobytes())
    assert place > 0
    data[place + tensor.nbytes // 2] ^= 1
    target.write_bytes(data)
    return target


def test_damage_inside_a_tensor(file, state, tmp_path):
    """Reading by memory mapping does not notice it, as the documentation says; converting does."""
    bad = with_a_flipped_bit(file, state["face_clip_l.proj1.weight"], tmp_path / "bad.pt")
    loaded = load_faceclip(bad, config=SMALL).l.identity_projection.weight
    assert int((loaded != state["face_clip_l.proj1.weight"]).sum()) == 1
    with pytest.raises(CheckpointError, match=r"/bad\.pt .*/data/\d+ "):
        convert(bad, tmp_path / "ours", config=SMALL)
    assert not (tmp_path / "ours").exists()


def test_files_without_checksums(state, tmp_path, caplog):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "zip.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, count in (("zip", 1), ("old", 0)):
        caplog.clear()
        convert(tmp_path / f"{name}.pt", tmp_path / name, config=SMALL)
        assert caplog.text.count("without checksums") == count
        assert (tmp_path / name / "config.json").is_file()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_file(file, tmp_path, kept):
    data = file.read_bytes()
    (tmp_path / "short.pt").write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    assert "truncated" in refused(tmp_path / "short.pt")


def test_truncated_file_of_the_old_format(state, tmp_path):
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(buffer.getvalue())
    assert load_faceclip(tmp_path / "old.pt", config=SMALL).dtype == torch.float32
    (tmp_path / "short.pt").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert "truncated" in refused(tmp_path / "short.pt")


class _Code:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickle_with_code(tmp_path, capfd, write):
    write({"a": _Code()}, tmp_path / "code.pt")
    assert "weights_only" in refused(tmp_path / "code.pt")
    assert "never run" not in capfd.readouterr().out


def test_no_state_dictionary(state, tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "holds a list" in refused(tmp_path / "list.pt")
    message = refused(changed({}, tmp_path, state_dict=state, step=3))
    assert "state_dict, step are no tensors" in message
    assert "it is empty" in refused(changed({}, tmp_path))
    torch.save(state | {7: torch.zeros(1), ("a", "b"): torch.zeros(1)}, tmp_path / "names.pt")
    assert "names tensors by what is no text: 7, ('a', 'b')" in refused(tmp_path / "names.pt")
    for odd in (torch.zeros(3, 3).to_sparse(), torch.zeros(3, 3, device="meta")):
        assert "odd are no tensors" in refused(changed(state, tmp_path, odd=odd))


def test_directories_and_files_in_the_wrong_place(file, converted, tmp_path):
    assert "is neither a file, nor a directory, nor a hub id" in refused(tmp_path / "no.pt")
    assert "without config.json" in refused(tmp_path)
    for call, message in (
        (lambda: convert(tmp_path, tmp_path / "out", config=SMALL), rf"^{tmp_path} .*\.pt\b"),
        (lambda: convert(tmp_path / "no.pt", tmp_path / "out", config=SMALL), r"/no\.pt "),
        (lambda: convert(file, converted, config=SMALL), f"^{converted} "),
        (lambda: export(file, tmp_path / "out.pt"), rf"^{file} .*`convert`"),
        (lambda: export(tmp_path, tmp_path / "out.pt"), rf"^{tmp_path} .*published_unused\.safetensors.*`convert`"),
        (lambda: export(converted, tmp_path), f"^{tmp_path} "),
    ):
        with pytest.raises(CheckpointError, match=message):
            call()
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.pt").exists()


def test_damaged_directory(converted, tmp_path):
    for name, change, message in (
        ("diffusion_pytorch_model.safetensors", lambda data: data[: len(data) // 2], "truncated"),
        ("config.json", lambda data: data[: len(data) // 2], "config.json"),
        ("config.json", lambda data: b"[1]", "holds a list"),
        ("config.json", lambda data: data.replace(b"FaceCLIP", b"UNet"), "holds a UNet, not a FaceCLIP"),
    ):
        copy = tmp_path / f"{name}-{message[-8:]}"
        copy.mkdir()
        for part in converted.iterdir():
            data = part.read_bytes()
            (copy / part.name).write_bytes(change(data) if part.name == name else data)
        assert message in refused(copy, config=None)


def test_directory_with_weights_of_another_model(tmp_path):
    FaceCLIP(**SMALL).save_pretrained(tmp_path)
    other = SMALL | {"fusion": SMALL["fusion"] | {"layers": 2}}
    FaceCLIP(**other).save_config(tmp_path)
    assert "unexpected" in refused(tmp_path, config=None)


def test_export_of_an_incomplete_directory(file, tmp_path):
    ours, target = tmp_path / "ours", tmp_path / "out.pt"
    convert(file, ours, config=SMALL, shard_size="100KB")
    shards = sorted(ours.glob("diffusion_pytorch_model-*.safetensors"))
    assert len(shards) > 3
    for number, lost in enumerate(shards):
        copy = tmp_path / str(number)
        shutil.copytree(ours, copy)
        (copy / lost.name).unlink()
        with pytest.raises(CheckpointError, match=rf"{copy} .*FaceCLIP .* missing: "):
            export(copy, target)
    unused = load_file(ours / "published_unused.safetensors")
    save_file(unused | {"face_clip_l.more": torch.zeros(1)}, ours / "published_unused.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unexpected: face_clip_l\.more"):
        export(ours, target)
    assert not target.exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files that this process writes cannot grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_targets_that_cannot_be_written(file, converted, tmp_path):
    target = tmp_path / "out.pt"
    target.write_text("old")
    with largest_file(1 << 16), pytest.raises(CheckpointError, match=r"/out\.pt "):
        export(converted, target)
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    with largest_file(1 << 16), pytest.raises(CheckpointError, match="/ours "):
        convert(file, tmp_path / "ours", config=SMALL)
    assert not (tmp_path / "ours" / "config.json").exists()  # what is there is not taken for a whole one
    for call in (export, lambda _, path: convert(file, path, config=SMALL)):
        with pytest.raises(CheckpointError, match="/below "):
            call(converted, target / "below")
    with pytest.raises(CheckpointError, match=r"none/out\.pt "):
        export(converted, tmp_path / "none" / "out.pt")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["tokens", "identity"])
def test_features_that_are_not_finite(part, value):
    given = FaceFeatures(tokens=torch.zeros(2, 144, 32), identity=torch.zeros(2, 16))
    assert check_features(given, 144, 32, 16) is given
    getattr(given, part)[1, 3] = value
    with pytest.raises(ConfigError, match=rf"face_features\.{part} .*NaN"):
        check_features(given, 144, 32, 16)
    with torch.device("meta"):  # has no numbers to read
        check_features(FaceFeatures(tokens=torch.zeros(2, 144, 32), identity=torch.zeros(2, 16)), 144, 32, 16)


def test_hub_id_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refused("nobody/nothing")
    assert "could not be downloaded" in message and "model/face_clip_encoder.pt" in message


def test_command_names_the_file(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "no.pt"), str(tmp_path / "out")]) == 2
    assert "/no.pt " in capsys.readouterr().err
    assert issubclass(CheckpointError, FaceClipError)
