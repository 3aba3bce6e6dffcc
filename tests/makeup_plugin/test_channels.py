"""Identity and shading channels on a real, tiny SDXL UNet."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.conditioning import Conditions, concatenate, predict
from makeup_plugin.identity import IdentityChannel, cross_attention_layers, detach_identity
from makeup_plugin.regional_attention import regional_attention
from makeup_plugin.shading import shading_channel_from_unet


def awaken(control) -> None:
    """A fresh ControlNet says nothing: give its zero convolutions values."""
    torch.manual_seed(5)
    for module in (control.controlnet_mid_block, *control.controlnet_down_blocks):
        torch.nn.init.normal_(module.weight, std=0.3)
    torch.nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight, std=0.3)


@pytest.fixture
def control(unet):
    control = shading_channel_from_unet(unet, vae_scale_factor=4).eval()
    awaken(control)
    return control


@pytest.fixture
def base(unet, conditions, noisy):
    with torch.no_grad():
        return predict(unet, *noisy, conditions)


@torch.no_grad()
def test_attached_but_unused_channel_is_the_base_model(unet, channel, conditions, noisy, base):
    channel.attach(unet)
    assert channel.is_attached(unet)
    assert torch.equal(predict(unet, *noisy, conditions), base)
    channel.scale = 0
    assert torch.equal(predict(unet, *noisy, conditions, identity_channel=channel), base)
    detach_identity(unet)
    assert not channel.is_attached(unet)


@torch.no_grad()
def test_scale_and_identity_change_the_output(unet, channel, conditions, noisy, base):
    channel.attach(unet)
    full = predict(unet, *noisy, conditions, identity_channel=channel)
    channel.scale = 0.5
    half = predict(unet, *noisy, conditions, identity_channel=channel)
    assert (full - base).abs().max() > 1e-3
    assert 0 < (half - base).norm() < (full - base).norm()
    channel.scale = 1
    other = replace(conditions, identity=conditions.identity.flip(0))
    assert (predict(unet, *noisy, other, identity_channel=channel) - full).abs().max() > 1e-4


@torch.no_grad()
def test_dropped_identity_is_the_zero_input_and_touches_no_other_sample(unet, channel, conditions, noisy):
    channel.attach(unet)
    kept = predict(unet, *noisy, conditions, identity_channel=channel)
    dropped = conditions.drop_identity(torch.tensor([False, True, False]))
    assert dropped.identity[1].abs().sum() == 0 and dropped.image_tokens[1].abs().sum() == 0
    result = predict(unet, *noisy, dropped, identity_channel=channel)
    torch.testing.assert_close(result[[0, 2]], kept[[0, 2]], atol=1e-5, rtol=1e-5)
    assert (result[1] - kept[1]).abs().max() > 1e-3
    tokens = channel(torch.zeros(1, 16), torch.zeros(1, 5, 20))
    assert torch.isfinite(tokens).all() and tokens.abs().sum() > 0


@torch.no_grad()
def test_a_batch_equals_its_samples(unet, channel, control, conditions, noisy):
    channel.attach(unet)
    latents, timesteps = noisy
    parts = {"identity_channel": channel, "shading_channel": control}
    together = predict(unet, latents, timesteps, conditions, **parts)
    for row in range(3):
        one = Conditions(**{name: value[row : row + 1] for name, value in conditions.tensors().items()})
        alone = predict(unet, latents[row : row + 1], timesteps[row : row + 1], one, **parts)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_channel_weights_stay_out_of_the_unet_and_train(unet, channel, conditions, noisy):
    before = set(unet.state_dict())
    channel.attach(unet)
    assert set(unet.state_dict()) == before
    unet.requires_grad_(False)
    predict(unet, *noisy, conditions, identity_channel=channel).square().mean().backward()
    missing = [name for name, value in channel.named_parameters() if value.grad is None]
    assert missing == []


def test_keys_and_values_start_as_the_text_ones(unet, channel):
    modules = dict(unet.named_modules())
    for name, weights in zip(cross_attention_layers(unet), channel.attention, strict=True):
        attn = modules[name.removesuffix(".processor")]
        assert isinstance(weights, IPAdapterAttnProcessor2_0)
        assert torch.equal(weights.to_k_ip[0].weight, attn.to_k.weight)
        assert torch.equal(weights.to_v_ip[0].weight, attn.to_v.weight)


def test_save_and_load_of_the_channel(channel, conditions, tmp_path):
    channel.save_pretrained(tmp_path)
    loaded = IdentityChannel.from_pretrained(tmp_path)
    assert torch.equal(
        loaded(conditions.identity, conditions.image_tokens), channel(conditions.identity, conditions.image_tokens)
    )


def test_shortcut_adds_the_perceiver_to_the_identity(unet, channel_factory, conditions):
    torch.manual_seed(2)
    plain = channel_factory(unet, shortcut=False)
    torch.manual_seed(2)
    added = channel_factory(unet, shortcut=True)
    added.load_state_dict(plain.state_dict())
    identity, image_tokens = conditions.identity, conditions.image_tokens
    projection = plain.projection
    direct = projection.norm(projection.proj(identity).reshape(3, 4, 48))
    torch.testing.assert_close(added(identity, image_tokens), direct + plain(identity, image_tokens))


def test_a_channel_for_another_unet_is_refused(channel, unet_factory):
    with pytest.raises(CheckpointError, match=r"cross_attention_dim .*\b48 .*\b40\b"):
        channel.attach(unet_factory(cross_attention_dim=40))
    with pytest.raises(CheckpointError, match=r"layer down_blocks\.0.*16 wide.*24 in the UNet"):
        channel.attach(unet_factory(block_out_channels=(24, 32)))
    with pytest.raises(CheckpointError, match=r"\blayer .*\babsent\b"):
        channel.attach(unet_factory(layers_per_block=2))


@pytest.mark.parametrize(
    ("identity", "image_tokens", "message"),
    [
        ((3, 15), (3, 5, 20), r"^identity .*\(B, 16\), .*\(3, 15\)"),
        ((3, 16), (3, 5, 19), r"^image_tokens .*\(B, P, 20\), .*\(3, 5, 19\)"),
    ],
)
def test_wrong_widths_are_named(channel, identity, image_tokens, message):
    with pytest.raises(ConfigError, match=message):
        channel(torch.zeros(identity), torch.zeros(image_tokens))


@torch.no_grad()
def test_fresh_shading_channel_adds_nothing(unet, channel, conditions, noisy):
    control = shading_channel_from_unet(unet, vae_scale_factor=4).eval()
    channel.attach(unet)
    without = predict(unet, *noisy, conditions, identity_channel=channel)
    with_ = predict(unet, *noisy, conditions, identity_channel=channel, shading_channel=control)
    assert torch.equal(without, with_)


def test_the_map_reaches_a_fresh_channel(unet, channel, conditions, noisy):
    """Only the output convolutions are zero: their first gradient already depends on the map."""
    channel.attach(unet)
    gradients = []
    for shading in (conditions.shading, conditions.shading.flip(-1)):
        torch.manual_seed(0)
        control = shading_channel_from_unet(unet, vae_scale_factor=4)
        batch = replace(conditions, shading=shading)
        predict(unet, *noisy, batch, identity_channel=channel, shading_channel=control).square().sum().backward()
        gradients.append(control.controlnet_down_blocks[0].weight.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[0].abs().max() > 0


@torch.no_grad()
def test_shading_scale_zero_and_dropped_maps_add_nothing(unet, channel, control, conditions, noisy):
    channel.attach(unet)
    parts = {"identity_channel": channel, "shading_channel": control}
    without = predict(unet, *noisy, conditions, identity_channel=channel)
    assert torch.equal(predict(unet, *noisy, conditions, **parts, shading_scale=0), without)
    shaded = predict(unet, *noisy, conditions, **parts)
    assert (shaded - without).abs().max() > 1e-3
    dropped = predict(unet, *noisy, conditions.drop_shading(torch.tensor([True, False, False])), **parts)
    torch.testing.assert_close(dropped[0], without[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(dropped[1:], shaded[1:], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_shading_channel_sees_identity_tokens_not_words(unet, channel, control, conditions, noisy):
    """With the identity attention off, words reach the ControlNet through nothing but the pooled vector."""
    channel.attach(unet)
    channel.scale = 0

    def control_part(batch: Conditions) -> torch.Tensor:
        parts = {"identity_channel": channel, "shading_channel": control}
        return control(
            *noisy,
            encoder_hidden_states=parts["identity_channel"](batch.identity, batch.image_tokens),
            controlnet_cond=batch.shading,
            added_cond_kwargs={"text_embeds": batch.pooled, "time_ids": batch.time_ids},
        ).mid_block_res_sample

    seen = {}
    handle = control.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    predict(unet, *noisy, conditions, identity_channel=channel, shading_channel=control)
    handle.remove()
    tokens = channel(conditions.identity, conditions.image_tokens)
    assert torch.equal(seen["encoder_hidden_states"], tokens)
    assert (control_part(conditions) - control_part(conditions.drop_identity(torch.ones(3).bool()))).abs().max() > 0


def test_shading_needs_the_right_size_and_identity(unet, channel, control, conditions, noisy):
    channel.attach(unet)
    wrong = replace(conditions, shading=torch.zeros(3, 3, 16, 16))
    with pytest.raises(ConfigError, match=r"\bshading .*\(3, 3, 32, 32\)"):
        predict(unet, *noisy, wrong, identity_channel=channel, shading_channel=control)
    with pytest.raises(ConfigError, match=r"^shading_channel .*identity_channel .*conditions\.identity"):
        predict(unet, *noisy, conditions, shading_channel=control)
    with pytest.raises(ConfigError, match=r"^vae_scale_factor .* 3$"):
        shading_channel_from_unet(unet, vae_scale_factor=3)


def test_channel_must_be_attached(unet, channel, conditions, noisy):
    with pytest.raises(ConfigError, match="attach"):
        predict(unet, *noisy, conditions, identity_channel=channel)


def test_a_channel_that_took_the_place_of_another_must_be_attached(unet, channel, channel_factory, conditions, noisy):
    """Its projection would feed the keys and values of the old one, and its scale would do nothing."""
    channel.attach(unet)
    other = channel_factory(unet)
    with pytest.raises(ConfigError, match=r"identity_channel\.attach\(unet\)"):
        predict(unet, *noisy, conditions, identity_channel=other)
    other.attach(unet)
    assert other.is_attached(unet) and not channel.is_attached(unet)


@torch.no_grad()
def test_an_absent_identity_is_not_ignored(unet, channel, conditions, noisy, base):
    channel.attach(unet)
    without = replace(conditions, identity=None, image_tokens=None)
    with pytest.raises(ConfigError, match=r"conditions\.identity "):
        predict(unet, *noisy, without, identity_channel=channel)
    channel.scale = 0
    assert torch.equal(predict(unet, *noisy, without, identity_channel=channel), base)
    assert torch.equal(predict(unet, *noisy, without), base)


def test_conditions_are_checked_and_combined(conditions):
    with pytest.raises(ConfigError, match="'pooled': 2"):
        replace(conditions, pooled=conditions.pooled[:2])
    with pytest.raises(ConfigError, match=r"^image_tokens .*\bidentity\b"):
        replace(conditions, identity=None)
    with pytest.raises(ConfigError, match=r"^pooled and time_ids "):
        replace(conditions, time_ids=None)
    twice = conditions.repeat(2)
    assert len(twice) == 6 and torch.equal(twice.tokens[0], twice.tokens[1])
    joined = concatenate([conditions, twice])
    assert torch.equal(joined.tokens[3:], twice.tokens)
    with pytest.raises(ConfigError, match=r"\['identity', .*'shading'.*\], \["):
        concatenate([conditions, replace(conditions, shading=None)])


def with_people(conditions: Conditions, shares: list[float], **changes) -> Conditions:
    """Two people, who are the pictures' own person and that of the next row, with the same shares everywhere."""

    def pair(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values, values.roll(1, 0)], dim=1)

    everywhere = torch.tensor(shares).view(1, 3, 1, 1).expand(3, 3, 8, 8)
    return replace(
        conditions,
        identity=torch.zeros_like(conditions.identity),
        image_tokens=torch.zeros_like(conditions.image_tokens),
        people_tokens=pair(conditions.tokens),
        people_identity=pair(conditions.identity),
        people_image_tokens=pair(conditions.image_tokens),
        people_shares=everywhere,
        **changes,
    )


