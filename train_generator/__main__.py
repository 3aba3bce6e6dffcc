"""Stage 2: train the plugin on an SDXL base.

    python -m train_generator data=DIR encoder=RUN/export [--preset tiny] [--config FILE.yaml] [trainer.steps=… …]
    accelerate launch -m train_generator data=DIR encoder=DIR --preset sdxl

Base, joint encoder, VAE and recognizer stay frozen; LoRA, identity channel and shading channel are trained. Leaves
`OUT/export`, loadable by `FaceMakeUpPipeline.from_pretrained`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from faceclip import weights
from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError, FaceClipError
from faceclip.image_tower import ImageTower
from faceclip.runtime import Result, Trainer, parse_config
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.latent_recognizer import LatentRecognizer
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.features import reference_features
from train_generator.source import GenerationSource
from train_generator.task import GeneratorTask, add_adapter


def build_pipeline(config: GeneratorConfig) -> FaceMakeUpPipeline:
    """The base with the frozen joint encoder, before anything of stage 2 is added.

    Raises CheckpointError when parts are missing or damaged, or the encoder's width is not the UNet's.
    """
    base, directory = base_directory(config.base), Path(config.encoder)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"encoder={config.encoder}: no stage-1 export there; run `python -m train_encoder` first")
    with _damage_named(f"encoder={config.encoder}", "run `python -m train_encoder` again"):
        encoder = FaceCLIP.from_pretrained(directory)
        image_tower = ImageTower.from_pretrained(directory / "image_tower")
    with _damage_named(f"base={config.base}", "give a directory or hub id with unet, vae and scheduler"):
        unet = UNet2DConditionModel.from_pretrained(base / "unet")
        vae = AutoencoderKL.from_pretrained(base / "vae")
        scheduler = DDIMScheduler.from_pretrained(base / "scheduler")
    width = encoder.l.text.config.width + encoder.g.text.config.width
    if unet.config.cross_attention_dim != width:
        raise CheckpointError(
            f"the UNet of {config.base} reads tokens of width {unet.config.cross_attention_dim}, the joint encoder "
            f"{config.encoder} gives {width}: they belong to different towers"
        )
    pipeline = FaceMakeUpPipeline(
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        joint_encoder=encoder,
        image_encoder=image_tower,
        face_fitter=_fitter(config.fitter),
    )
    pipeline.base_model = config.base
    return pipeline


def base_directory(name: str) -> Path:
    """A directory, the base that ships with the package (`tiny`), or a hub id such as SDXL's, which is downloaded.

    Raises CheckpointError when there is none; a misspelt path is not looked up on the hub.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if "/" in name:
        # A hub id has one slash, and nothing on this disk is called like its owner.
        if name.count("/") > 1 or name.startswith(("/", ".", "~", "runs/")) or path.parent.is_dir():
            raise CheckpointError(f"base={name}: no such directory; give one with unet, vae and scheduler")
        wanted = [f"{part}/{kind}" for part in ("unet", "vae", "scheduler") for kind in ("*.json", "*.safetensors")]
        with _damage_named(f"base={name}", "it is no directory here: check the hub id and the network"):
            return Path(snapshot_download(name, allow_patterns=wanted))
    return weights.path(name, package="makeup_plugin")


@contextmanager
def _damage_named(argument: str, remedy: str) -> Iterator[None]:
    """What libraries say of missing or damaged files, as a CheckpointError that names the argument."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{argument} cannot be loaded; {remedy} ({error})") from error


def _fitter(name: str) -> torch.nn.Module | None:
    if not name:
        return None
    from faceclip.face3d.fitter import FaceFitter

    return FaceFitter.from_pretrained(Path(name) if Path(name).is_dir() else weights.path(name))


def load_latent_recognizer(name: str, pipeline: FaceMakeUpPipeline) -> LatentRecognizer:
    """A folder or what the package ships, frozen.

    Raises CheckpointError for a damaged one and for one of other latents or another recognizer's embeddings.
    """
    path = Path(name) if Path(name).is_dir() else weights.path(name, package="makeup_plugin")
    with _damage_named(f"latent_recognizer={name}", "train it by `python -m train_generator.towers.latent_recognizer`"):
        model = LatentRecognizer.from_pretrained(path).requires_grad_(False).eval()
    wanted = {"channels": pipeline.unet.config.in_channels, "side": pipeline.unet.config.sample_size,
              "embedding_dim": pipeline.joint_encoder.face_encoder.config.embedding_dim}  # fmt: skip
    if found := {key: model.config[key] for key, value in wanted.items() if model.config[key] != value}:
        raise CheckpointError(
            f"latent_recognizer={name} has {found}, this base and encoder need {wanted}: train one for them, or set "
            "loss.latent_identity=0"
        )
    return model


def train(config: GeneratorConfig) -> Result:
    """Runs or resumes stage 2."""
    for name in ("data", "encoder"):
        if not getattr(config, name):
            raise ConfigError(f"{name}: name its directory, as in {name}=DIR")
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    torch.manual_seed(config.trainer.seed)
    pipeline = build_pipeline(config)
    data = Path(config.data)
    cache = Path(config.cache) if config.cache else data / ".features"
    vae = base_directory(config.base) / "vae"
    features = [
        reference_features(data, split, size=config.size, vae=vae,
                           encoder=pipeline.joint_encoder, image_tower=pipeline.image_encoder, cache=cache)
        for split in ("train", "validation")
    ]  # fmt: skip
    add_adapter(pipeline, config.adapter)
    reader = load_latent_recognizer(config.latent_recognizer, pipeline) if config.loss.latent_identity else None
    task = GeneratorTask(pipeline, config, features[1], reader)
    source = GenerationSource(features[0], config.dropout, same_picture=config.same_picture)
    facts = {"data": features[0].arrays.content_hash[:16]}
    trainer = Trainer(config.trainer, task, source, Path(config.out), facts=facts)
    if trainer.accelerator.is_main_process:
        print(f"stage 2: {sum(p.numel() for p in trainer.trainable.values()) / 1e6:.2f} M trainable parameters")
    return trainer.fit()


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        result = train(parse_config(GeneratorConfig, sys.argv[1:] if argv is None else argv, presets=PRESETS))
    except FaceClipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for name, value in result.metrics.items():
        print(f"{name}: {value:.4f}")
    print(f"exported to {result.export}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
