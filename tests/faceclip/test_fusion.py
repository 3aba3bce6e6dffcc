"""Each layer of the fusion against the same arithmetic written out with loops and plain products."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.fusion import BiAttention, DeformableLayer, FeatureFusion, TextLayer


def randomized(module: nn.Module) -> nn.Module:
    """All parameters drawn anew in float64: what starts at zero or one would hide mistakes."""
    torch.manual_seed(0)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """(L, width) of (L, width), (P, width), (P, width), head by head."""
    parts = []
    for q, k, v in zip(query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
        parts.append((scale * q @ k.T).softmax(1) @ v)
    return torch.cat(parts, 1)


@torch.no_grad()
@pytest.mark.parametrize("update_face", [True, False])
def test_face_and_text_attend_to_each_other_by_one_matrix(update_face: bool) -> None:
    layer = randomized(BiAttention(8, 12, 3, 0.5, update_face=update_face))
    face, text = normal(2, 5, 8), normal(2, 7, 8, seed=2)
    new_face, new_text = layer(face, text)
    for row in range(2):
        f, t = layer.face_norm(face[row]), layer.text_norm(text[row])
        query, key = layer.face_query(f), layer.text_key(t)
        read = attention(key, query, layer.face_value(f), 3, 0.5)  # heads are 4 wide
        # The residual is the normalized input.
        torch.testing.assert_close(new_text[row], t + layer.text_scale * layer.text_out(read))
        if update_face:
            read = attention(query, key, layer.text_value(t), 3, 0.5)
            torch.testing.assert_close(new_face[row], f + layer.face_scale * layer.face_out(read))
        else:
            torch.testing.assert_close(new_face[row], f)


def test_layer_scales_start_at_the_given_value() -> None:
    layer = BiAttention(8, 8, 2, 0.25, update_face=True)
    assert layer.text_scale.tolist() == layer.face_scale.tolist() == [0.25] * 8


@torch.no_grad()
def test_text_layer_by_hand() -> None:
    layer = randomized(TextLayer(8, 2, 6))
    layer.up.weight.mul_(20)  # beyond 6, where ReLU6 would end
    text, position = normal(2, 5, 8), normal(1, 5, 8, seed=2)
    found = layer(text, position)
    for row in range(2):
        x, placed = text[row], text[row] + position[0]
        mixed = attention(layer.query(placed), layer.key(placed), layer.value(x), 2, 0.5)  # values without position
        x = layer.attention_norm(x + layer.out(mixed))
        torch.testing.assert_close(found[row], layer.output_norm(x + layer.down(layer.up(x).clamp(min=0))))


def test_points_start_on_rays_at_growing_distance() -> None:
    layer = DeformableLayer(8, 4, 3, 8)
    start = layer.offsets.bias.view(4, 3, 2)
    rays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(start, rays[:, None] * torch.tensor([1.0, 2.0, 3.0])[None, :, None], atol=1e-6, rtol=0)
    diagonal = DeformableLayer(8, 8, 1, 8).offsets.bias.view(8, 2)[1]
    torch.testing.assert_close(diagonal, torch.ones(2))  # rays end on the square, not on the circle
    assert not layer.offsets.weight.any() and not layer.weights.weight.any() and not layer.weights.bias.any()


def bilinear(grid: Tensor, x: float, y: float) -> Tensor:
    """Value of a grid (side, side, C) at (x, y), whole numbers being centres; zero outside."""
    total = torch.zeros(grid.shape[2], dtype=grid.dtype)
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < len(grid) and 0 <= j < len(grid):
                total += (1 - abs(y - i)) * (1 - abs(x - j)) * grid[i, j]
    return total


@torch.no_grad()
def test_deformable_attention_samples_where_its_offsets_say() -> None:
    heads, points, side, width = 2, 3, 4, 8
    layer = randomized(DeformableLayer(width, heads, points, 6))
    layer.offsets.bias.mul_(3)
    face, position = normal(2, side * side, width), normal(1, side * side, width, seed=2)
    found = layer(face, position)
    for row in range(2):
        placed, value = face[row] + position[0], layer.value(face[row]).view(side, side, heads, -1)
        offsets = layer.offsets(placed).view(-1, heads, points, 2)
        weights = layer.weights(placed).view(-1, heads, points).softmax(-1)
        mixed = torch.zeros(side * side, heads, width // heads, dtype=torch.float64)
        for token in range(side * side):
            for head in range(heads):
                for point in range(points):
                    dx, dy = offsets[token, head, point].tolist()  # in tokens, x first
                    sampled = bilinear(value[:, :, head], token % side + dx, token // side + dy)
                    mixed[token, head] += weights[token, head, point] * sampled
        x = layer.attention_norm(face[row] + layer.out(mixed.flatten(1)))
        expected = layer.output_norm(x + layer.down(F.relu(layer.up(x))))
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)  # places are float32


@torch.no_grad()
def test_layers_follow_each_other_and_the_last_one_leaves_the_face_alone() -> None:
    sizes = {"attention_width": 8, "attention_heads": 2, "text_hidden": 6, "face_heads": 4, "points": 2}
    fusion = randomized(FeatureFusion(8, layers=3, face_hidden=10, layer_scale=0.5, **sizes))
    face, face_position, text, text_position = (
        normal(2, 9, 8),
        normal(1, 9, 8, seed=2),
        normal(2, 5, 8),
        normal(1, 5, 8),
    )
    found = fusion(face, face_position, text, text_position)
    assert [layer.face is None for layer in fusion.layers] == [False, False, True]
    assert [layer.cross.update_face for layer in fusion.layers] == [True, True, False]
    for layer in fusion.layers:
        face, text = layer.cross(face, text)
        text = layer.text(text, text_position)
        face = face if layer.face is None else layer.face(face, face_position)
    torch.testing.assert_close(found, text)
    first = fusion.layers[0]
    assert (first.cross.heads, first.text.heads, first.face.heads, first.face.points) == (2, 2, 4, 2)
    assert (first.text.up.out_features, first.face.up.out_features, first.cross.text_key.out_features) == (6, 10, 8)


def test_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        fusion = FeatureFusion(768)
    layer = fusion.layers[0]
    assert len(fusion.layers) == 6 and layer.cross.text_key.out_features == layer.text.up.out_features == 1024
    assert (layer.cross.heads, layer.text.heads, layer.face.heads, layer.face.points) == (4, 4, 8, 4)
    assert layer.face.up.out_features == 2048
    small = FeatureFusion(8, layers=1, attention_width=8, face_heads=8)
    assert small.layers[0].cross.text_scale.tolist() == pytest.approx([1e-4] * 8)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ({"attention_heads": 3, "attention_width": 8}, "attention_heads=3"),
        ({"attention_heads": 3, "attention_width": 9}, "attention_heads=3"),
        ({"attention_heads": 2, "attention_width": 8, "face_heads": 3}, "face_heads=3"),
    ],
)
def test_heads_that_do_not_divide_are_named(sizes: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        FeatureFusion(8, layers=1, **sizes)


def test_face_tokens_must_form_a_square() -> None:
    fusion = FeatureFusion(8, layers=1, attention_width=8, face_heads=2)
    for count in (3, 8, 15):
        with pytest.raises(ValueError, match=rf"^face tokens .*\b{count}\b"):
            fusion(torch.zeros(1, count, 8), torch.zeros(1, count, 8), torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
