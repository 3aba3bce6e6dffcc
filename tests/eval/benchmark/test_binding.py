"""The protocol of regions × colours on rendered portraits whose regions are repainted."""

import json

import numpy as np
import pytest

from eval.benchmark.binding import WATCHED, Question, main, measure, plan, summarize
from eval.metrics.bindings import COLOURS
from faceclip.data.arrays import load_arrays
from faceclip.data.records import REGIONS


@pytest.fixture(scope="module")
def arrays(tiny_dataset):
    return load_arrays(tiny_dataset, "train")


def repainted(arrays, asked, region):
    """The asked references, with one region in the asked colour."""
    images = np.stack([np.array(arrays.images[question.row]) for question in asked])
    for image, question in zip(images, asked, strict=True):
        image[np.asarray(arrays.regions[question.row]) == REGIONS.index(region)] = COLOURS[question.colour]
    return images


def test_only_regions_that_a_reference_shows_are_asked_for(arrays):
    asked = plan(arrays, 8)
    assert len({question.row for question in asked}) == 8
    for question in asked:
        assert (np.asarray(arrays.regions[question.row]) == REGIONS.index(question.region)).sum() >= 20
        assert question.colour in question.prompt
    assert plan(arrays, 8, seed=1)[0].colour != asked[0].colour


def test_repainting_the_asked_region_binds_and_another_one_leaks(arrays):
    rows = [question.row for question in plan(arrays, 8) if question.region == "clothes"]
    asked = [Question(row=row, region="clothes", colour="green") for row in rows]
    base = np.stack([np.array(arrays.images[row]) for row in rows])
    right, wrong = (measure(repainted(arrays, asked, name), base, arrays, asked) for name in ("clothes", "background"))
    np.testing.assert_allclose(right.bound, 1, atol=0.02)
    np.testing.assert_allclose(right.leaked, 0, atol=0.02)
    np.testing.assert_allclose(wrong.bound, 0, atol=0.02)
    assert wrong.table[WATCHED.index("clothes"), WATCHED.index("background")] == pytest.approx(1, abs=0.02)
    figures = summarize(right, asked, np.asarray(arrays.identity))
    assert list(figures) == ["all", "clothes"] and figures["clothes"]["leakage/bound@1"].count == len(asked)


def test_the_command_draws_and_measures(pipeline_export, tiny_dataset, tmp_path):
    words = ["--model", str(pipeline_export), "--data", str(tiny_dataset), "--out", str(tmp_path), "--people", "1"]
    words += ["--steps", "2"]
    assert main(words) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["figures"]["all"]["leakage/bound@1"]["identities"] == 1 and len(content["model"]) == 64
    assert "neutral prompt" in (tmp_path / "report.html").read_text()
