"""The common base of one FaceCLIP branch and the L + G pair: prompts and faces in, conditioning out.

`JointEncoder.encode` checks and tokenizes, sends rows without a face through the unconditional path, and runs the
frozen towers. It calls `JointEncoder.fuse`, the trained part: tensors in, tensors out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from faceclip.branch import ID_INDEX, TEMPLATE, FaceCLIPBranch
from faceclip.cpu.inference import cpu_inference
from faceclip.errors import ConfigError
from faceclip.storage.loading import load_strictly
from faceclip.towers.face import FaceFeatures
from faceclip.towers.inputs import (
    check_faces,
    check_features,
    check_has_face,
    check_prompts,
    check_states,
    check_tokens,
    check_vectors,
    tell_cut,
)
from faceclip.towers.recognizers import FaceEncoder
from faceclip.towers.text import tokenize


@dataclass(frozen=True, kw_only=True)
class JointConditioning:
    """The conditioning of a generator.

    tokens: (B, 77, sum of the branches' widths: L + G of the pair). pooled: (B, width of the last branch). identity:
    (B, E) of the reference, unnormalized; zero in rows without a face, None where no faces are given at all. text: the
    towers' states before fusion, in the shape and order of tokens.
    """

    tokens: Tensor
    pooled: Tensor
    identity: Tensor | None
    text: Tensor


class KeptFace(nn.Module):
    """Features of one face that move with the model they belong to. They are not saved with it."""

    def __init__(self, features: FaceFeatures) -> None:
        super().__init__()
        self.register_buffer("tokens", features.tokens, persistent=False)
        self.register_buffer("identity", features.identity, persistent=False)
        self.second = None if features.second is None else KeptFace(features.second)

    def features(self) -> FaceFeatures:
        """The features, on the model's device."""
        second = None if self.second is None else self.second.features()
        return FaceFeatures(tokens=self.tokens, identity=self.identity, second=second)


class JointEncoder(ModelMixin, ConfigMixin):
    """The common base of one branch and the pair: a face encoder, branches, and their conditioning.

    Rows without a face follow the unconditional path of the release: the prompt without template is fused with the
    features of an all-zero face.
    """

    face_encoder: FaceEncoder

    def __init__(self) -> None:
        super().__init__()
        self.kept_zero_face: KeptFace | None = None

    @property
    def branches(self) -> tuple[FaceCLIPBranch, ...]:
        """The branches in the order of their tokens. The last branch gives the pooled state."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load as in diffusers, but strictly.

        Raises CheckpointError for missing or damaged files and another model, ConfigError for `quantization_config`.
        """
        if options.get("quantization_config") is not None:
            raise ConfigError(f"quantization_config: a {cls.__name__} cannot be quantized; leave the joint_encoder out")
        return load_strictly(super().from_pretrained, cls, pretrained_model_name_or_path, **options)

    @property
    def face_encoders(self) -> tuple[FaceEncoder, ...]:
        """One face encoder that serves all branches, or one for each branch."""
        return (self.face_encoder,)

    def towers(self) -> tuple[nn.Module, ...]:
        """The pretrained parts, which stay frozen in training: face encoders and text towers."""
        return *self.face_encoders, *(branch.text for branch in self.branches)

    def freeze_towers(self) -> list[nn.Parameter]:
        """Freeze the towers (no gradient, evaluation mode), and return the parameters that remain trainable.

        This encodes the zero face once. Call it again after you load other weights into a face encoder.
        """
        for tower in self.towers():
            tower.requires_grad_(False).eval()
        self.kept_zero_face = None
        with torch.no_grad():  # by the kernels of training, so that runs of earlier versions continue to the bit
            self.kept_zero_face = KeptFace(self._encode(torch.zeros(1, 3, 8, 8)))
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

    def zero_face(self) -> FaceFeatures:
        """Features of the all-zero face, one row. Prompts without a face are fused with them."""
        if self.kept_zero_face is not None:
            return self.kept_zero_face.features()
        return self._face(self.face_encoder.pos_embed.new_zeros(1, 3, 8, 8))

    @apply_forward_hook
    def text_states(
        self, prompts: Sequence[str] | Tensor, identity: Tensor | None = None, *, has_face: Tensor | None = None
    ) -> Tensor:
        """(B, 77, sum of the branches' widths) states of the text towers, before fusion: `JointConditioning.text`.

        They depend only on the towers and on the projections of the identity. Where these do not change, the states can
        be cached and given to `encode`.

        Args:
            prompts: as for `encode`.
            identity: (B, E) of the recognizer, unnormalized. None means no face and no template.
            has_face: as for `encode`.

        Raises what `encode` raises, and ConfigError for an identity where each branch has a face encoder of its own.
        """
        if identity is not None and len(self.face_encoders) > 1:
            raise ConfigError(
                "text_states: each branch of this model reads the identity of its own face encoder; take "
                "encode(...).text"
            )
        tokens, present = self._tokens(prompts, has_face, given=identity is not None)
        size = self.face_encoder.config.embedding_dim
        if identity is not None and len(check_vectors("identity", identity, size)) != len(tokens):
            raise ConfigError(f"{len(tokens)} prompts need as many identities, got {len(identity)}")
        given = torch.ones(len(tokens), size) if identity is None else identity  # without a face it is not looked at
        given = given.to(self.face_encoder.pos_embed)
        return self._read(tokens, [given] * len(self.branches), present)

    @apply_forward_hook
    def encode(
        self,
        prompts: Sequence[str] | Tensor,
        faces: Tensor | None = None,
        *,
        face_features: FaceFeatures | None = None,
        has_face: Tensor | None = None,
        text_states: Tensor | None = None,
    ) -> JointConditioning:
        """Conditioning of B prompts and faces.

        Args:
            prompts: B texts. In rows with a face the template "Photo of a id person. " is put before them. Token ids
                (B, 5 to 77) are used unchanged.
            faces: (B, 3, H, W) aligned RGB crops in [0, 1], or one for all prompts. Without faces and features no row
                has a face.
            face_features: the result of `face_features`, in place of `faces`. It may be stored in 16 bits or lie on
                another device.
            has_face: (B,) bool, the rows that have a face. The other rows take the unconditional path of the release
                (an all-zero face and no template), whatever `faces` hold there. By default all rows have a face where
                faces are given.
            text_states: the result of `text_states` for these prompts and faces, so that the text towers do not run. No
                gradient reaches the projections of the identity then.

        Raises:
            ConfigError: prompts that are not text, token ids, features, states or mask of another shape, features or
                states that are not finite, numbers of prompts and faces that differ, or both faces and features.
            UnreadableImageError: faces of another shape, type or range.
        """
        if faces is not None and face_features is not None:
            raise ConfigError("give faces or face_features, not both")
        given = faces is not None or face_features is not None
        tokens, present = self._tokens(prompts, has_face, given=given)
        if face_features is None:
            face_features = self.zero_face() if faces is None else self._face(check_faces(faces))
        features = self._rows(face_features, len(tokens), present)
        towers = [branch.text for branch in self.branches]
        if text_states is None:
            text = self._read(tokens, [part.identity for _, part in self._by_branch(features)], present)
        else:
            text = check_states(text_states, tokens, [tower.config.width for tower in towers])
            text = text.to(self.face_encoder.pos_embed.device, towers[0].dtype)
        return JointConditioning(
            tokens=self.fuse(text, features),
            pooled=towers[-1].features(text[..., -towers[-1].config.width :], tokens).eot_state,
            identity=features.identity if given and present is not False else None,
            text=text,
        )

    def forward(self, prompts: Sequence[str] | Tensor, faces: Tensor | None = None, **given: Any) -> JointConditioning:
        """`encode`."""
        return self.encode(prompts, faces, **given)

    @apply_forward_hook
    def fuse(self, text_states: Tensor, face_features: FaceFeatures) -> Tensor:
        """Fused tokens (B, 77, W) of the text towers' states (B, 77, W) and the features of B faces.

        Tensors on the model's device and in its precision go in and out, without checks. `encode` checks, and gives
        rows without a face the features of `zero_face`.
        """
        parts = text_states.split([branch.text.config.width for branch in self.branches], dim=-1)
        with cpu_inference(text_states.device):
            fused = [
                branch(part, seen.tokens, encoder.pos_embed)
                for branch, part, (encoder, seen) in zip(
                    self.branches, parts, self._by_branch(face_features), strict=True
                )
            ]
        return torch.cat(fused, dim=-1)

    def _tokens(
        self, prompts: Sequence[str] | Tensor, has_face: Tensor | None, *, given: bool
    ) -> tuple[Tensor, bool | Tensor]:
        """Token ids on the model's device, texts behind the template where there is a face; and which rows have one."""
        device = self.face_encoder.pos_embed.device
        if isinstance(prompts, Tensor):
            tokens = check_tokens(prompts, ID_INDEX + 1, self.branches[0].text.config.context).to(device)
            present = check_has_face(has_face, len(tokens), given=given)
        else:
            texts = check_prompts(prompts)
            present = check_has_face(has_face, len(texts), given=given)
            shown = present.tolist() if isinstance(present, Tensor) else [present] * len(texts)
            texts = [TEMPLATE + text if one else text for text, one in zip(texts, shown, strict=True)]
            tokens = tokenize(texts)
            tell_cut(texts, tokens)
            tokens = tokens.to(device)
        return tokens, present.to(device) if isinstance(present, Tensor) else present

    def _read(self, tokens: Tensor, identities: Sequence[Tensor], present: bool | Tensor) -> Tensor:
        """States (B, 77, W) of the text towers, side by side; identities: (B, E) for each branch."""
        with cpu_inference(tokens.device):
            texts = [
                branch.read(tokens, identity, present)
                for branch, identity in zip(self.branches, identities, strict=True)
            ]
        return torch.cat([text.hidden for text in texts], dim=-1)

    def _face(self, faces: Tensor) -> FaceFeatures:
        with cpu_inference(self.face_encoder.pos_embed.device):
            return self._encode(faces)

    def _encode(self, faces: Tensor) -> FaceFeatures:
        faces = faces.to(self.face_encoder.pos_embed)
        first, *second = [encoder(faces) for encoder in self.face_encoders]
        return replace(first, second=second[0]) if second else first

    def _rows(self, features: FaceFeatures, count: int, present: bool | Tensor) -> FaceFeatures:
        """Features of `count` rows on the encoders' device and in their precision; one face serves all prompts. Rows
        without a face hold the zero face's tokens and a zero identity."""
        rows = self._placed(features, count)
        if isinstance(present, Tensor):
            mask, zero = present[:, None], self._placed(self.zero_face(), count)
            rows = [
                FaceFeatures(
                    tokens=torch.where(mask[..., None], part.tokens, none.tokens),
                    identity=part.identity.masked_fill(~mask, 0.0),
                )
                for part, none in zip(rows, zero, strict=True)
            ]
        first, *second = rows
        return replace(first, second=second[0]) if second else first

    def _placed(self, features: FaceFeatures, count: int) -> list[FaceFeatures]:
        """Checked features of `count` faces by each face encoder, in its device and precision."""
        second = getattr(features, "second", None)
        parts = [features] if second is None else [features, second]
        if len(parts) != len(self.face_encoders):
            raise ConfigError(
                f"face_features hold those of {len(parts)} face encoder(s), this model has "
                f"{len(self.face_encoders)}: make them by its own face_features"
            )
        found = []
        for encoder, part in zip(self.face_encoders, parts, strict=True):
            config, like = encoder.config, encoder.pos_embed
            part = check_features(part, encoder.grid**2, config.width, config.embedding_dim)
            tokens, identity = part.tokens.to(like), part.identity.to(like)
            if len(tokens) not in (1, count):
                raise ConfigError(f"{count} prompts need as many faces, got {len(tokens)}")
            found.append(FaceFeatures(tokens=tokens.expand(count, -1, -1), identity=identity.expand(count, -1)))
        return found

    def _by_branch(self, features: FaceFeatures) -> list[tuple[FaceEncoder, FaceFeatures]]:
        """For every branch its face encoder and the features by it."""
        parts = [features] if features.second is None else [features, features.second]
        found = list(zip(self.face_encoders, parts, strict=True))
        return found if len(found) == len(self.branches) else found * len(self.branches)
