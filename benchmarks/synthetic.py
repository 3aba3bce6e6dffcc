"""Portraits per second of the synthetic data generator, all labels and the parquet files included.

python benchmarks/synthetic.py --size 128 --workers 2

Two figures: of the whole command (processes started, modules imported, kernels loaded), and of the work alone, from the
difference of a short run and a long one. Both are wall time, so other load on the machine lowers them; the load average
is printed with them. A table of one process says where the time goes, in CPU time, which suffers less from such load.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from faceclip.data.records import features
from faceclip.data.worker_pool import usable_cores
from faceclip.people.generate import generate
from faceclip.people.plan import Request
from faceclip.people.render import PortraitRenderer
from faceclip.people.rows import make_row
from faceclip.people.sample import sample_identity, sample_scene

TARGET = 20.0
"""Images per second asked of two cores at 128 px."""


def time_command(identities: int, *, images: int, size: int, seed: int, workers: int) -> tuple[float, int]:
    """Seconds and bytes of one complete data set, written to a temporary folder."""
    request = Request(
        identities=identities, images_per_identity=images, size=size, seed=seed, splits=(identities, 0, 0)
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        generate(Path(folder), request, workers=workers, quiet=True)
        seconds = time.perf_counter() - began
        return seconds, sum(path.stat().st_size for path in Path(folder).glob("data/*.parquet"))


def time_stages(identities: int, *, images: int, size: int, seed: int) -> dict[str, float]:
    """CPU milliseconds per image of each stage in one process, after one image to warm up."""
    renderer = PortraitRenderer()
    renderer.render(sample_identity(seed, 0), sample_scene(seed, 0, 0), size)
    seconds = dict.fromkeys(("sample", "render", "captions and PNG", "parquet"), 0.0)
    rows = []
    for person in range(identities):
        for number in range(images):
            start = time.process_time()
            identity, scene = sample_identity(seed, person), sample_scene(seed, person, number)
            sampled = time.process_time()
            portrait = renderer.render(identity, scene, size)
            rendered = time.process_time()
            rows.append(make_row(identity, scene, portrait, seed=seed, image_index=number))
            seconds["sample"] += sampled - start
            seconds["render"] += rendered - sampled
            seconds["captions and PNG"] += time.process_time() - rendered
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        table = pa.Table.from_pylist(rows, schema=features().arrow_schema)
        pq.write_table(table, Path(folder) / "shard.parquet", compression="zstd", use_dictionary=False)
    seconds["parquet"] = time.process_time() - start
    return {name: 1000 * value / len(rows) for name, value in seconds.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--identities", type=int, default=48)
    parser.add_argument("--images-per-identity", type=int, default=12)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    short = max(2, options.workers)
    if options.identities <= short:
        parser.error(f"--identities must be above {short}: the short run, which is subtracted, has as many")

    settings = {"images": options.images_per_identity, "size": options.size, "seed": options.seed}
    load = os.getloadavg()[0]
    time_command(1, **settings, workers=1)  # compiles the kernels on a fresh clone; not counted
    short_seconds, _ = time_command(short, **settings, workers=options.workers)
    seconds, size = time_command(options.identities, **settings, workers=options.workers)
    stages = time_stages(2, **settings)

    images = options.identities * options.images_per_identity
    more = (options.identities - short) * options.images_per_identity
    figures = {
        "size": options.size,
        "workers": options.workers,
        "images": images,
        "images_per_second_whole_command": images / seconds,
        "images_per_second_without_start": more / max(seconds - short_seconds, 1e-9),
        "kilobytes_per_image": size / images / 1000,
        "stages_cpu_ms_per_image": stages,
        "load_before": load,
        "cores": usable_cores(),
    }
    where = f"{options.workers} workers on {figures['cores']} cores"
    print(f"{images} images at {options.size} px with all labels, {where}")
    print(f"whole command   {figures['images_per_second_whole_command']:7.1f} images/s ({seconds:.1f} s)")
    print(f"without start   {figures['images_per_second_without_start']:7.1f} images/s (target at 128 px: {TARGET:g})")
    print(f"stored          {figures['kilobytes_per_image']:7.1f} kB per image")
    for name, milliseconds in stages.items():
        print(f"  {name:<18} {milliseconds:6.2f} CPU ms per image")
    print(f"load average before the benchmark: {load:.1f}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":  # the workers are spawned and import this file
    main()
