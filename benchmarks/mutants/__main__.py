"""Do the tests notice small errors? Mutates the modules of `table.py` and runs their tests on every mutant.

    nice python -m benchmarks.mutants                          # 80 mutants, about half an hour on one core
    python -m benchmarks.mutants --only faceclip.losses --count 20 --seed 1
    python -m benchmarks.mutants --start 41                    # resume a stopped run at its 41st mutant
    python -m benchmarks.mutants --list --only eval            # show the mutations, run nothing

A mutant is killed when a test fails or when the tests use more than their limit of processor time, which a busy machine
does not shorten. The working tree is not touched: all runs happen in a copy of it. Exit status 1 when fewer than 90 %
are killed, 2 when nothing could be measured.
"""

import argparse
import contextlib
import difflib
import gc
import importlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from benchmarks.mutants.equivalent import ANY, EQUIVALENT
from benchmarks.mutants.operators import Mutation, draw
from benchmarks.mutants.table import BOUNDS, DESELECTED, MODULES, source_file

WANTED = 0.9  # share of mutants to be killed
MARGIN = 4  # a mutant's tests may use this multiple of the processor time that the unchanged module's take …
LEAST = 30  # … but at least this number of seconds
ASLEEP = 600  # tests that sleep for this number of seconds, as in a deadlock, are ended
# Loaded once: every run is a fork that finds them imported, which saves most of its time.
LIBRARIES = (
    *(
        "pytest",
        "numpy",
        "torch",
        "torchvision",
        "cv2",
        "numba",
        "PIL.Image",
        "safetensors.torch",
        "faiss",
        "open_clip",
    ),
    *(
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.loaders",
        "transformers",
        "peft",
        "accelerate.tracking",
        "datasets",
    ),
    *(
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
        "tensorboard.summary.writer.record_writer",
        "tensorboard.backend.event_processing.event_accumulator",
        "onnx",
        "onnxruntime",
        "rich.progress",
    ),
)


class MeasurementError(RuntimeError):
    """The mutants cannot be judged, because the unchanged code does not pass its tests."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=80, help="mutants to draw, spread evenly over the modules")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other mutants")
    parser.add_argument("--only", action="append", default=[], metavar="MODULE", help="beginning of an import path")
    parser.add_argument("--start", type=int, default=1, help="number of the first mutant that is run")
    parser.add_argument("--list", action="store_true", help="print the drawn mutations and stop")
    arguments = parser.parse_args()
    chosen = [name for name in MODULES if not arguments.only or name.startswith(tuple(arguments.only))]
    if not chosen:
        parser.error("nothing to do: --only fits no module of the table")
    root = Path.cwd()
    drawn = sample(root, chosen, arguments.count, arguments.seed)
    if not 1 <= arguments.start <= len(drawn):
        parser.error(f"--start: there are mutants 1 to {len(drawn)}")
    if arguments.list:
        for module, mutation in drawn:
            print(difference(module, mutation, source_file(module, root)))
        return 0
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # no run looks through what all of them share
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copy_tree(root, Path(folder) / "tree")
        return report(measure(tree, drawn, arguments.start))


def sample(root: Path, modules: list[str], count: int, seed: int) -> list[tuple[str, Mutation]]:
    """`count` mutations, the modules taking turns in an order drawn from the seed, sorted by module."""
    queues = {}
    for module in modules:
        source = source_file(module, root).read_text()
        spare = sum(known[0] == module for known in EQUIVALENT) + 20 * (module in BOUNDS)
        found = draw(source, 2 + count * 2 // len(modules) + spare, random.Random(f"{seed} {module}"))
        queues[module] = [m for m in found if visible(module, m, source)]
    order = random.Random(seed).sample(modules, len(modules))
    turns = [(turn, module) for turn in range(count) for module in order if turn < len(queues[module])]
    drawn = [(module, queues[module][turn]) for turn, module in turns[:count]]
    return sorted(drawn, key=lambda pair: (modules.index(pair[0]), pair[1].line))


def visible(module: str, mutation: Mutation, source: str) -> bool:
    """Whether a test could see the mutation, as far as the table knows."""
    before, after = mutation.lines(source)
    if module in BOUNDS and mutation.kind == "comparison" and mutation.text in ("<", "<=", ">", ">="):
        return re.search(r"\d\.\d", before) is None
    return (module, before, after) not in EQUIVALENT and (module, before, ANY) not in EQUIVALENT


def copy_tree(root: Path, target: Path) -> Path:
    """The files that git knows or would add, with their times of change."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.check_output(command, cwd=root, text=True).split("\0"):
        if name and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    return target


