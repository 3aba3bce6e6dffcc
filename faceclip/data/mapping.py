"""Maps the columns of a user's data set to the parts of a record, with ready mappings for known data sets.

A mapping names columns; `A|B` takes the first of A and B that exists. A row that lacks a part, or has it in an unusable
form, raises `RejectedRecord` with a reason. Such rows are counted (`faceclip.data.rejects`); nothing is guessed.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from faceclip.data.cells import (
    GivenMask,
    RejectedRecord,
    encodes,
    image_of,
    parse_box,
    parse_landmarks,
    parse_masks,
    texts_of,
)
from faceclip.data.table_files import KINDS, check_data_path
from faceclip.errors import ConfigError, DataError
from faceclip.settings import check_bounds, setting
from faceclip.storage.hashes import int64_hash

Layout = Literal[
    "auto", "local", "portraits", "files", "arrow", "image_folder", "facecaption", "facecaptionmask", "hub"
]

TABLES = tuple(KINDS)
MASK_LAYOUT: Layout = "facecaptionmask"
_LARGEST_WHOLE = 2.0**53  # from here on floating point rounds whole numbers: two people would become one
MAX_REACH = 100  # sides of the face crop: a face of 1 % of the square is nothing to learn from


@dataclass(kw_only=True)
class ColumnsConfig:
    """Names of the columns of a record's parts; an empty name takes that of the layout's ready mapping (`READY`)."""

    image: str = setting("", "picture as bytes, `datasets.Image`, or a path below data.images")
    url: str = setting("", "key into the pictures of data.images")
    captions: str | tuple[str, ...] = setting(
        (), "one or more columns; a cell is a text, a list of texts, or a list of structs with `text`"
    )
    identity: str = setting("", "equal values are one person; a blank cell or NaN says nothing")
    box: str = setting("", "four numbers: list, JSON text or struct")
    landmarks: str = setting("", "five points (x, y): eyes, nose tip, mouth corners")
    split: str = setting("", "a value per row: the split it is in")
    key: str = setting("", "a name for reports and for files of data.images")


@dataclass(kw_only=True)
class DataConfig:
    """Any data set as training data (docs/data.md).

    `identity` "none" leaves no composed queries with a second picture. Local files are always read as a stream.
    Raises ConfigError for sizes out of range, shares beyond 0 to 1, and paths that hold no data.
    """

    path: str = setting("", "local folder or file, or a hub id (owner/name)", resume="free", path=True)
    layout: Layout = setting("auto", "auto looks at the path; local takes no hub id")
    name: str = setting("", "of a hub data set")
    revision: str = setting("", "of a hub data set")
    streaming: bool = setting(False, "read a hub data set in order without downloading it first", resume="free")
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    identity: Literal["column", "none"] = setting("column", "none: every row is another person")
    images: str = setting("", "folder of pictures for urls and relative paths", resume="free", path=True)
    masks: str = setting(
        "",
        "folder of Emotion/ and Attribute/ of layout=facecaptionmask; '': that of the data",
        resume="free",
        path=True,
    )
    box_format: Literal["xyxy", "xywh"] = setting("xyxy", "corners, or corner and size")
    box_units: Literal["pixels", "relative"] = setting("pixels", "of data.columns.box")
    train: str = setting("train", "name of the split, or value of columns.split")
    validation: str = setting("validation", "name of the split, or value of columns.split")
    validation_share: float = setting(
        0.0, "share of the persons kept for validation in place of a split of its own", least=0, most=1
    )
    undivided: str = setting("train", "split that validation_share or columns.split divides")
    detector: str = setting("mtcnn", "mtcnn, or insightface:PACK (non-commercial, with accept_non_commercial)")
    detect_px: int = setting(
        0, "px of the longer side at which a face is looked for first; 0, or none there: in the picture as it is"
    )
    turned: bool = setting(True, "look for faces in the other turns of photos too; false: all stand upright")
    accept_non_commercial: bool = setting(False, "allow parts whose licence forbids commercial use", resume="free")
    face: Literal["largest", "center", "only"] = setting("largest", "which of several faces, where no box says so")
    portrait: float = setting(
        2.5, "side of the image tower's square in sides of the face crop; 0: the center square", least=0, most=MAX_REACH
    )
    max_pixels: int = setting(64_000_000, "larger pictures are refused", least=1, most=4_000_000_000)
    max_bad_share: float = setting(
        0.1, "share of unusable rows above which building stops", resume="free", least=0, most=1
    )
    few_pictures: Literal["error", "drop"] = setting(
        "error",
        "what happens to persons with fewer pictures than sampling.images; in stage 2, where error keeps persons with "
        "one picture as their own reference, drop leaves these out",
    )
    limit: int = setting(0, "read only the first rows; 0: all", least=0)
    shard_rows: int = setting(1024, "source rows per cache shard", resume="free", least=1, most=1_000_000)
    batch_size: int = setting(
        64,
        "rows of the frozen towers at once; the CPU takes 256 of this project's own layout",
        resume="free",
        least=1,
        most=65_536,
    )
    workers: int = setting(
        2, "threads or processes (worker_kind) that decode and find faces", resume="free", least=1, most=1024
    )
    worker_kind: Literal["threads", "processes"] = setting("threads", "what the workers are", resume="free")
    device: str = setting("cpu", "of the frozen towers", resume="free")
    verify: Literal["hashes", "sizes"] = setting(
        "hashes", "hashes reads every shard at the start, sizes only looks at lengths", resume="free"
    )

    def __post_init__(self) -> None:
        check_bounds(self, "data.")
        if self.detect_px < 0 or 0 < self.detect_px < 64:
            raise ConfigError(f"data.detect_px: 0, or 64 and more are expected, got {self.detect_px}")
        for name in ("path", "images", "masks"):
            check_data_path(getattr(self, name), f"data.{name}")
        if self.masks and self.layout != MASK_LAYOUT:
            raise ConfigError(
                f"data.masks={self.masks}: only data.layout={MASK_LAYOUT} has masks, and data.layout is {self.layout}: "
                "set that layout, or drop data.masks"
            )
        if self.validation_share and self.columns.split:
            raise ConfigError("data.validation_share: data.columns.split already says which rows validate; drop one")

    def check_outside(self, out: Path) -> None:
        """Raises ConfigError if the folder of a command's output lies in one that is read."""
        for name in ("path", "images", "masks"):
            given = getattr(self, name)
            if given and Path(given).is_dir() and out.resolve().is_relative_to(Path(given).resolve()):
                raise ConfigError(
                    f"out={out} lies in data.{name}={given}: what is written there would be among the pictures the "
                    "next time"
                )


