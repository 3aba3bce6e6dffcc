"""CLIP towers of frozen 16-bit weights on a CPU: no copies of a weight for each token, and the same numbers."""

import pytest
import torch

from benchmarks.memory import peak_bytes
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower, tokenize

WIDTH, TOKENS = 128, 77


@pytest.fixture(scope="module")
def image() -> ImageTower:
    torch.manual_seed(0)
    sizes = {"image_size": 40, "patch_size": 4, "width": WIDTH, "layers": 2, "heads": 4, "embed_dim": 32}
    return ImageTower(**sizes).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def text() -> TextTower:
    torch.manual_seed(0)
    sizes = {"width": WIDTH, "layers": 1, "heads": 4, "embed_dim": 32, "vocabulary": list(range(300))}
    return TextTower(**sizes).requires_grad_(False).eval()


@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_a_frozen_image_tower_makes_no_copies_of_its_weights(image, numbers):
    tower, images = image.to(numbers), torch.rand(2, 3, 40, 40)
    weight = 2 * tower.tower.transformer.resblocks[0].attn.in_proj_weight.numel()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert peak_bytes(lambda: tower(images)) < 101 * weight / 4


def test_a_frozen_text_tower_makes_none_in_backward_either(text):
    tokens, identity = tokenize(["a person", "a man"]), torch.randn(2, WIDTH, requires_grad=True)
    weight = 2 * text.tower.transformer.resblocks[0].attn.in_proj_weight.numel()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(tokens, replace_index=2, replace_with=identity).hidden
        hidden.float().sum().backward()

    assert peak_bytes(step) < TOKENS * weight / 4
    assert torch.isfinite(identity.grad).all()


def test_the_numbers_are_those_of_float32(image):
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        exact = image.float()(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = image(images)
    assert torch.nn.functional.cosine_similarity(exact.embedding, rounded.embedding.float()).min() > 0.999
    torch.testing.assert_close(rounded.tokens.float(), exact.tokens, atol=0.05, rtol=0.05)
