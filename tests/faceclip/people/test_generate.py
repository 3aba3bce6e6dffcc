"""The synthetic data set: readable, disjoint, deterministic in its workers, resumable after a kill."""

import hashlib
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from faceclip.data.arrays import load_arrays
from faceclip.data.records import REGIONS
from faceclip.errors import ConfigError
from faceclip.people.__main__ import main
from faceclip.people.generate import generate
from faceclip.people.plan import Request, default_splits, plan_shards
from tests.stages import start

REQUEST = Request(identities=4, images_per_identity=2, size=48, seed=3, splits=(2, 1, 1))


def hashes(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.glob("data/*.parquet"))}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    generate(directory, REQUEST, workers=1, quiet=True)
    return directory


def test_datasets_library_reads_it(tiny_dataset, tmp_path):
    data = datasets.load_dataset(str(tiny_dataset), cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in data.items()} == {"train": 32, "validation": 8, "test": 8}
    record = data["test"][0]
    assert record["image"].size == record["shading"].size == record["regions"].size == (64, 64)
    assert len(record["captions"]) >= 3 and len(record["landmarks_68"]) == 68


def test_splits_share_no_identity(tiny_dataset):
    people = [set(load_arrays(tiny_dataset, split).identity.tolist()) for split in ("train", "validation", "test")]
    assert [len(group) for group in people] == [8, 2, 2]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]


def test_labels_agree_with_each_other(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train")
    frontal = arrays.index == 0
    assert np.abs(arrays.pose[frontal]).max() <= 5
    assert (arrays.attribute_values("glasses")[frontal] == "none").all()
    assert np.abs(arrays.pose[:, 0]).max() <= 60 and np.abs(arrays.pose[:, 1]).max() <= 25
    # Eyes are above the mouth; in frontal portraits the left eye is left of the right one.
    assert (arrays.landmarks_5[:, :2, 1].mean(axis=1) < arrays.landmarks_5[:, 3:, 1].mean(axis=1)).all()
    assert (arrays.landmarks_5[frontal, 0, 0] < arrays.landmarks_5[frontal, 1, 0]).all()
    regions, shading = np.asarray(arrays.regions), np.asarray(arrays.shading)
    glasses = (regions == REGIONS.index("glasses")).any(axis=(1, 2))
    assert not glasses[arrays.attribute_values("glasses") == "none"].any()
    assert glasses[arrays.attribute_values("glasses") != "none"].mean() > 0.8
    # The shading map lies where the face is, and is black elsewhere.
    background = regions == REGIONS.index("background")
    assert shading[background].mean() < 8 < shading[~background].mean()


def test_captions_describe_visible_regions(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train")
    for regions, captions in zip(arrays.regions, arrays.captions, strict=True):
        assert len(captions) >= 3
        for caption in captions:
            for phrase in caption.phrases:
                assert (regions == REGIONS.index(phrase.region)).any()


def test_workers_do_not_change_the_files(small, tmp_path):
    generate(tmp_path, REQUEST, workers=2, quiet=True)
    assert hashes(tmp_path) == hashes(small)


def test_lost_and_truncated_shards_are_made_again(small, tmp_path):
    generate(tmp_path, REQUEST, workers=1, quiet=True)
    (tmp_path / "data/train-00000-of-00001.parquet").unlink()
    damaged = tmp_path / "data/test-00000-of-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert hashes(tmp_path) == hashes(small)


def test_kill_and_resume_give_the_same_files(tmp_path):
    # Two small shards, and one that takes seconds: the kill falls into it.
    words = ["--identities", "14", "--images-per-identity", "3", "--size", "32", "--workers", "1", "--quiet"]
    words += ["--splits", "1", "1", "12"]
    victim = start("faceclip.people", *words, "--out", str(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("data/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "dataset.json").exists()
    for name in ("killed", "whole"):
        assert main([*words, "--out", str(tmp_path / name)]) == 0
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_another_request_in_the_same_folder_is_refused(small):
    other = Request(identities=4, images_per_identity=2, size=48, seed=4, splits=(2, 1, 1))
    with pytest.raises(ConfigError, match=rf"{small} .*\bseed 3 .* 4\b"):
        generate(small, other, workers=1, quiet=True)


def test_card_counts_and_header(small):
    text = (small / "README.md").read_text()
    assert text.startswith("---\nlicense: cc0-1.0") and "| train | 2 | 4 |" in text
    summary = json.loads((small / "dataset.json").read_text())
    assert summary["seed"] == 3 and summary["counts"]["test"] == {"identities": 1, "images": 2}
    assert sum(summary["attributes"]["hat"].values()) == 8
    assert (small / "contact_sheet.png").stat().st_size > 0


def test_bad_requests_are_named():
    with pytest.raises(ConfigError, match=r"--splits .*--identities 4"):
        Request(identities=4, images_per_identity=2, size=48, seed=3, splits=(2, 1, 2))
    with pytest.raises(ConfigError, match=r"--size\b.* 32\b"):
        Request(identities=4, images_per_identity=2, size=8, seed=3, splits=(2, 1, 1))


def test_a_framing_is_part_of_the_request_and_older_data_sets_stay_what_they_are(small, tmp_path):
    assert "framing" not in json.loads((small / "dataset.json").read_text())
    close = replace(REQUEST, framing="head")
    with pytest.raises(ConfigError, match=r"\bframing None .* head\b"):
        generate(small, close, workers=1, quiet=True)
    sizes = "--identities 4 --images-per-identity 2 --size 48 --seed 3 --splits 2 1 1 --workers 1 --quiet"
    assert main([f"--out={tmp_path}", "--framing=head", *sizes.split()]) == 0
    summary = json.loads((tmp_path / "dataset.json").read_text())
    assert summary["framing"] == "head" and "--framing head" in (tmp_path / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"\bframing head .* None\b"):
        generate(tmp_path, REQUEST, workers=1, quiet=True)
    with pytest.raises(ConfigError, match="--framing"):
        replace(REQUEST, framing="feet")


def test_no_workers_are_refused(tmp_path, capsys):
    for count in ("0", "-2"):
        assert main(["--out", str(tmp_path / "data"), "--identities", "1", "--workers", count]) == 2
        assert capsys.readouterr().err == f"error: --workers: must be at least 1, got {count}\n"
    assert not (tmp_path / "data").exists()


def test_default_splits_cover_everybody():
    assert default_splits(1000) == (840, 40, 120) and sum(default_splits(7)) == 7
    shards = plan_shards(Request(identities=100, images_per_identity=8, size=64, seed=0, splits=(84, 4, 12)))
    assert [i for s in shards for i in range(s.first, s.last)] == list(range(100))
