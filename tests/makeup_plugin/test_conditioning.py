"""What conditions a generation: rows keep their order, the unconditional half holds nothing of the conditional one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.conditioning import (
    Conditions,
    build_conditions,
    concatenate,
    time_ids,
    unconditional_half,
)
from makeup_plugin.encoding import encode_conditions
from makeup_plugin.phrases import phrase_token_mask

PROMPTS = ["man", "woman old", "young b"]
SIZE = {"height": 16, "width": 24}


@pytest.fixture
def parts(pipeline) -> tuple:
    """A small joint encoder and image tower."""
    return pipeline.joint_encoder, pipeline.image_encoder


@pytest.fixture
def faces() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Listening:
    """The joint encoder, whose calls are noted."""

    def __init__(self, encoder) -> None:
        self.encoder, self.dtype = encoder, encoder.dtype
        self.calls: list[tuple[list[str], int | None, list[bool] | None]] = []

    def encode(self, prompts: list[str], faces: Tensor | None, *, has_face: Tensor | None = None):
        mask = None if has_face is None else has_face.tolist()
        self.calls.append((list(prompts), None if faces is None else len(faces), mask))
        return self.encoder.encode(prompts, faces, has_face=has_face)


@torch.no_grad()
@pytest.mark.parametrize(
    "mask", [[False, True, True], [True, False, True], [False, False, True], [True, True, True], [True, True, False]]
)
def test_rows_with_and_without_a_face_stay_in_order(parts, faces: Tensor, mask: list[bool]) -> None:
    encoder, tower = parts
    found = encode_conditions(encoder, PROMPTS, faces, has_face=torch.tensor(mask), image_encoder=tower, **SIZE)
    for row, (prompt, shown) in enumerate(zip(PROMPTS, mask, strict=True)):
        alone = encoder.encode([prompt], faces[row : row + 1] if shown else None)
        torch.testing.assert_close(found.tokens[row], alone.tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
        if shown:
            identity = F.normalize(alone.identity[0], dim=0)
            torch.testing.assert_close(found.identity[row], identity, atol=1e-5, rtol=1e-5)
            tokens = tower(faces[row : row + 1]).tokens[0]
            torch.testing.assert_close(found.image_tokens[row], tokens, atol=1e-5, rtol=1e-5)
        else:
            assert not found.identity[row].any() and not found.image_tokens[row].any()
    assert (found.pooled[0] - found.pooled[1]).abs().max() > 1e-2  # the rows can be told apart


@torch.no_grad()
def test_rows_with_and_without_a_face_are_encoded_in_one_pass(parts, faces: Tensor) -> None:
    mixed = torch.tensor([False, True, False])
    for given, has_face, count, mask in (
        (faces, mixed, 3, mixed.tolist()),
        (faces, None, 3, None),
        (None, None, None, None),
        (faces, torch.zeros(3), None, None),
    ):
        encoder = Listening(parts[0])
        encode_conditions(encoder, PROMPTS, given, has_face=has_face, **SIZE)
        assert encoder.calls == [(PROMPTS, count, mask)]


@torch.no_grad()
def test_nobody_is_a_zero_identity_of_the_given_width(parts, faces: Tensor) -> None:
    encoder, tower = parts
    found = encode_conditions(encoder, PROMPTS, None, image_encoder=tower, identity_dim=7, **SIZE)
    assert torch.equal(found.identity, torch.zeros(3, 7)) and torch.equal(found.image_tokens, torch.zeros(3, 5, 20))
    with pytest.raises(ConfigError, match="identity_dim"):
        encode_conditions(encoder, PROMPTS, None, image_encoder=tower, **SIZE)
    plain = encode_conditions(encoder, PROMPTS, faces, **SIZE)
    assert plain.identity is None and plain.image_tokens is None


@torch.no_grad()
def test_sizes_that_do_not_fit_are_rejected(parts, faces: Tensor) -> None:
    for given, has_face, word in (
        (faces[:2], None, "2"),
        (faces, torch.ones(2), "has_face"),
        (None, torch.tensor([False, True, False]), "has_face"),
    ):
        with pytest.raises(ConfigError, match=word):
            encode_conditions(parts[0], PROMPTS, given, has_face=has_face, **SIZE)
    assert encode_conditions(parts[0], PROMPTS, None, has_face=torch.zeros(3), **SIZE).identity is None
    with pytest.raises(ConfigError, match="shading"):
        encode_conditions(parts[0], PROMPTS, faces, shading=torch.zeros(3, 3, 24, 16), **SIZE)


@torch.no_grad()
def test_a_black_map_counts_as_none(parts, faces: Tensor) -> None:
    maps = torch.zeros(3, 3, 16, 24)
    maps[1, 2, 15, 23] = 0.01
    found = encode_conditions(parts[0], PROMPTS, faces, shading=maps, **SIZE)
    assert found.shading_keep.tolist() == [0.0, 1.0, 0.0] and found.shading is maps


@torch.no_grad()
def test_cached_inputs_give_the_same_conditions(parts, faces: Tensor) -> None:
    """Training has them cached, and leaves some rows' identity and shading out."""
    encoder, tower = parts
    maps = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    wanted = encode_conditions(encoder, PROMPTS, faces, image_encoder=tower, shading=maps, **SIZE)
    joint = encoder.encode(PROMPTS, face_features=encoder.face_features(faces))
    cached = {"identity": 5 * joint.identity, "image_tokens": tower(faces).tokens, "shading": maps}
    found = build_conditions(joint, **cached, **SIZE)
    assert found.tensors().keys() == wanted.tensors().keys()
    for name, value in wanted.tensors().items():
        torch.testing.assert_close(getattr(found, name), value)
    known, lit = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    found = build_conditions(joint, **cached, has_identity=known, has_shading=lit, **SIZE)
    assert found.identity.any(dim=1).tolist() == found.image_tokens.flatten(1).any(dim=1).tolist() == known.tolist()
    assert found.shading_keep.tolist() == [0.0, 1.0, 1.0]
    torch.testing.assert_close(found.tokens, wanted.tokens)


