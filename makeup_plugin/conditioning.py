"""The conditions of a generation, and the one function that predicts with them. Pipeline and trainer share both.

`build_conditions` assembles what the frozen encoders gave: `makeup_plugin.encoding` runs them, and training reads their
outputs from a cache. `unconditional_half` makes the conditions from which guidance moves away. `predict` runs
everything that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.regional_attention import RegionalContext, reads_regions, weights_by_queries
from makeup_plugin.shading import ShadingResiduals, shading_residuals

if TYPE_CHECKING:
    from faceclip.joint import JointConditioning
    from faceclip.towers.face import FaceFeatures


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of B samples. Every tensor has B rows.

    tokens (B,77,D) and pooled (B,P): the text side. time_ids (B,6): height and width of the original, top and left of
    the crop, height and width of the target, in pixels. A base without text_time (SD 1.5) reads neither pooled nor
    time_ids. identity (B,E), of length one unless the identity channel wants it as it is, and image_tokens (B,T,W),
    None for a channel that reads none: the identity channel's inputs, as for nobody where dropped. shading (B,3,H,W)
    in [0,1] at image resolution and shading_keep (B,): the shading channel's input and whether it counts.
    identity_scale (B,): how much the identity counts beside the channel's own scale; None for 1.

    Of K people in the picture, beside all this: people_tokens (B,K,77,D), people_identity (B,K,E), people_image_tokens
    (B,K,T,W) as above, people_shares (B,K+1,h,w) at the latents' size, which sum to 1, first that of nobody, and
    people_scale (B,K). `identity` is nobody's then.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    identity: Tensor | None = None
    image_tokens: Tensor | None = None
    shading: Tensor | None = None
    shading_keep: Tensor | None = None
    identity_scale: Tensor | None = None
    people_tokens: Tensor | None = None
    people_identity: Tensor | None = None
    people_image_tokens: Tensor | None = None
    people_shares: Tensor | None = None
    people_scale: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {name: value.shape[0] for name, value in self.tensors().items()}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"conditions of one batch must have equally many rows, got {sizes}")
        if self.identity is None and self.image_tokens is not None:
            raise ConfigError("image_tokens belong to an identity: give identity too")
        if (self.pooled is None) != (self.time_ids is None):
            raise ConfigError("pooled and time_ids go together: give both (SDXL) or neither (SD 1.5)")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are present, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def added(self) -> dict[str, Tensor] | None:
        """`added_cond_kwargs` of a UNet or ControlNet: pooled text and sizes; None for a base without text_time."""
        if self.pooled is None or self.time_ids is None:
            return None
        return {"text_embeds": self.pooled, "time_ids": self.time_ids}

    @property
    def by_regions(self) -> bool:
        """Whether attention differs between people or pictures: `predict` then needs `regional_attention`."""
        return self.people_tokens is not None or self.identity_scale is not None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """Moved and cast."""
        return replace(self, **{name: x.to(device=device, dtype=dtype) for name, x in self.tensors().items()})

    def repeat(self, times: int) -> Conditions:
        """Each sample `times` times in a row."""
        return replace(self, **{name: x.repeat_interleave(times, dim=0) for name, x in self.tensors().items()})

    def take(self, rows: Tensor) -> Conditions:
        """The samples at `rows`, indices (N,)."""
        return replace(self, **{name: x[rows] for name, x in self.tensors().items()})

    def drop_identity(self, mask: Tensor, nobody: Tensor | None = None) -> Conditions:
        """The identity channel's inputs as for nobody where mask (B,) is true: identity zero, and the image tokens
        `nobody` (T,W), or zero without it."""
        changed = {}
        for name, value in self.tensors().items():
            if name in ("identity", "people_identity", "image_tokens", "people_image_tokens"):
                empty = value.new_zeros(()) if nobody is None or name.endswith("identity") else nobody.to(value)
                changed[name] = torch.where(mask.to(value.device).view(-1, *[1] * (value.ndim - 1)), empty, value)
        return replace(self, **changed) if changed else self

    def with_one_text(self) -> Conditions:
        """The text of the picture for all people too."""
        if self.people_tokens is None:
            return self
        people = self.people_tokens.shape[1]
        return replace(self, people_tokens=self.tokens[:, None].expand(-1, people, -1, -1))

    def drop_shading(self, mask: Tensor) -> Conditions:
        """No residuals of the shading channel where mask (B,) is true."""
        if self.shading is None:
            return self
        keep = self.shading_keep if self.shading_keep is not None else self.shading.new_ones(len(self))
        return replace(self, shading_keep=keep.masked_fill(mask.to(keep.device), 0.0))


def concatenate(batches: Sequence[Conditions]) -> Conditions:
    """Several batches as one. Raises ConfigError unless all have the same fields."""
    names = [set(batch.tensors()) for batch in batches]
    if any(present != names[0] for present in names):
        raise ConfigError(f"batches to join have different conditions: {[sorted(present) for present in names]}")
    return Conditions(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names[0]})


class TextSide(Protocol):
    """What turns prompts into the UNet's context: `faceclip.encoder.FaceCLIP`, or `makeup_plugin.plain_text.PlainText`.

    The result has tokens (B,77,D), pooled (B,P) or None, and identity (B,E), None where no faces are given.
    """

    def encode(
        self,
        prompts: Sequence[str],
        faces: Tensor | None = None,
        *,
        face_features: FaceFeatures | None = None,
        has_face: Tensor | None = None,
    ) -> Any:
        """has_face: (B,) bool. face_features: in place of faces."""


def time_ids(height: int, width: int, count: int, *, device: torch.device | str = "cpu") -> Tensor:
    """SDXL's size conditioning (Podell et al. 2023, section 2.2) for uncropped images: (count, 6) in float32."""
    ids = torch.zeros(count, 6, device=device, dtype=torch.float32)
    for place, value in enumerate((height, width, 0, 0, height, width)):
        ids[:, place] = value  # filled: a copy from the host would wait for a GPU
    return ids


