"""diffusers' callbacks: what they see, what they may change, and the half that is left when they end guidance."""

from types import SimpleNamespace

import torch

from makeup_plugin.callbacks import callback_after_step
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
