"""Reads the frozen features of a split; builds missing ones first.

    python -m train_generator.features data.path=DIR encoder=RUN/export [--preset sdxl …]

The command takes the settings of `python -m train_generator` and builds what training reads. It resumes after a kill.
"""

import sys
from functools import partial
from pathlib import Path

import torch

from faceclip.data.mapping import DataConfig, cache_folder, data_at
from faceclip.data.sources import check_own_layout, find_layout
from faceclip.errors import ConfigError
from faceclip.settings import run
from makeup_plugin import FaceMakeUpPipeline
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.loading import base_directory, build_pipeline
from train_generator.reference_features import ReferenceFeatures, reference_features
from train_generator.streamed.build import Networks
from train_generator.streamed.config import PhotosConfig
from train_generator.streamed.features import streamed_features


def load_features(config: GeneratorConfig, pipeline: FaceMakeUpPipeline, split: str) -> ReferenceFeatures:
    """Returns the features of the split "train" or "validation" of the configured data, by the networks of a pipeline.

    Raises DataError and its subclasses for the data, and ConfigError for settings that would have no effect.
    """
    data = data_at(config.data)
    cache = cache_folder(data, config.cache)
    vae = base_directory(config.base, config.frozen_unet) / "vae"
    encoder, image_tower = pipeline.joint_encoder, pipeline.image_encoder
    if find_layout(data) == "portraits":
        check_own_layout(data, set())
        if config.photos != PhotosConfig():
            raise ConfigError(f"photos: data.path={data.path} holds portraits that are cut already; leave photos.… out")
        where = {"vae": vae, "encoder": encoder, "image_tower": image_tower, "cache": cache}
        return reference_features(Path(data.path), split, size=config.size, **where)
    for name in ("portrait", "device"):
        if getattr(data, name) != getattr(DataConfig(), name):
            raise ConfigError(f"data.{name}: leave it out; photos.reach frames pictures, and an accelerator is found")
    step = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.down_block_types) - 1)
    networks = Networks(
        encoder=encoder, image_tower=image_tower, vae=vae, factor=pipeline.vae_scale_factor, fitter=config.photos.fitter
    )
    return streamed_features(data, split, config.photos.framing(config.size, step), networks, cache)


def build(config: GeneratorConfig) -> None:
    """Builds the features of both splits and prints their sizes."""
    config.check_named()
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    pipeline = build_pipeline(config)
    for split in ("train", "validation"):
        found = load_features(config, pipeline, split)
        people = len(set(found.arrays.identity.tolist()))
        shapes = 1 if found.groups is None else len(set(found.groups.tolist()))
        print(f"{split}: {len(found.arrays):,} pictures of {people:,} persons in {shapes} shapes", flush=True)


main = partial(run, build, GeneratorConfig, presets=PRESETS, interrupted="interrupted; the same command resumes")

if __name__ == "__main__":
    sys.exit(main())
