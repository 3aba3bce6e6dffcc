"""Damaged pictures give a picture or a typed error that names them, whatever byte was changed."""

import io
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceclip.errors import ImageTooLargeError, UnreadableImageError
from faceclip.faces.images import load_image

WIDTH, HEIGHT = 40, 24
PIXELS = 1 << 20  # cap of the test: a header that was changed may promise any size
LONGEST = 1000  # characters of a message
SECONDS = 20  # for one picture on a busy machine; a hang takes longer


def encoded() -> dict[str, bytes]:
    """One picture in every form that is read, some with what their headers may hold besides."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    plain = Image.fromarray(pixels[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    forms = {
        "a.jpg": (plain, {"exif": exif, "icc_profile": b"x" * 50}),
        "progressive.jpg": (plain, {"progressive": True}),
        "a.png": (Image.fromarray(pixels), {}),
        "palette.png": (plain.quantize(16), {"transparency": 3}),
        "grey16.png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        "a.webp": (Image.fromarray(pixels), {"exif": exif}),
        "a.gif": (plain.quantize(16), {}),
        "a.bmp": (plain, {}),
        "a.tif": (plain, {"compression": "tiff_lzw"}),
    }
    found = {}
    for name, (picture, options) in forms.items():
        content = io.BytesIO()
        picture.save(content, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2]), **options)
        found[name] = content.getvalue()
    return found


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, removed, repeated or added; the header is hit more often than the rest."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(min(64, len(changed)) if draw.random() < 0.5 else len(changed))
        match draw.randrange(5):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place : place + 4] = draw.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
            case 2:
                del changed[place : place + draw.randint(1, 20)]
            case 3:
                changed[place:place] = changed[place : place + draw.randint(1, 20)]
            case _:
                del changed[max(place, 8) :]
        if not changed:
            changed = bytearray(b"\0")
    return bytes(changed)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged metadata
def test_damaged_pictures_are_read_or_refused_by_name(tmp_path: Path, count: int) -> None:
    draw, forms = random.Random(15), encoded()
    read = 0
    for _ in range(count):
        name = draw.choice(list(forms))
        path = tmp_path / name
        path.write_bytes(mutated(forms[name], draw))
        began = time.monotonic()
        try:
            picture = load_image(path, max_pixels=PIXELS)
        except (UnreadableImageError, ImageTooLargeError) as error:
            assert name in str(error) and len(str(error)) <= LONGEST
        else:
            read += 1
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
            assert picture.shape[0] * picture.shape[1] <= PIXELS
        assert time.monotonic() - began < SECONDS, name
    assert count / 20 < read < count * 19 / 20
    print(f"{count:,} damaged pictures: {read:,} read, {count - read:,} refused")


def test_the_pictures_are_read_whole_before_they_are_damaged(tmp_path: Path) -> None:
    for name, data in encoded().items():
        (tmp_path / name).write_bytes(data)
        turned = name in ("a.jpg", "a.webp")
        assert load_image(tmp_path / name).shape == ((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3))
