"""The towers' classes: published key names, parity with open_clip, truncation, compact vocabulary, round trips."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from faceclip.errors import CheckpointError
from faceclip.towers.face import FaceViT, sine_positions
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower, tokenize, used_tokens
from faceclip.weights import path

SMALL_TEXT = {"width": 32, "layers": 2, "heads": 4, "embed_dim": 16}
SMALL_FACE = {"image_size": 36, "patch_size": 9, "width": 24, "depth": 2, "heads": 2, "embedding_dim": 8}


def test_full_size_face_encoder_has_the_published_keys() -> None:
    with torch.device("meta"):
        model = FaceViT()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["feature.0.weight"] == [768, 110592]
    assert shapes["pos_embed"] == [1, 144, 768]
    assert shapes["blocks.23.attn.qkv.weight"] == [2304, 768]
    assert shapes["blocks.0.mlp.fc1.weight"] == [3072, 768]
    assert shapes["feature.2.weight"] == [512, 768] and model.feature[1].eps == model.feature[3].eps == 2e-5
    assert model.blocks[0].attn.heads == 8 and model.config.mask_ratio == 0
    assert not any("qkv.bias" in name for name in shapes)
    # 24 blocks × 11 tensors, position, mask token, patch embedding 2, norm 2, head 1 + 5 + 1 + 5
    assert len(shapes) == 24 * 11 + 2 + 2 + 2 + 12


def test_face_encoder_resizes_as_documented_and_survives_a_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FaceViT(**SMALL_FACE).eval()
    crops = torch.rand(2, 3, 50, 50)
    features = model(crops)
    assert features.tokens.shape == (2, 16, 24) and features.identity.shape == (2, 8)
    resized = torch.nn.functional.interpolate(crops, (36, 36), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(resized).identity, features.identity)
    model.save_pretrained(tmp_path)
    assert torch.equal(FaceViT.from_pretrained(tmp_path)(crops).identity, features.identity)


def test_positions_are_sines_of_row_and_column_by_hand() -> None:
    """Width 8: two waves each of row and column, of rates 1 and 100^(−1/2), as sines and cosines."""
    found = sine_positions(2, 8)
    none, one = [0.0, 0.0, 1.0, 1.0], [0.841471, 0.099833, 0.540302, 0.995004]
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in (none + none, none + one, one + none, one + one)]


def test_deep_towers_start_with_small_residual_branches() -> None:
    """Branches of a residual stream are 1 / √(2 · depth) of the usual size, which keeps the input's variance."""
    torch.manual_seed(0)
    model = FaceViT(**{**SMALL_FACE, "width": 64, "depth": 8})
    for block in model.blocks:
        assert block.attn.qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
        assert block.attn.proj.weight.std().item() == pytest.approx(64**-0.5 / 4, rel=0.1)


def test_a_tower_starts_with_patches_and_positions_of_like_size() -> None:
    torch.manual_seed(0)
    model = FaceViT(**{**SMALL_FACE, "width": 64})
    grey = model.patch_embed(torch.full((1, 3, 36, 36), 0.5))
    torch.testing.assert_close(grey, torch.zeros_like(grey), atol=1e-5, rtol=0)
    conv = model.patch_embed.proj
    usual = (3 * conv.weight[0].numel()) ** -0.5  # the deviation of torch's own start
    assert conv.weight.std().item() == pytest.approx(4 * usual, rel=0.05)
    torch.testing.assert_close(model.pos_embed[0], 0.5 * sine_positions(4, 64))
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    for layer in (model.feature[0], model.feature[2], model.blocks[0].mlp.fc1):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.1)
    assert not model.blocks[0].mlp.fc1.bias.any() and not model.blocks[0].attn.proj.bias.any()


def test_hidden_layers_end_at_six() -> None:
    mlp = FaceViT(**SMALL_FACE).blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.bias.copy_(torch.linspace(-100, 100, len(mlp.fc1.bias)).sign() * 100)
    x = torch.rand(2, 24)
    hidden = 6.0 * (mlp.fc1.bias > 0)
    torch.testing.assert_close(mlp(x), mlp.fc2(hidden.expand(2, -1)))


def test_tokens_that_are_not_hidden_stay_in_their_places() -> None:
    torch.manual_seed(0)
    model = FaceViT(**{**SMALL_FACE, "depth": 0}, mask_ratio=0.25)
    crops = torch.rand(3, 3, 36, 36)
    masked, whole = model(crops).tokens, model.eval()(crops).tokens
    hidden = (masked == model.mask_token).all(dim=-1)
    assert hidden.sum(dim=1).tolist() == [4, 4, 4] and len(hidden.unique(dim=0)) > 1
    torch.testing.assert_close(masked[~hidden], whole[~hidden])