def build_conditions(
    joint: JointConditioning,
    *,
    height: int,
    width: int,
    identity: Tensor | None = None,
    image_tokens: Tensor | None = None,
    has_identity: Tensor | None = None,
    shading: Tensor | None = None,
    has_shading: Tensor | None = None,
    normalized: bool = True,
) -> Conditions:
    """Conditions of what the encoders gave for B samples; an all-black map says that no face was rendered and counts as
    none.

    Args:
        joint: of FaceCLIP or plain text. height, width: size of the image to make, px.
        identity, image_tokens: inputs of the identity channel, (B,E) of any length and (B,T,W); zero rows: nobody.
        shading: (B,3,height,width) in [0,1].
        has_identity, has_shading: (B,) bool, the rows in which the channel sees its inputs. Default: all.
        normalized: bring the identity to length one.

    Raises ConfigError on sizes that do not fit together.
    """
    count, device = len(joint.tokens), joint.tokens.device
    keep = None
    if shading is not None:
        if tuple(shading.shape) != (count, 3, height, width):
            raise ConfigError(f"shading must be {(count, 3, height, width)}, got {tuple(shading.shape)}")
        keep = (shading.flatten(1).amax(dim=1) > 0).to(shading.dtype).to(device)
    conditions = Conditions(
        tokens=joint.tokens,
        pooled=joint.pooled,
        time_ids=None if joint.pooled is None else time_ids(height, width, count, device=device),
        identity=F.normalize(identity, dim=-1) if identity is not None and normalized else identity,
        image_tokens=image_tokens,
        shading=shading,
        shading_keep=keep,
    )
    if has_identity is not None:
        conditions = conditions.drop_identity(~has_identity)
    return conditions if has_shading is None else conditions.drop_shading(~has_shading)


