"""Cross-attention by regions: it equals the plain one where it must, and regions do not see each other."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.regional_attention import (
    RegionalAttention,
    RegionalContext,
    reads_regions,
    regional_attention,
    weights_by_queries,
)
from makeup_plugin.regions import shares, shrunk

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def attended(unet, channel):
    """The layer's output for 8 × 8 queries and any context."""
    channel.attach(unet)
    attn = dict(unet.named_modules())[LAYER]
    queries = normal(1, 1, 64, 16)

    def run(context, *, regional: bool = True) -> Tensor:
        processor = attn.processor
        with torch.no_grad():
            return (RegionalAttention(processor) if regional else processor)(attn, queries, context)

    return run


def halves() -> dict[int, Tensor]:
    """Two people, left and right, on 8 × 8 places."""
    masks = torch.zeros(2, 32, 32)
    masks[0, :, :16] = masks[1, :, 16:] = 1
    return weights_by_queries(shares(shrunk(masks, 8, 8))[None])


def context(texts: Tensor, identities: Tensor) -> RegionalContext:
    weights = halves()
    people = {count: part[:, 1:] for count, part in weights.items()}
    return RegionalContext(texts=texts, text_weights=weights, identities=identities, identity_weights=people)


def test_one_person_everywhere_is_the_plain_attention(attended, channel):
    text, tokens = normal(2, 1, 77, 48), normal(3, 1, 4, 48)
    for scale in (1.0, 0.4, 0.0):
        channel.scale = scale
        wanted = attended((text, [tokens]), regional=False)
        one = torch.ones(1, 1)
        everywhere = RegionalContext(
            texts=text[:, None], text_weights=one, identities=tokens[:, None], identity_weights=one
        )
        torch.testing.assert_close(attended(everywhere), wanted, atol=1e-6, rtol=1e-6)
        half = RegionalContext(
            texts=text[:, None], text_weights=one, identities=tokens[:, None], identity_weights=one / 2
        )
        channel.scale = scale / 2
        torch.testing.assert_close(
            attended((text, [tokens]), regional=False), _at_scale(channel, scale, attended, half)
        )


def _at_scale(channel, scale: float, attended, given: RegionalContext) -> Tensor:
    channel.scale = scale
    return attended(given)


def test_other_contexts_pass_unchanged(attended):
    text, tokens = normal(2, 1, 77, 48), normal(3, 1, 4, 48)
    assert torch.equal(attended((text, [tokens])), attended((text, [tokens]), regional=False))
    assert torch.equal(attended(text), attended(text, regional=False))


def test_a_region_does_not_see_the_other_person(attended):
    """To the bit: another text and face on the right leave every query on the left as it was."""
    texts, identities = normal(2, 1, 3, 77, 48), normal(3, 1, 2, 4, 48)
    before = attended(context(texts, identities)).view(8, 8, -1)
    texts[:, 2], identities[:, 1] = normal(4, 77, 48), normal(5, 4, 48)
    after = attended(context(texts, identities)).view(8, 8, -1)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=-1).min() > 1e-4
    texts[:, 0] = float("nan")  # nobody is nowhere, so the text of nobody counts nowhere
    assert torch.equal(attended(context(texts, identities)).view(8, 8, -1), after)


def test_each_half_is_the_attention_of_its_person(attended):
    texts, identities = normal(2, 1, 3, 77, 48), normal(3, 1, 2, 4, 48)
    found = attended(context(texts, identities)).view(8, 8, -1)
    for person, columns in ((0, slice(0, 4)), (1, slice(4, 8))):
        alone = attended((texts[:, person + 1], [identities[:, person]]), regional=False).view(8, 8, -1)
        torch.testing.assert_close(found[:, columns], alone[:, columns], atol=1e-6, rtol=1e-6)


def test_weights_exist_for_every_layer_of_any_picture():
    weights = weights_by_queries(torch.rand(1, 2, 9, 14))
    assert sorted(weights) == [1, 2, 3 * 4, 5 * 7, 9 * 14] or sorted(weights) == [1, 2 * 2, 3 * 4, 5 * 7, 9 * 14]
    masks = torch.zeros(2, 32, 32)
    masks[0, :, :20] = masks[1, :, 10:] = 1  # they overlap
    for part in weights_by_queries(shares(shrunk(masks, 8, 8))[None]).values():
        torch.testing.assert_close(part.sum(dim=1), torch.ones(1, part.shape[2]))
        assert part.min() >= 0


def test_processors_are_put_back(unet, channel):
    channel.attach(unet)
    before = dict(unet.attn_processors)
    with pytest.raises(RuntimeError, match="stop"), regional_attention(unet, None):
        assert reads_regions(unet) and channel.is_attached(unet)
        assert isinstance(unet.attn_processors[LAYER.replace("attn2", "attn1") + ".processor"], AttnProcessor2_0)
        raise RuntimeError("stop")
    assert unet.attn_processors == before and not reads_regions(unet)


def test_a_layer_of_another_size_is_an_error(attended):
    texts = normal(2, 1, 1, 77, 48)
    with pytest.raises(ConfigError, match="64 queries"):
        attended(RegionalContext(texts=texts, text_weights=weights_by_queries(torch.ones(1, 1, 7, 7))))
