"""Logs of a run: what TensorBoard reads, going on after a kill, and a full disk."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faceclip.errors import DataError
from faceclip.training.logging import RunLog
from tests.full_disk import largest_file


def curve(directory, name: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(directory / "tensorboard")).Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    log = RunLog(tmp_path, start=0)
    for step in (2, 4, 6):
        log.write(step, {"loss": 1.0 / step}, kind="train")
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "ki')
    log = RunLog(tmp_path, start=4)
    log.write(6, {"loss": 0.5}, kind="train")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 0.5), (4, 0.25), (6, 0.5)]
    assert curve(tmp_path, "train/loss") == [(2, 0.5), (4, 0.25), (6, 0.5)]


@pytest.mark.parametrize(("size", "file"), [(3000, "log.jsonl"), (60, "events.out.tfevents")])
def test_a_full_disk_is_named_once_and_without_a_thread(tmp_path, capfd, size, file):
    def fill() -> None:
        log = RunLog(tmp_path, start=0)
        try:
            for step in range(100):
                log.write(step, {}, kind="a kind with so long a name that log.jsonl grows faster")
        finally:
            log.close()

    with largest_file(size), pytest.raises(DataError, match=rf"/{file}.*Errno 27"):
        fill()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
