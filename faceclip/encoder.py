"""FaceCLIP: a reference face and a prompt become one representation (design of bytedance/FaceCLIP).

One `FaceCLIPBranch` per CLIP text tower (L and G) replaces the token "id" by the identity and fuses the text with the
face. `FaceCLIPEncoder` is one branch by itself; `FaceCLIP` holds both over one face encoder and gives what SDXL is
conditioned on: tokens (B, 77, width_L + width_G) and G's unfused pooled state (B, width_G). With `joint` heads it also
gives the retrieval embedding of (face, prompt) pairs and of gallery pictures.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from faceclip.branch import TEMPLATE, FaceCLIPBranch
from faceclip.errors import ConfigError
from faceclip.heads import JointEmbedding, JointHeads
from faceclip.joint import JointConditioning, JointEncoder
from faceclip.towers.dlib import DlibFaceEncoder
from faceclip.towers.face import FaceFeatures, FaceViT
from faceclip.towers.inputs import check_prompts, check_vectors
from faceclip.towers.iresnet import FaceResNet
from faceclip.towers.onnx import OnnxFaceEncoder
from faceclip.towers.recognizers import FaceEncoder
from faceclip.towers.text import TextTower, tokenize

# diffusers loads a pipeline's component only where it finds ModelMixin beside the component's class.
__all__ = ["TEMPLATE", "FaceCLIP", "FaceCLIPEncoder", "JointConditioning", "ModelMixin"]


class FaceCLIPEncoder(JointEncoder):
    """One branch over its face encoder: tokens (B, 77, width) and the tower's own pooled state (B, width).

    Args:
        face: configuration of a `FaceEncoder`. text: configuration of the `TextTower`.
        fusion: arguments of `FeatureFusion`. licence: licence of the weights, as a note.
    """

    @register_to_config
    def __init__(
        self,
        face: dict[str, Any],
        text: dict[str, Any],
        fusion: dict[str, Any] | None = None,
        licence: str | None = None,
    ) -> None:
        super().__init__()
        self.face_encoder = _face_encoder(face)
        config = self.face_encoder.config
        self.branch = FaceCLIPBranch(TextTower(**text), config.width, config.embedding_dim, fusion or {})

    @property
    def branches(self) -> tuple[FaceCLIPBranch, ...]:
        """The one branch."""
        return (self.branch,)

    @classmethod
    def from_components(
        cls, face_encoder: FaceEncoder, text: TextTower, *, fusion: dict[str, Any] | None = None
    ) -> "FaceCLIPEncoder":
        """A new encoder over trained towers; see `FaceCLIP.from_components`."""
        model = cls(_settings(face_encoder), _settings(text), fusion=fusion)
        model.face_encoder.load_state_dict(face_encoder.state_dict())
        model.branch.text.load_state_dict(text.state_dict())
        model.branch.start_near_text()
        return model


class FaceCLIP(JointEncoder):
    """The L + G pair over one face encoder; `joint` adds the retrieval heads.

    Args:
        face: configuration of a `FaceEncoder`. text_l, text_g: configurations of the two `TextTower`s.
        fusion: arguments of `FeatureFusion`, the same for both branches.
        joint: arguments of `JointHeads` beyond the sizes (None: no retrieval heads, as in the release).
        shared_face: whether one face encoder serves both branches. Otherwise G has its own one of the same
            configuration (a published file may hold two that differ). Training needs a shared one.
        licence: licence of the weights, as a note in `config.json` that training and pipelines pass on.
    """

    @register_to_config
    def __init__(
        self,
        face: dict[str, Any],
        text_l: dict[str, Any],
        text_g: dict[str, Any],
        fusion: dict[str, Any] | None = None,
        joint: dict[str, Any] | None = None,
        shared_face: bool = True,
        licence: str | None = None,
    ) -> None:
        super().__init__()
        self.face_encoder = _face_encoder(face)
        self.face_encoder_g = None if shared_face else _face_encoder(face)
        width, identity = self.face_encoder.config.width, self.face_encoder.config.embedding_dim
        self.l = FaceCLIPBranch(TextTower(**text_l), width, identity, fusion or {})
        self.g = FaceCLIPBranch(TextTower(**text_g), width, identity, fusion or {})
        self.heads: JointHeads | None = None
        if joint is not None:
            self.add_heads(**joint)

    def add_heads(self, **joint: Any) -> None:
        """Add new, untrained retrieval heads to the model. `joint` is that of the class."""
        tokens = self.l.text.config.width + self.g.text.config.width
        self.heads = JointHeads(tokens, self.face_encoder.config.embedding_dim, self.g.text.config.embed_dim, **joint)
        self.register_to_config(joint=joint)

    @property
    def branches(self) -> tuple[FaceCLIPBranch, ...]:
        """L, then G."""
        return self.l, self.g

    @property
    def face_encoders(self) -> tuple[FaceEncoder, ...]:
        """The shared face encoder, or those of L and G."""
        return (self.face_encoder,) if self.face_encoder_g is None else (self.face_encoder, self.face_encoder_g)

    def single(self, branch: Literal["l", "g"]) -> FaceCLIPEncoder:
        """One branch alone, with the same weights (shared, not copied)."""
        kept: FaceCLIPBranch = getattr(self, branch)
        with init_empty_weights():
            settings = (_settings(self.face_encoder), _settings(kept.text), self.config.fusion)
            alone = FaceCLIPEncoder(*settings, licence=self.config.licence)
        alone.face_encoder, alone.branch = self.face_encoders[-1 if branch == "g" else 0], kept
        return alone.train(self.training)

    @classmethod
    def from_components(
        cls,
        face_encoder: FaceEncoder,
        text_l: TextTower,
        text_g: TextTower,
        *,
        fusion: dict[str, Any] | None = None,
        joint: dict[str, Any] | None = None,
    ) -> "FaceCLIP":
        """A new joint encoder over trained towers, whose weights are copied.

        Fusion and heads are untrained. The fused tokens start near the towers' own states
        (`FaceCLIPBranch.start_near_text`).
        """
        settings = [_settings(m) for m in (face_encoder, text_l, text_g)]
        model = cls(*settings, fusion=fusion, joint=joint)
        for mine, theirs in ((model.face_encoder, face_encoder), (model.l.text, text_l), (model.g.text, text_g)):
            mine.load_state_dict(theirs.state_dict())
        model.l.start_near_text()
        model.g.start_near_text()
        return model

    @apply_forward_hook
    def embed(
        self,
        prompts: Sequence[str],
        faces: Tensor | None = None,
        *,
        face_features: FaceFeatures | None = None,
        has_face: Tensor | None = None,
    ) -> JointEmbedding:
        """Retrieval embeddings of B (face, prompt) pairs.

        An empty prompt asks with the face alone. Faces that are None or absent from some rows ask with the text alone.

        Raises what `encode` raises, and ConfigError without joint heads or for token ids.
        """
        heads = self.joint_heads()
        prompts = check_prompts(prompts)
        found = self.encode(prompts, faces, face_features=face_features, has_face=has_face)
        device, dtype = found.tokens.device, next(heads.parameters()).dtype
        return heads(
            found.tokens.to(dtype),
            identity=None if found.identity is None else found.identity.to(dtype),
            text=self.g.text(tokenize(prompts).to(device)).embedding.to(dtype),
            has_text=torch.tensor([bool(prompt.strip()) for prompt in prompts], device=device),
            has_face=None if has_face is None else has_face.to(device),
        )

    @apply_forward_hook
    def embed_gallery(self, identity: Tensor, image: Tensor) -> Tensor:
        """Retrieval embedding (B, D), unit length, of pictures.

        identity: (B, E) of their faces. image: their CLIP image embedding (B, C). Raises ConfigError for other widths,
        for numbers that are not finite, and without joint heads.
        """
        heads = self.joint_heads()
        check_vectors("identity", identity, heads.face_dim)
        check_vectors("image", image, self.g.text.config.embed_dim)
        if len(identity) != len(image):
            raise ConfigError(f"{len(identity)} identities need as many image embeddings, got {len(image)}")
        return heads.gallery(identity, image)

    def joint_heads(self) -> JointHeads:
        """The retrieval heads. Raises ConfigError where there are none."""
        if self.heads is None:
            raise ConfigError("this FaceCLIP has no joint heads (config joint=null): train stage 1 with joint heads")
        return self.heads


def _face_encoder(settings: dict[str, Any]) -> FaceEncoder:
    if "dlib_layers" in settings:
        return DlibFaceEncoder(**settings)
    if "layers" in settings:
        return FaceResNet(**settings)
    return (OnnxFaceEncoder if "onnx_bytes" in settings else FaceViT)(**settings)


def _settings(module: ConfigMixin) -> dict[str, Any]:
    return {name: value for name, value in module.config.items() if not name.startswith("_")}
