"""Random weights of SDXL's published shapes in the hub's layout: fp16 safetensors in pieces with an index.

One piece at a time is in memory. The shapes are those of stabilityai/stable-diffusion-xl-base-1.0 (UNet, autoencoder,
scheduler, tokenizers) and of what `train_encoder --preset bigg14` exports (FaceCLIP and open_clip's image tower of
ViT-bigG-14). `tiny=True` gives the same classes and files with a few thousand weights.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.memory import full_size
from faceclip.encoder import FaceCLIP
from faceclip.towers.image import ImageTower
from faceclip.towers.text import END, PAD, START

UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
IMAGE_TOWER: dict[str, Any] = {
    "width": 1664,
    "layers": 48,
    "heads": 16,
    "embed_dim": 1280,
    "mlp_ratio": 4.9231,
}
WEIGHTS = {"unet": 2_567_463_684, "vae": 83_653_863}  # of the published files
_TINY_UNET: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 2),
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}
_TINY_TEXT: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "embed_dim": 32, "vocabulary": list(range(3000))}
PIECE = 10**9  # bytes


def write_parts(directory: Path, *, tiny: bool = False) -> None:
    """base/ (unet, vae, scheduler) and encoder/ (with image_tower/) below a folder."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET | (_TINY_UNET if tiny else {}))
        vae = AutoencoderKL(**VAE | ({"block_out_channels": (32, 32, 64, 64)} if tiny else {}))
        image = ImageTower(**{"width": 32, "layers": 2, "heads": 2, "embed_dim": 32} if tiny else IMAGE_TOWER)
    encoder = _tiny_encoder() if tiny else full_size("bigg14")[0]
    base = directory / "base"
    for name, model in (("unet", unet), ("vae", vae)):
        if not tiny:
            count = sum(parameter.numel() for parameter in model.parameters())
            assert count == WEIGHTS[name], f"{name} has {count} weights, the published one {WEIGHTS[name]}"
        write_model(base / name, model, variant="fp16")
    EulerDiscreteScheduler(**SCHEDULER).save_pretrained(base / "scheduler")
    write_model(directory / "encoder", encoder)
    write_model(directory / "encoder" / "image_tower", image)


def _tiny_encoder() -> FaceCLIP:
    face = {"image_size": 36, "patch_size": 9, "width": 48, "depth": 1, "heads": 4, "embedding_dim": 32}
    small = {"layers": 2, "attention_width": 32, "text_hidden": 32, "face_hidden": 32, "face_heads": 4}
    with torch.device("meta"):
        return FaceCLIP(face=face, text_l=_TINY_TEXT, text_g=_TINY_TEXT | {"quick_gelu": False}, fusion=small)


def write_model(folder: Path, model: Any, *, variant: str = "") -> None:
    """Random fp16 weights of a model on the meta device, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(len(folder.name))
    pieces: list[list[tuple[str, Tensor]]] = [[]]
    held = 0
    for name, tensor in model.state_dict().items():
        size = 2 * tensor.numel()
        if pieces[-1] and held + size > PIECE:
            pieces.append([])
            held = 0
        pieces[-1].append((name, tensor))
        held += size
    dotted, where, total = f".{variant}" if variant else "", {}, 0
    for number, piece in enumerate(pieces, 1):
        file = f"diffusion_pytorch_model{dotted}-{number:05d}-of-{len(pieces):05d}.safetensors"
        if len(pieces) == 1:
            file = f"diffusion_pytorch_model{dotted}.safetensors"
        values = {name: random_weight(model, name, tensor, generator) for name, tensor in piece}
        save_file(values, folder / file, {"format": "pt"})
        where |= dict.fromkeys(values, file)
        total += sum(value.numel() * value.element_size() for value in values.values())
    if len(pieces) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"diffusion_pytorch_model.safetensors.index{dotted}.json").write_text(json.dumps(index))
    model.save_config(folder)


def random_weight(model: nn.Module, name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A value that keeps signals finite through many layers: gains 1, biases 0, matrices of variance 1 / inputs."""
    if name.endswith("known_ids"):
        tower = model.get_submodule(name.rpartition(".")[0])
        return torch.tensor(sorted({START, END, PAD, *tower.config.vocabulary}), dtype=tensor.dtype)
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu")
    if tensor.ndim < 2:
        gain = name.endswith(("weight", "running_var"))
        return torch.full(tensor.shape, float(gain), dtype=torch.float16)
    inputs = math.prod(tensor.shape[1:]) if "embed" not in name else 2500
    value = torch.empty(tensor.shape, dtype=torch.float32).uniform_(generator=generator)
    return value.sub_(0.5).mul_(math.sqrt(12 / inputs)).half()