def data_at(data: str | DataConfig) -> DataConfig:
    """Returns `data`, or the data set in the folder or file with this name. A hub id needs `data.path`."""
    if isinstance(data, DataConfig):
        return data
    check_data_path(data, "data")
    return DataConfig(path=data, layout="auto" if not data or Path(data).exists() else "local")


def cache_folder(data: DataConfig, given: str) -> Path:
    """Returns the folder of the cache: `given`, or `.features` in a local data folder or beside a table, or a folder in
    the working directory for hub data.

    Raises ConfigError for a single file that is no table, because nothing is written beside unknown files.
    """
    path = Path(data.path)
    if given:
        return Path(given)
    if path.is_dir():
        return path / ".features"
    if path.exists():
        if path.suffix.lower() not in TABLES:
            raise ConfigError(
                f"data.path={path}: expected a folder or a table ({', '.join(TABLES)}); for any other file name a "
                "folder of frozen features, cache=DIR"
            )
        return path.parent / ".features"
    return Path("data-cache") / data.path.replace("/", "--")


READY: dict[str, ColumnsConfig] = {
    "files": ColumnsConfig(
        image="image|jpg|jpeg|png|webp",
        captions=("captions|caption|text|txt",),
        identity="identity|person",
        key="key|id|__key__|file_name",
    ),
    "image_folder": ColumnsConfig(
        image="image", captions=("captions|caption|text",), identity="identity|person", key="file_name"
    ),
    # Version 1 of the data set names its columns by its card (url, face box, laion_caption, face_caption); version 2
    # has _id, url, box (JSON text), caption and laion_caption (lists of one text).
    "facecaption": ColumnsConfig(
        url="url", captions=("face_caption|caption",), box="face_box|box|face box", key="_id|id"
    ),
    MASK_LAYOUT: ColumnsConfig(image="image", captions=("face_emotion_caption", "face_attribute_caption"), key="image"),
}
# Of FaceCaptionMask: caption → the column of its masks, spelt as it was published, and their folder.
MASK_COLUMNS = {
    "face_emotion_caption": ("emotion_parsing_masks", "Emotion"),
    "face_attribute_caption": ("atrribute_parsing_masks|attribute_parsing_masks", "Attribute"),
}
WITHOUT_PEOPLE = {"facecaption": "FaceCaption-15M", MASK_LAYOUT: "FaceCaptionMask"}


