"""Threads that share a pipeline draw what one thread draws, and what they save is whole."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from faceclip.errors import ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from tests.makeup_plugin.calls import run
from tests.makeup_plugin.conftest import make_base, make_pipeline
from tests.makeup_plugin.test_controls import make_controlnet

SCALES = (0.0, 0.5, 1.0, 2.0)


def at_once(jobs: list[Callable[[], object]]) -> list:
    """Results of all jobs, each in a thread of its own, begun together."""
    results: list = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def work(place: int) -> None:
        barrier.wait()
        try:
            results[place] = jobs[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    return results


def test_threads_draw_the_pictures_of_one(pipeline, photo, points) -> None:
    def job(place: int) -> Callable[[], np.ndarray]:
        scale, guidance = SCALES[place % len(SCALES)], 1.0 + place
        return lambda: run(pipeline, photo, points, identity_scale=scale, guidance_scale=guidance)

    jobs = [job(place) for place in range(6)]
    wanted = [work() for work in jobs]
    for found, alone in zip(at_once(jobs), wanted, strict=True):
        assert np.array_equal(found, alone)


def test_loading_and_saving_wait_for_calls(pipeline, photo, points, tmp_path: Path) -> None:
    with_adapter = run(pipeline, photo, points)
    pipeline.save_adapter(tmp_path / "adapter")
    saves = [lambda n=n: pipeline.save_pretrained(tmp_path / f"whole{n}") for n in range(2)]

    def change() -> None:
        pipeline.unload_adapter()
        pipeline.load_adapter(tmp_path / "adapter")

    def text_only() -> np.ndarray:
        return run(pipeline, None, None)

    alone = text_only()
    results = at_once([change, text_only, *saves, text_only])
    assert [result for result in results if isinstance(result, BaseException)] == []
    pipeline.unload_adapter()
    bare = text_only()
    for found in (results[1], results[4]):
        assert np.array_equal(found, alone) or np.array_equal(found, bare)
    pipeline.load_adapter(tmp_path / "adapter")
    assert np.array_equal(run(pipeline, photo, points), with_adapter)
    for number in range(2):
        FaceMakeUpPipeline.from_pretrained(tmp_path / f"whole{number}")


def test_saving_and_loading_at_once_leave_modules_as_they_are(pipeline, tmp_path: Path) -> None:
    others = [make_pipeline() for _ in range(2)]
    pipeline.save_pretrained(tmp_path / "first")
    jobs = [lambda n=n: others[n].save_pretrained(tmp_path / f"{n}") for n in range(2)]
    jobs += [lambda: FaceMakeUpPipeline.from_pretrained(tmp_path / "first") for _ in range(3)]
    results = at_once(jobs)
    assert [result for result in results if isinstance(result, BaseException)] == []
    assert nn.Linear(2, 2).weight.device.type == "cpu"
    for loaded in results[2:]:
        assert not any(value.is_meta for value in loaded.unet.state_dict().values())


def test_moving_waits_for_calls(pipeline) -> None:
    order: list[str] = []
    begun = threading.Event()

    def callback(pipe, step, timestep, tensors):
        begun.set()
        time.sleep(0.05)  # long enough for a move that does not wait
        order.append("step")
        return {}

    def draw() -> None:
        pipeline("a man", num_inference_steps=2, output_type="latent", callback_on_step_end=callback)

    def move() -> None:
        assert begun.wait(30)
        pipeline.to(torch.float32)
        order.append("moved")

    results = at_once([draw, move])
    assert [result for result in results if result is not None] == []
    assert order == ["step", "step", "moved"]


def test_pipelines_that_share_a_unet_take_turns(pipeline, photo, points) -> None:
    other = FaceMakeUpPipeline.from_pipe(pipeline)
    jobs = [
        lambda scale=scale, one=one: run(one, photo, points, identity_scale=scale)
        for scale, one in zip(SCALES, (pipeline, other) * 2, strict=True)
    ]
    wanted = [work() for work in jobs]
    for found, alone in zip(at_once(jobs), wanted, strict=True):
        assert np.array_equal(found, alone)
    with pytest.raises(ConfigError, match="callback"):
        pipeline("a man", num_inference_steps=1, callback_on_step_end=lambda *_: other.unload_adapter())


def test_a_callback_cannot_change_the_pipeline_that_calls_it(pipeline, tmp_path: Path) -> None:
    calls = (
        lambda: pipeline("a man", num_inference_steps=1),
        pipeline.unload_adapter,
        lambda: pipeline.save_pretrained(tmp_path / "x"),
        lambda: pipeline.load_adapter(tmp_path / "x"),
    )
    seen = []

    def callback(pipe, step, timestep, tensors):
        for call in calls:
            with pytest.raises(ConfigError, match="callback"):
                call()
            seen.append(call)

    arguments = {"num_inference_steps": 1, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    pipeline("a man", callback_on_step_end=callback, **arguments)
    assert len(seen) == len(calls)
    pipeline.unload_adapter()  # it is possible again afterwards


def order_of_steps(pipeline: FaceMakeUpPipeline, other: FaceMakeUpPipeline) -> list[str]:
    """Which pipeline drew, step by step, when the second is called during the first step of the first."""
    order: list[str] = []
    begun, mixed = threading.Event(), threading.Event()

    def draw(one: FaceMakeUpPipeline, callback: Callable) -> None:
        one("a man", num_inference_steps=2, output_type="latent", callback_on_step_end=callback)

    def first(*_: object) -> dict:
        order.append("first")
        begun.set()
        mixed.wait(0.7)  # long enough for a call that does not wait
        return {}

    def second(*_: object) -> dict:
        order.append("second")
        mixed.set()
        return {}

    def after_the_first() -> None:
        assert begun.wait(30)
        draw(other, second)

    assert at_once([lambda: draw(pipeline, first), after_the_first]) == [None, None]
    return order


@pytest.mark.parametrize("shared", ["scheduler", "vae", "image_encoder"])
def test_pipelines_with_other_unets_take_turns_for_what_they_share(pipeline, shared: str) -> None:
    other = make_pipeline()
    setattr(other, shared, getattr(pipeline, shared))
    assert order_of_steps(pipeline, other) == ["first", "first", "second", "second"]


@pytest.mark.parametrize("shared", ["controlnet", "compiled", "recognizer"])
def test_pipelines_take_turns_for_networks_within_their_parts(shared: str) -> None:
    one, other = make_base(), make_base()
    if shared == "controlnet":
        network = make_controlnet(11)
        one["controlnet"], other["controlnet"] = [network, make_controlnet(12)], network
    elif shared == "compiled":
        other["vae"] = torch.compile(one["vae"], backend="eager")
    else:
        other["joint_encoder"].face_encoder = one["joint_encoder"].face_encoder
    first, second = FaceMakeUpPipeline(**one), FaceMakeUpPipeline(**other)
    assert order_of_steps(first, second) == ["first", "first", "second", "second"]


def test_a_callback_does_not_wait_for_a_thread_that_waits_for_it(pipeline) -> None:
    other = make_pipeline(lora=False)
    other.vae = pipeline.vae
    begun, until = threading.Event(), time.monotonic() + 30
    refused: list[str] = []

    def draw(one: FaceMakeUpPipeline, **arguments: object) -> None:
        one("a man", num_inference_steps=1, output_type="latent", **arguments)

    def callback(pipe, step, timestep, tensors):
        draw(other)  # nobody else uses it yet
        begun.set()
        while not refused and time.monotonic() < until:
            time.sleep(0.05)  # the other thread takes the turns of `other` and waits for the autoencoder
            try:
                draw(other)
            except ConfigError as error:
                refused.append(str(error))
        return {}

    def second() -> None:
        assert begun.wait(30)
        draw(other)

    assert at_once([lambda: draw(pipeline, callback_on_step_end=callback), second]) == [None, None]
    assert refused and "callback" in refused[0]
    draw(other)


def test_switches_of_diffusers_wait_for_calls(pipeline) -> None:
    order: list[str] = []
    begun = threading.Event()

    def callback(pipe, step, timestep, tensors):
        begun.set()
        time.sleep(0.05)
        order.append("step")
        return {}

    def draw() -> None:
        pipeline("a man", num_inference_steps=2, output_type="latent", callback_on_step_end=callback)

    def switch() -> None:
        assert begun.wait(30)
        pipeline.disable_lora()
        order.append("switched")

    assert at_once([draw, switch]) == [None, None]
    assert order == ["step", "step", "switched"]
