"""Tiny real components: the classes of the full-size pipeline with few channels and random weights."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from faceclip.encoder import FaceCLIP
from faceclip.face3d.frames import FaceFit
from faceclip.towers.image import ImageTower
from faceclip.towers.text import tokenizer
from makeup_plugin.conditioning import Conditions, time_ids
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import LoraSettings, add_lora
from makeup_plugin.shading import shading_channel_from_unet

CONTEXT, POOLED, IDENTITY, IMAGE = 48, 24, 16, 20


def make_unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    settings = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "transformer_layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": CONTEXT,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + POOLED,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def make_vae(seed: int = 1) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
    ).eval()


def make_channel(unet: UNet2DConditionModel, **changes) -> IdentityChannel:
    settings = {"identity_dim": IDENTITY, "image_dim": IMAGE, "depth": 2, "heads": 2, "dim_head": 8}
    return IdentityChannel.from_unet(unet, **{**settings, **changes}).eval()


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def unet_factory():
    return make_unet


@pytest.fixture
def vae() -> AutoencoderKL:
    return make_vae()


@pytest.fixture
def channel_factory():
    return make_channel


@pytest.fixture
def channel(unet: UNet2DConditionModel) -> IdentityChannel:
    torch.manual_seed(2)
    return make_channel(unet)


@pytest.fixture
def conditions() -> Conditions:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Conditions(
        tokens=normal(3, 77, CONTEXT),
        pooled=normal(3, POOLED),
        time_ids=time_ids(32, 32, 3),
        identity=torch.nn.functional.normalize(normal(3, IDENTITY), dim=-1),
        image_tokens=normal(3, 5, IMAGE),
        shading=torch.rand(3, 3, 32, 32, generator=generator),
        shading_keep=torch.ones(3),
    )


@pytest.fixture
def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of three samples and their timesteps."""
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([10, 500, 900])


WORDS = "photo of a id person. man woman old young b"


def make_joint_encoder() -> FaceCLIP:
    """FaceCLIP with one layer of everything; its compact vocabulary holds the words of these tests."""
    text = {"layers": 1, "heads": 2, "embed_dim": 8, "vocabulary": tokenizer().encode(WORDS)}
    return FaceCLIP(
        face={"image_size": 16, "patch_size": 8, "width": 12, "depth": 1, "heads": 2, "embedding_dim": IDENTITY},
        text_l={**text, "width": CONTEXT - POOLED},
        text_g={**text, "width": POOLED, "quick_gelu": False},
        fusion={"layers": 1, "attention_width": 8, "attention_heads": 2, "text_hidden": 8, "face_heads": 2},
    ).eval()


def make_image_tower() -> ImageTower:
    """open_clip's vision transformer at 8 px: a class token and four patches."""
    return ImageTower(image_size=8, patch_size=4, width=IMAGE, layers=2, heads=2, embed_dim=8).eval()


class MeanFitter(ModelMixin, ConfigMixin):
    """Smallest module with FaceFitter's methods: shape and "pose" are the image's mean brightness."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    @apply_forward_hook
    def fit(self, images, landmarks, *, framed=True):
        assert landmarks.shape == (len(images), 5, 2) and not framed
        count = len(images)
        means = torch.tensor([[image.mean() / 255] for image in images], dtype=self.scale.dtype)
        return FaceFit(
            shape=means * self.scale.cpu(),
            expression=torch.zeros(count, 1),
            pose=means.repeat(1, 3),
            camera=torch.tensor([[1.0, 0.0, 0.0, 14.0]]).repeat(count, 1),
            light=torch.zeros(count, 9, 3),
        )

    def shading(self, fit, size):
        value = torch.stack([fit.shape[:, 0], fit.pose[:, 0], fit.pose[:, 0]], dim=1)
        return value[:, :, None, None].expand(-1, -1, size, size)


def make_base() -> dict:
    """A base model's parts, the same on every call."""
    torch.manual_seed(7)
    encoder = make_joint_encoder()
    return {"unet": make_unet(), "vae": make_vae(), "scheduler": DDIMScheduler(), "joint_encoder": encoder}


def make_pipeline(*, lora: bool = True) -> FaceMakeUpPipeline:
    """The whole pipeline with channels that say something."""
    parts = make_base()
    torch.manual_seed(8)
    control = shading_channel_from_unet(parts["unet"], vae_scale_factor=4).eval()
    for module in (control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out):
        nn.init.normal_(module.weight, std=0.3)
    channel = make_channel(parts["unet"])
    if lora:
        for parameter in add_lora(parts["unet"], LoraSettings(rank=2)):
            nn.init.normal_(parameter, std=0.1)
    pipeline = FaceMakeUpPipeline(
        **parts,
        image_encoder=make_image_tower(),
        identity_channel=channel,
        shading_channel=control,
        face_fitter=MeanFitter().eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline() -> FaceMakeUpPipeline:
    return make_pipeline()


@pytest.fixture(scope="session")
def untouched() -> FaceMakeUpPipeline:
    """One pipeline for all calls that are rejected before anything is drawn."""
    return make_pipeline()


@pytest.fixture
def base_parts():
    return make_base


@pytest.fixture
def photo() -> np.ndarray:
    """A picture whose face is given by hand (below), so that no detector runs."""
    return np.random.default_rng(9).integers(0, 255, (80, 80, 3), dtype=np.uint8)


@pytest.fixture
def points() -> np.ndarray:
    return np.array([[30, 30], [50, 30], [40, 42], [32, 52], [48, 52]], dtype=np.float32)