@torch.no_grad()
def test_time_ids_are_height_and_width_uncropped(parts) -> None:
    assert time_ids(16, 24, 2).tolist() == [[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]] * 2
    assert encode_conditions(parts[0], ["a"], None, **SIZE).time_ids.tolist() == [[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]]


@pytest.fixture
@torch.no_grad()
def positive(parts) -> Conditions:
    generator = torch.Generator().manual_seed(1)
    maps, faces = torch.rand(4, 3, 16, 24, generator=generator), torch.rand(4, 3, 16, 16, generator=generator)
    prompts = ["man", "woman", "old man", "young b"]
    return encode_conditions(parts[0], prompts, faces, image_encoder=parts[1], shading=maps, **SIZE)


@torch.no_grad()
@pytest.mark.parametrize("keep_shading", [True, False])
def test_the_unconditional_half_holds_the_negative_texts_and_nobody(parts, positive, keep_shading: bool) -> None:
    before = {name: value.clone() for name, value in positive.tensors().items()}
    half = unconditional_half(parts[0], ["", "old"], positive, height=32, width=40, keep_shading=keep_shading)
    texts = parts[0].encode(["", "old"], None)
    rows = [0, 0, 1, 1]  # two texts for four rows: each stands for two in a row
    torch.testing.assert_close(half.tokens, texts.tokens[rows])
    torch.testing.assert_close(half.pooled, texts.pooled[rows])
    assert (texts.pooled[0] - texts.pooled[1]).abs().max() > 1e-2
    assert half.time_ids.tolist() == [[32.0, 40.0, 0.0, 0.0, 32.0, 40.0]] * 4
    assert not half.identity.any() and not half.image_tokens.any()
    assert half.identity.shape == positive.identity.shape and half.image_tokens.shape == positive.image_tokens.shape
    assert torch.equal(half.shading, positive.shading)
    assert half.shading_keep.tolist() == [float(keep_shading)] * 4
    assert all(torch.equal(value, before[name]) for name, value in positive.tensors().items())


