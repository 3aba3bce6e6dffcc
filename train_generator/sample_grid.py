"""Draws the pictures of a validation of stage 2, and the grid of them."""

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.conditioning import Conditions, concatenate, unconditional_half
from makeup_plugin.losses import decode_latents
from makeup_plugin.sampling import denoise, make_timesteps

GUIDANCE = 3.0


def draw_pictures(
    pipeline: FaceMakeUpPipeline, batch: dict[str, Tensor], conditions: Conditions, noise: Tensor, *, steps: int
) -> Tensor:
    """Draws pictures (B, 3, H, W) in [0, 1] for a batch from noise (B, C, h, w) under the conditions."""
    height, width = batch["shading"].shape[-2:]
    without = unconditional_half(
        pipeline.joint_encoder, [""], conditions, height=height, width=width, keep_shading=True
    )
    without = replace(without, time_ids=conditions.time_ids)
    noise = noise.to(conditions.tokens.device)
    latents = denoise(
        pipeline.unet,
        pipeline.scheduler,
        noise,
        concatenate([without, conditions]),
        timesteps=make_timesteps(pipeline.scheduler, steps, noise.device),
        guidance_scale=GUIDANCE,
        identity_channel=pipeline.identity_channel,
        shading_channel=pipeline.shading_channel,
    )
    return decode_latents(pipeline.vae, latents)


def draw_columns(
    pipeline: FaceMakeUpPipeline, batch: dict[str, Tensor], conditions: Conditions, noise: Tensor, *, steps: int
) -> Tensor:
    """Returns B columns of the grid, (3, 3 H, B W) in [0, 1]: targets, shading maps, and pictures drawn from noise
    (B, C, h, w) under the conditions."""
    pictures = draw_pictures(pipeline, batch, conditions, noise, steps=steps)
    rows = [decode_latents(pipeline.vae, batch["latents"]), batch["shading"].float() / 255, pictures]
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)


def grid_picture(columns: list[Tensor]) -> Image.Image:
    """Joins columns (3, H, W) in [0, 1] side by side to a picture."""
    pixels = torch.cat(columns, dim=2).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).cpu().numpy())
