"""Making the pipeline that ships out of an export, and loading it by its name."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from eval.arms import ship
from eval.hashes import model_hash, pipeline_hash
from faceclip import weights
from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError
from faceclip.face3d.fitter import FaceFitter
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.saving.adapters import LoraSettings, add_lora
from makeup_plugin.shading import shading_channel_from_unet
from tests.stages import save_base

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6}
RESULTS = {
    "arms": {"text": {"faces found": FIGURE}},
    "real": {"real: another portrait of the person": {"faces found": FIGURE}},
    "frechet distance": {"text": 30.4, "real: another portrait of the person": 9.0},
    "settings": {"images per arm": 12, "split": "test"},
}


def write_results(export: Path, path: Path, **settings: object) -> None:
    """Results as an evaluation of the export leaves them, but for some of its settings."""
    known = {**RESULTS["settings"], "model": model_hash(export), **settings}
    path.write_text(json.dumps({**RESULTS, "settings": {k: v for k, v in known.items() if v is not None}}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A pipeline on the shipped towers, everything else small and random; with its evaluation's results."""
    root = tmp_path_factory.mktemp("ship")
    towers = [TextTower.from_pretrained(weights.path(f"tiny/text_tower_{letter}")) for letter in "lg"]
    small = {"layers": 1, "attention_width": 8, "attention_heads": 2, "text_hidden": 8, "face_hidden": 8}
    face = FaceViT.from_pretrained(weights.path("tiny/recognizer"))
    encoder = FaceCLIP.from_components(face, *towers, fusion=small)
    base = save_base(root / "base", context=sum(tower.config.width for tower in towers), pooled=towers[1].config.width)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    image = ImageTower.from_pretrained(weights.path("tiny/image_tower"))
    torch.manual_seed(0)
    channel = IdentityChannel.from_unet(
        unet, identity_dim=face.config.embedding_dim, image_dim=image.config.width, depth=1, heads=2, dim_head=8
    )
    pipeline = FaceMakeUpPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae"),
        unet=unet,
        scheduler=DDIMScheduler.from_pretrained(base / "scheduler"),
        joint_encoder=encoder,
        image_encoder=image,
        face_fitter=FaceFitter.from_pretrained(weights.path("tiny/fitter")),
        identity_channel=channel,
        shading_channel=shading_channel_from_unet(unet, vae_scale_factor=4),
        default_call={"num_inference_steps": 2, "guidance_scale": 2.0, "guide_shading": True},
    )
    channel.attach(pipeline.unet)
    pipeline.save_pretrained(root / "export", licence="Apache-2.0")
    write_results(root / "export", root / "results.json")
    return root


def words(root: Path, out: Path) -> list[str]:
    files = ["--model", str(root / "export"), "--results", str(root / "results.json"), "--out", str(out)]
    return [*files, "--notes", "Trained for this test."]


@pytest.fixture
def shipped(exported, tmp_path, monkeypatch) -> Path:
    """The folder that ships, where the package would have it."""
    out, path = tmp_path / "tiny" / "pipeline", weights.path
    assert ship.main(words(exported, out)) == 0
    monkeypatch.setattr(
        weights, "path", lambda name, package="faceclip": out if package == "makeup_plugin" else path(name)
    )
    return out


def test_what_ships_draws_what_the_export_draws(exported, shipped):
    def draw(model: str | Path):
        pipeline = FaceMakeUpPipeline.from_pretrained(model)
        pipeline.set_progress_bar_config(disable=True)
        points = torch.tensor([[22.0, 28], [42, 28], [32, 36], [25, 46], [40, 46]]).numpy()
        portrait = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1)) * 255).byte().numpy()
        return pipeline(
            "smiling", portrait, landmarks=points, generator=torch.Generator().manual_seed(2), output_type="pt"
        )

    mine, theirs = draw("tiny"), draw(exported / "export")
    # 16 bits of the weights are what differs.
    torch.testing.assert_close(mine.images, theirs.images, atol=0.02, rtol=0)
    assert FaceMakeUpPipeline.from_pretrained("tiny").call_defaults.num_inference_steps == 2


