"""The cache of frozen features: resumable, verified, keyed by content, tower and preprocessing; who is in a split."""

import hashlib
import json
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from faceclip.data.mapping import ColumnsConfig, DataConfig
from faceclip.errors import ConfigError, DataError, TooManyBadRecordsError
from faceclip.training import parse_config
from tests.killing import first_child_killed
from tests.stages import start
from tests.train_encoder.foreign import COLUMNS, config_of, equal_words
from train_encoder.config import EncoderConfig
from train_encoder.features import check_data, load_features, main, split_features


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "digests.json")
    }


def test_features_equal_those_of_the_projects_own_layout(tiny_dataset, towers, tmp_path):
    ours = split_features(tiny_dataset, "train", towers, tmp_path / "ours")
    config = DataConfig(
        path=str(tiny_dataset),
        layout="files",
        portrait=0,
        shard_rows=5,
        batch_size=3,
        columns=ColumnsConfig(landmarks="landmarks_5"),
    )
    found = load_features(config, "train", towers, tmp_path / "found")
    np.testing.assert_allclose(found.identity, ours.identity, atol=1e-5)
    np.testing.assert_allclose(found.tokens[:].astype(np.float32), ours.tokens[:].astype(np.float32), atol=2e-3)
    np.testing.assert_allclose(found.caption, ours.caption, atol=1e-5)
    np.testing.assert_array_equal(found.portraits.caption_start, ours.portraits.caption_start)
    scale = np.abs(ours.image).max()
    np.testing.assert_allclose(found.image, ours.image, atol=0.02 * scale)  # resized in 8 bits
    texts = [[c.text for c in row] for row in ours.portraits.captions]
    assert [[c.text for c in row] for row in found.portraits.captions] == texts
    assert equal_words(found) == equal_words(ours)
    same = ours.portraits.identity[:, None] == ours.portraits.identity
    assert (found.portraits.identity[:, None] == found.portraits.identity).tolist() == same.tolist()


def test_the_projects_own_layout_is_computed_on_the_device_in_batches(tiny_dataset, towers, tmp_path):
    whole = split_features(tiny_dataset, "validation", towers, tmp_path / "whole")
    sizes = []
    hook = towers.recognizer.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    data = DataConfig(path=str(tiny_dataset), device="cpu:0", batch_size=3)
    found = load_features(data, "validation", towers, tmp_path / "parts")
    hook.remove()
    assert sizes == [3, 3, 2]
    for name in ("identity", "image", "caption"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), atol=1e-5)
    for changes, message in (
        ({"device": "cuda:99999"}, r"data\.device=cuda:99999"),
        ({"batch_size": 3}, r"data\.batch_size.*data\.layout=files"),
    ):
        data = DataConfig(path=str(tiny_dataset), **changes)
        if "device" in changes and torch.cuda.is_available():
            continue
        with pytest.raises(ConfigError, match=message):
            check_data(EncoderConfig(data=data))
            load_features(data, "validation", towers, tmp_path / "none")


def test_a_killed_build_resumes_with_the_same_bytes(parquet, tower_arguments, tmp_path):
    arguments = [
        f"data.path={parquet}",
        "data.columns.image=photo",
        "data.columns.captions=words",
        "data.columns.identity=who",
        "data.validation_share=0.2",
        "data.shard_rows=3",
        *tower_arguments,
        "sampling.images=2",
        "data.few_pictures=drop",
        "trainer.num_threads=1",
        "data.max_bad_share=0.5",
    ]
    assert main([*arguments, f"cache={tmp_path / 'whole'}"]) == 0
    process = start("train_encoder.features", *arguments, f"cache={tmp_path / 'broken'}")
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "broken").glob("train-images-*/*.safetensors"))) < 3:
        assert process.poll() is None, process.output()
        assert time.monotonic() < deadline, "no shards appeared"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "broken").glob("train-images-*/*.safetensors"))) < 14
    assert main([*arguments, f"cache={tmp_path / 'broken'}"]) == 0
    assert all_bytes(tmp_path / "broken") == all_bytes(tmp_path / "whole")