def measure(tree: Path, drawn: list[tuple[str, Mutation]], start: int) -> dict[str, Counter]:
    """Runs the mutants from number `start` (1 is the first); returns how many were killed and survived by module, and
    prints each as it is known."""
    results: dict[str, Counter] = {}
    limits: dict[str, float] = {}
    for number, (module, mutation) in enumerate(drawn[start - 1 :], start):
        tests, path = MODULES[module], source_file(module, tree)
        if module not in limits:
            outcome, seconds = run_tests(tree, tests, 600)
            if outcome != "passed":
                raise MeasurementError(f"{module}: {' '.join(tests)} {outcome} without any mutation")
            limits[module] = max(LEAST, MARGIN * seconds)
        shown = difference(module, mutation, path)
        original = path.with_suffix(".original")
        shutil.copy2(path, original)
        try:
            path.write_text(mutation.apply(path.read_text()))
            outcome, _ = run_tests(tree, tests, limits[module])
        finally:
            original.replace(path)
        verdict = "SURVIVED" if outcome == "passed" else "killed"
        results.setdefault(module, Counter())[verdict] += 1
        print(f"[{number}/{len(drawn)}] {verdict} ({outcome}) {shown}", flush=True)
    return results


def run_tests(tree: Path, tests: tuple[str, ...], limit: float) -> tuple[str, float]:
    """Runs these tests of the tree in a process of their own, with a limit in seconds of processor time.

    Returns "passed", "failed" or "ran past the limit", and the seconds of processor time that they took.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 1))
            code = _in_child(tree, tests)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # never back into the loop of the parent
    awake = time.monotonic()
    while time.monotonic() < awake + ASLEEP:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            seconds = used.ru_utime + used.ru_stime
            ended = os.WIFSIGNALED(status) and seconds >= limit
            return "ran past the limit" if ended else "passed" if status == 0 else "failed", seconds
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            awake = time.monotonic()  # a process that waits for a core is no sleeper
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "ran past the limit", limit


def _in_child(tree: Path, tests: tuple[str, ...]) -> int:
    import pytest

    os.setpgid(0, 0)  # processes that tests start end with it
    log = os.open(tree.parent / "log.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != Path(os.getcwd()))]
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout=0", f"--basetemp={tree.parent / 'tests'}"]
    options += [f"--deselect={test}" for test in DESELECTED]
    return int(pytest.main([*options, *tests]))


def difference(module: str, mutation: Mutation, path: Path) -> str:
    """The place and the changed lines of a mutation."""
    source = path.read_text()
    before, after = source.splitlines(), mutation.apply(source).splitlines()
    lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[3:]
    return "\n    ".join([f"{module}:{mutation.line} {mutation.kind}", *lines])


def report(results: dict[str, Counter]) -> int:
    """Prints the shares by module and in all; the exit status."""
    total = sum(results.values(), Counter())
    for module, counts in sorted(results.items()):
        print(f"{counts['killed']:4d} of {counts.total():3d}  {module}")
    rate = total["killed"] / total.total()
    print(f"{total['killed']} of {total.total()} mutants killed: {rate:.3f} (wanted: {WANTED})")
    return int(rate < WANTED)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (MeasurementError, FileNotFoundError) as error:
        print(f"mutants: {error}", file=sys.stderr)
        sys.exit(2)
