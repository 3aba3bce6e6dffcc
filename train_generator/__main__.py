"""Stage 2: trains the plugin on an SDXL base.

    python -m train_generator data=DIR encoder=RUN/export [--preset tiny] [--config FILE.yaml] [trainer.steps=… …]
    accelerate launch -m train_generator data=DIR encoder=DIR --preset sdxl

Base, joint encoder, VAE and recognizer stay frozen; LoRA, identity channel and shading channel are trained. The command
writes `OUT/export`, which `FaceMakeUpPipeline.from_pretrained` loads.
"""

import sys
from functools import partial
from pathlib import Path

import torch

from faceclip.data.mapping import data_at
from faceclip.data.portraits import check_divided
from faceclip.training import Result, Trainer, check_output, run_training
from faceclip.training.engines import layout
from train_generator.adapter import add_adapter, continue_adapter
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.features import load_features
from train_generator.loading import build_pipeline
from train_generator.samples import GenerationSource
from train_generator.task import GeneratorTask
from train_generator.terms.alignment import check_regions


def train(config: GeneratorConfig) -> Result:
    """Runs or resumes stage 2."""
    return prepare(config).fit()


def prepare(config: GeneratorConfig) -> Trainer:
    """Prepares stage 2 up to its first step: data, features, base, adapter and losses.

    Raises ConfigError, DataError and CheckpointError for settings, data and weights that the user can correct.
    """
    check_output(Path(config.out))
    given = data_at(config.data)
    config.check_named()
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    torch.manual_seed(config.trainer.seed)
    pipeline = build_pipeline(config)
    features = [load_features(config, pipeline, split) for split in ("train", "validation")]
    check_divided(given, features[0].arrays, features[1].arrays)
    arrays = features[0].arrays
    check_regions(
        arrays.masks if arrays.regions is None else arrays.regions, config.loss.alignment, f"data={given.path}"
    )
    if config.init:
        begun = continue_adapter(pipeline, config.adapter, Path(config.init), licence=config.licence)
    else:
        begun = "none"
        add_adapter(pipeline, config.adapter)
    task = GeneratorTask(pipeline, config, features[1], training=features[0])
    source = GenerationSource(
        features[0], config.dropout, same_picture=config.same_picture, pair_cosine=config.pair_cosine
    )
    if config.same_picture < 1 and len(source.alone):
        print(f"{len(source.alone):,} persons have a single picture, which is their own reference", flush=True)
    facts = {"data": features[0].arrays.content_hash[:16], "init": begun[:16]}
    trainer = Trainer(config.trainer, task, source, Path(config.out), facts=facts, settings=config)
    # ZeRO-3 gathers weights on all ranks at once, and reading values from a GPU would block. There, what runs must not
    # depend on how many samples count in a loss. On a CPU, samples that do not count are left out.
    task.same_work = layout(trainer.accelerator) == "zero-3" or trainer.device.type != "cpu"
    if trainer.accelerator.is_main_process:
        print(f"stage 2: {sum(p.numel() for p in trainer.trainable.values()) / 1e6:.2f} M trainable parameters")
    return trainer


main = partial(run_training, train, GeneratorConfig, presets=PRESETS)

if __name__ == "__main__":
    sys.exit(main())