def test_masking_hides_tokens_in_training_only() -> None:
    torch.manual_seed(0)
    model = FaceViT(**SMALL_FACE, mask_ratio=0.25)
    crops = torch.rand(3, 3, 36, 36)
    masked = (model(crops).tokens == model.mask_token).all(dim=-1).sum(dim=1)
    assert masked.tolist() == [4, 4, 4]
    model.eval()
    assert torch.equal(model(crops).tokens, model(crops).tokens)


def test_face_encoder_names_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 36, 36\)"):
        FaceViT(**SMALL_FACE)(torch.rand(2, 1, 36, 36))
    with pytest.raises(ValueError, match=r"\(2, 3, 36\)"):
        FaceViT(**SMALL_FACE)(torch.rand(2, 3, 36))
    with pytest.raises(ValueError, match=r"width 24 .* 5 heads"):
        FaceViT(**{**SMALL_FACE, "heads": 5})


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_text_tower_equals_open_clip(quick_gelu: bool) -> None:
    torch.manual_seed(0)
    tower = TextTower(**SMALL_TEXT, quick_gelu=quick_gelu).eval()
    reference = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 1, "width": 32, "head_width": 16, "image_size": 16, "patch_size": 8},
        text_cfg={"width": 32, "layers": 2, "heads": 4},
        quick_gelu=quick_gelu,
    ).eval()
    missing = reference.load_state_dict(tower.tower.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith(("visual", "logit", "attn_mask")) for name in missing.missing_keys)
    tokens = tokenize(["a smiling woman with a red hat", "short"])
    torch.testing.assert_close(tower(tokens).embedding, reference.encode_text(tokens))


def test_truncated_tokens_give_the_same_features() -> None:
    torch.manual_seed(0)
    tower = TextTower(**SMALL_TEXT).eval()
    tokens = tokenize(["a man", "a man with black hair and glasses"])
    short = used_tokens(tokens)
    assert short.shape[1] == 9
    full, cut = tower(tokens), tower(short)
    torch.testing.assert_close(full.embedding, cut.embedding)
    torch.testing.assert_close(full.hidden[:, :9], cut.hidden)


def test_replaced_embedding_is_used_before_the_position_is_added() -> None:
    torch.manual_seed(0)
    tower = TextTower(**SMALL_TEXT).eval()
    tokens = tokenize("photo of a id person")
    assert tokens[0, 4].item() == 1014  # "id" is where the templates promise it
    own = tower.tower.token_embedding.weight[1014][None]
    plain = tower(tokens)
    torch.testing.assert_close(tower(tokens, 4, own).hidden, plain.hidden)
    changed = tower(tokens, 4, own + 1).hidden
    assert torch.equal(changed[:, :4], plain.hidden[:, :4])  # causal: earlier positions cannot know
    assert not torch.allclose(changed[:, 4:], plain.hidden[:, 4:])
    with pytest.raises(ValueError, match="replace_with"):
        tower(tokens, 4, own[:, :5])


def test_compact_vocabulary_shares_one_unknown_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = tokenize("a man with a hat")[0].unique().tolist()
    tower = TextTower(**SMALL_TEXT, vocabulary=known).eval()
    assert tower.tower.token_embedding.weight.shape[0] == len(known) + 1
    assert torch.equal(tower(tokenize("a zebra")).embedding, tower(tokenize("a violin")).embedding)
    assert not torch.equal(tower(tokenize("a hat")).embedding, tower(tokenize("a man")).embedding)
    tower.save_pretrained(tmp_path)
    again = TextTower.from_pretrained(tmp_path)
    tokens = tokenize("a man with a violin")
    assert torch.equal(again(tokens).hidden, tower(tokens).hidden)
    assert json.loads((tmp_path / "config.json").read_text())["vocabulary"] == known


def test_image_tower_equals_open_clip_and_gives_penultimate_tokens() -> None:
    torch.manual_seed(0)
    tower = ImageTower(image_size=32, patch_size=8, width=32, layers=3, heads=4, embed_dim=16).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, deviation = (
        torch.tensor(values).view(3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    features = tower(images)
    torch.testing.assert_close(features.embedding, tower.tower((images - mean) / deviation))
    assert features.tokens.shape == (2, 17, 32)
    pooled = tower.tower.transformer.resblocks[-1](features.tokens)
    torch.testing.assert_close(tower.tower.ln_post(pooled)[:, 0] @ tower.tower.proj, features.embedding)


def test_missing_weights_are_named() -> None:
    with pytest.raises(CheckpointError, match="tiny/nothing"):
        path("tiny/nothing")
