"""Provenance of a generated file: software, model, seed, and the statement that it is generated (IPTC digital source
type).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from faceclip.errors import ConfigError, UnreadableImageError
from faceclip.faces.images import FORMATS
from faceclip.storage.files import write_picture
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.loading import DAMAGE
from faceclip.storage.regular import open_regular, parse_json

SOFTWARE = "FaceMakeUp"
# IPTC NewsCodes: made by a model trained on sampled content.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
STATEMENT = "AI-generated image. It does not show a real event; the person may resemble a real one."
JSON_KEY = "FaceMakeUpProvenance"
_XMP_KEY = "XML:com.adobe.xmp"
_EXIF_DESCRIPTION, _EXIF_SOFTWARE, _EXIF_IFD, _EXIF_COMMENT = 0x010E, 0x0131, 0x8769, 0x9286
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Record of one generated image. It holds the prompt's SHA-256, and its text only if the caller asks for it."""

    model: str
    seed: int | None
    prompt_sha256: str
    prompt: str | None = None
    has_reference_face: bool
    watermark: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    software: str = SOFTWARE
    software_version: str = ""
    ai_generated: bool = True
    digital_source_type: str = DIGITAL_SOURCE_TYPE
    statement: str = STATEMENT

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)


def software_version() -> str:
    """Version of the installed distribution, or "source" when the code runs from a checkout."""
    try:
        return version("faceclip-makeup")
    except PackageNotFoundError:
        return "source"


def hash_prompt(prompt: str) -> str:
    """SHA-256 of the prompt's UTF-8 bytes."""
    return bytes_hash(prompt.encode("utf-8"))


def public_name(model: str) -> str:
    """A hub id unchanged, and only the last part of a local path, since the rest reveals where a file was made."""
    return Path(model).name if Path(model).exists() or Path(model).is_absolute() else model


def make_records(
    *,
    model: str,
    prompts: list[str],
    has_face: list[bool],
    seeds: list[int | None],
    watermark: str | None,
    settings: dict[str, Any],
    record_prompt: bool,
) -> list[Provenance]:
    """One record per image of a batch."""
    name = public_name(model)
    return [
        Provenance(
            model=name,
            seed=seed,
            prompt_sha256=hash_prompt(text),
            prompt=text if record_prompt else None,
            has_reference_face=face,
            watermark=watermark,
            settings={**settings, "index_in_batch": index},
            software_version=software_version(),
        )
        for index, (text, face, seed) in enumerate(zip(prompts, has_face, seeds, strict=True))
    ]


def sheet_record(*, model: str, prompts: Sequence[str] = ()) -> Provenance:
    """Record of one picture that shows several generated images, none of which is watermarked."""
    return make_records(
        model=model,
        prompts=["\n".join(prompts)],
        has_face=[True],
        seeds=[None],
        watermark=None,
        settings={"sheet": True},
        record_prompt=False,
    )[0]


def save_image(image: Image.Image, path: str | Path, provenance: Provenance | None) -> Path:
    """Write a PNG, JPEG or WebP file with its provenance in XMP and in PNG text or EXIF. The write is atomic.

    `provenance=None` writes no metadata. Raises ConfigError for another file type, and DataError when the disk is full
    or not writable.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path.name}: images are saved as {', '.join(_FORMATS)}; choose one of these endings")
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": 95}
    if provenance is not None:
        options |= _png_metadata(provenance) if kind == "PNG" else _exif_metadata(provenance)
    write_picture(path, image, kind, **options)
    return path


def read_provenance(path: str | Path | BinaryIO) -> dict[str, Any] | None:
    """The record in a file that `save_image` wrote, by its path or opened, or None where there is none.

    Raises UnreadableImageError for a file that is not an image.
    """
    try:
        opened = open_regular(path) if isinstance(path, str | os.PathLike) else nullcontext(path)
        with opened as file, Image.open(file, formats=FORMATS) as image:
            text = image.info.get(JSON_KEY)
            if text is None:
                text = image.getexif().get_ifd(_EXIF_IFD).get(_EXIF_COMMENT, b"")
    except (*DAMAGE, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{path} cannot be read as an image with metadata ({error})") from error
    if isinstance(text, bytes):
        text = text.removeprefix(b"ASCII\0\0\0")
    # Other programs write comments too, as text in any encoding or as JSON of their own.
    try:
        record = parse_json(text)
    except (ValueError, TypeError):
        return None
    ours = isinstance(record, dict) and record.get("software") == SOFTWARE and "digital_source_type" in record
    return record if ours else None


def xmp_packet(provenance: Provenance) -> str:
    """The XMP packet with creator tool, description and IPTC digital source type, where image tools look for them."""
    created_by = escape(f"{provenance.software} {provenance.software_version}")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<xmp:CreatorTool>{created_by}</xmp:CreatorTool>"
        '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{escape(provenance.statement)}</rdf:li></rdf:Alt></dc:description>"
        f"<Iptc4xmpExt:DigitalSourceType>{provenance.digital_source_type}</Iptc4xmpExt:DigitalSourceType>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _png_metadata(provenance: Provenance) -> dict[str, Any]:
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"{provenance.software} {provenance.software_version}")
    info.add_text("Comment", provenance.statement)
    info.add_itxt(JSON_KEY, json.dumps(provenance.to_dict(), sort_keys=True))
    info.add_itxt(_XMP_KEY, xmp_packet(provenance))
    return {"pnginfo": info}


def _exif_metadata(provenance: Provenance) -> dict[str, Any]:
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = provenance.statement
    exif[_EXIF_SOFTWARE] = f"{provenance.software} {provenance.software_version}"
    # json.dumps escapes everything beyond ASCII, and the prefix names ASCII as the character code.
    exif.get_ifd(_EXIF_IFD)[_EXIF_COMMENT] = b"ASCII\0\0\0" + json.dumps(provenance.to_dict()).encode("ascii")
    return {"exif": exif.tobytes(), "xmp": xmp_packet(provenance).encode("utf-8")}
