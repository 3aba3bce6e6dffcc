"""The tiny base's commands at toy size: what they learn from, what they write, and that sampling is repeatable."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from faceclip.data.arrays import load_arrays
from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.folders import verify
from faceclip.towers.text import TextTower, tokenize
from faceclip.towers.text_pair import TextPair
from faceclip.training import StepContext, parse_config
from faceclip.training.checkpoints import load_checkpoint, newest_checkpoint
from makeup_plugin.losses import attribute_loss
from makeup_plugin.plain_sampling import sample_portraits
from train_generator.towers import base, vae
from train_generator.towers.latent_source import tokenized_captions
from train_generator.towers.latents import cached_latents

TRAINER = ["trainer.batch_size=4", "trainer.warmup_steps=1", "trainer.log_every=0", "trainer.save_every=0"]


def context_of(step: int) -> StepContext:
    generator = torch.Generator().manual_seed(0)
    return StepContext(step=step, steps=10, micro_step=0, device=torch.device("cpu"), generator=generator)


@pytest.fixture(scope="module")
def vae_export(tiny_dataset: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vae")
    words = [f"data={tiny_dataset}", f"out={out}", "size=32", "trainer.steps=6", *TRAINER]
    assert vae.main([*words, "model.widths=[8, 8, 16]", "model.groups=4", "trainer.validate_every=0"]) == 0
    return out / "export"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    for name, width in (("l", 16), ("g", 24)):
        tower = TextTower(width=width, layers=1, heads=2, embed_dim=8, vocabulary=list(range(256, 4000)))
        tower.save_pretrained(folder / name)
    return folder / "l", folder / "g"


@pytest.fixture(scope="module")
def base_words(tiny_dataset: Path, vae_export: Path, text, tmp_path_factory) -> list[str]:
    """Arguments of a small base without its run folder."""
    words = [f"data={tiny_dataset}", "size=32", "trainer.steps=3", *TRAINER]
    words += [f"vae={vae_export}", f"text_l={text[0]}", f"text_g={text[1]}"]
    words += ["model.widths=[8, 16]", "model.head_dim=8", "model.groups=4"]
    return words


@pytest.fixture(scope="module")
def base_export(base_words, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base")
    assert base.main([*base_words, f"out={out}"]) == 0
    return out / "export"


def test_autoencoder_export_loads_and_tells_its_latent_scale(vae_export, tiny_dataset):
    model = AutoencoderKL.from_pretrained(vae_export)
    arrays = load_arrays(tiny_dataset, "train", size=32)
    latents = vae.encode_mean(model, arrays.images) * model.config.scaling_factor
    assert latents.shape == (32, 8, 8, 8)
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
    assert "PSNR" in (vae_export / "README.md").read_text()
    assert verify(vae_export) is None
    stored = load_file(vae_export / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert "_name_or_path" not in json.loads((vae_export / "config.json").read_text())


def test_autoencoder_learns_from_windows_that_the_recognizer_compares(tiny_dataset, tmp_path):
    words = [f"data={tiny_dataset}", f"out={tmp_path}", "size=64", "window=32", "tokens=0.1", "identity=0.1"]
    words += ["model.widths=[8, 8, 16, 16]", "model.groups=4", "trainer.steps=2", *TRAINER, "trainer.log_every=1"]
    assert vae.main(words) == 0
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["tokens"] < 4 and 0 < line["identity"] < 2 for line in logged if line["kind"] == "train")
    assert "recognizer" in load_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))[1]["run"]


def test_autoencoder_starts_from_an_export_of_its_own_sizes(vae_export, tiny_dataset, tmp_path):
    words = [f"data={tiny_dataset}", "size=32", "trainer.steps=1", *TRAINER, f"init={vae_export}"]
    words += ["model.widths=[8, 8, 16]", "model.groups=4", "trainer.learning_rate=1e-12", "half=false"]
    assert vae.main([*words, f"out={tmp_path / 'on'}"]) == 0
    weights = [AutoencoderKL.from_pretrained(one).state_dict() for one in (vae_export, tmp_path / "on" / "export")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-7)
    config = parse_config(vae.VaeConfig, [*words[:2], f"init={vae_export}", "model.widths=[8, 8, 8]", "model.groups=4"])
    with pytest.raises(ConfigError, match=r"^init: "):
        vae.build(config)


def test_psnr_by_hand(vae_export):
    model = AutoencoderKL.from_pretrained(vae_export)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 127.5 - 1
        restored = model(pixels).sample.clamp(-1, 1)
    error = (((restored + 1) * 127.5).round() - torch.from_numpy(images.transpose(0, 3, 1, 2))).square()
    expected = 10 * torch.log10(255**2 / error.mean(dim=(1, 2, 3)))
    np.testing.assert_allclose(vae.psnr(model, images), expected, rtol=1e-4)


def test_latents_are_cached_by_content_and_weights(vae_export, tiny_dataset, tmp_path):
    arrays = load_arrays(tiny_dataset, "train", size=32)
    first = cached_latents(vae_export, arrays)
    shards = {path: path.stat().st_mtime_ns for path in arrays.cache.glob("latents-*/*.safetensors")}
    cached_latents(vae_export, arrays)
    assert {path: path.stat().st_mtime_ns for path in arrays.cache.glob("latents-*/*.safetensors")} == shards
    other = AutoencoderKL.from_pretrained(vae_export)
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(2)
    other.save_pretrained(tmp_path)
    assert not np.array_equal(cached_latents(tmp_path, arrays), first)
    scaled = AutoencoderKL.from_pretrained(vae_export)
    scaled.register_to_config(scaling_factor=2 * scaled.config.scaling_factor)
    scaled.save_pretrained(tmp_path / "scaled")
    np.testing.assert_allclose(cached_latents(tmp_path / "scaled", arrays), 2 * first[:], rtol=1e-5)
    with pytest.raises(CheckpointError, match="/nowhere "):
        cached_latents(tmp_path / "nowhere", arrays)


def test_captions_are_tokenized_in_their_places(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train", size=32)
    tokens = tokenized_captions(arrays)
    assert tokens.shape == (32, 4, 77)
    np.testing.assert_array_equal(tokens[5, 3], tokenize(arrays.captions[5][3].text)[0].numpy())


def test_dropped_texts_are_the_empty_one(vae_export, tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train", size=32)
    source = base.LatentSource(arrays, vae_export, text_dropout=1.0)
    batch = source.get_batch([0, 1], [np.random.default_rng(0), np.random.default_rng(1)])
    assert not batch["named"].any()
    np.testing.assert_array_equal(batch["tokens"].numpy(), tokenize(["", ""]).numpy())
    np.testing.assert_array_equal(batch["latents"].numpy(), source.latents[:2])


def test_base_export_is_an_sdxl_base(base_export, vae_export):
    unet = UNet2DConditionModel.from_pretrained(base_export / "unet")
    assert unet.config.addition_embed_type == "text_time" and unet.config.cross_attention_dim == 40
    scheduler = DDIMScheduler.from_pretrained(base_export / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)  # starts from pure noise
    vae, copied = (AutoencoderKL.from_pretrained(one).state_dict() for one in (vae_export, base_export / "vae"))
    assert all(torch.equal(copied[name], value) for name, value in vae.items())
    metrics = json.loads((base_export / "unet" / "metrics.json").read_text())["metrics"]
    assert metrics["velocity error"]["count"] == 8 and metrics["velocity error"]["value"] > 0


def test_alignment_trains_beside_the_base_until_its_share_of_the_steps(base_words, base_export, tmp_path):
    """The export is a plain UNet; with a weight of nothing the base is, to the bit, the one without."""
    words = [*base_words, "alignment=0.5", "trainer.log_every=1"]
    total = ("noise", "read")  # while the classifier warms up, its other losses count for next to nothing
    assert base.main([*words, f"out={tmp_path / 'on'}", "alignment_until=0.5"]) == 0
    logged = [json.loads(line) for line in (tmp_path / "on" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in logged if line["kind"] == "train"]
    assert [line["loss"] > sum(line[one] for one in total) + 0.3 for line in steps] == [True, True, False]
    assert all(0 < line["aligned"] <= 2 for line in steps)
    assert base.main([*words, f"out={tmp_path / 'off'}", "alignment_until=0"]) == 0
    exports = [
        load_file(one / "unet" / "diffusion_pytorch_model.safetensors")
        for one in (base_export, tmp_path / "off" / "export", tmp_path / "on" / "export")
    ]
    assert all(exports[0].keys() == other.keys() for other in exports[1:])
    assert all(torch.equal(value, exports[1][name]) for name, value in exports[0].items())
    assert any(not torch.equal(value, exports[2][name]) for name, value in exports[0].items())


def test_a_finished_base_is_measured_anew(base_words, base_export, tmp_path):
    """The card, which lies beside the UNet, gets the new figure; other figures of it stay."""
    export = tmp_path / "export"
    shutil.copytree(base_export, export)
    file = export / "unet" / "metrics.json"
    before = json.loads(file.read_text())
    true = before["metrics"]["velocity error"]
    changed = {"velocity error": {**true, "value": 9.0}, "smiles": {**true, "value": 0.25}}
    file.write_text(json.dumps({**before, "metrics": changed}))
    assert base.main(["--measure", str(export), *base_words]) == 0
    after = json.loads(file.read_text())
    assert after == {**before, "metrics": {"velocity error": true, "smiles": changed["smiles"]}}
    assert (export / "unet" / "README.md").read_text().count("| smiles | 0.250 |") == 1


def test_training_starts_from_an_export(base_words, base_export, tmp_path, capsys):
    base.main(
        [
            *base_words,
            f"out={tmp_path / 'still'}",
            f"init={base_export}",
            "trainer.learning_rate=1e-12",
            "trainer.weight_decay=0",
        ]
    )
    found = UNet2DConditionModel.from_pretrained(tmp_path / "still" / "export" / "unet").state_dict()
    expected = UNet2DConditionModel.from_pretrained(base_export / "unet").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "init=DIR" in (tmp_path / "still" / "export" / "unet" / "README.md").read_text()
    assert base.main([*base_words, f"out={tmp_path / 'wide'}", f"init={base_export}", "model.widths=[8, 24]"]) == 2
    assert re.search(r"(?m)^error: init: the network in .* has other sizes", capsys.readouterr().err)


def reversed_people(dataset: Path, folder: Path) -> Path:
    """A copy of a data set whose training portraits come in the opposite order."""
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns(".*"))
    facts = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(facts | {"files": []}))
    for shard in (folder / "data").glob("train-*.parquet"):
        table = pq.read_table(shard)
        pq.write_table(table.take(list(range(len(table)))[::-1]), shard)
    return folder


def changed(model: torch.nn.Module, folder: Path) -> Path:
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(folder)
    return folder


def test_a_base_on_other_parts_is_not_resumed(base_words, text, vae_export, tiny_dataset, tmp_path, capsys):
    words = [*base_words, f"out={tmp_path / 'run'}"]
    assert base.main(words) == 0, capsys.readouterr()
    other = {
        "data": reversed_people(tiny_dataset, tmp_path / "data"),
        "vae": changed(AutoencoderKL.from_pretrained(vae_export), tmp_path / "vae"),
        "text_l": changed(TextTower.from_pretrained(text[0]), tmp_path / "l"),
        "text_g": changed(TextTower.from_pretrained(text[1]), tmp_path / "g"),
    }
    for name, place in other.items():
        assert base.main([*words, f"{name}={place}"]) == 2
        assert re.search(rf"cannot resume exactly \({name} was \w+, now \w+\)", capsys.readouterr().err)


def test_classifier_reads_the_estimated_latents(base_words):
    config = parse_config(base.BaseConfig, [*base_words, "attribute_weight=0.5"])
    task, source = base.build(config)
    batch = source.get_batch([0, 1, 2], [np.random.default_rng(row) for row in range(3)])
    assert batch["named"].any()
    timesteps, noise = torch.tensor([100, 500, 990]), torch.randn(batch["latents"].shape)
    noisy = task.scheduler.add_noise(batch["latents"], noise, timesteps)
    velocity = task.scheduler.get_velocity(batch["latents"], noise, timesteps)
    drawn, distance = task.drawn_losses(velocity, noisy, timesteps, batch, context_of(0))
    # The true velocity implies the true latents, noised again between half of their timestep and all of it.
    generator = torch.Generator().manual_seed(0)
    lower = (timesteps * (0.5 + 0.5 * torch.rand(3, generator=generator))).long()
    again = task.scheduler.add_noise(batch["latents"], torch.randn(noise.shape, generator=generator), lower)
    classes = batch["classes"].masked_fill(~batch["named"], -100)
    expected = attribute_loss(task.modules["classifier"](again, lower).logits, classes)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)
    assert 0 <= distance < 1e-6
    _, other = task.drawn_losses(-velocity, noisy, timesteps, batch, context_of(0))
    assert other > 0.01


def test_losses_of_the_classifier_grow_with_the_warm_up(base_words):
    words = [*base_words, "attribute_weight=0.5", "feature_weight=0.25", "attribute_warmup=2"]
    task, source = base.build(parse_config(base.BaseConfig, words))
    batch = source.get_batch([0, 1, 2], [np.random.default_rng(row) for row in range(3)])
    for step, share in ((0, 0.0), (1, 0.5), (2, 1.0), (9, 1.0)):
        total, parts = task.loss(batch, context_of(step))
        expected = parts["noise"] + parts["read"] + share * (0.5 * parts["drawn"] + 0.25 * parts["features"])
        torch.testing.assert_close(total.detach(), expected)
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.modules["classifier"].heads.parameters())


@pytest.mark.parametrize("name", ["text_l", "text_g", "init", "vae"])
def test_a_missing_or_damaged_part_is_named_before_training(base_words, tmp_path, capsys, name):
    (tmp_path / "empty" / "unet").mkdir(parents=True)
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        words = [*base_words, f"out={tmp_path / 'run'}", f"{name}={place}"]
        assert base.main(words) == 2
        assert re.match(rf"error: .*{name}.*{place}" if name != "vae" else f"error: {place}", capsys.readouterr().err)
        assert not (tmp_path / "run").exists()


def test_a_missing_recognizer_is_named(tiny_dataset, tmp_path, capsys):
    words = [f"data={tiny_dataset}", f"out={tmp_path / 'run'}", "size=32", "identity=0.1"]
    assert vae.main([*words, f"recognizer={tmp_path / 'nowhere'}"]) == 2
    assert re.match(rf"error: recognizer={tmp_path / 'nowhere'}: no such directory", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["feature_weight=1"], ["attribute_weight=-1"]])
def test_weights_without_a_classifier_are_refused(base_words, tmp_path, capsys, words):
    assert base.main([*base_words, f"out={tmp_path}", "attribute_weight=0", "feature_weight=0", *words]) == 2
    assert re.search(rf"(?m)^error: {words[0].split('=')[0]}: ", capsys.readouterr().err)


def test_the_classifier_is_trained_but_not_exported(base_words, tmp_path):
    assert base.main([*base_words, f"out={tmp_path}", "attribute_weight=0.5"]) == 0
    folders = sorted(path.name for path in (tmp_path / "export").iterdir() if path.is_dir())
    assert folders == ["scheduler", "unet", "vae"]
    trained, _ = load_checkpoint(newest_checkpoint(tmp_path / "checkpoints"))
    assert any("classifier.heads" in name for name in trained)


def test_sampling_depends_on_seed_and_prompt_not_on_the_batch(base_export, vae_export, text):
    parts = (
        UNet2DConditionModel.from_pretrained(base_export / "unet").eval(),
        AutoencoderKL.from_pretrained(vae_export).eval(),
        DDIMScheduler.from_pretrained(base_export / "scheduler"),
        TextPair(*(TextTower.from_pretrained(folder) for folder in text)),
    )
    prompts = ["a person with red hair", "a smiling person", "someone with a hat"]
    options = {"steps": 3, "size": 32}
    whole = sample_portraits(*parts, prompts, batch=3, **options)
    apart = sample_portraits(*parts, prompts, batch=1, **options)
    assert whole.shape == (3, 3, 32, 32) and whole.min() >= 0 and whole.max() <= 1
    torch.testing.assert_close(whole, apart, atol=1e-4, rtol=0)
    other = sample_portraits(*parts, ["a person with black hair", *prompts[1:]], batch=3, **options)
    assert (other[0] != whole[0]).any() and torch.allclose(other[1:], whole[1:], atol=1e-4)