def test_towers_are_stored_once_and_come_from_where_they_ship(shipped):
    assert sorted(path.name for path in shipped.iterdir() if path.is_dir()) == [
        "identity_channel",
        "joint_encoder",
        "scheduler",
        "shading_channel",
        "unet",
        "vae",
    ]
    pipeline = FaceMakeUpPipeline.from_pretrained("tiny")
    recognizer = FaceViT.from_pretrained(weights.path("tiny/recognizer"))
    for name, value in pipeline.joint_encoder.face_encoder.state_dict().items():
        assert torch.equal(value, recognizer.state_dict()[name]), name


def test_a_component_of_the_caller_and_a_dtype_are_taken(shipped):
    fitter = FaceFitter.from_pretrained(weights.path("tiny/fitter"))
    pipeline = FaceMakeUpPipeline.from_pretrained("tiny", face_fitter=fitter, dtype=torch.bfloat16)
    assert pipeline.face_fitter is fitter
    assert {pipeline.joint_encoder.dtype, pipeline.image_encoder.dtype, pipeline.unet.dtype} == {torch.bfloat16}


def test_a_loaded_one_saves_whole(shipped, tmp_path):
    FaceMakeUpPipeline.from_pretrained("tiny").save_pretrained(tmp_path / "whole")
    again = FaceMakeUpPipeline.from_pretrained(tmp_path / "whole")
    assert again.image_encoder is not None and again.joint_encoder.face_encoder is not None


def test_the_card_holds_the_figures(shipped):
    card = (shipped / "README.md").read_text()
    assert "0.500 [0.400, 0.600]" in card and "| 30 |" in card and "12 pictures per arm" in card
    assert "Trained for this test." in card


def test_a_damaged_joint_encoder_names_its_file(shipped):
    file = shipped / "joint_encoder" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="joint_encoder"):
        FaceMakeUpPipeline.from_pretrained("tiny")


@pytest.mark.parametrize("part", ["joint_encoder", "image_encoder"])
def test_other_towers_than_the_shipped_ones_are_refused(exported, tmp_path, part, capsys):
    pipeline = FaceMakeUpPipeline.from_pretrained(exported / "export")
    module = getattr(pipeline, part)
    next(iter((module.face_encoder if part == "joint_encoder" else module).parameters())).data.add_(1)
    pipeline.save_pretrained(tmp_path / "export")
    write_results(tmp_path / "export", tmp_path / "results.json")
    assert ship.main(words(tmp_path, tmp_path / "out")) == 2
    assert part in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_missing_results_are_named(exported, tmp_path, capsys):
    given = words(exported, tmp_path / "out")
    given[given.index("--results") + 1] = str(tmp_path / "none.json")
    assert ship.main(given) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [{"model": "other"}, {"split": "validation"}, {"images per arm": None}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_results_that_do_not_belong_to_the_model_are_refused(exported, tmp_path, capsys, wrong):
    write_results(exported / "export", tmp_path / "results.json", **wrong)
    given = words(exported, tmp_path / "out")
    given[given.index("--results") + 1] = str(tmp_path / "results.json")
    assert ship.main(given) == 2
    assert "--results" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_without_fitter_is_refused(exported, tmp_path, capsys):
    FaceMakeUpPipeline.from_pretrained(exported / "export", face_fitter=None).save_pretrained(tmp_path / "export")
    write_results(tmp_path / "export", tmp_path / "results.json")
    assert ship.main(words(tmp_path, tmp_path / "out")) == 2
    assert "lacks face_fitter" in capsys.readouterr().err


def test_the_hash_of_the_shipped_pipeline_is_that_of_its_files(exported, shipped):
    before = pipeline_hash("tiny")
    assert before != "tiny" and pipeline_hash(exported / "export") == model_hash(exported / "export")
    assert pipeline_hash("owner/name") == "owner/name"
    (shipped / "adapter.json").write_text((shipped / "adapter.json").read_text() + " ")
    assert pipeline_hash("tiny") not in (before, "tiny")


def test_weights_that_would_be_left_out_are_refused(exported, tmp_path, capsys):
    pipeline = FaceMakeUpPipeline.from_pretrained(exported / "export")
    pipeline.save_pretrained(tmp_path / "export", variant="fp16")
    write_results(tmp_path / "export", tmp_path / "results.json")
    assert ship.main(words(tmp_path, tmp_path / "out")) == 2
    assert "fp16.safetensors" in capsys.readouterr().err
    add_lora(pipeline.unet, LoraSettings(rank=2))
    pipeline.save_pretrained(tmp_path / "export")
    assert ship.main(words(tmp_path, tmp_path / "out")) == 2
    assert "adapter.unet=full" in capsys.readouterr().err
