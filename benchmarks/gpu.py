"""What can be known of this project on a GPU that is at hand for minutes only.

    python -m benchmarks.gpu run                              # everything; the same command goes on where it stopped
    python -m benchmarks.gpu run --seconds 540                # as much as fits into this time
    python -m benchmarks.gpu run --only loss encoder unet
    python -m benchmarks.gpu run --device cpu --small         # the rehearsal, minutes on a CPU
    python -m benchmarks.gpu table                            # docs/scaling.md from the files of both

Each part (`gpu_parts.py`) runs in a process of its own and is ended after `--limit` seconds. What it found stands in
the result file as soon as it has ended, so that nothing is lost with the machine; parts that are done on this device
are not run again, those that failed are. Large files lie below `--work` (20 GB) and may be deleted: what is missing is
made again. The exit status is 1 while a part is missing.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import PARTS, Setting
from eval.demo.process import Stopped, stop_on_signals
from faceclip.errors import DataError
from faceclip.settings.command import guarded
from faceclip.storage.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by benchmarks.gpu -->", "<!-- end of what benchmarks.gpu has written -->"
RESULTS = {False: Path("runs/gpu/results.json"), True: Path("runs/gpu/rehearsal.json")}


def device_name(device: torch.device) -> str:
    """As the table calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_results(path: Path) -> dict[str, Any]:
    """What a result file holds by part; nothing where there is none."""
    return read_json(path) if path.exists() else {}


def run_part(name: str, setting: Setting, limit: float) -> dict[str, Any]:
    """One part in a process of its own: its state ("done", "failed", "out of time"), seconds, and figures or error."""
    found, log = setting.work / f"{name}.json", setting.work / f"{name}.txt"
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "part", name, "--device", setting.device.type]
    command += ["--work", str(setting.work.resolve()), *(["--small"] if setting.small else [])]
    about: dict[str, Any] = {"device": device_name(setting.device), "small": setting.small, "torch": torch.__version__}
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            about |= {"state": "out of time"}
        else:
            if status == 0 and found.exists():
                about |= {"state": "done", "figures": read_json(found)}
            else:
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                about |= {"state": "failed", "error": last[0][:300] if last else f"ended with status {status}"}
        finally:  # of this part nothing is left, whatever ends this process
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return about | {"seconds": round(time.monotonic() - began, 1)}


def is_measured(name: str, results: dict[str, Any], setting: Setting) -> bool:
    """Whether a part has its figures of this device."""
    entry = results.get(name, {})
    same = (entry.get("device"), entry.get("small")) == (device_name(setting.device), setting.small)
    return entry.get("state") == "done" and same


def is_done(name: str, results: dict[str, Any], setting: Setting) -> bool:
    """Whether a part has its figures of this device and what it leaves for others is still there."""
    left = PARTS[name].leaves
    return is_measured(name, results, setting) and (not left or (setting.work / left).exists())


