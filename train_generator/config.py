"""Settings of stage 2."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from faceclip.data.mapping import DataConfig, data_at
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from faceclip.training import TrainerConfig
from makeup_plugin.calls.defaults import read_defaults
from train_generator.streamed.config import PhotosConfig

PRESETS = Path(__file__).parent / "presets"


@dataclass(kw_only=True)
class IdentityChannelConfig:
    """Arguments of `IdentityChannel.from_unet`; `enabled` false trains without it."""

    enabled: bool = setting(True, "false trains without it")
    num_tokens: int = setting(4, "identity tokens", least=1)
    depth: int = setting(2, "perceiver layers; 0: tokens of the identity alone", least=0)
    heads: int = setting(4, "of the perceiver", least=1)
    dim_head: int = setting(32, "width of a head", least=1)

    def __post_init__(self) -> None:
        check_bounds(self, "adapter.identity.")


@dataclass(kw_only=True)
class AdapterConfig:
    """What is trained: LoRA on the UNet's attention or the whole UNet (as in FaceCLIP-SDXL), and both channels.

    Raises ConfigError for a shading channel without identity channel, and for a `unet_rate` that is not positive.
    """

    unet: Literal["lora", "full"] = setting("lora", "what of the UNet is trained: LoRA on its attention, or all of it")
    lora_rank: int = setting(16, "rank of that LoRA")
    unet_rate: float = setting(1.0, "learning rate of the whole UNet as a multiple of trainer.learning_rate", above=0)
    identity: IdentityChannelConfig = field(default_factory=IdentityChannelConfig)
    shading: bool = setting(True, "train the shading channel")
    shading_layers: Literal["all", "new"] = setting(
        "all", "what of the shading channel is trained; new: its own layers, while its copy of the UNet stays frozen"
    )

    def __post_init__(self) -> None:
        check_bounds(self, "adapter.")
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
    noise, at which the estimated clean image shows a face. The sampled identity (reward feedback,
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
        0.0, "Hang et al. 2023; 0 is the plain mean, right for a base with zero terminal signal", least=0
    )
    alignment: float = setting(1e-3, "weight of the semantic alignment loss", least=0)
    alignment_factor: int = setting(2, "layers whose grid is so many times smaller than the latents", least=1)
    identity: float = setting(0.1, "weight of the facial perceptual loss on the estimated clean picture", least=0)
    identity_below: int = setting(300, "the facial perceptual loss counts at timesteps up to this one")
    identity_rows: int = setting(8, "most samples of a batch decoded for the facial perceptual loss", least=1)
    offset_noise: float = setting(0.0, "share of noise that is constant over each channel; 0: none", least=0)
    identity_contrast: float = setting(
        0.0,
        "weight of telling the person from others, beside identity and sampled_identity and as a multiple of them",
        least=0,
    )
    identity_negatives: int = setting(4096, "most faces of others for it", least=1)
    identity_temperature: float = setting(0.1, "of that comparison", above=0)
    prior: float = setting(0.0, "weight of the distance from what the base predicts from words alone", least=0)
    sampled_identity: float = setting(0.0, "weight of the identity loss on pictures sampled from noise", least=0)
    sampled_rows: int = setting(2, "samples of a batch drawn from noise", least=1)
    sampled_steps: int = setting(6, "steps of their sampler", least=1)
    sampled_below: int = setting(700, "highest timestep at which their sampler stops, at random")

    def __post_init__(self) -> None:
        check_bounds(self, "loss.")


@dataclass(kw_only=True)
class DropoutConfig:
    """Shares of samples that are trained without some of their conditions.

    Raises ConfigError for shares that are not in [0, 1), and if `all` and `reference` together leave no samples.
    """

    all: float = setting(0.08, "share of samples without words and face", least=0, below=1)
    reference: float = setting(0.0, "without face, identity and shading channel: words alone", least=0, below=1)
    text: float = setting(0.05, "without the words", least=0, below=1)
    face: float = setting(0.15, "without the face of the joint encoder", least=0, below=1)
    identity: float = setting(0.10, "without the identity channel", least=0, below=1)
    shading: float = setting(0.25, "without the shading channel", least=0, below=1)

    def __post_init__(self) -> None:
        check_bounds(self, "dropout.")
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
    take; a published FaceCLIP has no image tower of its own. The export contains base, encoder, fitter and the adapter
    of `init`, so `licence` must include their licences. An interrupted run resumes without `init`.
    """

    data: str | DataConfig = setting(
        "", "data set, as data= or data.path=: this project's own layout, or any other", resume="free", path=True
    )
    encoder: str = setting(
        "", "stage-1 export, a published FaceCLIP file or hub id, or a shipped name", resume="free", path=True
    )
    image_tower: str = setting("", "image tower that reads references; '': the export's own", resume="free", path=True)
    base: str = setting("tiny", "directory with vae, unet, scheduler, or a shipped name", resume="free", path=True)
    fitter: str = setting("tiny/fitter", "3D fitter saved with the pipeline; '': none", resume="free", path=True)
    licence: str = setting(
        "Apache-2.0", "of the export; name another where a part's licence asks for it", resume="free"
    )
    init: str = setting("", "adapter to train further with a new optimizer", resume="free", path=True)
    out: str = setting("runs/generator", "folder of the run", resume="free", path=True)
    cache: str = setting("", "folder of frozen features; '': below the data", resume="free", path=True)
    size: int = setting(64, "pixels of the generated pictures", least=1)
    same_picture: float = setting(
        0.15, "share of samples whose reference is the target; 1: no person needs a second picture", least=0, most=1
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
    validation_rows: int = setting(64, "most rows of a validation", resume="free", least=1)
    validation_pictures: int = setting(
        0, "pictures drawn in a validation for its figures of identity, text and pose; 0: none", resume="free", least=0
    )
    sample_steps: int = setting(12, "sampler steps of the sample pictures", resume="free", least=1)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def frozen_unet(self) -> Literal["fp32", "bf16", "fp16"]:
        """Type of the base's UNet when it is loaded: that of frozen weights, or float32 if the whole UNet is
        trained."""
        return "fp32" if self.adapter.unet == "full" else self.frozen

    def check_named(self) -> None:
        """Raises ConfigError unless data and encoder are named."""
        if not data_at(self.data).path:
            raise ConfigError("data: name its directory, as in data=DIR")
        if not self.encoder:
            raise ConfigError("encoder: name a stage-1 export, as in encoder=RUN/export, or encoder=tiny, which ships")

    def __post_init__(self) -> None:
        self.data = data_at(self.data)
        check_bounds(self)
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
