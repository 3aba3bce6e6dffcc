"""Winners beyond chance, categories, slices and their files, from values made by hand."""

import csv
import io

import numpy as np
import pytest

from eval.benchmark.compare import aggregate, compare, slice_labels
from eval.benchmark.drawing import Gallery, Record
from eval.benchmark.measure import Measured
from eval.benchmark.references import Photo, References
from eval.benchmark.suite import Job, Prompt, Suite
from eval.benchmark.tables import table_csv, table_tex, tex, values_csv
from eval.benchmark.wall import wall

PEOPLE = 20
HOSTILE = "<script>alert(1)</script> & $x_1$"


@pytest.fixture(scope="module")
def big(settings):
    """20 persons with two prompts each; nothing is drawn."""
    photos = tuple(
        Photo(
            key=f"p{n}",
            person=f"person {n}",
            image=np.zeros((64, 64, 3), np.uint8),
            landmarks=np.zeros((5, 2), np.float32),
            width=20.0 + n,
            pose=np.array([4.0 * n, 0, 0], np.float32),
            groups={"age": "young" if n < 10 else "old"},
        )
        for n in range(PEOPLE)
    )
    prompts = (Prompt(text=HOSTILE, category="style"), Prompt(text="=1+1", category="view"))
    jobs = tuple(
        Job(key=f"p{n}--{p}", reference=n, prompt=p, number=0, seed=10 * n + p) for n in range(PEOPLE) for p in range(2)
    )
    references = References(photos=photos, chosen=tuple(range(PEOPLE)), without_face=(), rendered=True)
    return Suite(settings=settings(), references=references, prompts=prompts, jobs=jobs)


@pytest.fixture(scope="module")
def measured(big):
    rng = np.random.default_rng(0)
    person = np.repeat(rng.normal(size=PEOPLE), 2)
    base = 0.5 + 0.2 * person
    good = base + 0.1 + 0.02 * rng.normal(size=40)
    values = {"good": good, HOSTILE: base, "near": good - 0.0005 * person, "real": base + 5}
    return {
        name: Measured(values={"facesim/all@1 [r]": v, "lpips/face@1": -v, "pose_rmse/yaw@1": np.abs(v)}, sets={})
        for name, v in values.items()
    }


def test_the_best_is_named_only_beyond_chance(big, measured):
    contenders = ["good", HOSTILE]
    found = compare(big, measured, contenders)
    assert found.best["facesim/all@1 [r]"] == "good" and found.best["lpips/face@1"] == "good"
    assert compare(big, measured, [*contenders, "near"]).best.get("facesim/all@1 [r]") is None
    difference = next(d for d in found.differences if d.column == "facesim/all@1 [r]")
    assert difference.other == HOSTILE and difference.estimate.value == pytest.approx(0.1, abs=0.02)
    assert difference.p < 0.05 and difference.estimate.identities == PEOPLE
    assert set(found.figures) == set(measured)  # calibration rows have figures and do not lead


def test_missing_pictures_are_left_out_in_pairs(big, measured):
    values = measured["good"].values["facesim/all@1 [r]"].copy()
    values[::2] = np.nan
    part = {"a": Measured(values={"facesim/all@1 [r]": values}, sets={}), HOSTILE: measured[HOSTILE]}
    found = compare(big, part, list(part))
    assert found.differences[0].estimate.count == 20 and found.figures["a"]["facesim/all@1 [r]"].count == 20


def test_pose_is_a_root_of_squares_and_cost_a_median():
    values, person = np.array([3.0, 4, np.nan]), np.array([0, 1, 1])
    assert aggregate("pose_rmse/yaw@1", values, person).value == pytest.approx(np.sqrt(12.5))
    assert aggregate("facesim/all@1 [r]", values, person).value == pytest.approx(3.5)
    assert aggregate("cost/seconds@1", np.array([1.0, 2, 90]), person).value == 2
    assert aggregate("cost/memory@1", np.array([1.0, 2, 90]), person).value == 90


def test_categories_and_slices_follow_the_prompts_and_the_references(big, measured):
    found = compare(big, measured, ["good"])
    assert found.categories["good"]["view"]["facesim/all@1 [r]"].count == PEOPLE
    labels = slice_labels(big)
    assert list(labels) == ["face width, share of the picture", "yaw", "pitch", "age"]
    assert labels["yaw"][:2].tolist() == ["0–15°", "0–15°"] and labels["yaw"][-1] == "45° and more"
    yaw = found.slices["good"]["facesim/all@1 [r]"]["yaw"]
    assert [part.count for part in yaw.slices] == [8, 8, 8, 16] and yaw.gap is None  # each has fewer than 30


def test_files_escape_names(big, measured):
    found = compare(big, measured, ["good", HOSTILE])
    galleries = {
        name: Gallery(
            images=np.zeros((40, 8, 8, 3), np.uint8),
            records=tuple(Record(job=job.key, status="failed", error=HOSTILE) for job in big.jobs),
        )
        for name in measured
    }
    rows = list(csv.DictReader(io.StringIO(values_csv(big, galleries, measured))))
    assert len(rows) == 160 and rows[1]["prompt"] == "'=1+1" and rows[0]["status"] == "failed"
    assert float(rows[3]["facesim/all@1 [r]"]) == pytest.approx(
        measured["good"].values["facesim/all@1 [r]"][3], rel=1e-5
    )
    table = list(csv.DictReader(io.StringIO(table_csv(found))))
    assert table[1]["method"] == HOSTILE and table[0]["facesim/all@1 [r] n"] == "40"
    latex = table_tex(found)
    assert r"\textbf{" in latex and r"\& \$x\_1\$" in latex and latex.count(r"\\") == 5
    assert tex("a~b^c\\") == r"a\textasciitilde{}b\textasciicircum{}c\textbackslash{}"
    markup = wall(big, galleries, measured, "good", found.columns)
    assert "<script>alert" not in markup and "&lt;script&gt;alert" in markup
