"""Losses against values worked out by hand."""

import math

import pytest
import torch

from faceclip.errors import ConfigError
from makeup_plugin.attention import AttentionCapture, layer_downsampling, layers_at, text_attention
from makeup_plugin.conditioning import predict
from makeup_plugin.losses import (
    IGNORED,
    attribute_loss,
    decode_latents,
    feature_distance,
    noise_prediction_loss,
    semantic_alignment_loss,
)
from makeup_plugin.phrases import phrase_token_mask


def test_weighted_noise_loss():
    prediction, target = torch.zeros(2, 1, 1, 2), torch.tensor([1.0, 3.0, 2.0, 2.0]).view(2, 1, 1, 2)
    assert noise_prediction_loss(prediction, target).item() == pytest.approx((5 + 4) / 2)
    weighted = noise_prediction_loss(prediction, target, torch.tensor([0.5, 0.0]))
    assert weighted.item() == pytest.approx(5 * 0.5 / 2)
    with pytest.raises(ConfigError, match=r"^prediction .*\(2, 1, 1, 2\) .*target "):
        noise_prediction_loss(prediction, target[:1])


def test_semantic_alignment_by_hand():
    """One head, a 2x2 grid, tokens 0..2; the mask covers the upper row, its words are tokens 1 and 2."""
    attention = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0], [0.8, 0.1, 0.1]]).view(1, 1, 4, 3)
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 1, 2, 2)
    tokens = torch.tensor([[[False, True, True]]])
    goal = [1, 1, 0, 0]
    first, second = [0.5, 0.2, 0.0, 0.1], [0.3, 0.6, 0.0, 0.1]
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]

    def mse(values):
        return sum((v - g) ** 2 for v, g in zip(values, goal, strict=True)) / 4

    expected = (mse(first) + mse(second)) / 2 + mse(mean)
    assert semantic_alignment_loss([attention], mask, tokens).item() == pytest.approx(expected)
    assert semantic_alignment_loss([attention] * 3, mask, tokens).item() == pytest.approx(3 * expected)


def test_semantic_alignment_skips_what_has_no_words_or_no_pixels():
    torch.manual_seed(0)
    attention = torch.rand(2, 2, 16, 7).softmax(-1)
    masks = torch.zeros(2, 2, 8, 8)
    masks[:, :, :4] = 1
    tokens = torch.zeros(2, 2, 7, dtype=torch.bool)
    tokens[0, 0, 2:4] = True
    alone = semantic_alignment_loss([attention[:1]], masks[:1, :1], tokens[:1, :1])
    assert alone > 0
    torch.testing.assert_close(semantic_alignment_loss([attention], masks, tokens), alone)
    tokens[1] = True
    dropped = semantic_alignment_loss([attention], masks, tokens, torch.tensor([True, False]))
    torch.testing.assert_close(dropped, alone)
    nothing = semantic_alignment_loss([attention], masks, tokens, torch.tensor([False, False]))
    assert nothing.item() == 0
    masks[1] = 0
    torch.testing.assert_close(semantic_alignment_loss([attention], masks, tokens), alone)
    with pytest.raises(ConfigError, match=r"^tokens .*\(batch, masks, context\).* got \("):
        semantic_alignment_loss([attention], masks, tokens[:, :, :5])
    for shape in ((8, 4), (4, 8), (13, 100)):  # 1 × 16 would be 1 × 7.7, by more than a row or column wrong
        with pytest.raises(ConfigError, match=rf"^attention has 16 queries.* {shape[0]}×{shape[1]}$"):
            semantic_alignment_loss([attention], torch.ones(2, 2, *shape), tokens)


def test_a_cell_counts_from_half_of_its_area_on():
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2, 0] = 1  # half of the first cell of a grid of four
    tokens = torch.tensor([[[True]]])
    attention = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 4, 1)
    assert semantic_alignment_loss([attention], masks, tokens).item() == 0
    assert semantic_alignment_loss([1 - attention], masks, tokens).item() == 2
    assert semantic_alignment_loss([1 - attention], masks, tokens, threshold=0.51).item() == 0  # nothing is left


def test_alignment_is_in_full_precision_under_autocast(unet, conditions):
    """Of the attention only the projections are in 16 bits there."""
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    hidden = torch.randn(3, 16, attn.to_q.in_features, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, k = attn.to_q(hidden), attn.to_k(conditions.tokens)
        found = text_attention(attn, hidden, conditions.tokens)
    assert q.dtype == torch.bfloat16 and found.dtype == torch.float32
    q, k = (x.float().unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k))
    assert torch.equal(found, (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1))
    masks = torch.zeros(3, 1, 4, 4)
    masks[..., :2] = 1
    tokens = torch.zeros(3, 1, 77, dtype=torch.bool)
    tokens[..., 1:4] = True
    wanted = semantic_alignment_loss([found], masks, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(semantic_alignment_loss([found], masks, tokens), wanted)


def test_perfect_attention_beats_wrong_attention():
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2, :] = 1
    tokens = torch.tensor([[[False, True]]])
    inside = masks.flatten(2)[0, 0]
    right = torch.stack([1 - inside, inside], dim=-1).view(1, 1, 16, 2)
    assert semantic_alignment_loss([right], masks, tokens).item() == 0
    assert semantic_alignment_loss([right.flip(-1)], masks, tokens).item() == pytest.approx(2.0)


