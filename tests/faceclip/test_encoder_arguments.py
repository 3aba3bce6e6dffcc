"""What the joint encoder rejects: prompts, faces, masks, states, features and sizes that cannot be."""

import pytest
import torch

from faceclip.encoder import FaceCLIP
from faceclip.errors import ConfigError, UnreadableImageError
from faceclip.fusion import FeatureFusion
from faceclip.towers.face import FaceFeatures
from faceclip.towers.text import tokenize
from tests.faceclip.small_encoder import PROMPTS, SIZES


@torch.no_grad()
def test_impossible_states_are_named(model, faces):
    states = model.text_states(PROMPTS)
    with pytest.raises(ConfigError, match=r"^text_states .*\(3, 77, 80\).*\(2, 77, 80\)"):
        model.encode(PROMPTS, faces, text_states=states[:2])
    with pytest.raises(ConfigError, match=r"^text_states .*NaN"):
        model.encode(PROMPTS, faces, text_states=states * torch.nan)
    with pytest.raises(ConfigError, match=r"^3 prompts .*identities.* 1$"):
        model.text_states(PROMPTS, torch.ones(1, 16))
    with pytest.raises(ConfigError, match=r"^identity .*\(B, 16\).*\(3, 5\)"):
        model.text_states(PROMPTS, torch.ones(3, 5))
    with pytest.raises(ConfigError, match=r"^text_states: .*encode\(...\)\.text"):
        FaceCLIP(**SIZES, shared_face=False).text_states(PROMPTS, torch.ones(3, 16))


@torch.no_grad()
def test_impossible_masks_are_named(model, faces):
    for has_face in (torch.ones(2, dtype=torch.bool), torch.ones(3), [True] * 3, torch.ones(3, 1, dtype=torch.bool)):
        for prompts in (PROMPTS, tokenize(PROMPTS)):
            with pytest.raises(ConfigError, match=r"^has_face .*\(3,\) bool\b"):
                model.encode(prompts, faces, has_face=has_face)
    with pytest.raises(ConfigError, match=r"^has_face .*face_features"):
        model.encode(PROMPTS, has_face=torch.tensor([False, True, False]))
    nobody = model.encode(PROMPTS, has_face=torch.zeros(3, dtype=torch.bool))
    assert nobody.identity is None and torch.equal(nobody.tokens, model.encode(PROMPTS).tokens)


def features(tokens: tuple, identity: tuple) -> FaceFeatures:
    return FaceFeatures(tokens=torch.zeros(tokens), identity=torch.zeros(identity))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", 3, "b"], r"prompts\[1\] .*\bint"),
        (["a", None, "b"], r"prompts\[1\] .*\bNoneType"),
        ([b"a"], r"prompts\[0\] .*\bbytes"),
        (b"text", r"^prompts .*\blist .*\bbytes$"),
        (None, r"^prompts .*\blist .*\bNoneType$"),
        ([], "^prompts .*''|^prompts .*\"\""),
        (["a", "b"], "^2 prompts .*faces, .* 3$"),
        (torch.zeros(3, 78, dtype=torch.int64), r"\(B, 5 to 77\), .*\(3, 78\)"),
        (torch.zeros(3, 4, dtype=torch.int64), r"\(B, 5 to 77\), .*\(3, 4\)"),
        (torch.zeros(77, dtype=torch.int64), r"\(B, 5 to 77\), .*\(77,\)"),
        (torch.zeros(3, 77), r"int64 .*int32, .*torch\.float32"),
        (torch.full((3, 77), 49408), r"\b0 … 49407: "),
    ],
)
def test_bad_prompts(model, faces, prompts, message):
    with pytest.raises(ConfigError, match=message):
        model.encode(prompts, faces)
    if isinstance(prompts, torch.Tensor):  # a retrieval embedding needs the plain text
        message = "list of texts, got Tensor"
    with pytest.raises(ConfigError, match=message):
        model.embed(prompts, faces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda faces: faces.numpy(), r"^faces .*\(B, 3, H, W\), .*\bndarray"),
        (lambda faces: faces * 255, r"^faces .*\[0, 1\], .*\[.*, 25.*\]"),
        (lambda faces: faces * 2 - 1, r"^faces .*\[0, 1\], .*\[-"),
        (lambda faces: faces + torch.nan, r"^faces .*\[nan, nan\]"),
        (lambda faces: (faces * 255).byte(), r"^faces .*\[0, 1\], .*torch\.uint8: .*\b255\b"),
        (lambda faces: faces[:, :1], r"^faces .* \(3, 1, 50, 50\)"),
        (lambda faces: faces[0], r"^faces .* \(3, 50, 50\)"),
        (lambda faces: faces.permute(0, 2, 3, 1), r"^faces .* \(3, 50, 50, 3\)"),
        (lambda faces: faces[:0], r"^faces .* \(0, 3, 50, 50\)"),
    ],
)
def test_bad_faces(model, faces, change, message):
    for call in (model.encode, model.embed, lambda _, bad: model.face_features(bad)):
        with pytest.raises(UnreadableImageError, match=message):
            call(PROMPTS, change(faces))


def test_bad_features_and_sizes(model, faces):
    with pytest.raises(ConfigError, match=r"\bfaces .*\bface_features\b"):
        model.encode(PROMPTS, faces, face_features=features((3, 16, 24), (3, 16)))
    with pytest.raises(ConfigError, match=r"^face_features .*FaceFeatures.*Tensor$"):
        model.encode(PROMPTS, face_features=torch.zeros(3, 16, 24))
    for tokens, identity in (((3, 16, 25), (3, 16)), ((3, 9, 24), (3, 16)), ((3, 16, 24), (2, 16)), ((3, 24), (3, 16))):
        with pytest.raises(ConfigError, match=r"^face_features .*tokens \(B, 16, 24\) .*identity \(B, 16\)"):
            model.encode(PROMPTS, face_features=features(tokens, identity))
    for identity, image, message in (
        (torch.zeros(3, 15), torch.zeros(3, 20), r"^identity .*\(B, 16\), .*\(3, 15\)"),
        (torch.zeros(3, 16), torch.zeros(3, 16), r"^image .*\(B, 20\), .*\(3, 16\)"),
        (torch.zeros(3, 16), [0.0], r"^image .*\(B, 20\), .*\blist$"),
        (torch.full((3, 16), torch.nan), torch.zeros(3, 20), "^identity .*NaN"),
        (torch.zeros(3, 16), torch.full((3, 20), torch.inf), "^image .*NaN"),
        (torch.zeros(3, 16), torch.zeros(2, 20), "^3 identities .*image.* 2$"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.embed_gallery(identity, image)
    with pytest.raises(ConfigError, match="joint=null"):
        FaceCLIP(**SIZES).embed(["a"], faces[:1])
    with pytest.raises(ValueError, match=r"^face tokens .*\b5\b"):
        FeatureFusion(32, **SIZES["fusion"])(torch.zeros(1, 5, 32), torch.zeros(1, 5, 32), *[torch.zeros(1, 3, 32)] * 2)
