"""diffusers' callbacks: what they see, what they may change, and the half that is left when they end guidance."""

from types import SimpleNamespace

import pytest
import torch

from faceclip.errors import ConfigError
from makeup_plugin.callbacks import callback_after_step, in_order
from makeup_plugin.conditioning import Conditions, time_ids
from makeup_plugin.sampling import DenoisingState

NAMES = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")


def state_of(rows: int, guidance: float) -> DenoisingState:
    torch.manual_seed(0)
    conditions = Conditions(
        tokens=torch.randn(rows, 77, 48), pooled=torch.randn(rows, 24), time_ids=time_ids(32, 32, rows)
    )
    return DenoisingState(latents=torch.randn(2, 4, 8, 8), conditions=conditions, guidance_scale=guidance)


def pipeline_of(guidance: float) -> SimpleNamespace:
    """What a callback may read of a pipeline."""
    return SimpleNamespace(guidance_scale=guidance, do_classifier_free_guidance=guidance > 1)


def test_a_callback_sees_the_named_tensors_and_changes_them():
    pipeline, state, seen = pipeline_of(3.0), state_of(4, 3.0), {}

    def callback(given, index, timestep, tensors):
        assert given is pipeline
        seen.update(tensors, index=index, timestep=timestep)
        return {"latents": tensors["latents"] + 1, "prompt_embeds": tensors["prompt_embeds"] * 2}

    found = callback_after_step(pipeline, callback, NAMES)(7, torch.tensor(500), state)
    assert seen.keys() == {*NAMES, "index", "timestep"} and (seen["index"], int(seen["timestep"])) == (7, 500)
    assert seen["latents"] is state.latents and seen["add_time_ids"] is state.conditions.time_ids
    assert torch.equal(found.latents, state.latents + 1)
    assert torch.equal(found.conditions.tokens, state.conditions.tokens * 2)
    assert found.conditions.pooled is state.conditions.pooled and found.guidance_scale == 3.0


def test_a_callback_that_returns_nothing_changes_nothing():
    state = state_of(4, 3.0)
    assert callback_after_step(pipeline_of(3.0), lambda *_: None, ("latents",))(0, torch.tensor(1), state) == state


def test_the_conditional_half_is_left_when_guidance_ends():
    state = state_of(4, 3.0)

    def last_row(pipeline, index, timestep, tensors):  # as diffusers' cutoff callbacks: one row for the whole half
        return {"prompt_embeds": tensors["prompt_embeds"][-1:], "add_text_embeds": tensors["add_text_embeds"] * 0}

    found = callback_after_step(pipeline_of(0.0), last_row, NAMES)(0, torch.tensor(1), state)
    assert found.guidance_scale == 0.0 and len(found.conditions) == 2
    assert torch.equal(found.conditions.tokens, state.conditions.tokens[2:])
    assert not found.conditions.pooled.any()
    again = callback_after_step(pipeline_of(0.0), lambda *_: {}, NAMES)(1, torch.tensor(1), found)
    assert torch.equal(again.conditions.tokens, found.conditions.tokens)


def test_one_row_stands_for_the_half_of_any_number_of_images():
    wide = state_of(6, 3.0)
    wide = DenoisingState(latents=torch.randn(3, 4, 8, 8), conditions=wide.conditions, guidance_scale=3.0)

    def last_row(pipeline, index, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}

    found = callback_after_step(pipeline_of(0.0), last_row, NAMES)(0, torch.tensor(1), wide)
    assert torch.equal(found.conditions.tokens, wide.conditions.tokens[3:])
    assert torch.equal(found.conditions.pooled, wide.conditions.pooled[3:])


def returned(name: str, value, *, guidance: float = 3.0, rows: int = 4) -> DenoisingState:
    state = state_of(rows, guidance)
    return callback_after_step(pipeline_of(guidance), lambda *_: {name: value}, NAMES)(0, torch.tensor(1), state)


@pytest.mark.parametrize(
    "value",
    [
        [1.0],
        torch.zeros(()),
        torch.zeros(5, 77, 48),
        torch.zeros(0, 77, 48),
        torch.zeros(4, 76, 48),
        torch.zeros(4, 77, 47),
        torch.zeros(4, 77, 48, dtype=torch.int64),
        torch.zeros(4, 77, 48, device="meta"),
        torch.zeros(4, 77, 48).to_sparse(),
    ],
)
def test_what_is_no_tensor_of_the_named_form_is_refused(value):
    with pytest.raises(ConfigError, match=r'^callback_on_step_end: "prompt_embeds" '):
        returned("prompt_embeds", value)


def test_latents_keep_their_number_and_unknown_names_are_left_aside():
    with pytest.raises(ConfigError, match=r'^callback_on_step_end: "latents" .*\(2, 4, 8, 8\), got \(1, 4, 8, 8\)'):
        returned("latents", torch.zeros(1, 4, 8, 8))
    for value in (3, [], "text"):
        with pytest.raises(ConfigError, match=r"^callback_on_step_end "):
            callback_after_step(pipeline_of(3.0), lambda *_, value=value: value, NAMES)(
                0, torch.tensor(1), state_of(4, 3.0)
            )
    state = state_of(4, 3.0)
    assert returned("noise", "anything").conditions.tokens.equal(state.conditions.tokens)
    assert returned("latents", torch.ones(2, 4, 8, 8), guidance=0.5).guidance_scale == 0.5


def test_a_text_that_this_unet_does_not_read_is_refused_unless_it_stays_away():
    conditions = Conditions(tokens=torch.randn(4, 77, 48))
    state = DenoisingState(latents=torch.randn(2, 4, 8, 8), conditions=conditions, guidance_scale=3.0)

    def after(value):
        return callback_after_step(pipeline_of(3.0), lambda *_: {"add_text_embeds": value}, ("latents",))

    assert after(None)(0, torch.tensor(1), state) == state
    with pytest.raises(ConfigError, match='"add_text_embeds"'):
        after(torch.zeros(4, 24))(0, torch.tensor(1), state)


def test_changes_come_in_their_order():
    seen = []

    def hook(name):
        return lambda index, timestep, state: seen.append((name, index, int(timestep), state)) or f"{state}{name}"

    assert in_order([hook("a"), hook("b")])(3, torch.tensor(500), "") == "ab"
    assert seen == [("a", 3, 500, ""), ("b", 3, 500, "a")]
