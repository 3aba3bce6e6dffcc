"""FaceCLIP: a reference face and a prompt become one representation (design of bytedance/FaceCLIP).

One `FaceCLIPBranch` per CLIP text tower (L and G) replaces the token "id" by the identity and fuses the text with the
face. `FaceCLIPEncoder` is one branch by itself; `FaceCLIP` holds both over one face encoder and gives what SDXL is
conditioned on: tokens (B, 77, width_L + width_G) and G's unfused pooled state (B, width_G). With `joint` heads it also
gives the retrieval embedding of (face, prompt) pairs and of gallery pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from accelerate import init_empty_weights
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from faceclip.branch import ID_INDEX, TEMPLATE, BranchOutput, FaceCLIPBranch
from faceclip.cpu.inference import cpu_inference
from faceclip.errors import ConfigError
from faceclip.heads import JointEmbedding, JointHeads
from faceclip.storage.loading import load_strictly
from faceclip.towers.face import FaceFeatures, FaceViT
from faceclip.towers.inputs import (
    check_faces,
    check_features,
    check_prompts,
    check_states,
    check_tokens,
    check_vectors,
    tell_cut,
)
from faceclip.towers.onnx import OnnxFaceEncoder
from faceclip.towers.text import TextTower, tokenize


@dataclass(frozen=True, kw_only=True)
class JointConditioning:
    """What a generator is conditioned on: tokens (B, 77, sum of the branches' widths: L + G of the pair), pooled
    (B, width of the last branch), and the reference's identity (B, E), unnormalized, None without a face. text: the
    towers' states before fusion, in the shape and order of tokens."""

    tokens: Tensor
    pooled: Tensor
    identity: Tensor | None
    text: Tensor


class JointEncoder(ModelMixin, ConfigMixin):
    """What one branch and the pair have in common: a face encoder, branches, and the conditioning that they give."""

    face_encoder: FaceViT | OnnxFaceEncoder

    @property
    def branches(self) -> tuple[FaceCLIPBranch, ...]:
        """The branches in the order in which their tokens are put side by side; the last one gives the pooled state."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """As in diffusers, but strict. Raises CheckpointError where files are missing, damaged or of another model."""
        return load_strictly(super().from_pretrained, cls, pretrained_model_name_or_path, **options)

    @property
    def face_encoders(self) -> tuple[FaceViT | OnnxFaceEncoder, ...]:
        """One that serves all branches, or one for each."""
        return (self.face_encoder,)

    def towers(self) -> tuple[nn.Module, ...]:
        """The pretrained parts, which stay frozen in training: face encoders and text towers."""
        return *self.face_encoders, *(branch.text for branch in self.branches)

    def freeze_towers(self) -> list[nn.Parameter]:
        """Freezes the towers (no gradient, evaluation mode) and returns what is left to train."""
        for tower in self.towers():
            tower.requires_grad_(False).eval()
        return [p for p in self.parameters() if p.requires_grad]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for tower in self.towers():
            if not any(p.requires_grad for p in tower.parameters()):
                tower.eval()  # frozen batch norms must not move
        return self

    @apply_forward_hook
    def face_features(self, faces: Tensor) -> FaceFeatures:
        """Features of aligned crops (B, 3, H, W) RGB in [0, 1]. They can be cached and given to `encode`.

        Raises UnreadableImageError for another shape, type or range.
        """
        return self._face(check_faces(faces))

    @apply_forward_hook
    def text_states(self, prompts: Sequence[str] | Tensor, identity: Tensor | None = None) -> Tensor:
        """(B, 77, sum of the branches' widths) states of the text towers, before fusion: `JointConditioning.text`.

        They depend on the towers and on the projections of the identity only; where these do not change they can be
        cached and given to `encode`.

        Args:
            prompts: as for `encode`. identity: (B, E) of the recognizer, unnormalized; None: no face, no template.

        Raises what `encode` raises, and ConfigError for an identity where each branch has a face encoder of its own.
        """
        if identity is not None and len(self.face_encoders) > 1:
            raise ConfigError(
                "text_states: each branch of this model reads the identity of its own face encoder; take "
                "encode(...).text"
            )
        device = self.face_encoder.pos_embed.device
        tokens = self._tokens(prompts, identity is not None)
        size = self.face_encoder.config.embedding_dim
        if identity is not None and len(check_vectors("identity", identity, size)) != len(tokens):
            raise ConfigError(f"{len(tokens)} prompts need as many identities, got {len(identity)}")
        given = torch.ones(len(tokens), size) if identity is None else identity  # without a face it is not looked at
        given = given.to(self.face_encoder.pos_embed)
        with cpu_inference(device):
            texts = [branch.read(tokens, given, identity is not None) for branch in self.branches]
        return torch.cat([text.hidden for text in texts], dim=-1)

    @apply_forward_hook
    def encode(
        self,
        prompts: Sequence[str] | Tensor,
        faces: Tensor | None = None,
        *,
        face_features: FaceFeatures | None = None,
        text_states: Tensor | None = None,
    ) -> JointConditioning:
        """Conditioning of B prompts and faces.

        Args:
            prompts: B texts; with a face the template "Photo of a id person. " is put before each. Or token ids
                (B, 5 to 77), taken as they are.
            faces: (B, 3, H, W) aligned RGB crops in [0, 1]. None and no features: the unconditional path of the
                release, which is an all-zero face and no template.
            face_features: instead of `faces`, what `face_features` gave; stored in 16 bits or on another device, too.
            text_states: what `text_states` gave for these prompts and faces, so that the text towers do not run. No
                gradient reaches the projections of the identity then.

        Raises:
            ConfigError: prompts that are not text, token ids, features or states of another shape, features or states
                that are not finite, numbers of prompts and faces that differ, or both faces and features.
            UnreadableImageError: faces of another shape, type or range.
        """
        branches, features, has_face = self._run(prompts, faces, face_features, text_states)
        fused = torch.cat([b.fused for b in branches], dim=-1)
        return JointConditioning(
            tokens=fused,
            pooled=branches[-1].text.eot_state,
            identity=features.identity if has_face else None,
            text=torch.cat([b.text.hidden for b in branches], dim=-1),
        )

    def forward(self, prompts: Sequence[str] | Tensor, faces: Tensor | None = None, **given: Any) -> JointConditioning:
        """`encode`."""
        return self.encode(prompts, faces, **given)

    def _tokens(self, prompts: Sequence[str] | Tensor, has_face: bool) -> Tensor:
        """Token ids on the model's device; texts are put behind the template where there is a face."""
        device = self.face_encoder.pos_embed.device
        if isinstance(prompts, Tensor):
            return check_tokens(prompts, ID_INDEX + 1, self.branches[0].text.config.context).to(device)
        texts = [TEMPLATE + p if has_face else p for p in check_prompts(prompts)]
        tokens = tokenize(texts)
        tell_cut(texts, tokens)
        return tokens.to(device)

    def _run(
        self,
        prompts: Sequence[str] | Tensor,
        faces: Tensor | None,
        features: FaceFeatures | None,
        states: Tensor | None = None,
    ) -> tuple[tuple[BranchOutput, ...], FaceFeatures, bool]:
        if faces is not None and features is not None:
            raise ConfigError("give faces or face_features, not both")
        has_face = faces is not None or features is not None
        device = self.face_encoder.pos_embed.device
        tokens = self._tokens(prompts, has_face)
        if features is None:
            features = self._face(torch.zeros(1, 3, 8, 8) if faces is None else check_faces(faces))
        each = self._features_of_branches(features, len(tokens))
        with cpu_inference(device):
            if states is None:
                texts = [
                    branch.read(tokens, seen.identity, has_face)
                    for branch, (_, seen) in zip(self.branches, each, strict=True)
                ]
            else:
                towers = [branch.text for branch in self.branches]
                parts = check_states(states, tokens, [tower.config.width for tower in towers]).to(device)
                parts = parts.split([tower.config.width for tower in towers], dim=-1)
                texts = [
                    tower.features(part.to(tower.dtype), tokens) for tower, part in zip(towers, parts, strict=True)
                ]
            branches = tuple(
                branch(text, seen, encoder.pos_embed)
                for branch, text, (encoder, seen) in zip(self.branches, texts, each, strict=True)
            )
        return branches, each[0][1], has_face

    def _face(self, faces: Tensor) -> FaceFeatures:
        parameter = self.face_encoder.pos_embed
        faces = faces.to(parameter.device, parameter.dtype)
        with cpu_inference(parameter.device):
            first, *second = [encoder(faces) for encoder in self.face_encoders]
        return replace(first, second=second[0]) if second else first

    def _features_of_branches(
        self, features: FaceFeatures, count: int
    ) -> list[tuple[FaceViT | OnnxFaceEncoder, FaceFeatures]]:
        """For every branch its face encoder and the features by it, on its device and in its precision, of `count`
        faces; one face serves all prompts."""
        encoders = self.face_encoders
        parts = [features, features.second] if getattr(features, "second", None) is not None else [features]
        if len(parts) != len(encoders):
            raise ConfigError(
                f"face_features hold those of {len(parts)} face encoder(s), this model has "
                f"{len(encoders)}: make them by its own face_features"
            )
        found = []
        for encoder, part in zip(encoders, parts, strict=True):
            config, like = encoder.config, encoder.pos_embed
            part = check_features(part, encoder.grid**2, config.width, config.embedding_dim)
            tokens, identity = part.tokens.to(like), part.identity.to(like)
            if len(tokens) not in (1, count):
                raise ConfigError(f"{count} prompts need as many faces, got {len(tokens)}")
            rows = (count, *[-1] * (tokens.ndim - 1))
            found.append((encoder, FaceFeatures(tokens=tokens.expand(rows), identity=identity.expand(count, -1))))
        return found if len(found) == len(self.branches) else found * len(self.branches)


class FaceCLIPEncoder(JointEncoder):
    """One branch over its face encoder: tokens (B, 77, width) and the tower's own pooled state (B, width).

    Args:
        face: configuration of `FaceViT` or `OnnxFaceEncoder`. text: configuration of the `TextTower`.
        fusion: arguments of `FeatureFusion`. licence: of the weights, as a note.
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
        cls, face_encoder: FaceViT | OnnxFaceEncoder, text: TextTower, *, fusion: dict[str, Any] | None = None
    ) -> "FaceCLIPEncoder":
        """A new encoder over trained towers, as `FaceCLIP.from_components`."""
        model = cls(_settings(face_encoder), _settings(text), fusion=fusion)
        model.face_encoder.load_state_dict(face_encoder.state_dict())
        model.branch.text.load_state_dict(text.state_dict())
        model.branch.start_near_text()
        return model


class FaceCLIP(JointEncoder):
    """The L + G pair over one face encoder; `joint` adds the retrieval heads.

    Args:
        face: configuration of `FaceViT` or `OnnxFaceEncoder`. text_l, text_g: configurations of the two `TextTower`s.
        fusion: arguments of `FeatureFusion`, the same for both branches.
        joint: arguments of `JointHeads` beyond the sizes (None: no retrieval heads, as in the release).
        shared_face: whether one face encoder serves both branches; otherwise G has one of its own, of the same
            configuration (a published file may hold two that differ). Training wants a shared one.
        licence: of the weights, as a note in `config.json` that training and pipelines pass on.
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
        """Puts new, untrained retrieval heads on the model; `joint`: as for the class."""
        tokens = self.l.text.config.width + self.g.text.config.width
        self.heads = JointHeads(tokens, self.face_encoder.config.embedding_dim, self.g.text.config.embed_dim, **joint)
        self.register_to_config(joint=joint)

    @property
    def branches(self) -> tuple[FaceCLIPBranch, ...]:
        """L, then G."""
        return self.l, self.g

    @property
    def face_encoders(self) -> tuple[FaceViT | OnnxFaceEncoder, ...]:
        """The shared one, or L's and G's."""
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
        face_encoder: FaceViT | OnnxFaceEncoder,
        text_l: TextTower,
        text_g: TextTower,
        *,
        fusion: dict[str, Any] | None = None,
        joint: dict[str, Any] | None = None,
    ) -> "FaceCLIP":
        """A new joint encoder over trained towers (their weights are copied); fusion and heads are untrained, and the
        fused tokens start near the towers' own states (`FaceCLIPBranch.start_near_text`)."""
        settings = [_settings(m) for m in (face_encoder, text_l, text_g)]
        model = cls(*settings, fusion=fusion, joint=joint)
        for mine, theirs in ((model.face_encoder, face_encoder), (model.l.text, text_l), (model.g.text, text_g)):
            mine.load_state_dict(theirs.state_dict())
        model.l.start_near_text()
        model.g.start_near_text()
        return model

    @apply_forward_hook
    def embed(
        self, prompts: Sequence[str], faces: Tensor | None = None, *, face_features: FaceFeatures | None = None
    ) -> JointEmbedding:
        """Retrieval embeddings of B (face, prompt) pairs: prompts may be empty (face alone), faces None (text alone).

        Raises what `encode` raises, and ConfigError without joint heads or for token ids.
        """
        heads = self._heads()
        prompts = check_prompts(prompts)
        branches, features, has_face = self._run(prompts, faces, face_features)
        described = torch.tensor([bool(p.strip()) for p in prompts], device=branches[0].fused.device)
        text = self.g.text(tokenize(prompts).to(described.device)).embedding
        return heads(
            torch.cat([b.fused for b in branches], dim=-1),
            identity=features.identity if has_face else None,
            text=text,
            has_text=described,
        )

    @apply_forward_hook
    def embed_gallery(self, identity: Tensor, image: Tensor) -> Tensor:
        """Retrieval embedding (B, D), unit length, of pictures: their faces' identity (B, E) and CLIP image embedding
        (B, C). Raises ConfigError for other widths, numbers that are not finite, and without joint heads."""
        heads = self._heads()
        check_vectors("identity", identity, heads.face_dim)
        check_vectors("image", image, self.g.text.config.embed_dim)
        if len(identity) != len(image):
            raise ConfigError(f"{len(identity)} identities need as many image embeddings, got {len(image)}")
        return heads.gallery(identity, image)

    def _heads(self) -> JointHeads:
        if self.heads is None:
            raise ConfigError("this FaceCLIP has no joint heads (config joint=null): train stage 1 with joint heads")
        return self.heads


def _face_encoder(settings: dict[str, Any]) -> FaceViT | OnnxFaceEncoder:
    return (OnnxFaceEncoder if "onnx_bytes" in settings else FaceViT)(**settings)


def _settings(module: ConfigMixin) -> dict[str, Any]:
    return {name: value for name, value in module.config.items() if not name.startswith("_")}
