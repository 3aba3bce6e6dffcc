"""SDXL's real classes at their published size on this machine, on the user's road.

    python -m benchmarks.sdxl build DIR             random weights in the hub's layout, and a small data set of renders
    python -m benchmarks.sdxl load DIR [WORDS …]    loading by stage 2: memory against the size of the weights
    python -m benchmarks.sdxl train DIR [WORDS …]   two steps of `train_generator --preset sdxl`, killed after the first
                                                    and resumed, against the unbroken run
    python -m benchmarks.sdxl draw DIR              a call of two steps on the export of `train`

Memory is what the kernel counts for the process: `anonymous` is its own, `with files` adds weights that are mapped from
files, whose memory the kernel takes back where it is short. WORDS are settings of `train_generator`.
`--tiny` takes a thousandth of the weights, for tests. All of it lies below DIR (25 GB) and may be deleted.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE, TINY_SIZE = 512, 64
# What lets the step fit beside other work into 14 GiB, and what a step of one row needs to show every loss.
FITTING = [
    "licence=openrail++",
    "frozen=fp16",
    "trainer.moments=int8",
    "adapter.shading_layers=new",
    "adapter.lora_rank=16",
    "adapter.identity.depth=1",
    "adapter.identity.heads=4",
]
SHORT = [
    "trainer.steps=2",
    "trainer.save_every=1",
    "trainer.batch_size=1",
    "trainer.accumulate=1",
    "trainer.log_every=1",
    "trainer.validate_every=0",
    "trainer.warmup_steps=1",
    "loss.identity_below=1000",
    "validation_rows=1",
    "sample_steps=2",
]
SMALL = ["adapter.identity.heads=2", "adapter.identity.dim_head=8"]


class Memory:
    """Peaks of a process in GiB: `anonymous` and `with_files`."""

    def __init__(self, pid: int) -> None:
        self.pid, self.anonymous, self.with_files = pid, 0.0, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            try:
                lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            except OSError:
                return
            sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith("kB")}
            self.anonymous = max(self.anonymous, sizes.get("RssAnon", 0.0))
            self.with_files = max(self.with_files, sizes.get("VmRSS", 0.0))

    def __str__(self) -> str:
        return f"{self.anonymous:.2f} GiB anonymous, {self.with_files:.2f} GiB with files"


@contextmanager
def watched(pid: int) -> Iterator[Memory]:
    """Context in which the memory of a process is looked at twenty times a second."""
    memory = Memory(pid)
    memory._thread.start()
    try:
        yield memory
    finally:
        memory._over.set()
        memory._thread.join()


def words_of(directory: Path, *, tiny: bool) -> list[str]:
    """The command line of stage 2 on what `build` has made."""
    places = [f"{name}={directory / name}" for name in ("data", "encoder", "base")]
    size = TINY_SIZE if tiny else SIZE
    return [*places, "--preset", "sdxl", f"size={size}", *FITTING, *SHORT, *(SMALL if tiny else [])]


def build(directory: Path, *, tiny: bool) -> None:
    from benchmarks.sdxl_files import write_parts

    write_parts(directory, tiny=tiny)
    size = TINY_SIZE if tiny else SIZE
    people = ["--identities", "5", "--images-per-identity", "2", "--splits", "2", "1", "2"]
    command = [sys.executable, "-m", "faceclip.people", "--out", str(directory / "data"), *people]
    subprocess.run([*command, "--size", str(size), "--seed", "7", "--workers", "1", "--quiet"], check=True)


def load(directory: Path, words: list[str], *, tiny: bool) -> dict[str, float]:
    """Peak memory of loading beyond that of the imports, and bytes of the weights, in GiB."""
    from faceclip.settings.config import parse_config
    from train_generator.adapter import add_adapter
    from train_generator.config import PRESETS, GeneratorConfig
    from train_generator.loading import build_pipeline

    config = parse_config(GeneratorConfig, [*words_of(directory, tiny=tiny), *words], presets=PRESETS)
    with watched(os.getpid()) as before:
        time.sleep(0.2)
    with watched(os.getpid()) as memory:
        pipeline = build_pipeline(config)
        time.sleep(0.2)
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "parameters")}
    sizes = {name: sum(p.numel() * p.element_size() for p in part.parameters()) for name, part in parts.items()}
    weights = sum(sizes.values()) / 2**30
    print(
        f"weights: {', '.join(f'{name} {size / 2**30:.2f}' for name, size in sizes.items())}; {weights:.2f} GiB in all"
    )
    print(f"imports: {before}")
    print(f"loading: {memory}; beyond the imports {(memory.anonymous - before.anonymous) / weights:.3f} of the weights")
    add_adapter(pipeline, config.adapter)
    trained = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad) / 1e6
        for name, part in pipeline.components.items()
        if hasattr(part, "parameters")
    }
    print(f"trained: {', '.join(f'{name} {count:.1f} M' for name, count in trained.items() if count)}")
    return {"weights": weights, "peak": memory.anonymous - before.anonymous, "with_files": memory.with_files}


def run(words: list[str], log: Path, *, until: Path | None = None) -> tuple[int, str, float]:
    """`train_generator` in a process of its own, killed as soon as `until` is there; status, memory and seconds."""
    began = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, "-m", "train_generator", *words]
        # glibc would keep what large tensors leave behind for tensors of other sizes.
        environment = {"MALLOC_MMAP_THRESHOLD_": "1048576"} | os.environ
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        # Where memory runs short, the kernel ends this process and no other.
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        with watched(process.pid) as memory:
            while process.poll() is None:
                if until is not None and until.exists():
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    break
                time.sleep(0.02)
    return process.returncode, str(memory), time.monotonic() - began


def train(directory: Path, words: list[str], *, tiny: bool) -> None:
    """Raises SystemExit where a run fails or the resumed one differs from the unbroken one."""
    own = [*words_of(directory, tiny=tiny), *words]
    whole, broken = directory / "whole", directory / "broken"
    for folder in (whole, broken):
        shutil.rmtree(folder, ignore_errors=True)
    status, memory, seconds = run([*own, f"out={whole}"], directory / "whole.txt")
    if status:
        raise SystemExit((directory / "whole.txt").read_text())
    print(f"unbroken, with validation and export: {seconds:.0f} s, peak {memory}")
    for line in (whole / "log.jsonl").read_text().splitlines():
        print("  " + json.dumps(json.loads(line)))
    first = broken / "checkpoints" / "step-00000001"
    name = "checkpoints/step-00000002/manifest.json"  # all that is compared: validation and export are not repeated
    status, memory, seconds = run([*own, f"out={broken}"], directory / "broken.txt", until=first / "manifest.json")
    # It ended by itself, of memory, or after the checkpoint that the resumed run shall write.
    if status != -signal.SIGKILL or not (first / "manifest.json").exists() or (broken / name).exists():
        raise SystemExit((directory / "broken.txt").read_text() or f"ended with status {status} before its checkpoint")
    print(f"killed after the checkpoint of step 1: {seconds:.0f} s, peak {memory}")
    status, memory, seconds = run([*own, f"out={broken}"], directory / "resumed.txt", until=broken / name)
    if not (broken / name).exists():
        raise SystemExit((directory / "resumed.txt").read_text() or f"ended with status {status}")
    print(f"resumed, until its checkpoint of step 2: {seconds:.0f} s, peak {memory}")
    same = json.loads((whole / name).read_text()) == json.loads((broken / name).read_text())
    print(f"checkpoints of step 2 are {'equal to the bit' if same else 'DIFFERENT'}")
    if not same:
        raise SystemExit(1)


def draw(directory: Path, *, tiny: bool) -> None:
    """One picture of the export, in bf16, two steps."""
    import numpy as np
    import torch

    from makeup_plugin import FaceMakeUpPipeline

    size = TINY_SIZE if tiny else SIZE
    with watched(os.getpid()) as memory:
        began = time.monotonic()
        pipeline = FaceMakeUpPipeline.from_pretrained(directory / "whole" / "export", dtype=torch.bfloat16)
        loaded = time.monotonic()
        generator = torch.Generator().manual_seed(0)
        picture = pipeline(
            "a person with a hat", height=size, width=size, num_inference_steps=2, generator=generator, output_type="np"
        ).images[0]
        drawn = time.monotonic()
    assert np.isfinite(picture).all() and picture.shape == (size, size, 3)
    print(f"loaded in {loaded - began:.0f} s, two steps at {size} px in {drawn - loaded:.0f} s, peak {memory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["build", "load", "train", "draw"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.what == "build":
        build(given.directory, tiny=given.tiny)
    elif given.what == "load":
        load(given.directory, given.words, tiny=given.tiny)
    elif given.what == "train":
        train(given.directory, given.words, tiny=given.tiny)
    else:
        draw(given.directory, tiny=given.tiny)


if __name__ == "__main__":
    main()
