"""Generated files say what they are, in metadata and in the pixels."""

import importlib.metadata
import io
import tomllib
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.ImageFilter import GaussianBlur

from faceclip.errors import ConfigError, DataError, UnreadableImageError
from makeup_plugin.marking import watermark
from makeup_plugin.marking.provenance import (
    DIGITAL_SOURCE_TYPE,
    Provenance,
    hash_prompt,
    make_records,
    read_provenance,
    save_image,
    sheet_record,
    software_version,
    xmp_packet,
)
from tests.full_disk import largest_file


def picture(size: int = 64, seed: int = 0) -> Image.Image:
    """Something like a portrait: soft shapes and some grain."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (256, 256), tuple(rng.integers(60, 200, 3)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 40, 200, 220), fill=(205, 160, 130))
    for x in (100, 160):
        draw.ellipse((x - 10, 110, x + 10, 124), fill=(40, 30, 30))
    draw.arc((100, 150, 160, 190), 0, 180, fill=(150, 60, 60), width=6)
    pixels = np.asarray(image.filter(GaussianBlur(2)).resize((size, size), Image.Resampling.LANCZOS)).astype(float)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8))


def as_floats(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")) / 255


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def record(**changes) -> Provenance:
    settings = {
        "model": "owner/model",
        "seed": 7,
        "prompt_sha256": hash_prompt("a man"),
        "has_reference_face": True,
        "watermark": watermark.METHOD,
    }
    return Provenance(**{**settings, **changes})


def image_software(found: dict) -> str:
    return f"{found['software']} {found['software_version']}"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_metadata_survive_the_file(tmp_path, suffix):
    path = save_image(picture(), tmp_path / f"out{suffix}", record(prompt="Zoë <smiles> & laughs"))
    found = read_provenance(path)
    assert read_provenance(BytesIO(path.read_bytes())) == found
    assert found == record(prompt="Zoë <smiles> & laughs").to_dict()
    assert found["ai_generated"] is True and found["seed"] == 7
    with Image.open(path) as image:
        image.load()
        if suffix == ".png":
            assert image.info["Software"] == image_software(found)
            assert image.info["Comment"] == found["statement"]
        else:
            tags = image.getexif()
            assert (tags[0x0131], tags[0x010E]) == (image_software(found), found["statement"])
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    text = xmp if isinstance(xmp, str) else xmp.decode("utf-8")
    assert DIGITAL_SOURCE_TYPE in text and text.count("trainedAlgorithmicMedia") == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_metadata_can_be_left_out_and_foreign_files_have_none(tmp_path):
    assert read_provenance(save_image(picture(), tmp_path / "plain.png", None)) is None
    assert read_provenance(save_image(picture(), tmp_path / "plain.jpg", None)) is None


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "café".encode("utf-16-le"),
        "café".encode(),
        b"ASCII\0\0\0" + b'{"software": "other"}',
        b"5",
        b"",
        5,
    ],
)
def test_comments_of_other_programs_are_no_records(tmp_path, comment):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    picture().save(tmp_path / "theirs.jpg", exif=exif.tobytes())
    assert read_provenance(tmp_path / "theirs.jpg") is None


def test_version_is_that_of_the_installed_distribution():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        installed = importlib.metadata.version(project["name"])
    except importlib.metadata.PackageNotFoundError:
        installed = "source"
    assert software_version() == installed


def test_wrong_endings_and_damaged_files(tmp_path):
    with pytest.raises(ConfigError, match=r"out\.tiff: .*\.png"):
        save_image(picture(), tmp_path / "out.tiff", record())
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        read_provenance(tmp_path / "broken.png")


def test_an_image_that_does_not_fit_on_the_disk_is_named_and_not_there(tmp_path):
    with largest_file(2000), pytest.raises(DataError, match=r"/out\.png .*Errno 27"):
        save_image(picture(), tmp_path / "out.png", record())
    assert not list(tmp_path.iterdir())


def test_prompt_is_hashed_unless_asked_and_local_paths_stay_private(tmp_path):
    arguments = {
        "prompts": ["a man"],
        "has_face": [False],
        "seeds": [3],
        "watermark": None,
        "settings": {"guidance_scale": 5.0},
    }
    (one,) = make_records(model=str(tmp_path), record_prompt=False, **arguments)
    assert one.prompt is None and one.model == tmp_path.name and one.watermark is None
    # sha256 of the five bytes, from coreutils
    assert one.prompt_sha256 == "87e45dcde1a748c130dff849bdb2645435e342c27057ce56af99c3dc33da99bf"
    (two,) = make_records(model="owner/model", record_prompt=True, **arguments)
    assert two.prompt == "a man" and two.model == "owner/model"


def test_records_of_a_batch_stand_in_its_order_and_a_sheet_has_one_for_all():
    options = {"model": "owner/model", "watermark": "w", "record_prompt": True, "settings": {"steps": 4}}
    first, second = make_records(prompts=["a", "b"], has_face=[True, False], seeds=[1, None], **options)
    assert (first.prompt, first.has_reference_face, first.seed) == ("a", True, 1)
    assert (second.prompt, second.has_reference_face, second.seed) == ("b", False, None)
    assert second.settings == {"steps": 4, "index_in_batch": 1} and second.software_version == software_version()
    sheet = sheet_record(model="owner/model", prompts=["a", "b"])
    assert (sheet.prompt, sheet.prompt_sha256, sheet.seed, sheet.watermark) == (None, hash_prompt("a\nb"), None, None)
    assert sheet.has_reference_face and sheet.settings == {"sheet": True, "index_in_batch": 0}
    assert sheet.ai_generated is True


def test_a_jpeg_is_of_high_quality_and_xmp_is_well_formed(tmp_path):
    image = picture()
    saved = save_image(image, tmp_path / "a.JPG", record())
    image.save(tmp_path / "b.jpg", quality=95)
    assert np.array_equal(as_floats(Image.open(saved)), as_floats(Image.open(tmp_path / "b.jpg")))
    text = xmp_packet(record(statement="a < b & c", software="<s>"))
    tree = ElementTree.fromstring(text.split("?>", 1)[1].rsplit("<?", 1)[0])
    assert {"a < b & c", DIGITAL_SOURCE_TYPE, "<s> "} <= set(tree.itertext())


@pytest.mark.parametrize("size", [64, 96, 256, 512])
def test_mark_is_found_and_invisible(size):
    clean = as_floats(picture(size))
    marked = watermark.embed(clean)
    assert not watermark.detect(clean) and watermark.detect(marked)
    assert marked.min() >= 0 and marked.max() <= 1
    psnr = 10 * np.log10(1 / np.square(marked - clean).mean())
    assert psnr > 36
    assert np.array_equal(marked, watermark.embed(clean))
    # Eight bits hold it exactly.
    assert np.allclose(as_floats(as_image(marked)), marked, atol=1e-6)


@pytest.mark.parametrize("size", [128, 512])
def test_mark_survives_common_handling(size):
    marked = as_image(watermark.embed(as_floats(picture(size))))
    buffer = io.BytesIO()
    marked.save(buffer, format="JPEG", quality=75)
    assert watermark.detect(as_floats(Image.open(buffer)))
    assert watermark.detect(as_floats(marked.resize((size * 3 // 4,) * 2, Image.Resampling.LANCZOS)))
    assert watermark.detect(as_floats(marked.resize((size * 2,) * 2, Image.Resampling.BICUBIC)))
    assert watermark.detect(as_floats(marked.point(lambda value: int(value * 0.8 + 10))))


def test_no_false_alarms():
    rng = np.random.default_rng(1)
    scores = [watermark.score(as_floats(picture(64, seed))) for seed in range(100)]
    scores += [watermark.score(rng.random((64, 64, 3))) for _ in range(100)]
    assert max(scores) < 5 and abs(np.mean(scores)) < 0.5
    flat = np.full((64, 64, 3), 0.5)
    assert not watermark.detect(flat) and watermark.detect(watermark.embed(flat))


def test_mark_wants_color():
    with pytest.raises(ValueError, match=r"^image .*\(H, W, 3\).*\(64, 64\)"):
        watermark.embed(np.zeros((64, 64)))
