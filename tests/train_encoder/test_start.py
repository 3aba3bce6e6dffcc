"""Stage 1 on an encoder that exists: the published layout or an export, trained further; states of the text towers
read from disk."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError, DataError
from faceclip.published.checkpoint import LICENSE, convert
from faceclip.towers.face import FaceFeatures
from faceclip.towers.image import ImageTower
from faceclip.training import parse_config
from tests.faceclip.published_case import CONFIG, published_state
from tests.stages import SMALL_ENCODER, same_weights, save_towers
from train_encoder import features
from train_encoder.__main__ import main, train
from train_encoder.config import PRESETS, EncoderConfig, SamplingConfig
from train_encoder.features import load_features
from train_encoder.queries import QuerySource
from train_encoder.split_features import SplitFeatures
from train_encoder.start import load_start
from train_encoder.text_states import BOTH, FACE_ONLY, TEXT_ONLY, QueryRows, TextStates, text_states_of

FROZEN = ["train_identity=false", "cached_text=true"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def basic(tiny_dataset: Path, root: Path) -> list[str]:
    return [
        f"data={tiny_dataset}",
        f"cache={root / 'cache'}",
        "heads.hidden=32",
        "validation_queries=8",
        "trainer.batch_size=3",
        "trainer.num_threads=1",
        "trainer.validate_every=0",
        "trainer.best_metric=null",
        "trainer.warmup_steps=0",
        "trainer.schedule=constant",
        "trainer.steps=2",
        "trainer.device=cpu",
        "sampling.text_only=0.3",
        "sampling.face_only=0.3",
    ]


@pytest.fixture(scope="module")
def published(root: Path) -> Path:
    """A small converted directory."""
    torch.save(published_state(), root / "face_clip_encoder.pt")
    convert(root / "face_clip_encoder.pt", root / "published", config=CONFIG)
    return root / "published"


@pytest.fixture(scope="module")
def further(published: Path, basic: list[str], root: Path) -> list[str]:
    """Words that train the converted encoder."""
    torch.manual_seed(2)
    ImageTower(image_size=32, patch_size=8, width=32, layers=2, heads=2, embed_dim=48).save_pretrained(root / "image")
    return [*basic, f"init={published}", f"towers.image={root / 'image'}"]


@pytest.fixture(scope="module")
def export(basic: list[str], root: Path) -> Path:
    """What a training from new left."""
    words = [*basic, *save_towers(root / "towers"), *SMALL_ENCODER, f"out={root / 'run'}"]
    assert main(words) == 0
    return root / "run" / "export"


def config_of(words: list[str]) -> EncoderConfig:
    return parse_config(EncoderConfig, words, presets=PRESETS)


def changed(before: FaceCLIP, after: FaceCLIP) -> set[str]:
    """Parts of the model, by the first names of their tensors, that differ between two models."""
    theirs = after.state_dict()
    names = {name for name, value in before.state_dict().items() if not torch.equal(value.float(), theirs[name])}
    return {".".join(name.split(".")[: 2 if name[1] == "." else 1]) for name in names}


TRAINED = {"face_projection", "face_position_projection", "text_projection", "text_position_projection", "fusion"}


@pytest.mark.parametrize("extra", [["train_identity=true"], ["train_identity=false"], FROZEN])
def test_the_published_layout_is_trained_further(further, published, tmp_path, extra):
    result = train(config_of([*further, *extra, f"out={tmp_path / 'run'}"]))
    assert set(result.metrics) >= {"composed_joint", "face_joint"}
    model, before = FaceCLIP.from_pretrained(result.export), FaceCLIP.from_pretrained(published)
    assert before.heads is None and model.heads is not None and model.config.joint["hidden"] == 32
    trained = TRAINED | ({"identity_projection"} if "train_identity=true" in extra else set())
    assert changed(before, model) == {f"{branch}.{part}" for branch in "lg" for part in trained}
    # Its licence goes along.
    assert model.config.licence == before.config.licence == LICENSE


def test_an_export_is_trained_further(export, basic, tmp_path, capsys):
    words = [*basic, f"init={export}", f"out={tmp_path / 'run'}"]
    result = train(config_of(words))
    model, before = FaceCLIP.from_pretrained(result.export), FaceCLIP.from_pretrained(export)
    assert "heads" in changed(before, model) and before.config.licence is None
    assert same_weights(export / "image_tower", result.export / "image_tower")
    # Heads as it has them may be named: a preset does.
    load_start(config_of([*words, "heads.heads=4"]))

    # The same encoder at another place is the same run, another one at the same place is not.
    shutil.copytree(export, tmp_path / "copy")
    further = [*basic, f"init={tmp_path / 'copy'}", f"out={tmp_path / 'run'}", "trainer.steps=3"]
    train(config_of(further))
    model.save_pretrained(tmp_path / "copy")
    assert main([*further, "trainer.steps=4"]) == 2
    assert "cannot resume exactly (init was " in capsys.readouterr().err


def test_a_run_on_cached_states_resumes_exactly(further, tmp_path):
    words = [*further, *FROZEN, "trainer.save_every=1"]
    train(config_of([*words, "trainer.steps=4", f"out={tmp_path / 'whole'}"]))
    train(config_of([*words, "trainer.steps=2", f"out={tmp_path / 'halves'}"]))
    train(config_of([*words, "trainer.steps=4", f"out={tmp_path / 'halves'}"]))
    assert same_weights(tmp_path / "whole" / "export", tmp_path / "halves" / "export")


def states_of(config: EncoderConfig, model: FaceCLIP, found: SplitFeatures) -> TextStates:
    return text_states_of(model, found, config.sampling, config.data, config.cache_path)


@pytest.fixture(scope="module")
def prepared(further) -> tuple[EncoderConfig, FaceCLIP, SplitFeatures, TextStates]:
    config = config_of([*further, *FROZEN])
    start = load_start(config)
    found = load_features(config.data, "train", start.towers, config.cache_path)
    return config, start.model(config), found, states_of(config, start.model(config), found)


@torch.no_grad()
def test_states_are_those_of_the_queries(prepared):
    config, model, found, states = prepared
    source = QuerySource(found, config.sampling, states)
    modes = set()
    for person in range(len(source)):
        sample = {
            name: torch.as_tensor(value) for name, value in source.get(person, np.random.default_rng(person)).items()
        }
        modes |= set(sample["mode"].tolist())
        face = {
            "face_features": FaceFeatures(tokens=sample["face_tokens"], identity=sample["face_identity"]),
            "has_face": sample["mode"] != TEXT_ONLY,
        }
        direct = model.encode(sample["tokens"], **face)
        read = model.encode(sample["tokens"], **face, text_states=sample["text_states"])
        # float16 on disk
        torch.testing.assert_close(sample["text_states"].float(), direct.text, atol=4e-3, rtol=2e-3)
        torch.testing.assert_close(read.tokens, direct.tokens, atol=2e-2, rtol=1e-2)
    assert modes == {BOTH, FACE_ONLY, TEXT_ONLY}


def test_every_caption_has_a_reference_of_the_same_person(prepared):
    _, _, found, _ = prepared
    identity = np.asarray(found.portraits.identity)

    def references(share: float, **changes: object) -> tuple[np.ndarray, np.ndarray]:
        rows = QueryRows(replace(found, **changes), SamplingConfig(same_picture=share))
        return rows.picture, rows.reference

    picture, other = references(0.0)
    assert (identity[picture] == identity[other]).all() and (picture != other).all()
    assert len(set(zip(picture.tolist(), other.tolist(), strict=True))) > len(identity)  # drawn for each caption
    picture, mixed = references(0.3)
    assert 0.1 < (picture == mixed).mean() < 0.5 and (identity[picture] == identity[mixed]).all()
    picture, own = references(0.0, single=True)
    assert (picture == own).all()


def test_identities_of_other_crops_have_other_states(prepared):
    config, model, found, states = prepared
    turned = replace(found, identity=np.asarray(found.identity)[::-1].copy(), faces="other crops")
    other = states_of(config, model, turned)
    assert np.abs(other.states[:9].astype(np.float32) - states.states[:9]).max() > 0.05


def test_a_stopped_build_resumes(prepared, tmp_path, monkeypatch):
    config, model, found, whole = prepared
    config = replace(config, cache=str(tmp_path), data=replace(config.data, shard_rows=8))
    text_states, calls = FaceCLIP.text_states, []

    def stopping(model: FaceCLIP, tokens: torch.Tensor, *arguments, **options):
        calls.append(tokens)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return text_states(model, tokens, *arguments, **options)

    monkeypatch.setattr(FaceCLIP, "text_states", stopping)
    with pytest.raises(KeyboardInterrupt):
        states_of(config, model, found)
    again = states_of(config, model, found)
    assert torch.equal(calls[3], calls[2])  # the shard that was stopped is the first to be built again
    assert sum(len(tokens) for tokens in calls) == len(whole.rows) + len(calls[2])
    assert len(again.rows) == len(again.states) == len(whole.states)
    np.testing.assert_allclose(again.states[:], whole.states[:], atol=4e-3)  # other batches round otherwise

    (shard,) = tmp_path.glob("train-states-*/00001.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DataError, match=r"/00001\.safetensors "):
        states_of(config, model, found)


def test_the_features_command_builds_the_states(further, tmp_path, capsys):
    words = [*further, *FROZEN, f"cache={tmp_path}"]
    assert features.main(words) == 0
    assert re.search(r"train: states of the text towers \(\d+, 77, 80\)", capsys.readouterr().out)
    assert len(list(tmp_path.glob("train-states-*/manifest.json"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_identity=false"], r"^train_identity=false: "),
        (["init={published}"], r"\b48 .*towers\.image=tiny/image_tower .*\b128\b"),
        (["init={published}", "towers.text_l=x", "fusion.layers=9"], r"^init=.*\btowers\.text_l, fusion: "),
        (["init={published}", "heads.heads=7"], r"^heads\.heads: "),
        (["init={export}", "heads.heads=2"], "^init=.* heads: "),
        (["init={export}", "towers.image=x"], r"^init=.* towers\.image: "),
        (["init=/no/where"], "^init=/no/where .*RUN/export"),
        (["init=runs/encodr"], "runs/encodr "),  # the hub is not asked
    ],
)
def test_what_cannot_begin_is_named(basic, published, export, words, message):
    words = [word.format(published=published, export=export) for word in words]
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_start(config_of([*basic, *words]))


def test_states_of_trained_projections_are_not_cached(basic):
    with pytest.raises(ConfigError, match=r"^cached_text: .*train_identity"):
        config_of([*basic, "cached_text=true"])


def test_a_face_encoder_for_each_branch_is_refused(basic, root):
    FaceCLIP(**CONFIG, shared_face=False).save_pretrained(root / "two")
    with pytest.raises(ConfigError, match=r"^init=.*shared_face=true"):
        load_start(config_of([*basic, f"init={root / 'two'}"]))