@torch.no_grad()
def test_a_person_everywhere_is_drawn_as_alone(unet, channel, control, conditions, noisy) -> None:
    """Also by the shading channel, which reads the person's identity tokens."""
    channel.attach(unet)
    parts = {"identity_channel": channel, "shading_channel": control}
    alone = predict(unet, *noisy, conditions, **parts)
    other = replace(
        conditions, **{n: getattr(conditions, n).roll(1, 0) for n in ("tokens", "identity", "image_tokens")}
    )
    second = predict(unet, *noisy, other, **parts)
    with regional_attention(unet, control):
        for shares, wanted in (([0.0, 1.0, 0.0], alone), ([0.0, 0.0, 1.0], second)):
            found = predict(unet, *noisy, with_people(conditions, shares), **parts)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        mixed = predict(unet, *noisy, with_people(conditions, [0.0, 0.5, 0.5]), **parts)
        assert (mixed - alone).abs().max() > 1e-3 and (mixed - second).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="regional_attention"):
        predict(unet, *noisy, with_people(conditions, [0.0, 1.0, 0.0]), **parts)


@torch.no_grad()
def test_people_are_weighed_and_their_texts_stay_without_a_channel(unet, channel, conditions, noisy) -> None:
    channel.attach(unet)
    texts = predict(unet, *noisy, conditions)
    with regional_attention(unet):
        for options, scale in (({"identity_channel": channel}, torch.zeros(3, 2)), ({}, None), ({}, torch.ones(3, 2))):
            people = with_people(conditions, [0.0, 1.0, 0.0], people_scale=scale)
            torch.testing.assert_close(predict(unet, *noisy, people, **options), texts, atol=1e-4, rtol=1e-4)
        ones = with_people(conditions, [0.0, 1.0, 0.0], people_scale=torch.ones(3, 2))
        whole = predict(unet, *noisy, ones, identity_channel=channel)
        plain = predict(unet, *noisy, replace(ones, people_scale=None), identity_channel=channel)
        torch.testing.assert_close(whole, plain)
        assert (whole - texts).abs().max() > 1e-3


@torch.no_grad()
def test_a_scale_per_picture_weighs_its_identity(unet, channel, conditions, noisy) -> None:
    channel.attach(unet)
    texts = predict(unet, *noisy, conditions)
    whole = predict(unet, *noisy, conditions, identity_channel=channel)
    scaled = replace(conditions, identity_scale=torch.tensor([1.0, 0.0, 1.0]))
    with regional_attention(unet):
        found = predict(unet, *noisy, scaled, identity_channel=channel)
        torch.testing.assert_close(found, torch.stack([whole[0], texts[1], whole[2]]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(predict(unet, *noisy, scaled), texts, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="regional_attention"):
        predict(unet, *noisy, scaled, identity_channel=channel)
