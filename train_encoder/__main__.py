"""Stage 1: train the joint encoder.

    python -m train_encoder data=DIR [--preset tiny] [--config FILE.yaml] [trainer.steps=2000 …]
    python -m train_encoder data.path=OWNER/NAME data.columns.identity=person … (docs/data.md)
    accelerate launch -m train_encoder data=DIR --preset bigg14     # several GPUs, DeepSpeed: docs/scaling.md

Towers stay frozen; fusion, identity projections and retrieval heads are trained on cached features. Leaves
`OUT/export` (and `OUT/best`): FaceCLIP and its image tower, loadable by `FaceCLIP.from_pretrained`.
"""

import hashlib
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from faceclip.data.cache import module_hash
from faceclip.encoder import FaceCLIP
from faceclip.errors import FaceClipError
from faceclip.runtime import Result, Trainer, parse_config
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.features import SplitFeatures, check_apart, data_config, features_of
from train_encoder.source import QuerySource
from train_encoder.task import EncoderTask, describe
from train_encoder.towers_io import Towers, load_towers


def train(config: EncoderConfig) -> Result:
    """Runs or resumes stage 1."""
    data_config(config)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    torch.manual_seed(config.trainer.seed)
    towers = load_towers(config.towers)
    config.check_widths(towers.text_l.config.width, towers.text_g.config.width)
    train_features = features_of(config, "train", towers)
    validation = features_of(config, "validation", towers)
    check_apart(train_features, validation)
    model = FaceCLIP.from_components(
        towers.recognizer, towers.text_l, towers.text_g, fusion=asdict(config.fusion), joint=asdict(config.heads)
    )
    task = EncoderTask(model, towers.image, config.loss, validation, config.validation_queries)
    source, facts = QuerySource(train_features, config.sampling), training_facts(towers, train_features)
    trainer = Trainer(config.trainer, task, source, Path(config.out), facts=facts, settings=config)
    if trainer.accelerator.is_main_process:
        print(describe(config, sum(p.numel() for p in trainer.trainable.values())))
    return trainer.fit()


def training_facts(towers: Towers, features: SplitFeatures) -> dict[str, str]:
    """Hashes of the towers and of the training data: a run whose towers or data changed is another run."""
    hashes = {name: module_hash(tower)[:16] for name, tower in vars(towers).items()}
    return hashes | {"data": _data_hash(features)[:16]}


def _data_hash(features: SplitFeatures) -> str:
    """The content hash of data in this project's layout; of others, who is shown, in which picture and in which words,
    row by row."""
    known = getattr(features.arrays, "content_hash", None)
    if known is not None:
        return known
    digest = hashlib.sha256()
    arrays = features.arrays
    for values in (arrays.identity, arrays.pictures, features.words, features.caption_start):
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        result = train(parse_config(EncoderConfig, sys.argv[1:] if argv is None else argv, presets=PRESETS))
    except FaceClipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT
    processes = PartialState()
    if processes.is_main_process:
        for name, value in result.metrics.items():
            print(f"{name}: {value:.4f}")
        print(f"exported to {result.export}")
    processes.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
