"""The heads of the joint encoder, with every share worked out by hand."""

import pytest
import torch
import torch.nn.functional as F

from faceclip.heads import AttentionPool, JointHeads


@pytest.fixture
def heads() -> JointHeads:
    torch.manual_seed(0)
    heads = JointHeads(8, 3, 5, hidden=7, heads=2)
    with torch.no_grad():
        for parameter in heads.gallery_mlp[-1].parameters():
            parameter.normal_(std=0.3)
        heads.gate_pool.mlp[-1].bias.fill_(1.5)
        heads.face_step.fill_(0.3)
        heads.text_step.fill_(0.6)
    return heads.eval()


def inputs(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"tokens": (count, 6, 8), "identity": (count, 3), "text": (count, 5)}
    return {name: 3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def test_query_is_both_inputs_moved_by_the_tokens_and_weighed_by_the_gate(heads: JointHeads) -> None:
    given = inputs()
    has_text, has_face = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    found = heads(**given, has_text=has_text, has_face=has_face)
    face = F.normalize(heads.face_pool(given["tokens"]), dim=1)
    words = F.normalize(heads.text_pool(given["tokens"]), dim=1)
    torch.testing.assert_close(found.face, face)
    torch.testing.assert_close(found.text, words)
    share = torch.sigmoid(torch.tensor(1.5)).item()
    # Without a description the face has all, without a face the description; without both what has no text decides.
    shares = [(share, 1 - share), (1, 0), (0, 1), (0, 1)]
    for row, (of_face, of_text) in enumerate(shares):
        who = F.normalize(given["identity"][row], dim=0) * has_face[row] + 0.3 * face[row]
        what = F.normalize(given["text"][row], dim=0) * has_text[row] + 0.6 * words[row]
        expected = [F.normalize(who, dim=0) * of_face**0.5, F.normalize(what, dim=0) * of_text**0.5]
        torch.testing.assert_close(found.joint[row], torch.cat(expected), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_any_identity_the_words_decide(heads: JointHeads) -> None:
    given = inputs() | {"identity": None}
    found = heads(**given, has_text=torch.tensor([True, True, True, False])).joint
    words = F.normalize(heads.text_pool(given["tokens"]), dim=1)
    what = F.normalize(given["text"], dim=1) * torch.tensor([1.0, 1, 1, 0])[:, None] + 0.6 * words
    torch.testing.assert_close(found, torch.cat([torch.zeros(4, 3), F.normalize(what, dim=1)], 1))


@torch.no_grad()
def test_gallery_is_the_plain_concatenation_plus_its_correction(heads: JointHeads) -> None:
    given = inputs()
    found = heads.gallery(given["identity"], given["text"])
    plain = torch.cat([F.normalize(given["identity"], dim=1), F.normalize(given["text"], dim=1)], 1)
    moved = plain + heads.gallery_mlp(plain)
    expected = [F.normalize(moved[:, :3], dim=1) * 0.5**0.5, F.normalize(moved[:, 3:], dim=1) * 0.5**0.5]
    torch.testing.assert_close(found, torch.cat(expected, 1))
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


@torch.no_grad()
def test_heads_start_as_the_concatenation_with_equal_shares() -> None:
    torch.manual_seed(0)
    heads, given = JointHeads(8, 3, 5, heads=2), inputs()
    assert (heads.face_step.item(), heads.text_step.item()) == pytest.approx((0.1, 0.1))
    plain = torch.cat([F.normalize(given["identity"], dim=1), F.normalize(given["text"], dim=1)], 1)
    torch.testing.assert_close(heads.gallery(given["identity"], given["text"]), plain * 0.5**0.5)
    joint = heads(**given, has_text=torch.ones(4, dtype=torch.bool)).joint
    torch.testing.assert_close(joint[:, :3].square().sum(1), torch.full((4,), 0.5))
    assert heads.gallery_mlp[0].out_features == 256


def test_a_pool_starts_with_a_query_of_the_size_of_its_keys() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(400, 3)
    assert pool.query.norm().item() == pytest.approx(1.0, abs=0.2) and pool.heads == 4
    assert [layer.out_features for layer in (pool.key_value, pool.mlp[1], pool.mlp[3])] == [800, 800, 3]