def kept(before: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """What the result file holds of a part after a run: figures of a GPU give way to figures of a GPU alone."""

    def of_gpu(one: dict[str, Any]) -> bool:
        return one.get("state") == "done" and one["device"] != "cpu"

    return before if of_gpu(before) and not of_gpu(entry) else entry


def run(setting: Setting, results_at: Path, names: list[str], *, limit: float, seconds: float) -> bool:
    """Runs what is missing of the named parts and what these need; returns whether all of them are done."""
    setting.work.mkdir(parents=True, exist_ok=True)
    results, deadline = read_results(results_at), time.monotonic() + seconds
    missing = [name for name in names if not is_measured(name, results, setting)]
    wanted = set(missing) | {need for name in missing for need in PARTS[name].needs}
    for name in (name for name in PARTS if name in wanted):
        needed = [need for need in PARTS[name].needs if not is_done(need, results, setting)]
        if is_done(name, results, setting):
            continue
        left = deadline - time.monotonic()
        if needed or left < 10:
            print(f"{name}: not begun, {'needs ' + ', '.join(needed) if needed else 'no time is left'}", flush=True)
            continue
        entry = run_part(name, setting, min(limit, left))
        if entry["state"] == "out of time" and left < limit:
            print(f"{name}: did not fit into the time that was left", flush=True)
            continue
        results[name] = kept(results.get(name, {}), entry)
        write_json(results_at, results)
        print(f"{name}: {entry['state']} in {entry['seconds']} s; {entry.get('error') or cell(entry)}", flush=True)
    return all(is_measured(name, results, setting) for name in names)


def cell(entry: dict[str, Any]) -> str:
    """The figures of a part in one line."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else format(value, '.4g')}"
        for name, value in entry["figures"].items()
    )


def table(on_gpu: dict[str, Any], rehearsed: dict[str, Any], page: str = "") -> str:
    """Markdown: which parts ran on a GPU, with what figures, and which of them ran on a CPU in small. Of parts that are
    in neither file, which may be on another machine, it repeats what the page says."""
    told = {name: cells for name, *cells in re.findall(r"^\| `([^`]+)` \|[^|]*\| ([^|]*) \| ([^|]*) \|$", page, re.M)}
    lines = ["| part | what it runs | on a GPU | rehearsed on a CPU |", "| --- | --- | --- | --- |"]
    for name, part in PARTS.items():
        entry, small = on_gpu.get(name, {}), rehearsed.get(name, {})
        gpu, tried = told.get(name, ("no", "no"))
        if small.get("state") == "done" and small["device"] == "cpu":
            tried = "yes"
        if entry.get("device", "cpu") != "cpu" and not entry["small"]:
            what = cell(entry) if entry["state"] == "done" else f"{entry['state']} {entry.get('error', '')}".strip()
            gpu = f"{entry['device']}: {what}".replace("|", "/")
        lines.append(f"| `{name}` | {part.about} | {gpu} | {tried} |")
    return "\n".join(lines)


def written(text: str, lines: str) -> str:
    """A page with the table in its place. Raises DataError where the place is not marked."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise DataError(f"{DOCS}: the table's place is not marked by one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{lines}\n\n{END}{rest.split(END)[1]}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running, one, _ = (commands.add_parser(name) for name in ("run", "part", "table"))
    for command in (running, one):
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        command.add_argument("--small", action="store_true", help="sizes that a CPU computes in seconds")
        command.add_argument("--work", type=Path, help="folder for files; default: beside the results")
    running.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    running.add_argument("--results", type=Path, help="default: runs/gpu/results.json, with --small rehearsal.json")
    running.add_argument("--limit", type=float, default=560.0, help="seconds of a part")
    running.add_argument("--seconds", type=float, default=float("inf"), help="of this command; then it ends")
    one.add_argument("name", choices=list(PARTS))
    given = parser.parse_args(argv)
    if given.command == "table":
        on_gpu, rehearsed = (read_results(ROOT / RESULTS[small]) for small in (False, True))
        page = DOCS.read_text()
        write_text(DOCS, written(page, table(on_gpu, rehearsed, page)))
        return 0
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here; --device cpu --small rehearses")
    if given.command == "run" and given.device == "cpu" and not given.small and not given.results:
        parser.error("--device cpu: without --small, name the file of the figures by --results")
    results_at = getattr(given, "results", None) or ROOT / RESULTS[given.small]
    work = given.work or results_at.parent / ("rehearsal" if given.small else "work")
    setting = Setting(device=torch.device(given.device), small=given.small, work=work)
    if given.command == "part":
        torch.manual_seed(0)
        write_json(work / f"{given.name}.json", dict(PARTS[given.name].run(setting)), sort_keys=False)
        return 0
    try:
        with stop_on_signals():
            return 0 if run(setting, results_at, given.only, limit=given.limit, seconds=given.seconds) else 1
    except Stopped as stopped:
        return 128 + stopped.number


if __name__ == "__main__":
    sys.exit(main())
