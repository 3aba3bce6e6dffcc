"""Tiny real components: the classes of the full-size pipeline with few channels and random weights."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from makeup_plugin.conditioning import Conditions, time_ids
from makeup_plugin.identity import IdentityChannel

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