@dataclass(frozen=True, kw_only=True)
class RawRecord:
    """One row in the project's terms.

    box (4,): x1, y1, x2, y2; landmarks (5, 2); both in pixels, or None. image: encoded bytes, the row's own path or
    address (not trusted), or a path that was found in a folder. url: key into a folder of pictures if `image` is None.
    """

    key: str
    image: bytes | str | Path | None
    url: str
    captions: tuple[str, ...]
    person: str
    split: str
    box: NDArray[np.float64] | None
    landmarks: NDArray[np.float64] | None
    masks: tuple[GivenMask, ...] = ()


class RowMapping:
    """Turns rows of a source with the given columns into `RawRecord`s.

    captions_needed: whether to reject data without captions, and rows without one.

    Raises:
        DataError: a column that the mapping names is not in the data; the message names it and what sets it.
    """

    def __init__(
        self, config: DataConfig, layout: str, columns: Iterable[str], source: str, *, captions_needed: bool = True
    ) -> None:
        self.config, self.source, self.available = config, source, tuple(columns)
        self.captions_needed = captions_needed
        ready = READY.get(layout, READY["files"])
        chosen = {f.name: getattr(config.columns, f.name) or getattr(ready, f.name) for f in fields(ColumnsConfig)}
        explicit = {f.name for f in fields(ColumnsConfig) if getattr(config.columns, f.name)}
        if layout in WITHOUT_PEOPLE and not config.columns.identity and config.identity == "column":
            raise DataError(
                f"{source}: {WITHOUT_PEOPLE[layout]} has no column that says who is on a picture: set "
                "data.identity=none (every row is another person), or add such a column and set data.columns.identity"
            )
        names = (chosen["captions"],) if isinstance(chosen["captions"], str) else chosen["captions"]
        wanted = captions_needed or "captions" in explicit
        self.captions = tuple(found for name in names if (found := self._find("captions", name, needed=wanted)))
        self.image = self._find("image", chosen["image"], needed="image" in explicit or not chosen["url"])
        self.url = self._find("url", chosen["url"], needed=not self.image)
        # `image_folder` writes this column itself: paths that it found or compared with the folder.
        self.walked = layout == "image_folder" and self.image == "image"
        self.identity = self._find("identity", chosen["identity"]) if config.identity == "column" else None
        optional = {
            name: self._find(name, chosen[name], needed=name in explicit)
            for name in ("box", "landmarks", "split", "key")
        }
        self.box, self.landmarks, self.split, self.key = optional.values()
        self.masks = {
            caption: (column, folder)
            for caption, (names, folder) in (MASK_COLUMNS.items() if layout == MASK_LAYOUT else ())
            if caption in self.captions and (column := self._find("masks", names))
        }
        if self.url and not self.image and not config.images:
            raise DataError(
                f"{source}: pictures are named by column {self.url!r} and nothing is downloaded here: set data.images "
                "to the folder (or img2dataset output) that holds them"
            )

    @property
    def facts(self) -> str:
        """All settings of the mapping that determine what a row means; part of cache keys."""
        roles = (self.image, self.url, self.captions, self.identity, self.box, self.landmarks, self.split, self.key)
        return f"mapping 2: {roles}, identity {self.config.identity}" + (f", masks {self.masks}" if self.masks else "")

    def picture_path(self, row: Mapping[str, Any]) -> str | None:
        """Returns the local path of a row's picture; None if the row contains the picture or has none."""
        cell = row.get(self.image) if self.image else None
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        path = str(cell) if isinstance(cell, str | Path) else ""
        return path if path and "://" not in path and encodes(path) else None

    def _find(self, role: str, names: str, *, needed: bool = True) -> str | None:
        """Returns the first of the columns `A|B` that the data have."""
        for name in names.split("|"):
            if name in self.available:
                return name
        if not needed:
            return None
        remedy = f"set data.columns.{role}=NAME"
        if role == "masks":
            remedy = "give the published columns, or read the captions alone by data.layout=files"
        if role == "identity":
            remedy += ", or data.identity=none if every row shows another person"
        raise DataError(
            f"{self.source} has no column {' or '.join(map(repr, names.split('|')))} for the {role}; its columns are "
            f"{', '.join(self.available)}: {remedy}"
        )

    def read(self, row: Mapping[str, Any], number: int) -> RawRecord:
        """Reads one row; `number` counts the rows of the source. Raises RejectedRecord."""
        try:
            return self._read(row, number)
        except RecursionError as error:
            raise RejectedRecord("nested", f"row {number}: a cell nests too deeply") from error

    def _read(self, row: Mapping[str, Any], number: int) -> RawRecord:
        key = str(row[self.key]) if self.key and row.get(self.key) is not None else f"row {number}"
        if not encodes(key):
            raise RejectedRecord("not_utf8", f"row {number}: its key {key!r} cannot be written as UTF-8")
        person = f"row {number}"
        if self.identity:
            value = row.get(self.identity)
            rounded = float(value) if isinstance(value, float | np.floating) else 0.0
            if value is None or math.isnan(rounded) or not str(value).strip():
                raise RejectedRecord("no_identity", f"{key}: column {self.identity!r} is empty")
            if abs(rounded) >= _LARGEST_WHOLE:
                raise RejectedRecord(
                    "no_identity", f"{key}: column {self.identity!r} holds {value}, a rounded number: write it as text"
                )
            person = str(value)
        captions = [text for name in self.captions for text in texts_of(row.get(name), f"{key}, column {name!r}")]
        if not captions and self.captions_needed:
            raise RejectedRecord("empty_caption", f"{key}: no text in {', '.join(self.captions)}")
        image: bytes | str | Path | None = None
        url = ""
        if self.image:
            image = image_of(row.get(self.image), f"{key}, column {self.image!r}")
            if self.walked and isinstance(image, str):
                image = Path(image)
        elif self.url:
            url = str(row.get(self.url) or "")
            if not url:
                raise RejectedRecord("no_image", f"{key}: column {self.url!r} is empty")
        split = str(row.get(self.split, "")) if self.split else ""
        for text in (*captions, person, split, url, str(image) if isinstance(image, str | Path) else ""):
            if not encodes(text):
                raise RejectedRecord("not_utf8", f"{key}: {text[:60]!r} cannot be written as UTF-8")
        return RawRecord(
            key=key,
            image=image,
            url=url,
            captions=tuple(dict.fromkeys(captions)),
            person=person,
            split=split,
            box=parse_box(row.get(self.box), self.config.box_format, key) if self.box else None,
            landmarks=parse_landmarks(row.get(self.landmarks), key) if self.landmarks else None,
            masks=tuple(
                mask
                for caption, (column, folder) in self.masks.items()
                for text in texts_of(row.get(caption), key)[:1]
                for mask in parse_masks(row.get(column), text, folder, f"{key}, column {column!r}")
            ),
        )


def text_hash(text: str) -> int:
    """Returns 64 bits of a text's SHA-256 as a signed integer."""
    return int64_hash(text.encode())


def kept_for_validation(person: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Returns whether rows of persons with these `text_hash`es belong to the validation split.

    Hashes are uniform, so a share of whole persons is chosen, the same ones in every run.
    """
    return person.view(np.uint64) < np.uint64(min(share, 1 - 2**-53) * 2.0**64)