@torch.no_grad()
def test_sizes_are_float32_whatever_the_default_is() -> None:
    """bfloat16 would round 1023 to 1024."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = time_ids(1023, 1021, 1)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32 and found.tolist() == [[1023.0, 1021.0, 0.0, 0.0, 1023.0, 1021.0]]


def test_the_unconditional_half_has_the_dtype_of_the_other(parts, positive: Conditions) -> None:
    half = unconditional_half(parts[0], [""], positive.to(dtype=torch.bfloat16), keep_shading=True, **SIZE)
    assert {value.dtype for value in half.tensors().values()} == {torch.bfloat16}


@torch.no_grad()
def test_rows_are_taken_repeated_and_joined(parts, positive: Conditions) -> None:
    for name, value in positive.tensors().items():
        assert torch.equal(getattr(positive.take(torch.tensor([2, 0])), name), value[[2, 0]])
        assert torch.equal(getattr(positive.repeat(2), name), value[[0, 0, 1, 1, 2, 2, 3, 3]])
        joined = concatenate([positive.take(torch.tensor([2])), positive])
        assert torch.equal(getattr(joined, name), value[[2, 0, 1, 2, 3]])
    assert len(positive) == 4 and len(positive.repeat(3)) == 12
    with pytest.raises(ConfigError, match="shading"):
        concatenate([positive, encode_conditions(parts[0], ["man"], None, **SIZE)])
    fields = positive.tensors()
    with pytest.raises(ConfigError, match="pooled"):
        Conditions(**fields | {"pooled": positive.pooled[:3]})
    with pytest.raises(ConfigError, match="image_tokens"):
        Conditions(**{name: value for name, value in fields.items() if name != "identity"})


def test_dropping_touches_the_named_rows_alone(positive: Conditions) -> None:
    mask = torch.tensor([True, False, False, True])
    nobody = positive.drop_identity(mask)
    assert nobody.identity.any(dim=1).tolist() == nobody.image_tokens.flatten(1).any(dim=1).tolist() == (~mask).tolist()
    assert torch.equal(nobody.identity[1:3], positive.identity[1:3])
    assert torch.equal(nobody.image_tokens[1:3], positive.image_tokens[1:3])
    unlit = positive.drop_shading(mask)
    assert unlit.shading_keep.tolist() == [0.0, 1.0, 1.0, 0.0]
    again = unlit.drop_shading(torch.tensor([False, True, False, False]))  # what was dropped stays dropped
    assert again.shading_keep.tolist() == [0.0, 0.0, 1.0, 0.0]
    plain = Conditions(tokens=positive.tokens, pooled=positive.pooled, time_ids=positive.time_ids)
    assert plain.drop_identity(mask) is plain and plain.drop_shading(mask) is plain
    shaded = Conditions(**plain.tensors(), shading=positive.shading)
    assert shaded.drop_shading(mask).shading_keep.tolist() == [0.0, 1.0, 1.0, 0.0]


@torch.no_grad()
def test_a_tower_in_16_bits_gets_pictures_that_are_resized_in_32(parts) -> None:
    encoder, tower = parts
    tower.to(torch.bfloat16)
    seen = []
    tower.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    faces = (torch.arange(32) // 2 % 2).float().expand(2, 3, 32, 32)  # stripes, beyond which bicubic overshoots
    encode_conditions(encoder, ["man", "woman"], faces, image_encoder=tower, **SIZE)
    (images,) = seen
    assert images.dtype == torch.bfloat16 and images.min() >= 0 and images.max() <= 1
    wanted = F.interpolate(faces, (8, 8), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    assert torch.equal(images, wanted.to(torch.bfloat16))


def test_the_end_token_is_never_part_of_a_phrase() -> None:
    """<start> at 0 and 74 words before: "red" stands at 75, "hair" where the cut text ends."""
    text = "man " * 74 + "red hair"
    start = text.index("red")
    assert phrase_token_mask(text, start, len(text)).nonzero().flatten().tolist() == [75]
    assert phrase_token_mask(text, start, len(text), length=80).nonzero().flatten().tolist() == [75, 76]
    assert not phrase_token_mask(text, start + 4, len(text)).any()
    for span in ((-1, 3), (3, 3), (0, len(text) + 1)):
        with pytest.raises(ConfigError, match="span"):
            phrase_token_mask(text, *span)


def test_one_text_for_all_people_is_that_of_each_picture(positive: Conditions) -> None:
    assert positive.with_one_text() is positive
    several = replace(positive, people_tokens=torch.zeros(len(positive.tokens), 3, *positive.tokens.shape[1:]))
    found = several.with_one_text().people_tokens
    assert found.shape == several.people_tokens.shape
    assert all(torch.equal(found[:, person], positive.tokens) for person in range(3))
