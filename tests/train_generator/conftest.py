"""A small stage 2: random towers, base and encoder, and the words that train on them."""

from pathlib import Path

import pytest

from faceclip.encoder import FaceCLIP
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from makeup_plugin import FaceMakeUpPipeline
from tests.stages import save_base, save_towers
from train_generator.config import GeneratorConfig
from train_generator.reference_features import ReferenceFeatures, reference_features


@pytest.fixture(scope="session")
def arguments(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a small training on random parts."""
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
        "size=64",
        "loss.sampled_identity=0.3",
        "loss.sampled_rows=3",
        f"encoder={root / 'encoder'}",
        f"base={root / 'base'}",
        "fitter=''",
        f"cache={root / 'cache'}",
        *channels,
        *trainer,
    ]


def word_of(arguments: list[str], name: str) -> str:
    """The value of `name=VALUE` among the arguments."""
    return next(word for word in arguments if word.startswith(f"{name}=")).removeprefix(f"{name}=")


def features_of(config: GeneratorConfig, pipeline: FaceMakeUpPipeline, split: str = "validation") -> ReferenceFeatures:
    """Reference features of a split, built in the configuration's cache where they are missing."""
    return reference_features(
        Path(config.data.path),
        split,
        size=config.size,
        vae=Path(config.base) / "vae",
        encoder=pipeline.joint_encoder,
        image_tower=pipeline.image_encoder,
        cache=Path(config.cache),
    )
