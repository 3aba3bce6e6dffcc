"""The forms of the identity channel, what they read where there is nobody, and bases without text_time."""

from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from faceclip.errors import ConfigError
from faceclip.joint import JointConditioning
from faceclip.towers.image import ImageTower
from makeup_plugin.conditioning import predict, unconditional_half
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.image_tokens import image_tokens, nobody_tokens
from makeup_plugin.shading import shading_channel_from_unet

SD15 = {"addition_embed_type": None, "projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None}
FORMS = {"mlp": {"num_tokens": 4}, "resampler": {"num_tokens": 6, "hidden_dim": 24, "depth": 2, "normalized": False}}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_channels_that_read_the_identity_alone(form, unet, channel_factory, conditions, noisy, tmp_path) -> None:
    torch.manual_seed(11)
    channel = channel_factory(unet, image_dim=None, form=form, **FORMS[form])
    batch = replace(conditions, image_tokens=None)
    plain = predict(unet, *noisy, batch)
    channel.attach(unet)
    result = predict(unet, *noisy, batch, identity_channel=channel)
    assert channel(batch.identity).shape == (3, FORMS[form]["num_tokens"], 48)
    assert (result - plain).abs().max() > 1e-3
    channel.save_pretrained(tmp_path)
    loaded = IdentityChannel.from_pretrained(tmp_path)
    loaded.attach(unet)
    assert torch.equal(predict(unet, *noisy, batch, identity_channel=loaded), result)
    assert loaded.config.normalized is (form == "mlp")
    with pytest.raises(ConfigError, match=f"^image_tokens .*{form}"):
        channel(batch.identity, conditions.image_tokens)
    with pytest.raises(ConfigError, match=r"^shortcut_scale=0\.5"):
        channel.shortcut_scale = 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"form": "transformer"}, "form .*'transformer'"),
        ({"nobody": "grey"}, "nobody .*'grey'"),
        ({"view": "round"}, "view .*'round'"),
        ({"form": "mlp"}, "image_dim=20 .*'mlp'"),
        ({"image_dim": None}, "image_dim=None .*'perceiver'"),
    ],
)
def test_settings_that_no_channel_has_are_named(unet, channel_factory, settings, named) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        channel_factory(unet, **settings)


@torch.no_grad()
def test_the_shortcut_is_weighed(channel, conditions) -> None:
    tokens = [conditions.identity, conditions.image_tokens]
    whole = channel(*tokens)
    channel.shortcut_scale = 0.0
    identity_alone = channel(*tokens)
    channel.shortcut_scale = 0.5
    torch.testing.assert_close(channel(*tokens), (whole + identity_alone) / 2)


@torch.no_grad()
def test_a_base_without_text_time_reads_neither_pooled_nor_sizes(unet_factory, channel_factory, conditions, noisy):
    unet = unet_factory(**SD15)
    control = shading_channel_from_unet(unet, vae_scale_factor=4)
    torch.nn.init.normal_(control.controlnet_mid_block.weight)
    torch.manual_seed(12)
    channel = channel_factory(unet)
    channel.attach(unet)
    batch = replace(conditions, pooled=None, time_ids=None)
    parts = {"identity_channel": channel, "shading_channel": control}
    result = predict(unet, *noisy, batch, **parts)
    other = predict(unet, *noisy, replace(batch, shading=1 - batch.shading), **parts)
    assert torch.isfinite(result).all() and (result - other).abs().max() > 1e-4


def _clip_tower() -> CLIPVisionModelWithProjection:
    torch.manual_seed(13)
    sizes = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=8, **sizes)).eval()


@torch.no_grad()
def test_nobody_is_an_image_that_is_zero_after_normalization() -> None:
    tower = _clip_tower()
    zero = tower(torch.zeros(1, 3, 8, 8), output_hidden_states=True).hidden_states[-2][0]
    assert torch.equal(nobody_tokens(tower), zero)
    grey = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1).expand(1, 3, 30, 30)
    torch.testing.assert_close(image_tokens(tower, grey)[0], zero, atol=1e-5, rtol=1e-5)
    torch.manual_seed(14)
    ours = ImageTower(image_size=8, patch_size=4, width=20, layers=2, heads=2, embed_dim=8).eval()
    torch.testing.assert_close(ours(grey).tokens[0], nobody_tokens(ours), atol=1e-5, rtol=1e-5)


class _Texts:
    """The smallest text side."""

    def encode(self, prompts, faces=None, *, has_face=None) -> JointConditioning:
        rows = torch.ones(len(prompts), 77, 48)
        return JointConditioning(tokens=rows, pooled=rows[:, 0, :24], identity=None, text=rows)


def test_the_unconditional_half_reads_what_the_channel_was_trained_with(conditions) -> None:
    nobody = torch.randn(5, 20)
    half = unconditional_half(_Texts(), [""], conditions, height=32, width=32, keep_shading=True, nobody=nobody)
    assert not half.identity.any() and torch.equal(half.image_tokens, nobody.expand(3, -1, -1))
    dropped = conditions.drop_identity(torch.tensor([True, False, False]), nobody)
    assert torch.equal(dropped.image_tokens[0], nobody)
    assert torch.equal(dropped.image_tokens[1:], conditions.image_tokens[1:])
