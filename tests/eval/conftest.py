"""Small untrained models in the folders that the training commands export."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from eval.judges.networks import Judge, SecondRecognizer
from faceclip.data.records import VOCABULARIES
from faceclip.encoder import FaceCLIP
from faceclip.face3d.fitter import FaceFitter
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from makeup_plugin import FaceMakeUpPipeline, IdentityChannel
from makeup_plugin.saving.adapters import LoraSettings, add_lora
from makeup_plugin.shading import shading_channel_from_unet


@pytest.fixture(scope="session")
def joint_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with FaceCLIP and its image tower, random weights."""
    directory = tmp_path_factory.mktemp("joint")
    torch.manual_seed(0)
    face = FaceViT(image_size=36, patch_size=9, width=32, depth=1, heads=2, embedding_dim=16)
    words = list(range(256, 3000))
    text_l = TextTower(width=32, layers=1, heads=2, quick_gelu=True, embed_dim=24, vocabulary=words)
    text_g = TextTower(width=48, layers=1, heads=2, quick_gelu=False, embed_dim=24, vocabulary=words)
    FaceCLIP.from_components(face, text_l, text_g, fusion={}, joint={}).save_pretrained(directory)
    tower = ImageTower(image_size=32, patch_size=8, width=32, layers=1, heads=2, embed_dim=24)
    tower.save_pretrained(directory / "image_tower")
    return directory


@pytest.fixture(scope="session")
def pipeline_export(tmp_path_factory: pytest.TempPathFactory, joint_export: Path) -> Path:
    """Folder of a whole pipeline at 32 px with random weights and every channel."""
    directory = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(1)
    joint = FaceCLIP.from_pretrained(joint_export)
    levels = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=levels[0],
        up_block_types=levels[1],
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=80,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 48,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=32,
    )
    control = shading_channel_from_unet(unet, vae_scale_factor=4)
    torch.nn.init.normal_(control.controlnet_mid_block.weight, std=0.3)
    channel = IdentityChannel.from_unet(unet, identity_dim=16, image_dim=32, depth=1, heads=2, dim_head=8)
    add_lora(unet, LoraSettings(rank=2))
    pipeline = FaceMakeUpPipeline(
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(),
        joint_encoder=joint,
        image_encoder=ImageTower.from_pretrained(joint_export / "image_tower"),
        identity_channel=channel,
        shading_channel=control,
        face_fitter=FaceFitter(image_size=32, widths=(8, 16, 16, 16), hidden=16),
    )
    pipeline.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def judge_exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an untrained judge and an untrained second recognizer."""
    directory = tmp_path_factory.mktemp("judges")
    torch.manual_seed(2)
    Judge(vocabularies=VOCABULARIES, image_size=32, widths=(8, 8), hidden=16).save_pretrained(directory / "judge")
    second = SecondRecognizer(image_size=32, widths=(8, 8), embedding_dim=12)
    second.save_pretrained(directory / "second")
    return directory / "judge", directory / "second"
