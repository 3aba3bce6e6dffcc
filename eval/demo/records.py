"""The demo's record of its earlier runs: the command of each stage, the shipped weights, and the time it took."""

import json
import shutil
from pathlib import Path

import eval as evaluation
import faceclip
import makeup_plugin
from eval.demo.stages import Stage
from eval.hashes import code_hash, model_hash
from eval.reports.report import write_json
from faceclip.errors import FaceClipError
from faceclip.storage.hashes import bytes_hash

TIMES = "times.json"


class ForeignFolderError(FaceClipError):
    """The output folder holds files under the demo's names that no demo is known to have written."""


def shipped() -> str:
    """Returns a hash of the project's code and shipped weights: results of others are not this version's."""
    packages = faceclip, makeup_plugin, evaluation
    weights = "".join(model_hash(Path(str(package.__file__)).parent / "weights") for package in packages)
    code = code_hash("faceclip", "makeup_plugin", "eval", "train_encoder", "train_generator")
    return f"code {code[:16]} weights {bytes_hash(weights.encode())[:16]}"


def read_times(root: Path) -> dict[str, dict]:
    """Reads `times.json`, stage by stage; empty without one. Raises ForeignFolderError where it is damaged."""
    path = root / TIMES
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_bytes())
        if all("command" in entry and "seconds" in entry for entry in stored.values()):
            return stored
        problem = "an entry lacks command or seconds"
    except (ValueError, TypeError, AttributeError) as error:
        problem = str(error)
    raise ForeignFolderError(f"{path} is damaged or not a demo's ({problem}): remove {root}, or give another --out")


class Records:
    """`root/times.json`: stage → command, made_by (`shipped()`), shown, seconds (null: begun, not finished), resumed
    (whether the seconds are those of its last part alone).

    finished: stage → seconds, of the leading stages that ran to their end by the same command and weights. A stage is
    noted before its command starts, so that an interrupted one is distinguished from one that another command began.
    """

    def __init__(self, root: Path, stages: list[Stage], made_by: str) -> None:
        self.root, self.stages, self.made_by = root, stages, made_by
        self.known = (root / TIMES).is_file()
        stored = read_times(root)
        self.entries: dict[str, dict] = {}
        for stage in stages:
            entry = stored.get(stage.name)
            if entry is None or entry.get("made_by") != made_by or entry["command"][1:] != stage.command[1:]:
                break  # what comes after a changed stage is stale too; the interpreter's own path changes nothing
            self.entries[stage.name] = entry
            if entry["seconds"] is None:
                break

    @property
    def finished(self) -> dict[str, float]:
        """Seconds of every finished stage, in order."""
        return {name: entry["seconds"] for name, entry in self.entries.items() if entry["seconds"] is not None}

    def log(self, stage: Stage) -> Path:
        """Returns the file that receives a stage's output."""
        return self.root / "logs" / f"{stage.name}.log"

    def clear_stale(self) -> list[str]:
        """Removes what stages left that have to run anew, their logs too; returns the names of those that had left any.

        Raises ForeignFolderError in a folder that is not a demo's. It, `begin` and `finish` raise DataError when
        the disk is full.
        """
        stale = [stage for stage in self.stages if stage.name not in self.entries]
        there = {
            stage.name: [path for path in (*stage.outputs, self.log(stage)) if path.exists() or path.is_symlink()]
            for stage in stale
        }
        if not self.known and any(there.values()):
            path = next(path for paths in there.values() for path in paths)
            raise ForeignFolderError(
                f"{path} exists, but {self.root / TIMES}, where a demo notes what it did, does not: give another "
                "folder by --out, or remove it if it is an old demo's"
            )
        self._write()  # first: killed while removing, the next run must not take a half-removed folder for a whole one
        for paths in there.values():
            for path in paths:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        return [name for name, paths in there.items() if paths]

    def begin(self, stage: Stage) -> None:
        """Notes that a stage's command starts or resumes."""
        self._set(stage, None, resumed=stage.name in self.entries)

    def finish(self, stage: Stage, seconds: float) -> None:
        """Notes that a stage's command ended well."""
        self._set(stage, seconds, resumed=self.entries[stage.name]["resumed"])

    def _set(self, stage: Stage, seconds: float | None, *, resumed: bool) -> None:
        self.entries[stage.name] = {
            "command": stage.command,
            "made_by": self.made_by,
            "shown": stage.shown(self.root),
            "seconds": seconds,
            "resumed": resumed,
        }
        self._write()

    def _write(self) -> None:
        write_json(self.root / TIMES, self.entries)
