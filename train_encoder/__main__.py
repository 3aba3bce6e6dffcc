"""Stage 1: trains the joint encoder.

    python -m train_encoder data=DIR [--preset tiny] [--config FILE.yaml] [trainer.steps=2000 …]
    python -m train_encoder data.path=OWNER/NAME data.columns.identity=person … (docs/data.md)
    python -m train_encoder data=DIR --preset faceclip              # the published weights, further (docs/encoder.md)
    accelerate launch -m train_encoder data=DIR --preset bigg14     # several GPUs, DeepSpeed: docs/scaling.md

The towers stay frozen. The fusion, the projections (those of the identity unless train_identity=false) and the
retrieval heads are trained on cached features. The command writes `OUT/export` (and on demand `OUT/best`): FaceCLIP,
loadable by `FaceCLIP.from_pretrained`, and its image tower.
"""

import sys
from functools import partial
from pathlib import Path

import torch

from faceclip.data.mapping import data_at
from faceclip.data.portraits import check_divided
from faceclip.storage.hashes import module_hash
from faceclip.training import Result, Trainer, check_output, run_training
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.features import check_data, load_features
from train_encoder.queries import QuerySource
from train_encoder.split_features import SplitFeatures
from train_encoder.start import Start, load_start
from train_encoder.task import EncoderTask
from train_encoder.text_states import text_states_of


def train(config: EncoderConfig) -> Result:
    """Runs or resumes stage 1."""
    return prepare(config).fit()


def prepare(config: EncoderConfig) -> Trainer:
    """Prepares stage 1 up to its first step: towers, features, encoder and loss.

    Raises ConfigError, DataError and CheckpointError for settings, data and weights that the user can correct.
    """
    check_output(Path(config.out))
    check_data(config)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    torch.manual_seed(config.trainer.seed)
    start = load_start(config)
    data, cache = data_at(config.data), config.cache_path
    train_features = load_features(data, "train", start.towers, cache, pictures=config.sampling.images)
    validation = load_features(data, "validation", start.towers, cache)
    check_divided(data, train_features.portraits, validation.portraits)
    facts = training_facts(start, train_features)
    model = start.model(config)
    task = EncoderTask(
        model,
        start.towers.image,
        config.loss,
        validation,
        config.validation_queries,
        train_identity=config.train_identity,
    )
    states = text_states_of(model, train_features, config.sampling, data, cache) if config.cached_text else None
    source = QuerySource(train_features, config.sampling, states)
    trainer = Trainer(config.trainer, task, source, Path(config.out), facts=facts, settings=config)
    if trainer.accelerator.is_main_process:
        trained = sum(p.numel() for p in trainer.trainable.values()) / 1e6
        begun = f"init={config.init}" if config.init else f"towers {vars(config.towers)}"
        print(f"stage 1: {trained:.2f} M trainable parameters, {begun}")
    return trainer


def training_facts(start: Start, features: SplitFeatures) -> dict[str, str]:
    """Returns hashes of the towers, of the encoder that `init` named, and of the training data. A run resumes only if
    all of them are equal."""
    hashes = {name: module_hash(tower)[:16] for name, tower in vars(start.towers).items()}
    return hashes | {"init": start.hash[:16], "data": features.portraits.content_hash[:16]}


main = partial(run_training, train, EncoderConfig, presets=PRESETS)

if __name__ == "__main__":
    sys.exit(main())
