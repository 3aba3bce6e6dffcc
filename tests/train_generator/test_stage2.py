"""Stage 2 end to end on a random base: it resumes exactly, exports a loadable pipeline, and refuses bad input."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image

import train_generator.__main__
from faceclip.data.arrays import load_arrays
from faceclip.data.photos import main as import_photos
from faceclip.data.records import VOCABULARIES
from faceclip.encoder import TEMPLATE, FaceCLIP
from faceclip.errors import ConfigError
from faceclip.published.checkpoint import LICENSE, convert, load_faceclip
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower, tokenize
from faceclip.training import parse_config
from faceclip.training.sampler import fetch
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.latent_recognizer import LatentRecognizer
from makeup_plugin.marking.provenance import read_provenance
from tests.faceclip.published_case import CONFIG, published_state
from tests.stages import (
    kill_after_checkpoint,
    run,
    same_weights,
    save_base,
    save_towers,
    start,
    stop_before_checkpoints,
)
from train_generator.__main__ import main
from train_generator.adapter import add_adapter, continue_adapter
from train_generator.config import PRESETS, DropoutConfig, GeneratorConfig
from train_generator.loading import build_pipeline, load_latent_recognizer
from train_generator.reference_features import reference_features
from train_generator.samples import GenerationSource
from train_generator.task import GeneratorTask

READ = {name: list(VOCABULARIES[name]) for name in ("beard", "glasses")}


@pytest.fixture(scope="module")
def arguments(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("stage2")
    save_towers(root / "towers")
    save_base(root / "base")
    small = {"layers": 2, "attention_width": 32, "text_hidden": 32, "face_hidden": 32, "face_heads": 4}
    encoder = FaceCLIP.from_components(
        FaceViT.from_pretrained(root / "towers" / "recognizer"),
        TextTower.from_pretrained(root / "towers" / "text_l"),
        TextTower.from_pretrained(root / "towers" / "text_g"),
        fusion=small,
    )
    encoder.eval().save_pretrained(root / "encoder")
    ImageTower.from_pretrained(root / "towers" / "image").save_pretrained(root / "encoder" / "image_tower")
    torch.manual_seed(2)
    LatentRecognizer(4, 16, (16, 16), 1, 32, READ).save_pretrained(root / "reader")
    reader = [
        f"latent_recognizer={root / 'reader'}",
        "loss.latent_identity=0.3",
        "loss.latent_attributes=0.2",
        "loss.latent_features=0.5",
    ]
    channels = [
        "adapter.lora_rank=2",
        "adapter.identity.depth=1",
        "adapter.identity.heads=2",
        "adapter.identity.dim_head=8",
    ]
    trainer = [
        "trainer.batch_size=4",
        "trainer.num_threads=1",
        "trainer.log_every=2",
        "trainer.validate_every=0",
        "trainer.warmup_steps=2",
        "validation_rows=4",
        "sample_steps=2",
    ]
    return [
        f"data={tiny_dataset}",
        f"encoder={root / 'encoder'}",
        f"base={root / 'base'}",
        "fitter=''",
        f"cache={root / 'cache'}",
        *reader,
        *channels,
        *trainer,
    ]


def word_of(arguments: list[str], name: str) -> str:
    return next(word for word in arguments if word.startswith(f"{name}=")).removeprefix(f"{name}=")


def test_two_halves_with_a_kill_equal_one_run(arguments, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steps = ["trainer.steps=8", "trainer.save_every=4"]
    status, output = run(main, *arguments, f"out={whole}", *steps)
    assert status == 0, output
    process = start("train_generator", *arguments, f"out={broken}", *steps)
    assert kill_after_checkpoint(process, broken, signal.SIGKILL) == -signal.SIGKILL
    status, output = run(main, *arguments, f"out={broken}", *steps)
    assert status == 0, output
    assert same_weights(whole / "export", broken / "export")

    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    names = ("noise", "alignment", "identity", "latent_identity", "latent_attributes", "latent_features")
    losses = {f"loss_{name}" for name in names}
    assert losses | {"samples_per_second"} <= lines[0].keys()
    assert (whole / "samples" / "000008.png").is_file()

    pipeline = FaceMakeUpPipeline.from_pretrained(whole / "export")
    pipeline.set_progress_bar_config(disable=True)
    face = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    points = np.array([[24, 28], [40, 28], [32, 38], [26, 46], [38, 46]], np.float32)
    image = pipeline(
        "a person",
        face,
        landmarks=points,
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="np",
        shading_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    ).images
    assert image.shape == (1, 64, 64, 3)


def test_sigterm_saves_and_exits(arguments, tmp_path):
    endless = ["trainer.steps=100000", "trainer.save_every=0", "trainer.log_every=1"]
    process = start("train_generator", *arguments, f"out={tmp_path}", *endless)
    status, output, step = stop_before_checkpoints(process, tmp_path, signal.SIGTERM)
    assert status == 143 and step > 0 and f"saved at step {step}; the same command resumes" in output


def test_a_layout_in_which_ranks_would_wait_for_each_other_is_refused(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_generator.__main__, "layout", lambda accelerator: "zero-3")
    assert main([*arguments, f"out={tmp_path / 'run'}", "trainer.device=cpu"]) == 2
    assert "in stage 2 the ranks run different modules" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_on_another_encoder_is_not_resumed(arguments, tmp_path, capsys):
    """At its last step a resumed run would train nothing and export the old adapter with the new encoder."""
    words = [*arguments, f"out={tmp_path / 'run'}", "trainer.steps=2", "trainer.device=cpu", "licence=CC-BY-4.0"]
    assert main(words) == 0, capsys.readouterr()
    assert json.loads((tmp_path / "run" / "export" / "adapter.json").read_text())["licence"] == "CC-BY-4.0"
    encoder = Path(word_of(arguments, "encoder"))
    other = FaceCLIP.from_pretrained(encoder)
    with torch.no_grad():
        next(other.l.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "encoder")
    ImageTower.from_pretrained(encoder / "image_tower").save_pretrained(tmp_path / "encoder" / "image_tower")
    manifest = tmp_path / "run" / "export" / "manifest.json"
    before = manifest.read_bytes()
    assert main([*words, f"encoder={tmp_path / 'encoder'}"]) == 2
    error = capsys.readouterr().err
    assert "cannot resume exactly (encoder was " in error and "base was" not in error
    assert manifest.read_bytes() == before

    base = save_base(tmp_path / "base")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    with torch.no_grad():
        unet.conv_in.weight.add_(1e-3)
    unet.save_pretrained(base / "unet")
    assert main([*words, f"base={base}"]) == 2
    assert "cannot resume exactly (base was " in capsys.readouterr().err

    base = save_base(tmp_path / "other")
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler", beta_end=0.013)
    scheduler.save_pretrained(base / "scheduler")
    assert main([*words, f"base={base}"]) == 2
    assert "cannot resume exactly (base was " in capsys.readouterr().err
    reader = LatentRecognizer.from_pretrained(word_of(arguments, "latent_recognizer"))
    with torch.no_grad():
        reader.identity.bias.add_(1e-3)
    reader.save_pretrained(tmp_path / "reader")
    assert main([*words, f"latent_recognizer={tmp_path / 'reader'}"]) == 2
    assert "cannot resume exactly (latent_recognizer was " in capsys.readouterr().err
    assert main([*words, "trainer.steps=3"]) == 0, capsys.readouterr()


def test_an_adapter_is_trained_further(arguments, tmp_path, capsys):
    """It begins with the saved weights, trains as many as a fresh one, and is refused where it does not fit."""
    first = [*arguments, f"out={tmp_path / 'first'}", "trainer.steps=2", "trainer.device=cpu", "licence=CC-BY-4.0"]
    assert main(first) == 0, capsys.readouterr()
    export = tmp_path / "first" / "export"
    config = parse_config(GeneratorConfig, [*arguments, f"init={export}"], presets=PRESETS)
    further, fresh = build_pipeline(config), build_pipeline(config)
    continue_adapter(further, config.adapter, export, licence="CC-BY-4.0")
    add_adapter(fresh, config.adapter)
    saved = FaceMakeUpPipeline.from_pretrained(export)
    for part in ("unet", "identity_channel", "shading_channel"):
        ours = {name: p for name, p in getattr(further, part).named_parameters() if p.requires_grad}
        theirs = dict(getattr(saved, part).named_parameters())
        assert ours.keys() == {name for name, p in getattr(fresh, part).named_parameters() if p.requires_grad}
        assert ours and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not any(p.requires_grad for p in further.joint_encoder.parameters())

    second = [
        *arguments,
        f"out={tmp_path / 'second'}",
        f"init={export}",
        "trainer.steps=2",
        "trainer.device=cpu",
        "licence=Apache-2.0 AND CC-BY-4.0",
    ]
    assert main(second) == 0, capsys.readouterr()
    assert not same_weights(export, tmp_path / "second" / "export")
    for change, message in {
        "adapter.lora_rank=3": "adapter.lora_rank=2 (configured: 3)",
        "adapter.identity.depth=2": "adapter.identity.depth=1 (configured: 2)",
        f"init={tmp_path}": "this is not an adapter directory",
        "licence=Apache-2.0": "its licence is CC-BY-4.0, the export's would be Apache-2.0",
    }.items():
        assert main([*second, f"out={tmp_path / 'refused'}", change]) == 2
        assert message in capsys.readouterr().err
    assert main([*second, "init=''"]) == 2  # the finished run began with it
    assert "init was " in capsys.readouterr().err


def test_the_whole_unet_is_trained(arguments, tmp_path, capsys):
    """All of it learns, at a rate of its own, from the base on; the export is a pipeline that trains further."""
    words = [*arguments, "adapter.unet=full", "trainer.device=cpu", "trainer.steps=2"]
    assert main([*words, f"out={tmp_path / 'run'}", "adapter.unet_rate=0.5"]) == 0, capsys.readouterr()
    export = tmp_path / "run" / "export"
    assert json.loads((export / "adapter.json").read_text())["lora"] is None
    tuned = FaceMakeUpPipeline.from_pretrained(export).unet.state_dict()
    base = UNet2DConditionModel.from_pretrained(Path(word_of(arguments, "base")) / "unet").state_dict()
    assert tuned.keys() == base.keys() and not any(torch.equal(tuned[name], base[name]) for name in base)

    config = parse_config(GeneratorConfig, [*words, "adapter.unet_rate=0.5"], presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    task = GeneratorTask(pipeline, config, validation_features(config, pipeline))
    rates = {id(p): group.get("lr", 1.0) for group in task.parameter_groups() for p in group["params"]}
    whole = {id(p) for p in pipeline.unet.parameters()}
    assert rates.keys() == {id(p) for p in task.modules.parameters() if p.requires_grad}
    assert all(rate == (config.trainer.learning_rate / 2 if key in whole else 1.0) for key, rate in rates.items())

    again = [*words, f"out={tmp_path / 'again'}", f"init={export}"]
    assert main(again) == 0, capsys.readouterr()
    assert not same_weights(export, tmp_path / "again" / "export")
    assert main([*again, f"out={tmp_path / 'no'}", "adapter.unet=lora"]) == 2
    assert "adapter.unet=full (configured: lora)" in capsys.readouterr().err
    assert main([*again, f"out={tmp_path / 'no'}", "adapter.unet_rate=0"]) == 2
    assert "adapter.unet_rate" in capsys.readouterr().err


def validation_features(config, pipeline):
    return reference_features(
        Path(config.data.path),
        "validation",
        size=config.size,
        vae=Path(config.base) / "vae",
        encoder=pipeline.joint_encoder,
        image_tower=pipeline.image_encoder,
        cache=Path(config.cache),
    )


def test_training_on_photos(arguments, tiny_dataset, tmp_path, capsys):
    """No attributes, no regions, one picture of a person: what needs them is refused by name, the rest trains."""
    folder = tmp_path / "photos"
    for split in ("train", "validation"):
        arrays, lines = load_arrays(tiny_dataset, split), []
        (folder / split).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.asarray(arrays.images[i])).save(folder / split / f"{i}.png")
            lines.append(
                {
                    "file_name": f"{i}.png",
                    "caption": arrays.captions[i][0].text,
                    "points": np.asarray(arrays.landmarks_5[i]).tolist(),
                }
            )
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status = import_photos(
        [
            f"data.path={folder}",
            f"out={tmp_path / 'set'}",
            "size=64",
            "min_side=32",
            "data.identity=none",
            "data.columns.landmarks=points",
        ]
    )
    assert status == 0, capsys.readouterr()
    words = [
        *arguments,
        f"data={tmp_path / 'set'}",
        f"cache={tmp_path / 'cache'}",
        f"out={tmp_path / 'run'}",
        "trainer.steps=2",
        "trainer.device=cpu",
    ]
    assert main(words) == 2
    assert "loss.latent_attributes: photos have no attributes" in capsys.readouterr().err
    words += ["loss.latent_attributes=0"]
    assert main(words) == 2
    assert "has a single picture" in capsys.readouterr().err
    assert main([*words, "same_picture=1"]) == 0, capsys.readouterr()
    assert (tmp_path / "run" / "export" / "adapter.json").is_file()
    assert read_provenance(tmp_path / "run" / "samples" / "000002.png")["ai_generated"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder=/nowhere", "encoder=/nowhere cannot be loaded; give a stage-1 export"),
        ("dropout.text=1.5", "dropout.text"),
        ("same_picture=1.5", "same_picture: must be in"),
        ("base=/nowhere", "/nowhere"),
        ("loss.identiti=0", "identity"),
        ("adapter.identity.enabled=false", "adapter.shading"),
    ],
)
def test_bad_input_is_named(arguments, tmp_path, change, message):
    status, output = run(main, *arguments, f"out={tmp_path / 'run'}", change)
    assert status == 2
    assert message in output


@pytest.mark.parametrize("name", ["size", "validation_rows", "sample_steps", "loss.identity_rows"])
def test_numbers_below_one_are_named_before_anything_runs(name):
    with pytest.raises(ConfigError, match=rf"^{name}: .*\b0$"):
        parse_config(GeneratorConfig, [f"{name}=0"], presets=PRESETS)


def test_an_empty_fitter_folder_is_named(arguments, tmp_path, capsys):
    (tmp_path / "fitter").mkdir()
    assert main([*arguments, f"out={tmp_path / 'run'}", f"fitter={tmp_path / 'fitter'}"]) == 2
    assert f"error: fitter={tmp_path / 'fitter'} cannot be loaded" in capsys.readouterr().err


def test_a_published_encoder_with_a_named_image_tower(arguments, tmp_path, capsys):
    torch.save(published_state(), tmp_path / "face_clip_encoder.pt")
    convert(tmp_path / "face_clip_encoder.pt", tmp_path / "published", config=CONFIG)
    save_base(tmp_path / "base", context=80, pooled=48)
    image_tower = Path(word_of(arguments, "encoder")) / "image_tower"
    words = [
        *arguments,
        f"encoder={tmp_path / 'published'}",
        f"base={tmp_path / 'base'}",
        f"out={tmp_path / 'run'}",
        f"image_tower={image_tower}",
        "trainer.steps=1",
    ]
    words += [f"loss.{name}=0" for name in ("latent_identity", "latent_attributes", "latent_features")]
    assert main(words) == 2
    assert f"its licence is {LICENSE}, the export's would be Apache-2.0" in capsys.readouterr().err
    assert main([*words, f"licence=Apache-2.0 AND {LICENSE}"]) == 0
    pipeline = FaceMakeUpPipeline.from_pretrained(tmp_path / "run" / "export")
    assert pipeline.licence == f"Apache-2.0 AND {LICENSE}" and pipeline.joint_encoder.config.licence == LICENSE
    expected = load_faceclip(tmp_path / "published").state_dict()
    found = pipeline.joint_encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name].float()) for name in found)


def test_an_encoder_without_its_image_tower_is_refused(arguments, tmp_path, capsys):
    encoder = next(word for word in arguments if word.startswith("encoder=")).removeprefix("encoder=")
    FaceCLIP.from_pretrained(encoder).save_pretrained(tmp_path / "encoder")
    assert main([*arguments, f"out={tmp_path / 'run'}", f"encoder={tmp_path / 'encoder'}"]) == 2
    assert "no image_tower beside the encoder" in capsys.readouterr().err


def test_a_base_of_another_width_is_refused(arguments, tmp_path):
    other = save_base(tmp_path / "wide", context=96)
    status, output = run(main, *arguments, f"out={tmp_path / 'run'}", f"base={other}")
    assert status == 2
    assert "width 96" in output
    assert "gives 64" in output


def test_a_latent_recognizer_of_other_embeddings_is_refused(arguments, tmp_path, capsys):
    LatentRecognizer(4, 16, (16, 16), 1, 24).save_pretrained(tmp_path / "reader")
    words = [*arguments, f"out={tmp_path / 'run'}", f"latent_recognizer={tmp_path / 'reader'}"]
    assert main(words) == 2
    assert re.search(r"latent_recognizer=.* has \{'embedding_dim': 24\}.*'embedding_dim': 32", capsys.readouterr().err)
    assert main([*words[:-1], "latent_recognizer=/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err


def test_a_latent_recognizer_of_other_attributes_is_refused(arguments, tmp_path, capsys):
    words = [*arguments, f"out={tmp_path / 'run'}", f"latent_recognizer={tmp_path / 'reader'}"]
    LatentRecognizer(4, 16, (16, 16), 1, 32).save_pretrained(tmp_path / "reader")
    assert main(words) == 2
    assert "reads no attributes" in capsys.readouterr().err
    LatentRecognizer(4, 16, (16, 16), 1, 32, {"hat": ["none", "crown"]}).save_pretrained(tmp_path / "reader")
    assert main(words) == 2
    assert "reads hat as one of ['none', 'crown'], the data set knows" in capsys.readouterr().err
    assert main([*words, "loss.latent_features=-1"]) == 2
    assert "loss.latent_features: must be finite and not negative, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.min_snr_gamma=-1", r"^loss\.min_snr_gamma: .* -1\.0$"),
        ("loss.identity=.nan", r"^loss\.identity: .* nan$"),
        ("adapter.identity.heads=0", r"^adapter\.identity\.heads: .* 0$"),
        ("adapter.identity.num_tokens=0", r"^adapter\.identity\.num_tokens: .* 0$"),
    ],
)
def test_impossible_settings_are_named(word, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(GeneratorConfig, [word], presets=PRESETS)


@pytest.mark.parametrize("channel", [True, False])
def test_a_sample_says_who_is_known_and_the_terms_are_summed_by_their_weights(arguments, tmp_path, channel):
    words = [
        *arguments,
        f"out={tmp_path}",
        "adapter.shading=false",
        "loss.sampled_identity=0",
        f"adapter.identity.enabled={channel}".lower(),
    ]
    config = parse_config(GeneratorConfig, words, presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    reader = load_latent_recognizer(config.latent_recognizer, latents=(4, 16), vocabularies=VOCABULARIES)
    features = reference_features(
        Path(config.data.path),
        "train",
        size=config.size,
        vae=Path(config.base) / "vae",
        encoder=pipeline.joint_encoder,
        image_tower=pipeline.image_encoder,
        cache=Path(config.cache),
    )
    task = GeneratorTask(pipeline, config, features, reader)
    batch = fetch(task.validation_source, [(row, 0) for row in range(3)], 0)
    batch["keep_face"], batch["keep_identity"] = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    noise, timesteps = torch.randn(batch["latents"].shape), torch.tensor([50, 60, 70])
    with torch.no_grad():
        sample = task.sample(batch, noise, timesteps)
    assert sample.knows_person.tolist() == [True, channel, False]
    torch.testing.assert_close(sample.noisy, pipeline.scheduler.add_noise(batch["latents"], noise, timesteps))
    told = replace(sample, prediction=sample.prediction.requires_grad_())
    total, parts = task.terms(told, torch.Generator().manual_seed(0))
    weights = {"noise": 1.0} | vars(config.loss)
    expected = sum(weights[name.removeprefix("loss_")] * float(value) for name, value in parts.items())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5) and total.requires_grad


def test_samples_list_the_attributes_that_their_text_names(arguments, tmp_path):
    config = parse_config(GeneratorConfig, [*arguments, f"out={tmp_path}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    features = reference_features(
        Path(config.data.path),
        "train",
        size=config.size,
        vae=Path(config.base) / "vae",
        encoder=pipeline.joint_encoder,
        image_tower=pipeline.image_encoder,
        cache=Path(config.cache),
    )
    names = list(READ)
    people = features.arrays.identity.tolist()
    source = GenerationSource(features, DropoutConfig(all=0, text=0), same_picture=0.0, attributes=names)
    for row, who in enumerate(people):
        assert source.people.others(row).tolist() == [at for at, one in enumerate(people) if one == who and at != row]
    for index in range(8):
        sample = source.get(index, np.random.default_rng(index))
        captions = {
            tokenize(f"{TEMPLATE}{c.text}" if sample["keep_face"] else c.text)[0].numpy().tobytes(): c
            for c in features.arrays.captions[index]
        }
        caption = captions[sample["tokens"].numpy().tobytes()]
        assert sample["named"].tolist() == [name in caption.named for name in names]
        assert sample["classes"].tolist() == [features.arrays.attributes[name][index] for name in names]
    silent = GenerationSource(features, DropoutConfig(text=0.999), same_picture=0.0, attributes=names)
    assert not silent.get(0, np.random.default_rng(0))["named"].any()
    words = GenerationSource(features, DropoutConfig(all=0, text=0.999, reference=0.999), same_picture=0.0)
    sample = words.get(0, np.random.default_rng(0))
    assert not any(sample[name] for name in ("keep_face", "keep_identity", "keep_shading"))
    assert sample["keep_text"]  # whatever the share of dropped texts


def test_samples_and_conditions_tell_the_true_size_of_a_picture(arguments, tmp_path):
    config = parse_config(GeneratorConfig, [*arguments, f"out={tmp_path}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    renders = validation_features(config, pipeline)
    sizes = np.tile(np.array([[900, 1600, 256, 1280]], np.float32), (len(renders.arrays), 1))
    cut = replace(renders, arrays=replace(renders.arrays, sizes=sizes))
    side = float(config.size)
    for features, expected in ((renders, [side, side, 0, 0]), (cut, [900, 1600, 256, 1280])):
        task = GeneratorTask(pipeline, config, features)
        batch = fetch(task.validation_source, [(row, 0) for row in range(2)], 0)
        assert task.conditions(batch).time_ids.tolist() == [[*expected, side, side]] * 2


def test_a_validation_draws_fixed_people_and_tells_figures_that_choose_the_best(arguments, tmp_path, capsys):
    words = [*arguments, "trainer.device=cpu", "trainer.steps=2", f"out={tmp_path / 'run'}", "fitter=tiny/fitter"]
    words += ["validation_pictures=3", "trainer.best_metric=picture_identity"]
    assert main(words) == 0, capsys.readouterr()
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert -1 <= line["picture_identity"] <= 1 and round(3 * line["picture_identity_rank1"], 4) in (0, 1, 2, 3)
    assert -1 <= line["picture_text"] <= 1 and 0 <= line["picture_pose"] < 180
    assert (tmp_path / "run" / "best" / "adapter.json").is_file()
    config = parse_config(GeneratorConfig, words, presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    reader = load_latent_recognizer(config.latent_recognizer, latents=(4, 16), vocabularies=VOCABULARIES)
    task = GeneratorTask(pipeline, config, validation_features(config, pipeline), reader)
    assert {"step", "kind", *task.figures()} == line.keys()
    assert main([*words, f"out={tmp_path / 'other'}", "trainer.best_metric=picture_identiti"]) == 2
    assert "trainer.best_metric: picture_identiti" in capsys.readouterr().err
    assert main([*words, "validation_pictures=-1"]) == 2
    assert "validation_pictures" in capsys.readouterr().err


def test_options_of_the_loss_are_trained_with(arguments, tmp_path, capsys):
    """Offset noise, and faces told from those of others; both change what is learnt, and are compared on resume."""
    words = [*arguments, "trainer.device=cpu", "trainer.steps=2", "loss.identity=0.5", "loss.identity_below=999"]
    changes = {"plain": [], "offset": ["loss.offset_noise=0.1"], "others": ["loss.identity_contrast=0.5"]}
    for name, more in changes.items():
        assert main([*words, *more, f"out={tmp_path / name}"]) == 0, capsys.readouterr()
    assert not same_weights(tmp_path / "plain" / "export", tmp_path / "offset" / "export")
    assert not same_weights(tmp_path / "plain" / "export", tmp_path / "others" / "export")
    assert main([*words, "loss.identity_contrast=0.1", f"out={tmp_path / 'others'}"]) == 2
    assert "loss.identity_contrast was 0.5, now 0.1" in capsys.readouterr().err
    assert main([*words, "loss.identity_temperature=0", f"out={tmp_path / 'others'}"]) == 2
    assert "loss.identity_temperature" in capsys.readouterr().err


def test_dropout_shares_are_checked():
    with pytest.raises(ValueError, match=r"dropout\.face"):
        DropoutConfig(face=-0.1)
    with pytest.raises(ValueError, match="reference"):
        DropoutConfig(all=0.5, reference=0.5)
