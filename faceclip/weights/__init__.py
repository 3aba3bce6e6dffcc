"""Where the weights that ship with the packages lie."""

from importlib import resources
from pathlib import Path

from faceclip.errors import CheckpointError


def path(name: str, *, package: str = "faceclip") -> Path:
    """Directory of shipped weights such as "tiny/recognizer", for `from_pretrained`.

    `package`: faceclip, makeup_plugin or eval. Raises CheckpointError naming what there is.
    """
    root = Path(str(resources.files(package))) / "weights"
    directory = root / name
    if not directory.is_dir():
        known = sorted(str(found.parent.relative_to(root)) for found in root.glob("*/*/config.json"))
        raise CheckpointError(
            f"{package} ships no weights {name!r}; there are: {', '.join(known) or 'none'}. "
            "Train them with `python -m train_encoder.towers.NAME` or install a release that has them"
        )
    return directory
