"""Settings of stage 2."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from faceclip.data.mapping import DataConfig, data_at
from faceclip.errors import ConfigError
from faceclip.settings import setting
from faceclip.training import TrainerConfig
from makeup_plugin.calls.defaults import read_defaults
from train_generator.streamed.config import PhotosConfig

PRESETS = Path(__file__).parent / "presets"


@dataclass(kw_only=True)
class IdentityChannelConfig:
    """Arguments of `IdentityChannel.from_unet`; `enabled` false trains without it."""

    enabled: bool = setting(True, "false trains without it")
    num_tokens: int = setting(4, "identity tokens")
    depth: int = setting(2, "perceiver layers; 0: tokens of the identity alone")
    heads: int = setting(4, "of the perceiver")
    dim_head: int = setting(32, "width of a head")

    def __post_init__(self) -> None:
        for name, least in (("num_tokens", 1), ("depth", 0), ("heads", 1), ("dim_head", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"adapter.identity.{name}: must be at least {least}, got {getattr(self, name)}")


@dataclass(kw_only=True)
class AdapterConfig:
    """What is trained: LoRA on the UNet's attention or the whole UNet (as in FaceCLIP-SDXL), and both channels.

    Raises ConfigError for a shading channel without identity channel, and for a `unet_rate` that is not positive.
    """

    unet: Literal["lora", "full"] = setting("lora", "what of the UNet is trained: LoRA on its attention, or all of it")
    lora_rank: int = setting(16, "rank of that LoRA")
    unet_rate: float = setting(1.0, "learning rate of the whole UNet as a multiple of trainer.learning_rate")
    identity: IdentityChannelConfig = field(default_factory=IdentityChannelConfig)
    shading: bool = setting(True, "train the shading channel")
    shading_layers: Literal["all", "new"] = setting(
        "all", "what of the shading channel is trained; new: its own layers, while its copy of the UNet stays frozen"
    )

    def __post_init__(self) -> None:
        if not 0 < self.unet_rate < math.inf:
            raise ConfigError(f"adapter.unet_rate: must be a positive number, got {self.unet_rate}")
        if self.shading and not self.identity.enabled:
            raise ConfigError(
                "adapter.shading: the shading channel reads the identity channel's tokens; set adapter.shading=false "
                "or adapter.identity.enabled=true"
            )


@dataclass(kw_only=True)
class LossConfig:
    """Weights of the loss terms, and the samples on which they count.

    On a base that predicts velocity down to zero signal, min-SNR weights (Hang et al. 2023) would give no weight to the
    noisiest steps, which decide layout and pose; the plain mean is right there. The facial perceptual loss needs low
    noise, at which the estimated clean image shows a face. The network of the latent losses reads noisy latents, needs
    no decoding, and counts at all timesteps. The sampled identity (reward feedback,
    `train_generator.terms.sampled_identity`) looks at pictures that the model draws from noise itself.

    offset_noise: share of noise that is constant over each channel of a picture (Guttenberg 2023), so that a base
    without zero terminal signal learns very dark and bright pictures. identity_contrast: adds to each loss that
    recognizes faces in pictures a multiple of the cross-entropy of the person among `identity_negatives` faces of other
    persons of the training split (as in WithAnyone), at `identity_temperature`. prior: counts on samples without face,
    identity and map (a share `dropout.reference`), and needs LoRA, under which the base is unchanged
    (`train_generator.terms.prior`).

    Raises ConfigError for a negative weight, a temperature that is not positive, and fewer than one row, step, factor
    or negative.
    """

    min_snr_gamma: float = setting(
        0.0, "Hang et al. 2023; 0 is the plain mean, right for a base with zero terminal signal"
    )
    alignment: float = setting(1e-3, "weight of the semantic alignment loss")
    alignment_factor: int = setting(2, "layers whose grid is so many times smaller than the latents")
    identity: float = setting(0.1, "weight of the facial perceptual loss on the estimated clean picture")
    identity_below: int = setting(300, "the facial perceptual loss counts at timesteps up to this one")
    identity_rows: int = setting(8, "most samples of a batch decoded for the facial perceptual loss")
    latent_identity: float = setting(0.0, "weight of the identity read from noisy latents by latent_recognizer")
    latent_attributes: float = setting(0.0, "weight of the named attributes, read by the same network")
    latent_features: float = setting(0.0, "weight of the distance of its features to the true latents'")
    offset_noise: float = setting(0.0, "share of noise that is constant over each channel; 0: none")
    identity_contrast: float = setting(
        0.0, "weight of telling the person from others, beside identity and sampled_identity and as a multiple of them"
    )
    identity_negatives: int = setting(4096, "most faces of others for it")
    identity_temperature: float = setting(0.1, "of that comparison")
    prior: float = setting(0.0, "weight of the distance from what the base predicts from words alone")
    sampled_identity: float = setting(0.0, "weight of the identity loss on pictures sampled from noise")
    sampled_rows: int = setting(2, "samples of a batch drawn from noise")
    sampled_steps: int = setting(6, "steps of their sampler")
    sampled_below: int = setting(700, "highest timestep at which their sampler stops, at random")

    def __post_init__(self) -> None:
        weights = ("alignment", "identity", "latent_identity", "latent_attributes", "latent_features")
        if not 0 < self.identity_temperature < math.inf:
            raise ConfigError(f"loss.identity_temperature: must be positive, got {self.identity_temperature}")
        weights += ("sampled_identity", "min_snr_gamma", "offset_noise", "identity_contrast", "prior")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"loss.{name}: must be finite and not negative, got {getattr(self, name)}")
        for name in ("alignment_factor", "identity_rows", "identity_negatives", "sampled_rows", "sampled_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"loss.{name}: must be at least 1, got {getattr(self, name)}")

    @property
    def reads_latents(self) -> bool:
        """Whether any term needs the latent recognizer."""
        return bool(self.latent_identity or self.latent_attributes or self.latent_features)


@dataclass(kw_only=True)
class DropoutConfig:
    """Shares of samples that are trained without some of their conditions.

    Raises ConfigError for shares that are not in [0, 1), and if `all` and `reference` together leave no samples.
    """

    all: float = setting(0.08, "share of samples without words and face")
    reference: float = setting(0.0, "without face, identity and shading channel: words alone")
    text: float = setting(0.05, "without the words")
    face: float = setting(0.15, "without the face of the joint encoder")
    identity: float = setting(0.10, "without the identity channel")
    shading: float = setting(0.25, "without the shading channel")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise ConfigError(f"dropout.{name}: must be in [0, 1), got {value}")
        if self.all + self.reference >= 1:
            raise ConfigError(f"dropout: all={self.all} and reference={self.reference} together must be less than 1")


@dataclass(kw_only=True)
class DefaultCallConfig:
    """Default arguments of calls that suit the model; the export stores them (`makeup_plugin.calls.defaults`)."""

    num_inference_steps: int = setting(50, "sampler steps where the caller gives none", resume="free")
    guidance_scale: float = setting(5.0, "guidance scale where the caller gives none", resume="free")
    guide_shading: bool = setting(False, "whether guidance then strengthens the shading channel too", resume="free")

    def __post_init__(self) -> None:
        read_defaults(asdict(self))


@dataclass(kw_only=True)
class GeneratorConfig:
    """Settings of stage 2: LoRA, identity channel and shading channel on a frozen base.

    `encoder` and `image_tower` are what `faceclip.published.load_faceclip` and `faceclip.towers.pretrained.load_tower`
    take; a published FaceCLIP has no image tower of its own. The latent recognizer must belong to this autoencoder,
    schedule and recognizer. The export contains base, encoder, fitter and the adapter of `init`, so `licence` must
    include their licences. An interrupted run resumes without `init`.
    """

    data: str | DataConfig = setting(
        "", "data set, as data= or data.path=: this project's own layout, or any other", resume="free", path=True
    )
    encoder: str = setting("", "stage-1 export, or a published FaceCLIP file or hub id", resume="free", path=True)
    image_tower: str = setting("", "image tower that reads references; '': the export's own", resume="free", path=True)
    base: str = setting("tiny", "directory with vae, unet, scheduler, or a shipped name", resume="free", path=True)
    fitter: str = setting("tiny/fitter", "3D fitter saved with the pipeline; '': none", resume="free", path=True)
    latent_recognizer: str = setting(
        "", "export of that tower, which losses loss.latent_… need", resume="free", path=True
    )
    licence: str = setting(
        "Apache-2.0", "of the export; name another where a part's licence asks for it", resume="free"
    )
    init: str = setting("", "adapter to train further with a new optimizer", resume="free", path=True)
    out: str = setting("runs/generator", "folder of the run", resume="free", path=True)
    cache: str = setting("", "folder of frozen features; '': below the data", resume="free", path=True)
    size: int = setting(64, "pixels of the generated pictures")
    same_picture: float = setting(
        0.15, "share of samples whose reference is the target; 1: no person needs a second picture"
    )
    pair_cosine: tuple[float, float] = setting(
        (-1.0, 1.0), "least and largest cosine of the faces of reference and target, where a person has such a pair"
    )
    default_call: DefaultCallConfig = field(default_factory=DefaultCallConfig)
    photos: PhotosConfig = field(default_factory=PhotosConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    frozen: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "numbers of frozen weights; 16 bits need trainer.precision=bf16, and fp16 reads a base's files in place"
    )
    gradient_checkpointing: bool = setting(False, "less memory for UNet and shading channel, in more time")
    validation_rows: int = setting(64, "most rows of a validation", resume="free")
    validation_pictures: int = setting(
        0, "pictures drawn in a validation for its figures of identity, text and pose; 0: none", resume="free"
    )
    sample_steps: int = setting(12, "sampler steps of the sample pictures", resume="free")
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def frozen_unet(self) -> Literal["fp32", "bf16", "fp16"]:
        """Type of the base's UNet when it is loaded: that of frozen weights, or float32 if the whole UNet is
        trained."""
        return "fp32" if self.adapter.unet == "full" else self.frozen

    def __post_init__(self) -> None:
        self.data = data_at(self.data)
        for name in ("size", "validation_rows", "sample_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.validation_pictures < 0:
            raise ConfigError(f"validation_pictures: must be 0 or more, got {self.validation_pictures}")
        if not 0 <= self.same_picture <= 1:
            raise ConfigError(f"same_picture: must be in [0, 1], got {self.same_picture}")
        if self.loss.prior and self.adapter.unet == "full":
            raise ConfigError("loss.prior: training the whole UNet leaves no base to compare with; set it to 0")
        low, high = self.pair_cosine
        if not -1 <= low < high <= 1:
            raise ConfigError(
                f"pair_cosine: two rising numbers from -1 to 1 are expected, got {list(self.pair_cosine)}"
            )
        if self.frozen != "fp32" and self.trainer.precision != "bf16":
            raise ConfigError(
                f"frozen={self.frozen}: weights of 16 bits are computed under autocast: set trainer.precision=bf16"
            )
        if self.loss.sampled_identity and not self.adapter.shading:
            raise ConfigError(
                "loss.sampled_identity: where the face is in a sampled picture is known only with the shading channel; "
                "set it to 0 or adapter.shading=true"
            )