def unconditional_half(
    joint_encoder: TextSide,
    texts: Sequence[str],
    positive: Conditions,
    *,
    height: int,
    width: int,
    keep_shading: bool,
    nobody: Tensor | None = None,
) -> Conditions:
    """The conditions from which guidance moves away: the negative texts without a face, nobody's identity, and the map
    of `positive` or none.

    texts: as many as divide the B rows of `positive`, whose device and dtype the result has. height, width: px.
    nobody: image tokens (T,W) in place of zeros (see `image_tokens.nobody_tokens`).
    """
    count = len(positive)
    text = build_conditions(joint_encoder.encode(list(texts)), height=height, width=width)
    text = text.to(positive.tokens.device, positive.tokens.dtype).repeat(count // len(texts))
    everything = torch.ones(count, dtype=torch.bool)
    negative = replace(positive, tokens=text.tokens, pooled=text.pooled, time_ids=text.time_ids)
    negative = negative.with_one_text().drop_identity(everything, nobody)
    return negative if keep_shading else negative.drop_shading(everything)


def predict(
    unet: UNet2DConditionModel,
    latents: Tensor,
    timesteps: Tensor,
    conditions: Conditions,
    *,
    identity_channel: IdentityChannel | None = None,
    shading_channel: ControlNetModel | None = None,
    shading_scale: float = 1.0,
    shading_rows: Tensor | None = None,
    residuals: ShadingResiduals | None = None,
    timestep_cond: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:
    """The UNet's prediction (noise or velocity, as its scheduler says) for noisy latents (B,4,h,w).

    A channel that is None does not run. The ControlNet does not run without a shading map or at `shading_scale` 0
    either. The identity channel must be attached to the UNet; its scale is `identity_channel.scale`. Raises ConfigError
    when that scale is not 0 and the conditions hold no identity: a row of zeros stands for nobody. Several people, and
    a scale per picture, need `regional_attention`. `timestep_cond` (B,T) and `cross_attention_kwargs` go to the UNet as
    they are. `shading_rows`: the samples that have a map, where not all have one; the ControlNet runs on these alone
    (of several people, on all or none). `residuals`: of other ControlNets.
    """
    no_map = shading_rows is not None and not len(shading_rows)
    shaded = shading_channel is not None and conditions.shading is not None and shading_scale != 0 and not no_map
    context, identity_context = _contexts(unet, conditions, identity_channel, shaded=shaded)
    if shaded:
        assert conditions.shading is not None
        if identity_context is None:
            raise ConfigError("shading_channel reads identity tokens: give identity_channel and conditions.identity")
        control = shading_residuals(
            shading_channel,
            latents,
            timesteps,
            identity_tokens=identity_context,
            shading=conditions.shading,
            added=conditions.added,
            scale=shading_scale,
            keep=conditions.shading_keep,
            rows=shading_rows,
        )
        residuals = control if residuals is None else residuals.plus(control)
    control_inputs: dict[str, Any] = {}
    if residuals is not None:
        control_inputs = {
            "down_block_additional_residuals": residuals.down,
            "mid_block_additional_residual": residuals.mid,
        }
    return unet(
        latents,
        timesteps,
        encoder_hidden_states=context,
        timestep_cond=timestep_cond,
        cross_attention_kwargs=cross_attention_kwargs,
        added_cond_kwargs=conditions.added,
        return_dict=False,
        **control_inputs,
    )[0]


def _contexts(
    unet: UNet2DConditionModel, conditions: Conditions, channel: IdentityChannel | None, *, shaded: bool
) -> tuple[Any, Tensor | RegionalContext | None]:
    """The context of the UNet, and that of the shading channel: the identity's tokens, None without an identity.

    shaded: whether the shading channel runs. A channel of scale 0 whose tokens nobody reads does not run either.

    Raises ConfigError for a channel that is not attached or has no inputs, and for several people or a scale per
    picture outside of `regional_attention`.
    """
    silent = channel is not None and channel.scale == 0
    tokens = None if silent and not shaded else _identity_tokens(unet, conditions, channel)
    if not conditions.by_regions:
        plain = silent or tokens is None
        return (conditions.tokens if plain else (conditions.tokens, [tokens])), tokens
    if not reads_regions(unet):
        raise ConfigError("conditions of several people or with a scale per picture need regional_attention(unet)")
    if conditions.people_tokens is None or conditions.people_shares is None:
        return _scaled(conditions, tokens), tokens
    return _regional(conditions, conditions.people_tokens, conditions.people_shares, channel, tokens)


def _identity_tokens(
    unet: UNet2DConditionModel, conditions: Conditions, channel: IdentityChannel | None
) -> Tensor | None:
    if channel is None:
        return None
    if conditions.identity is None:
        if channel.scale != 0:
            raise ConfigError(
                "identity_channel is given but conditions.identity is absent: pass image_encoder to encode_conditions,"
                " or identity_channel=None"
            )
        return None
    if not channel.is_attached(unet):
        raise ConfigError(
            "the identity channel is not in the UNet: another one is, or whatever replaces attention processors"
            " (slicing, xformers, set_attn_processor) has dropped it; call identity_channel.attach(unet)"
        )
    return channel(conditions.identity, conditions.image_tokens)


def _scaled(conditions: Conditions, tokens: Tensor | None) -> RegionalContext:
    """One person per picture, whose identity counts by `identity_scale` (B,)."""
    return RegionalContext(
        texts=conditions.tokens[:, None],
        text_weights=conditions.tokens.new_ones(len(conditions.tokens), 1),
        identities=None if tokens is None else tokens[:, None],
        identity_weights=None if conditions.identity_scale is None else conditions.identity_scale[:, None],
    )


def _regional(
    conditions: Conditions,
    people: Tensor,
    people_shares: Tensor,
    channel: IdentityChannel | None,
    nobody: Tensor | None,
) -> tuple[RegionalContext, RegionalContext | None]:
    """Several people per picture. The shading channel reads a person's identity tokens where the person is, and those
    of `nobody` (B,n,D) elsewhere."""
    texts = torch.cat([conditions.tokens[:, None], people], dim=1)
    weights = weights_by_queries(people_shares)
    if channel is None or nobody is None or conditions.people_identity is None:
        return RegionalContext(texts=texts, text_weights=weights), None
    images = conditions.people_image_tokens
    tokens = channel(conditions.people_identity.flatten(0, 1), None if images is None else images.flatten(0, 1))
    tokens = tokens.unflatten(0, conditions.people_identity.shape[:2])
    scale = 1.0 if conditions.people_scale is None else conditions.people_scale[:, :, None]
    context = RegionalContext(
        texts=texts,
        text_weights=weights,
        identities=tokens,
        identity_weights={count: shares[:, 1:] * scale for count, shares in weights.items()},
    )
    return context, RegionalContext(texts=torch.cat([nobody[:, None], tokens], dim=1), text_weights=weights)
