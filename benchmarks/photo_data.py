"""What photographs cost before and while stage 2 trains on them, in processor time of one core.

    python -m benchmarks.photo_data [--photos DIR] [--size 512] [--count 16] [--fitter tiny/fitter] [--fast]
    python -m benchmarks.photo_data --reading ROWS [--size 512]

The first form measures the parts of an import, in ms per photo: by default on cuts of the group photo in the package
insightface. `--fast` looks for faces at 256 px and in upright photos only. The second form writes ROWS planted rows as
shards and reads batches from them as training does: pictures per second, and how much memory the process takes.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from faceclip.data.mapping import DataConfig, RawRecord
from faceclip.data.photo_rows import PhotoRows, fit_portraits, load_fitter
from faceclip.data.portrait_reader import FoundPortrait, PortraitReader
from faceclip.data.recorded import record_fields
from faceclip.data.writing import encode_map, encode_photo
from faceclip.face3d.fitter import shading_maps
from faceclip.faces.images import load_image
from faceclip.storage.ragged import RaggedRows, pack
from faceclip.storage.shards import ShardFolder
from faceclip.training.sampler import fetch
from train_generator.config import DropoutConfig
from train_generator.reference_features import ReferenceFeatures
from train_generator.samples import GenerationSource
from train_generator.streamed.portraits import Latents, StreamedPortraits


def photos(folder: Path | None, size: int, count: int) -> list[bytes]:
    """JPEG files of pictures whose longer side has `size` px."""
    if folder is None:
        package = find_spec("insightface")
        assert package is not None and package.origin is not None
        group = load_image(Path(package.origin).parent / "data/images/t1.jpg")
        pictures = [group[:512, left : left + 512] for left in np.linspace(0, group.shape[1] - 512, count).astype(int)]
    else:
        files = [file for kind in ("jpg", "jpeg", "png") for file in sorted(folder.rglob(f"*.{kind}"))]
        pictures = [load_image(file) for file in files[:: max(1, len(files) // count)][:count]]
    found = []
    for picture in pictures:
        image, buffer = Image.fromarray(picture), io.BytesIO()
        zoom = size / max(image.size)
        image.resize((round(image.width * zoom), round(image.height * zoom))).save(buffer, format="JPEG", quality=92)
        found.append(buffer.getvalue())
    return found


def measure_import(files: Sequence[bytes], size: int, fitter_name: str, *, fast: bool) -> dict[str, float]:
    """Milliseconds of processor time per photo, by part."""
    quick = {"detect_px": 256, "turned": False} if fast else {}
    config = DataConfig(portrait=1.7, **quick)
    reader = PortraitReader(config, folder=None, crop_size=112, picture_size=size)
    row: dict[str, Any] = {"key": "photo", "url": "", "captions": ("words",), "person": "", "split": "", "box": None}
    raws = [RawRecord(image=data, landmarks=None, **row) for data in files]
    times: dict[str, float] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = action()
        times[name] = 1000 * (time.process_time() - start) / len(files)
        return result

    def prepare(known: Sequence[FoundPortrait] | None = None) -> list[FoundPortrait]:
        points = [None if known is None else portrait.landmarks for portrait in known or raws]
        return [reader.prepare(raw, raw.image, 1.0, point) for raw, point in zip(raws, points, strict=True)]

    fitter = load_fitter(fitter_name)
    rows = PhotoRows(fitter, size, kind="jpeg")
    first = prepare()[:1]  # networks are read, and loops compiled
    rows.make([("person", raws[0], first[0])], [None])
    portraits = timed("find the face, decode and cut", prepare)
    timed("of which decode and cut", lambda: prepare(portraits))
    fit, _, _ = timed("fit", lambda: fit_portraits(fitter, portraits, size))
    maps = timed("draw the map", lambda: shading_maps(fit, size))
    timed("pack the map", lambda: [encode_map(one) for one in maps])
    timed("pack the portrait", lambda: [encode_photo(portrait.picture, "jpeg") for portrait in portraits])
    named = [("person", raw, portrait) for raw, portrait in zip(raws, portraits, strict=True)]
    timed("all of fit, map and packing", lambda: rows.make(named, [None] * len(named)))
    return times


def planted(folder: Path, rows: int, size: int) -> ReferenceFeatures:
    """Shards of `rows` portraits of the sizes that SDXL's preset has, but with narrow image tokens."""
    rng, block = np.random.default_rng(0), 256
    vectors, grey = np.zeros((5, 2), np.float32), np.zeros((size, size, 3), np.uint8)
    grey[size // 4 : -size // 4, size // 4 : -size // 4] = 120
    shading = np.frombuffer(encode_map(grey)["bytes"], np.uint8)
    kinds = {name: ShardFolder(folder / name, {"look": "planted"}) for name in ("frames", "references", "latents")}
    empty = np.empty((0, 0, 3), np.uint8)
    for start in range(0, rows, block):
        count = min(block, rows - start)
        good = []
        for number in range(start, start + count):
            words: dict[str, Any] = {"key": "", "url": "", "captions": ("a photo",), "split": ""}
            raw = RawRecord(image=None, person=f"{number // 3}", box=None, landmarks=None, **words)
            portrait = FoundPortrait(
                crop=empty,
                picture=empty,
                square=(0, 0, 1),
                whole=(1, 1),
                landmarks=vectors,
                upright=vectors,
                digest=number,
            )
            good.append((number, raw, portrait))
        sizes = np.tile(np.array([size, size, 0, 0, size, size], np.float32), (count, 1))
        fields = record_fields(good) | {"sizes": sizes, "landmarks_5": np.zeros((count, 5, 2), np.float32)}
        kinds["frames"].append(fields | pack("shading", [shading] * count, np.uint8))
        latents = rng.standard_normal((4, size // 8, size // 8)).astype(np.float32)
        kinds["latents"].append(pack("latents", [latents] * count, np.float32))
        kinds["references"].append(
            {
                "identity": rng.standard_normal((count, 512)).astype(np.float32),
                "tokens": np.zeros((count, 16, 64), np.float16),
                "image_tokens": np.zeros((count, 16, 64), np.float16),
            }
        )
    records = kinds["frames"].open(hashes=False)
    everything = np.arange(rows)
    stored = RaggedRows([kinds["latents"].read(n) for n in range(len(kinds["latents"]))], "latents", everything)
    portraits = StreamedPortraits(kinds["frames"], records, everything)
    squares = np.full((rows, 2), size)
    return ReferenceFeatures(
        arrays=portraits,
        latents=Latents(stored, squares, channels=4, factor=8),
        **kinds["references"].open(hashes=False),
    )


def measure_reading(rows: int, size: int) -> dict[str, float]:
    """Pictures per second of processor time that training reads, and MiB of private memory that this takes."""
    with tempfile.TemporaryDirectory() as folder:
        features = planted(Path(folder), rows, size)
        before = private_mib()
        source = GenerationSource(features, DropoutConfig(), same_picture=0.15)
        order = np.random.default_rng(1).permutation(rows)
        fetch(source, [(int(order[0]), 0)], 0)
        start, read = time.process_time(), 0
        while time.process_time() - start < 5:
            fetch(source, [(int(row), 0) for row in order[(read + np.arange(8)) % rows]], 0)
            read += 8
        seconds = time.process_time() - start
        return {
            "pictures per second": read / seconds,
            "private memory before, MiB": before,
            "private memory after, MiB": private_mib(),
            "peak of the process, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def private_mib() -> float:
    """Memory of this process that no file backs."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--size", type=int, default=512, help="px of photos and portraits")
    parser.add_argument("--count", type=int, default=16, help="photos that are measured")
    parser.add_argument("--fitter", default="tiny/fitter", help="mesh, or a FaceFitter")
    parser.add_argument("--fast", action="store_true", help="data.detect_px=256 data.turned=false")
    parser.add_argument("--reading", type=int, metavar="ROWS", help="planted rows that training reads instead")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if given.reading:
        found = measure_reading(given.reading, given.size)
    else:
        files = photos(given.photos, given.size, given.count)
        found = measure_import(files, given.size, given.fitter, fast=given.fast)
        whole = found["find the face, decode and cut"] + found["all of fit, map and packing"]
        found["photos per second of one core"] = 1000 / whole
    for name, value in found.items():
        print(f"{name:34} {value:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
