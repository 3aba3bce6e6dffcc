"""Hashes of the models and of this project's code that made a result."""

from importlib.util import find_spec
from pathlib import Path

from faceclip import weights
from faceclip.storage.hashes import files_hash, joined_hash
from makeup_plugin.saving.shipped import ENCODER_TOWERS, WHOLE_TOWERS, is_shipped, shipped_pipeline


def model_hash(directory: Path) -> str:
    """Returns the SHA-256 over all files below a folder that a model's results depend on: weights and settings, in
    order of their names.

    Cards (metrics.json, README.md) do not count.
    """
    files = [*directory.rglob("*.safetensors"), *directory.rglob("*.json")]
    return _hash([(directory, file) for file in files if file.name != "metrics.json"])


def pipeline_hash(model: str | Path) -> str:
    """Returns the hash of a pipeline in a folder, or of one that ships, by its name, with the towers that ship beside
    it; a hub id stays as it is."""
    name = str(model)
    if not is_shipped(name):
        return model_hash(Path(model)) if Path(model).is_dir() else name
    towers = [weights.path(f"{name}/{tower}") for tower in (*ENCODER_TOWERS.values(), *WHOLE_TOWERS.values())]
    return joined_hash(model_hash(folder).encode() for folder in (shipped_pipeline(name), *towers))


def code_hash(*packages: str) -> str:
    """Returns the SHA-256 over the sources and presets of packages, which are found and not imported."""
    roots = [_folder(package) for package in packages]
    return _hash([(root.parent, file) for root in roots for kind in ("*.py", "*.yaml") for file in root.rglob(kind)])


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is no installed package with an __init__.py")
    return Path(spec.origin).parent


def _hash(files: list[tuple[Path, Path]]) -> str:
    return files_hash((file.relative_to(root).as_posix(), file) for root, file in sorted(files))
