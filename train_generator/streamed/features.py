"""Reads the features of a split of photographs from their shards; builds missing ones first."""

from pathlib import Path

from faceclip.data.frames import Framing
from faceclip.data.mapping import DataConfig
from faceclip.data.recorded import rows_of_split
from faceclip.storage.locks import locked_cache
from faceclip.storage.ragged import RaggedRows
from train_generator.reference_features import ReferenceFeatures
from train_generator.streamed.build import Networks, StreamBuilder
from train_generator.streamed.portraits import Latents, StreamedPortraits


def streamed_features(
    data: DataConfig, split: str, framing: Framing, networks: Networks, cache: Path
) -> ReferenceFeatures:
    """Returns the features of the split "train" or "validation" of any data. The towers are on the CPU afterwards.

    Raises DataError and its subclasses for the data, and CheckpointError for a damaged fitter or autoencoder.
    """
    divided = bool(data.columns.split) or data.validation_share > 0
    with locked_cache(cache) as writable:
        builder = StreamBuilder(data, data.undivided if divided else getattr(data, split), framing, networks, cache)
        folders = builder.build(writable=writable)
    hashes = data.verify == "hashes"
    frames, references, _ = (folder.open(hashes=hashes) for folder in folders.values())
    rows = rows_of_split(data, split, frames, pictures=2, pairs=False)
    portraits = StreamedPortraits(folders["frames"], frames, rows)
    latents = folders["latents"]
    stored = RaggedRows([latents.read(number) for number in range(len(latents))], "latents", rows)
    sizes = portraits.sizes[:, 4:].astype(int)
    channels = len(stored[0]) * networks.factor**2 // int(sizes[0].prod())
    return ReferenceFeatures(
        arrays=portraits,
        latents=Latents(stored, sizes, channels=channels, factor=networks.factor),
        **{name: values.take(rows) for name, values in references.items()},
    )