def test_capture_keeps_gradients_and_the_output(unet, channel, conditions, noisy):
    channel.attach(unet)
    parts = {"identity_channel": channel}
    with torch.no_grad():
        wanted = predict(unet, *noisy, conditions, **parts)
    before = dict(unet.attn_processors)
    names = layers_at(unet, 1)
    with AttentionCapture(unet, names) as capture:
        result = predict(unet, *noisy, conditions, **parts)
        maps = dict(capture.maps)
        assert torch.equal(result, wanted)
        assert list(maps) == names
        for value in maps.values():
            assert value.shape == (3, 2, 64, 77)
            torch.testing.assert_close(value.sum(-1), torch.ones(3, 2, 64))
        next(iter(maps.values())).square().sum().backward()
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.grad.abs().sum() > 0
    assert dict(unet.attn_processors) == before and not capture.maps


def test_captured_attention_is_what_the_layer_uses(unet, conditions):
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    hidden = torch.randn(3, 16, 32)
    probabilities = text_attention(attn, hidden, conditions.tokens)
    values = attn.to_v(conditions.tokens).view(3, 77, attn.heads, -1).transpose(1, 2)
    out = (probabilities @ values).transpose(1, 2).reshape(3, 16, 32)
    torch.testing.assert_close(attn.to_out[0](out), attn(hidden, conditions.tokens), atol=1e-5, rtol=1e-5)


def test_layers_by_resolution(unet):
    factors = layer_downsampling(unet)
    assert sorted(set(factors.values())) == [1, 2]
    assert all(name.startswith(("down_blocks.0", "up_blocks.1")) for name in layers_at(unet, 1))
    with pytest.raises(ConfigError, match=r"factor 4: .*\[1, 2\]"):
        layers_at(unet, 4)
    with pytest.raises(ConfigError, match=r"^layers .*\['nowhere'\]"):
        AttentionCapture(unet, ["nowhere"])


def test_decoded_images_are_pictures_with_gradients(vae):
    latents = torch.randn(1, 4, 8, 8, requires_grad=True)
    images = decode_latents(vae, latents)
    assert images.shape == (1, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1
    images.mean().backward()
    assert math.isfinite(latents.grad.abs().sum().item()) and latents.grad.abs().sum() > 0


def test_phrase_tokens():
    """<start> a man with red hair: red is 4, hair is 5; the template shifts by its six tokens."""
    text = "a man with red hair"
    assert phrase_token_mask(text, 11, 19).nonzero().flatten().tolist() == [4, 5]
    shifted = phrase_token_mask(text, 11, 19, prefix="Photo of a id person. ")
    assert shifted.nonzero().flatten().tolist() == [10, 11]
    long = "word " * 100 + "red hair"
    assert not phrase_token_mask(long, len(long) - 8, len(long)).any()
    for text, part, positions in (  # parts of words stand for the whole ones, whatever tokens the parts would have
        ("sunglasses and hat", "glasses", [1]),
        ("a redhead person", "head", [2]),
        ("eyeglasses, smiling", "eyeglasse", [1, 2]),  # not the comma
        ("a man, smiling", " man", [2]),
    ):
        start = text.index(part)
        assert phrase_token_mask(text, start, start + len(part)).nonzero().flatten().tolist() == positions
    with pytest.raises(ConfigError, match="span 5:3"):
        phrase_token_mask("a man with red hair", 5, 3)


def test_classes_that_are_not_told_are_those_that_torch_ignores():
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


def test_loss_averages_over_told_attributes_by_hand():
    first = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    second = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    classes = torch.tensor([[1, 2], [0, IGNORED]])
    # ln 2 for the first, ln 3 for its second attribute, ln 4/3 for the second row's only one.
    expected = (math.log(2) + math.log(3) + math.log(4 / 3)) / 3
    torch.testing.assert_close(attribute_loss([first, second], classes), torch.tensor(expected))
    nothing = attribute_loss([first.requires_grad_(), second], torch.full((2, 2), IGNORED))
    nothing.backward()
    assert nothing == 0 and first.grad.abs().sum() == 0


def test_feature_distance_compares_directions_by_hand():
    first = torch.tensor([[3.0, 0.0], [4.0, 1.0]]).reshape(1, 2, 1, 2)  # cells (.6, .8) and (0, 1)
    second = torch.tensor([[0.8, 0.0], [0.6, -2.0]]).reshape(1, 2, 1, 2)  # cells (.8, .6) and (0, -1)
    torch.testing.assert_close(feature_distance([first], [second]), torch.tensor((0.08 + 4) / 2))
    torch.testing.assert_close(feature_distance([first, first], [second, 5 * first]), torch.tensor((0.08 + 4) / 4))