def test_worker_processes_write_what_threads_write(facecaption, towers, tmp_path):
    path, images = facecaption
    for kind in ("threads", "processes"):
        config = DataConfig(
            path=str(path),
            layout="facecaption",
            images=str(images),
            identity="none",
            workers=2,
            worker_kind=kind,
            max_bad_share=0.5,
            validation_share=0.3,
            shard_rows=20,
        )
        load_features(config, "train", towers, tmp_path / kind)
    threads, processes = all_bytes(tmp_path / "threads"), all_bytes(tmp_path / "processes")
    assert threads == processes
    report = json.loads(next(data for name, data in threads.items() if "report" in name))
    assert report["counts"]["no_image"] == 1  # found missing here, by the parent


def test_a_worker_that_dies_is_named(parquet, towers, tmp_path):
    with (
        first_child_killed(),
        pytest.raises(DataError, match=r"\b0 to 8\b.*data\.workers"),
    ):
        load_features(config_of(parquet, worker_kind="processes"), "train", towers, tmp_path / "c")


def test_two_builders_at_once(parquet, tower_arguments, tmp_path):
    arguments = [
        f"data.path={parquet}",
        "data.columns.image=photo",
        "data.columns.captions=words",
        "data.columns.identity=who",
        "data.columns.landmarks=points",
        "data.validation_share=0.3",
        "data.shard_rows=3",
        *tower_arguments,
        f"cache={tmp_path / 'c'}",
    ]
    processes = [start("train_encoder.features", *arguments) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("rows unusable" in output for output in outputs) == 1  # the other one found the work done
    assert all("features in" in output for output in outputs)


def test_a_full_disk_is_named_and_the_build_resumes(parquet, towers, tmp_path):
    config = config_of(parquet, validation_share=0.3)
    load_features(config, "train", towers, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(DataError, match=r"safetensors.*Errno 27"):
            load_features(config, "train", towers, tmp_path / "small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    load_features(config, "train", towers, tmp_path / "small")
    assert all_bytes(tmp_path / "small") == all_bytes(tmp_path / "whole")


def test_a_complete_cache_needs_no_lock(parquet, towers, tmp_path):
    config = config_of(parquet, validation_share=0.3)
    before = load_features(config, "train", towers, tmp_path / "c")
    for name in (".lock", "digests.json"):  # storage that refuses to be written, also for root
        (tmp_path / "c" / name).unlink()
    (tmp_path / "c" / ".lock").mkdir()
    (tmp_path / "c" / ".digests.json.tmp").mkdir()
    after = load_features(config, "train", towers, tmp_path / "c")
    np.testing.assert_array_equal(after.image[:], before.image[:])
    shutil.rmtree(next((tmp_path / "c").glob("train-images-*")))
    with pytest.raises(DataError, match=r"cache=.*not complete.*cache=DIR"):
        load_features(config, "train", towers, tmp_path / "c")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache=.*/file/c"):
        load_features(config, "train", towers, tmp_path / "file" / "c")


def test_another_tower_does_not_detect_again(parquet, towers, tower_arguments, tmp_path):
    config = config_of(parquet, validation_share=0.3)
    fresh = load_features(config, "train", towers, tmp_path / "cache")
    before = all_bytes(tmp_path / "cache")
    # Without its faces the cache is completed from the stored landmarks: same bytes, and no detector is asked.
    for folder in (tmp_path / "cache").glob("train-faces-*"):
        shutil.rmtree(folder)
    again = load_features(config, "train", towers, tmp_path / "cache")
    assert all_bytes(tmp_path / "cache") == before
    np.testing.assert_array_equal(again.tokens[:], fresh.tokens[:])


def test_pictures_that_changed_are_noticed(facecaption, towers, tmp_path):
    path, images = facecaption
    config = DataConfig(
        path=str(path),
        layout="facecaption",
        images=str(images),
        identity="none",
        max_bad_share=0.5,
        validation_share=0.3,
    )
    load_features(config, "train", towers, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("train-records-*")
    for folder in (tmp_path / "cache").glob("train-faces-*"):
        shutil.rmtree(folder)
    url = "https://example.org/0.png"
    picture = images / f"{hashlib.sha256(url.encode()).hexdigest()}.png"
    picture.write_bytes(picture.read_bytes()[:-1] + b"\0")  # the same size, and Pillow ignores what follows the end
    with pytest.raises(DataError, match=rf"\brows 0 to .*{shard.name} "):
        load_features(config, "train", towers, tmp_path / "cache")


def test_pictures_named_by_path_are_looked_at_again(rows, towers, tower_arguments, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, row in enumerate(rows[:8]):
        if number != 5:
            (photos / f"{number}.png").write_bytes(row["photo"])
    table = [row | {"photo": f"photos/{number}.png"} for number, row in enumerate(rows[:8])]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "paths.parquet")
    config = config_of(tmp_path / "paths.parquet", shard_rows=4)
    with pytest.raises(TooManyBadRecordsError, match="no_image 1"):
        load_features(config, "train", towers, tmp_path / "c")
    (photos / "5.png").write_bytes(rows[5]["photo"])
    whole = load_features(config, "train", towers, tmp_path / "c")
    assert len(whole.portraits) == 8
    first, second = (
        (tmp_path / "c" / next((tmp_path / "c").glob("train-faces-*")) / f"0000{n}.safetensors") for n in range(2)
    )
    written = first.stat().st_mtime_ns
    (photos / "6.png").write_bytes(rows[7]["photo"])
    again = load_features(config, "train", towers, tmp_path / "c")
    assert not np.allclose(again.image[6], whole.image[6])
    np.testing.assert_array_equal(again.image[[0, 5, 7]], whole.image[[0, 5, 7]])
    assert first.stat().st_mtime_ns == written < second.stat().st_mtime_ns


def test_features_of_other_records_are_made_again(rows, towers, tmp_path):
    photo = tmp_path / "0.png"
    pq.write_table(pa.Table.from_pylist([row | {"photo": "0.png"} for row in rows[:2]]), tmp_path / "paths.parquet")
    config = config_of(tmp_path / "paths.parquet", shard_rows=4, columns=COLUMNS)
    photo.write_bytes(rows[0]["photo"])
    before = load_features(config, "train", towers, tmp_path / "c")
    photo.write_bytes(rows[4]["photo"])
    (records,) = (tmp_path / "c").glob("train-records-*")
    shutil.rmtree(records)  # what messages about damaged records say; the other folders know whose they are
    after = load_features(config, "train", towers, tmp_path / "c")
    assert not np.allclose(after.image[:], before.image[:])


@pytest.mark.parametrize("name", [".features", "features"])
def test_a_cache_among_the_pictures_is_found_again(facecaption, towers, tmp_path, name):
    path, images = facecaption
    config = DataConfig(
        path=str(path),
        layout="facecaption",
        images=str(images),
        identity="none",
        max_bad_share=0.5,
        validation_share=0.3,
    )
    load_features(config, "train", towers, images / name)
    before = all_bytes(images / name)
    load_features(config, "train", towers, images / name)
    assert all_bytes(images / name) == before
    assert len(list((images / name).glob("train-records-*"))) == 1


@pytest.mark.parametrize("kind", ["records", "faces", "images", "captions"])
def test_a_corrupt_shard_is_named_with_its_remedy(parquet, towers, tmp_path, kind):
    config = config_of(parquet, validation_share=0.3)
    load_features(config, "train", towers, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob(f"train-{kind}-*/00001.safetensors")
    data = bytearray(shard.read_bytes())
    data[-2] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=rf"{kind}-.*00001\.safetensors "):
        load_features(config, "train", towers, tmp_path / "cache")


def test_records_that_are_cut_are_named_before_they_are_used(parquet, towers, tmp_path):
    config = config_of(parquet, validation_share=0.3)
    load_features(config, "train", towers, tmp_path / "cache")
    (faces,) = (tmp_path / "cache").glob("train-faces-*")
    shutil.rmtree(faces)
    (shard,) = (tmp_path / "cache").glob("train-records-*/00001.safetensors")
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(DataError, match=r"00001\.safetensors "):
        load_features(config, "train", towers, tmp_path / "cache")


def test_limit_and_configurations_that_contradict(parquet, tiny_dataset, towers, tmp_path):
    assert len(load_features(config_of(parquet, limit=11), "train", towers, tmp_path / "c").portraits) == 11
    with pytest.raises(ConfigError, match=r"data\.device=toaster"):
        load_features(config_of(parquet, device="toaster"), "train", towers, tmp_path / "d")
    for words, named in (
        (["data.identity=none"], r"data\.identity"),
        (["data.columns.image=photo"], r"data\.columns"),
        (["data.limit=4", "data.device=cuda"], r"data\.limit"),
        (["data.train=all"], r"data\.train"),
    ):
        config = parse_config(EncoderConfig, [f"data.path={tiny_dataset}", *words])
        with pytest.raises(ConfigError, match=rf"\b{named}, .*data\.layout=files"):
            check_data(config)
    with pytest.raises(ConfigError, match=r"^data: "):
        check_data(EncoderConfig())
