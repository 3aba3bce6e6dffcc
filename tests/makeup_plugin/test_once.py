"""What a call computes once, or not at all."""

import pytest
import torch

from makeup_plugin.conditioning import predict
from makeup_plugin.shading import rows_with_map


def runs_of(module: torch.nn.Module) -> list[int]:
    """Grows by the number of rows at every pass."""
    rows: list[int] = []

    def count(module, args, kwargs):
        rows.append(len(args[0]))

    module.register_forward_pre_hook(count, with_kwargs=True)
    return rows


def draw(pipeline, photo, points, **arguments):
    settings = {"num_inference_steps": 3, "output_type": "latent", "landmarks": points}
    return pipeline("a man", photo, generator=torch.Generator().manual_seed(0), **settings, **arguments).images


def test_identity_tokens_are_computed_once(pipeline, photo, points):
    rows = runs_of(pipeline.identity_channel.projection)
    draw(pipeline, photo, points)
    assert rows == [2]
    draw(pipeline, photo, points)
    assert rows == [2, 2]  # a call remembers nothing of the one before


def test_only_rows_with_a_map_pass_through_the_shading_channel(pipeline, photo, points):
    rows = runs_of(pipeline.shading_channel)
    draw(pipeline, photo, points)
    assert rows == [2, 2, 2]
    rows.clear()
    draw(pipeline, photo, points, guide_shading=True)
    assert rows == [1, 1, 1]
    rows.clear()
    draw(pipeline, photo, points, shading_scale=0)
    pipeline(["a man", "a woman"], [photo, None], landmarks=[points, None], num_inference_steps=1, guidance_scale=1.0)
    assert rows == [1]


def test_a_negative_text_is_encoded_once(pipeline, photo, points):
    rows = runs_of(pipeline.joint_encoder.branches[0].fusion)
    first = draw(pipeline, photo, points, negative_prompt="a hat")
    assert rows == [1, 1]
    assert torch.equal(draw(pipeline, photo, points, negative_prompt="a hat"), first)
    assert rows == [1, 1, 1]
    draw(pipeline, photo, points, negative_prompt="glasses")
    assert rows == [1] * 5
    with torch.no_grad():
        pipeline.joint_encoder.branches[0].text_projection.weight.mul_(2)
    changed = draw(pipeline, photo, points, negative_prompt="a hat")
    assert rows == [1] * 7 and not torch.equal(changed, first)


def test_an_identity_channel_at_scale_0_does_not_run(pipeline, photo, points):
    projections, towers = runs_of(pipeline.identity_channel.projection), runs_of(pipeline.image_encoder)
    keys = runs_of(pipeline.identity_channel.attention[0].to_k_ip[0])
    off = {"identity_scale": 0, "shading_scale": 0}
    without = draw(pipeline, photo, points, **off)
    assert (projections, towers, keys) == ([], [], [])
    seen = draw(pipeline, photo, points, callback_on_step_end=lambda *_: {}, **off)
    assert torch.equal(seen, without) and len(towers) == 1  # the callback might raise the scale
    draw(pipeline, photo, points, identity_scale=0)
    assert len(projections) == 1 and keys == []  # the shading channel reads the tokens
    draw(pipeline, photo, points, identity_schedule=[0.0, 1.0, 0.0], shading_scale=0)
    assert len(projections) == 2 and len(keys) == 1


@torch.no_grad()
@pytest.mark.parametrize("keep", [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_skipped_rows_change_nothing(pipeline, conditions, noisy, keep):
    latents, _ = noisy
    conditions = conditions.__class__(**{**conditions.tensors(), "shading_keep": torch.tensor(keep)})
    channels = {"identity_channel": pipeline.identity_channel, "shading_channel": pipeline.shading_channel}
    for timesteps in (torch.tensor(10), torch.tensor([10, 500, 900])):
        whole = predict(pipeline.unet, latents, timesteps, conditions, **channels)
        rows = rows_with_map(conditions.shading_keep)
        assert rows is None if all(keep) else rows.tolist() == [row for row, value in enumerate(keep) if value]
        some = predict(pipeline.unet, latents, timesteps, conditions, shading_rows=rows, **channels)
        torch.testing.assert_close(some, whole, atol=1e-6, rtol=1e-6)


def test_tokens_are_remembered_for_the_same_tensors_only(channel, conditions):
    rows = runs_of(channel.projection)
    given = conditions.identity, conditions.image_tokens
    with torch.no_grad(), channel.remembering():
        first = channel(*given)
        assert channel(*given) is first and rows == [3]
        other = channel(given[0].clone(), given[1])
        assert torch.equal(other, first) and rows == [3, 3]
        with channel.remembering():
            assert channel(*given) is not first
    with torch.no_grad():
        assert channel(*given) is not first
    with channel.remembering():  # training needs a new graph each time
        assert channel(*given) is not channel(*given)
