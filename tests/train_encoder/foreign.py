"""How stage 1 reads the parquet file of the fixture `parquet`, whose columns have names of somebody else."""

from pathlib import Path

from faceclip.data.mapping import ColumnsConfig, DataConfig
from train_encoder.split_features import SplitFeatures

COLUMNS = ColumnsConfig(image="photo", captions="words", identity="who", landmarks="points")


def config_of(path: Path, **changes) -> DataConfig:
    """Its settings, with some changed."""
    return DataConfig(**({"path": str(path), "columns": COLUMNS, "shard_rows": 8} | changes))


def equal_words(features: SplitFeatures) -> list[list[bool]]:
    """Which pictures have the same words as which others."""
    words = features.portraits.words
    return (words[:, None] == words).tolist()
