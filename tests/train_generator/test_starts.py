"""What stage 2 begins with: an adapter, the whole UNet, photos, a published encoder."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from faceclip.data.arrays import load_arrays
from faceclip.data.photos import main as import_photos
from faceclip.published.checkpoint import LICENSE, convert, load_faceclip
from faceclip.training import TrainerConfig, parse_config
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.marking.provenance import read_provenance
from makeup_plugin.saving.shipped import shipped_towers
from tests.faceclip.published_case import CONFIG, published_state
from tests.stages import same_weights, save_base
from tests.train_generator.conftest import features_of, word_of
from train_generator.__main__ import main
from train_generator.adapter import add_adapter, continue_adapter
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.loading import build_pipeline
from train_generator.task import GeneratorTask


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
    task = GeneratorTask(pipeline, config, features_of(config, pipeline))
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
    assert "set loss.alignment=0" in capsys.readouterr().err
    words += ["loss.alignment=0"]
    assert main(words) == 2
    assert "has a single picture" in capsys.readouterr().err
    assert main([*words, "same_picture=1"]) == 0, capsys.readouterr()
    assert (tmp_path / "run" / "export" / "adapter.json").is_file()
    assert read_provenance(tmp_path / "run" / "samples" / "000002.png")["ai_generated"]


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
    assert main(words) == 2
    assert f"its licence is {LICENSE}, the export's would be Apache-2.0" in capsys.readouterr().err
    assert main([*words, f"licence=Apache-2.0 AND {LICENSE}"]) == 0
    pipeline = FaceMakeUpPipeline.from_pretrained(tmp_path / "run" / "export")
    assert pipeline.licence == f"Apache-2.0 AND {LICENSE}" and pipeline.joint_encoder.config.licence == LICENSE
    expected = load_faceclip(tmp_path / "published").state_dict()
    found = pipeline.joint_encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name].float()) for name in found)


def test_the_shipped_encoder_by_its_name(capsys):
    """`encoder=tiny` is the encoder of the shipped pipeline: towers in the type of frozen weights, the rest in
    float32."""
    shipped = shipped_towers("tiny", given={"face_fitter": None})
    config = GeneratorConfig(encoder="tiny", frozen="bf16", trainer=TrainerConfig(precision="bf16"))
    pipeline = build_pipeline(config)
    assert pipeline.joint_encoder.l.text.dtype == torch.bfloat16
    for part in ("l.fusion", "g.fusion", "heads"):
        ours = pipeline.joint_encoder.get_submodule(part).state_dict()
        theirs = shipped["joint_encoder"].get_submodule(part).state_dict()
        assert ours.keys() == theirs.keys()
        assert ours and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for name, value in pipeline.image_encoder.state_dict().items():
        theirs = shipped["image_encoder"].state_dict()[name].to(torch.bfloat16)
        assert torch.equal(value.to(torch.bfloat16), theirs)
    assert main(["data=somewhere"]) == 2
    assert "encoder=tiny" in capsys.readouterr().err
