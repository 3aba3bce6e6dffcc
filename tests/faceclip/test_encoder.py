"""The joint encoder's behaviour beyond the published outputs: batching, cached features, heads, gradients, errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from faceclip.encoder import TEMPLATE, FaceCLIP, FaceCLIPEncoder
from faceclip.errors import CheckpointError
from faceclip.heads import AttentionPool, JointHeads
from faceclip.towers.face import FaceFeatures
from faceclip.towers.text import tokenize
from tests.faceclip.small_encoder import PROMPTS, SIZES


def test_a_pool_is_attention_from_one_query_with_all_keys_and_values_formed():
    torch.manual_seed(0)
    pool = AttentionPool(24, 5, heads=3).double()
    with torch.no_grad():
        pool.query.mul_(20)  # so that the shares of the tokens differ
        pool.norm.bias.normal_()
    tokens = torch.randn(4, 7, 24, dtype=torch.float64, requires_grad=True)
    key, value = pool.key_value(pool.norm(tokens)).unflatten(2, (2, 3, 8)).permute(2, 0, 3, 1, 4)
    query = pool.query.view(1, 3, 1, 8).expand(4, -1, -1, -1)
    plain = pool.mlp(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1))
    # The bias of the keys is not among them: the output does not depend on it.
    wanted = [tokens, pool.query, pool.norm.weight, pool.key_value.weight]
    expected = torch.autograd.grad(plain.square().sum(), wanted)
    pooled = pool(tokens)
    torch.testing.assert_close(pooled, plain)
    for found, right in zip(torch.autograd.grad(pooled.square().sum(), wanted), expected, strict=True):
        torch.testing.assert_close(found, right)


@torch.no_grad()
def test_rows_do_not_depend_on_the_batch(model, faces):
    together = model.encode(PROMPTS, faces)
    for i, prompt in enumerate(PROMPTS):
        alone = model.encode([prompt], faces[i : i + 1])
        torch.testing.assert_close(alone.tokens[0], together.tokens[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.pooled[0], together.pooled[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_features_and_token_ids_give_the_same(model, faces):
    direct = model.encode(PROMPTS, faces)
    cached = model.encode(PROMPTS, face_features=model.face_features(faces))
    torch.testing.assert_close(cached.tokens, direct.tokens, atol=0, rtol=0)
    ids = tokenize([TEMPLATE + p for p in PROMPTS])
    torch.testing.assert_close(model.encode(ids, faces).tokens, direct.tokens, atol=0, rtol=0)


@torch.no_grad()
def test_states_of_the_text_towers_can_be_given(model, faces):
    for prompts, given in ((PROMPTS, faces), (PROMPTS, None)):
        direct = model.encode(prompts, given)
        states = model.text_states(prompts, direct.identity)
        torch.testing.assert_close(states, direct.text, atol=0, rtol=0)
        read = model.encode(prompts, given, text_states=states)
        for name in ("tokens", "pooled", "text"):
            torch.testing.assert_close(getattr(read, name), getattr(direct, name), atol=0, rtol=0)
    # They are what is read: of other states other tokens come.
    assert not torch.equal(model.encode(PROMPTS, faces, text_states=states).tokens, model.encode(PROMPTS, faces).tokens)
    single = model.single("g")
    direct = single.encode(PROMPTS, faces)
    assert torch.equal(single.encode(PROMPTS, faces, text_states=direct.text).pooled, direct.pooled)


@torch.no_grad()
@pytest.mark.parametrize("mask", [[False, True, True], [True, False, False], [False, False, False], [True] * 3])
def test_rows_without_a_face_take_the_unconditional_path(model, faces, mask):
    """The same as encoding them alone without faces, whatever stands in their rows."""
    has_face = torch.tensor(mask)
    ids = tokenize([TEMPLATE + p if shown else p for p, shown in zip(PROMPTS, mask, strict=True)])
    cached = model.face_features(faces)
    found = model.encode(PROMPTS, faces, has_face=has_face)
    embedded = model.embed(PROMPTS, faces, has_face=has_face)
    same = model.encode(ids, face_features=cached, has_face=has_face)
    states = model.text_states(PROMPTS, cached.identity, has_face=has_face)
    read = model.encode(ids, face_features=cached, has_face=has_face, text_states=states)
    for name in ("tokens", "pooled", "identity", "text"):
        torch.testing.assert_close(getattr(same, name), getattr(found, name), atol=0, rtol=0)
        torch.testing.assert_close(getattr(read, name), getattr(found, name), atol=0, rtol=0)
    torch.testing.assert_close(states, found.text, atol=0, rtol=0)
    for row, (prompt, shown) in enumerate(zip(PROMPTS, mask, strict=True)):
        face = faces[row : row + 1] if shown else None
        alone = model.encode([prompt], face)
        for name in ("tokens", "pooled", "text"):
            torch.testing.assert_close(getattr(found, name)[row], getattr(alone, name)[0], atol=1e-5, rtol=1e-5)
        identity = alone.identity[0] if shown else torch.zeros(16)
        torch.testing.assert_close(found.identity[row], identity, atol=1e-5, rtol=1e-5)
        joint = model.embed([prompt], face).joint[0]
        torch.testing.assert_close(embedded.joint[row], joint, atol=1e-5, rtol=1e-5)
    other = faces.where(has_face[:, None, None, None], torch.zeros(()))
    torch.testing.assert_close(model.encode(PROMPTS, other, has_face=has_face).tokens, found.tokens, atol=0, rtol=0)


@torch.no_grad()
def test_one_face_serves_the_rows_that_have_one(model, faces):
    has_face = torch.tensor([True, False, True])
    found = model.encode(PROMPTS, faces[:1], has_face=has_face)
    torch.testing.assert_close(found.tokens, model.encode(PROMPTS, faces[[0, 0, 0]], has_face=has_face).tokens)
    assert found.identity.any(dim=1).tolist() == has_face.tolist()


@torch.no_grad()
def test_fuse_is_what_encode_does_after_its_checks(model, faces):
    direct = model.encode(PROMPTS, faces)
    assert torch.equal(model.fuse(direct.text, model.face_features(faces)), direct.tokens)
    plain, zero = model.encode(PROMPTS), model.zero_face()
    rows = FaceFeatures(tokens=zero.tokens.expand(3, -1, -1), identity=zero.identity.expand(3, -1))
    assert torch.equal(model.fuse(plain.text, rows), plain.tokens)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_a_frozen_model_encodes_the_zero_face_once(shared):
    torch.manual_seed(0)
    model = FaceCLIP(**SIZES, shared_face=shared).eval()
    expected, names = model.encode(PROMPTS).tokens, set(model.state_dict())
    model.freeze_towers()
    calls = []
    handle = model.face_encoder.register_forward_hook(lambda *_: calls.append(True))
    assert torch.equal(model.encode(PROMPTS).tokens, expected) and not calls
    handle.remove()
    assert set(model.state_dict()) == names  # it is not saved
    assert copy.deepcopy(model).to("meta").encode(PROMPTS).tokens.is_meta
    for parameter in model.face_encoder.parameters():
        parameter.add_(0.1)
    model.freeze_towers()
    assert not torch.equal(model.encode(PROMPTS).tokens, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_features_are_taken_in_any_precision(model, faces, dtype, stored):
    exact = model.face_features(faces)
    cached = FaceFeatures(tokens=exact.tokens.to(stored), identity=exact.identity.to(stored))
    image = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    other = copy.deepcopy(model).to(dtype)
    found = other.encode(PROMPTS, face_features=cached).tokens
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), model.encode(PROMPTS, faces).tokens, atol=0.1, rtol=0.1)
    pairs = (
        (other.embed(PROMPTS, face_features=cached).joint, model.embed(PROMPTS, faces).joint),
        (other.embed_gallery(cached.identity, image.to(stored)), model.embed_gallery(exact.identity, image)),
    )
    for joint, expected in pairs:
        assert joint.dtype == torch.float32
        torch.testing.assert_close(joint, expected, atol=0.02, rtol=0)


@torch.no_grad()
def test_features_are_moved_to_the_models_device(model, faces):
    exact = model.face_features(faces)
    away = copy.deepcopy(model).to("meta")
    assert away.encode(PROMPTS, face_features=exact).tokens.is_meta
    assert away.embed(PROMPTS, face_features=exact).joint.is_meta
    assert away.embed_gallery(exact.identity, torch.ones(3, 20)).is_meta


@torch.no_grad()
def test_face_and_words_both_matter(model, faces):
    base = model.encode(["a red hat"], faces[:1]).tokens
    assert (model.encode(["a red hat"], faces[1:2]).tokens - base).abs().max() > 1e-3
    assert (model.encode(["a blue hat"], faces[:1]).tokens - base).abs().max() > 1e-3


@torch.no_grad()
def test_only_the_templates_id_is_replaced(model, faces):
    other = FaceFeatures(tokens=model.face_features(faces[:1]).tokens, identity=torch.ones(1, 16))
    plain = tokenize(["an id card"])  # "id" stands elsewhere: the identity must not enter the text
    states = [model.encode(plain, face_features=f).text for f in (model.face_features(faces[:1]), other)]
    torch.testing.assert_close(*states, atol=0, rtol=0)
    with_template = tokenize([TEMPLATE + "an id card"])
    states = [model.encode(with_template, face_features=f).text for f in (model.face_features(faces[:1]), other)]
    assert (states[0][:, 4:] - states[1][:, 4:]).abs().max() > 1e-3
    torch.testing.assert_close(states[0][:, :4], states[1][:, :4], atol=0, rtol=0)  # causal: nothing before it moves


def test_gradient_reaches_what_is_trained_and_nothing_else(model, faces):
    trained = model.freeze_towers()
    model.train()
    assert not model.face_encoder.training
    model.encode(PROMPTS, faces).tokens.square().mean().backward()
    assert model.l.identity_projection.weight.grad.abs().max() > 0  # through the frozen text tower
    assert all(p.grad is None for tower in model.towers() for p in tower.parameters())
    assert {id(p) for p in trained}.isdisjoint(id(p) for tower in model.towers() for p in tower.parameters())
    model.zero_grad(set_to_none=True)
    model.eval()


@torch.no_grad()
def test_joint_embedding_starts_as_the_concatenation(model, faces):
    # Steps of 0.1 apart, the query is [face ; text] / sqrt 2 and a picture [face ; image] / sqrt 2.
    features = model.face_features(faces)
    image = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    gallery = model.embed_gallery(features.identity, image)
    expected = torch.cat([torch.nn.functional.normalize(x, dim=1) for x in (features.identity, image)], 1) / 2**0.5
    torch.testing.assert_close(gallery, expected, atol=1e-5, rtol=1e-5)
    query = model.embed(PROMPTS, faces)
    torch.testing.assert_close(query.joint.norm(dim=1), torch.ones(3), atol=1e-5, rtol=1e-5)
    text = torch.nn.functional.normalize(model.g.text(tokenize(PROMPTS)).embedding, dim=1)
    cosine = (query.joint[:, 16:] * text).sum(1) / 0.5**0.5
    assert (cosine[[0, 2]] > 0.98).all()
    # Without words the face decides alone; without a face the words.
    torch.testing.assert_close(query.joint[1, :16].norm(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert not model.embed(["a red hat"]).joint[:, :16].any()


@torch.no_grad()
def test_round_trip(model, faces, tmp_path):
    model.save_pretrained(tmp_path)
    again = FaceCLIP.from_pretrained(tmp_path)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    # Rounding depends on where a file's tensors lie in memory; the numbers are the same to the last digits.
    torch.testing.assert_close(again.embed(PROMPTS, faces).joint, model.embed(PROMPTS, faces).joint, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("branch", "columns"), [("l", slice(0, 32)), ("g", slice(32, 80))])
def test_one_branch_alone_is_its_part_of_the_pair(model, faces, tmp_path, branch, columns):
    pair = model.encode(PROMPTS, faces)
    alone = model.single(branch)
    output = alone.encode(PROMPTS, faces)
    torch.testing.assert_close(output.tokens, pair.tokens[..., columns], atol=0, rtol=0)
    torch.testing.assert_close(output.text, pair.text[..., columns], atol=0, rtol=0)
    torch.testing.assert_close(output.identity, pair.identity, atol=0, rtol=0)
    assert output.pooled.shape == (3, columns.stop - columns.start)
    if branch == "g":
        torch.testing.assert_close(output.pooled, pair.pooled, atol=0, rtol=0)
    plain = model.encode(PROMPTS)  # the unconditional path
    torch.testing.assert_close(alone.encode(PROMPTS).tokens, plain.tokens[..., columns], atol=0, rtol=0)
    alone.save_pretrained(tmp_path)
    again = FaceCLIPEncoder.from_pretrained(tmp_path).encode(PROMPTS, faces)
    torch.testing.assert_close(again.tokens, output.tokens, atol=0, rtol=0)
    with pytest.raises(CheckpointError, match=r"config\.json .*'FaceCLIPEncoder'"):
        FaceCLIP.from_pretrained(tmp_path)


def test_one_branch_is_trained_by_itself(model, faces):
    torch.manual_seed(0)
    new = FaceCLIPEncoder.from_components(model.face_encoder, model.l.text, fusion=SIZES["fusion"])
    assert torch.equal(new.branch.text.tower.positional_embedding, model.l.text.tower.positional_embedding)
    trained = {id(p) for p in new.freeze_towers()}
    new.train()
    assert not new.face_encoder.training and not new.branch.text.training
    new.encode(PROMPTS, faces).tokens.square().sum().backward()
    for name, parameter in new.named_parameters():
        towers = name.startswith(("face_encoder.", "branch.text."))
        assert (id(parameter) in trained) is not towers, name
        assert not (towers and parameter.grad is not None), name
    assert new.branch.identity_projection.weight.grad.abs().sum() > 0


def test_an_export_without_some_tensors_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert FaceCLIP.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    (file,) = tmp_path.glob("*.safetensors")
    state = {name: tensor for name, tensor in load_file(file).items() if "gate_pool" not in name}
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"\b11 .*heads\.gate_pool\.") as refusal:
        FaceCLIP.from_pretrained(tmp_path)
    assert str(tmp_path) in str(refusal.value)
    with pytest.raises(CheckpointError, match=r"/nowhere .*FaceCLIP"):
        FaceCLIP.from_pretrained(tmp_path / "nowhere")


@torch.no_grad()
def test_one_prompt_need_not_be_a_list(model, faces):
    alone, listed = (model.embed(prompt, faces[:1]).joint for prompt in ("a red hat", ["a red hat"]))
    torch.testing.assert_close(alone, listed, atol=0, rtol=0)


@pytest.mark.parametrize("gate", [-200.0, -20.0, 0.0, 2.0, 20.0, 200.0])
def test_a_saturated_gate_has_finite_gradients(gate):
    torch.manual_seed(0)
    heads = JointHeads(8, 4, 6, hidden=8, heads=2)
    torch.nn.init.constant_(heads.gate_pool.mlp[-1].bias, gate)
    has_text = torch.tensor([True, True, False])
    output = heads(
        torch.randn(3, 5, 8),
        identity=torch.randn(3, 4),
        text=torch.randn(3, 6),
        has_text=has_text,
        has_face=torch.tensor([True, False, True]),
    )
    share = torch.tensor([float(torch.tensor(gate).sigmoid()), 0.0, 1.0])  # of face, of text alone, of face alone
    torch.testing.assert_close(output.joint[:, :4].square().sum(1), share, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.joint[:, 4:].square().sum(1), 1 - share, atol=1e-6, rtol=0)
    output.joint.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in heads.parameters())
