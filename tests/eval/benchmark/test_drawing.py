"""Drawing: resumed, shared, with failures that are kept; the same pictures whoever draws them."""

import json
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from eval.benchmark.drawing import claim, draw_all, failures, folder_of, gallery
from eval.benchmark.methods import Drawn, MethodSettings
from faceclip.errors import ConfigError, DataError, TooManyBadRecordsError
from faceclip.storage.locks import locked

METHOD = MethodSettings(name="noise", kind="peer", adapter="a:b")


@dataclass
class Noise:
    """Draws noise of the seed; fails on the jobs of `fails`."""

    fails: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    drawn: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    def applies(self, job):
        return job.key not in self.absent

    def draw(self, job):
        self.drawn.append(job.key)
        if job.key in self.fails:
            raise RuntimeError("out of\nluck")
        pixels = np.random.default_rng(job.seed).integers(0, 256, (64, 64, 3))
        return Drawn(image=pixels.astype(np.uint8))


def test_lost_and_damaged_pictures_are_drawn_again_and_no_others(suite, tmp_path):
    method = Noise()
    draw_all(tmp_path, suite, METHOD, lambda: method)
    before = gallery(tmp_path, suite, "noise")
    assert before.drawn.all() and len(method.drawn) == 6
    folder = folder_of(tmp_path, "noise")
    keys = [job.key for job in suite.jobs]
    (folder / f"{keys[0]}.png").unlink()
    (folder / f"{keys[1]}.json").write_text('{"job"')
    (folder / f"{keys[2]}.png").write_bytes((folder / f"{keys[3]}.png").read_bytes())
    with pytest.raises(DataError, match=keys[0]):
        gallery(tmp_path, suite, "noise")
    method.drawn.clear()
    draw_all(tmp_path, suite, METHOD, lambda: method)
    assert method.drawn == keys[:3]
    np.testing.assert_array_equal(gallery(tmp_path, suite, "noise").images, before.images)
    method.drawn.clear()
    draw_all(tmp_path, suite, METHOD, lambda: pytest.fail("nothing is missing"))


def test_failures_are_kept_counted_and_tried_again_on_request(settings, suite, tmp_path):
    keys = [job.key for job in suite.jobs]
    lenient = type(suite)(
        settings=settings(failures=0.4), references=suite.references, prompts=suite.prompts, jobs=suite.jobs
    )
    method = Noise(fails=set(keys[1:3]), absent={keys[5]})
    draw_all(tmp_path, lenient, METHOD, lambda: method)
    found = gallery(tmp_path, lenient, "noise")
    assert found.drawn.tolist() == [True, False, False, True, True, False]
    assert found.applies.tolist() == [True] * 5 + [False]
    assert failures(found.records) == {"RuntimeError: out of luck": 2}
    method.drawn.clear()
    draw_all(tmp_path, lenient, METHOD, lambda: method)
    assert method.drawn == []
    method.fails.clear()
    draw_all(tmp_path, lenient, METHOD, lambda: method, retry=True)
    assert method.drawn == keys[1:3] and gallery(tmp_path, lenient, "noise").drawn.tolist() == [True] * 5 + [False]


def test_too_many_failures_end_the_run(suite, tmp_path):
    method = Noise(fails={job.key for job in suite.jobs})
    with pytest.raises(TooManyBadRecordsError, match=r"noise failed on 1 of 6 .*failures=0\.1.*out of luck.*--retry"):
        draw_all(tmp_path, suite, METHOD, lambda: method)


def test_a_block_of_another_process_is_waited_for(suite, tmp_path):
    (tmp_path / "locks").mkdir()
    held, free = threading.Event(), threading.Event()

    def other():
        with locked(tmp_path / "locks" / "noise-00000.lock"):
            held.set()
            free.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(20)
    method, steps = Noise(), []
    worker = threading.Thread(target=lambda: draw_all(tmp_path, suite, METHOD, lambda: method, progress=steps.append))
    worker.start()
    worker.join(0.5)
    assert worker.is_alive() and method.drawn == []
    free.set()
    worker.join(20)
    thread.join(20)
    assert len(method.drawn) == 6 and steps == [6]


def test_a_folder_holds_one_suite_and_each_method_once(settings, suite, tmp_path):
    claim(tmp_path, suite, {"a": {"scale": 0.5}})
    claim(tmp_path, suite, {"a": {"scale": 0.5}, "b": {"kind": "real"}})
    assert set(json.loads((tmp_path / "run.json").read_text())["methods"]) == {"a", "b"}
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [entry["job"] for entry in plan["jobs"]] == [job.key for job in suite.jobs]
    with pytest.raises(ConfigError, match="method a"):
        claim(tmp_path, suite, {"a": {"scale": 0.8}})
    other = type(suite)(
        settings=suite.settings, references=suite.references, prompts=suite.prompts[:2], jobs=suite.jobs
    )
    with pytest.raises(ConfigError, match="another suite"):
        claim(tmp_path, other, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json"):
        claim(tmp_path, suite, {})
    (tmp_path / "run.json").unlink()
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ConfigError, match=r"without run\.json"):
        claim(tmp_path, suite, {})
