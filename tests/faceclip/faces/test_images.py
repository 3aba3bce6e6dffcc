"""Reading pictures: orientation, modes, and every refusal."""

import os
import re
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from faceclip.errors import ImageTooLargeError, UnreadableImageError
from faceclip.faces.images import load_image


@pytest.fixture
def picture() -> np.ndarray:
    """4 × 6 pixels, red on top, blue below."""
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:2, :, 0] = 255
    pixels[2:, :, 2] = 255
    return pixels


def test_file_pil_and_array_give_the_same_pixels(tmp_path, picture):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    for source in (path, str(path), Image.open(path), picture, picture.astype(np.float32) / 255):
        np.testing.assert_array_equal(load_image(source), picture)


def test_exif_orientation_turns_the_picture_upright(tmp_path, picture):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(picture[::-1, ::-1].copy()).save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), picture)


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (load_image(clear) == 255).all()


def test_palette_transparency_is_laid_over_white(tmp_path):
    path = tmp_path / "palette.gif"
    Image.new("P", (3, 3), 0).save(path, transparency=0)
    assert (load_image(path) == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16)).save(path)
    assert load_image(path)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "LA", "P"])
def test_other_modes_become_rgb(mode):
    assert load_image(Image.new(mode, (5, 3))).shape == (3, 5, 3)


def test_pictures_without_rgb_and_closed_ones_are_named(tmp_path, picture):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    with Image.open(path) as closed:
        pass
    with pytest.raises(UnreadableImageError, match="PIL image"):
        load_image(closed)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    chunks = path.read_bytes()
    assert chunks.count(b"IDAT") > 1
    second = chunks.index(b"IDAT", chunks.index(b"IDAT") + 4)
    path.write_bytes(chunks[:second] + b"I\0\0T" + chunks[second + 4 :])
    with Image.open(path) as lazy, pytest.raises(UnreadableImageError):
        load_image(lazy)


def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path, picture, caplog):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path, exif=b"Exif\0\0garbage, no TIFF header")
    np.testing.assert_array_equal(load_image(path), picture)
    (record,) = caplog.records
    assert "a.png' has a damaged EXIF block" in record.getMessage()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_odd_tags_do_not_keep_a_picture_from_being_turned(tmp_path, picture, orientation):
    """Pillow's own turning writes all tags anew, and stops at one of another type than it should be."""
    resolution = struct.pack("<HHI4s", 0x011A, 2, 2, b"7\0\0\0")  # a rational number by its nature, here a text
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    for name, tags in (("plain", [turned]), ("odd", [turned, resolution])):
        block = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(tags) + bytes(4)
        Image.fromarray(picture).save(tmp_path / f"{name}.png", exif=b"Exif\0\0" + block)
    plain = ImageOps.exif_transpose(Image.open(tmp_path / "plain.png"))
    assert Image.open(tmp_path / "odd.png").getexif()[0x011A] == "7"
    np.testing.assert_array_equal(load_image(tmp_path / "odd.png"), np.asarray(plain))


def test_pixel_cap_is_checked_on_the_header_alone(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (300, 200)).save(path)
    # Only the header survives: a decoder would fail, so the cap must have acted before it.
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ImageTooLargeError, match=r"large\.png.*300×200 = 60,000 pixels.* 50,000"):
        load_image(path, max_pixels=50_000)


def test_a_given_pixel_cap_holds_for_arrays_too():
    with pytest.raises(ImageTooLargeError, match=r"16 pixels.* 10: .*load_image\(PATH, max_pixels="):
        load_image(np.zeros((4, 4, 3), np.uint8), max_pixels=10)


def test_pixels_in_memory_need_no_cap(tmp_path, picture, monkeypatch):
    """The array of a picture that was read with a higher cap is taken, and so is a PIL image once it is decoded."""
    monkeypatch.setattr("faceclip.faces.images.MAX_PIXELS", 10)
    path = tmp_path / "large.png"
    Image.fromarray(picture).save(path)
    with pytest.raises(ImageTooLargeError, match=r"large\.png.*24 pixels.* 10: .*max_pixels"):
        load_image(path)
    array = load_image(path, max_pixels=24)
    np.testing.assert_array_equal(load_image(array), picture)
    with Image.open(path) as image:
        with pytest.raises(ImageTooLargeError, match=r"PIL image .*24 pixels"):
            load_image(image)
        image.load()
        np.testing.assert_array_equal(load_image(image), picture)


def test_missing_truncated_and_foreign_files(tmp_path, picture):
    with pytest.raises(UnreadableImageError, match=r"nowhere\.png' does not exist"):
        load_image(tmp_path / "nowhere.png")
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    half = tmp_path / "half.jpg"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UnreadableImageError, match=r"half\.jpg' is damaged"):
        load_image(half)
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    with pytest.raises(UnreadableImageError, match=r"text\.jpg' is not a picture in one of JPEG, "):
        load_image(text)
    with pytest.raises(UnreadableImageError, match=rf"{re.escape(str(tmp_path))}' cannot be opened .*regular file"):
        load_image(tmp_path)


def test_a_pipe_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    (tmp_path / "link.png").symlink_to(pipe)
    for path in (pipe, tmp_path / "link.png", "/dev/zero"):
        with pytest.raises(UnreadableImageError, match=rf"{path}' cannot be opened .*regular file"):
            load_image(path)


@pytest.mark.parametrize(
    "address", ["https://example.org/a.png", "file:///a.png", "s3://bucket/a.png", "data:image/png;base64,iVBORw0"]
)
def test_an_address_is_no_file(address):
    with pytest.raises(UnreadableImageError, match=rf"{re.escape(address)}' is an address.*path of its file"):
        load_image(address)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "uint8"), ("LA", "uint8"), ("I;16", "uint16"), ("RGB", "uint8")])
def test_pictures_of_several_strips_are_converted_as_a_whole(mode, kind):
    """Large pictures are converted some rows at a time."""
    shape = (600, 5, {"RGBA": 4, "LA": 2, "RGB": 3}.get(mode, 1))
    samples = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)
    expected = samples.astype(np.float64)
    if mode in ("RGBA", "LA"):
        share = expected[:, :, -1:] / 255
        expected = expected[:, :, :-1] * share + 255 * (1 - share)
    if mode == "I;16":
        expected = expected / 257
    image = Image.fromarray(samples if shape[2] > 1 else samples[:, :, 0])
    assert image.mode == mode
    np.testing.assert_allclose(load_image(image), np.broadcast_to(expected, (600, 5, 3)), atol=1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"uint8, shape \(3, 8, 8\)\): .*\(H, W\)"),
        (np.zeros((8, 8, 3), np.int64), r"int64, .*\buint8\b"),
        (np.full((8, 8, 3), 2.0), r"float64, .*\[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"float64, .*\[0, 1\]"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)\) .*8×0"),
    ],
)
def test_wrong_arrays_say_what_is_wrong(array, message):
    with pytest.raises(UnreadableImageError, match=message):
        load_image(array)


def test_name_appears_in_messages():
    with pytest.raises(UnreadableImageError, match="image 3 of the batch"):
        load_image(np.zeros(4, np.uint8), name="image 3 of the batch")


def test_other_types_are_refused():
    with pytest.raises(UnreadableImageError, match="image of type list"):
        load_image([[1, 2]])
