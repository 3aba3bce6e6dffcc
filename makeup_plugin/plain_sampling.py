"""Plain text-to-image sampling with a base model alone: no face, no plugin."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from faceclip.towers.text_pair import TextPair
from makeup_plugin.conditioning import time_ids
from makeup_plugin.losses import decode_latents


@torch.no_grad()
def sample_portraits(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    scheduler: DDIMScheduler,
    towers: TextPair,
    prompts: Sequence[str],
    *,
    steps: int = 20,
    guidance: float = 4.0,
    size: int = 64,
    seed: int = 0,
    batch: int = 32,
) -> Tensor:
    """Portraits (N, 3, size, size) in [0, 1]; image i depends on the seed and i alone, not on the batch."""
    images = []
    nothing = towers.encode([""])
    side = unet.config.sample_size
    for start in range(0, len(prompts), batch):
        text = towers.encode(list(prompts[start : start + batch]))
        count = len(text.tokens)
        tokens = torch.cat([nothing.tokens.expand(count, -1, -1), text.tokens])
        pooled = torch.cat([nothing.pooled.expand(count, -1), text.pooled])
        added = {"text_embeds": pooled, "time_ids": time_ids(size, size, 2 * count)}
        noise = [
            torch.randn(unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(seed + i))
            for i in range(start, start + count)
        ]
        scheduler.set_timesteps(steps)
        latents = torch.stack(noise) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            double = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            prediction = unet(double, timestep, encoder_hidden_states=tokens, added_cond_kwargs=added).sample
            without, with_text = prediction.chunk(2)
            prediction = without + guidance * (with_text - without)
            latents = scheduler.step(prediction, timestep, latents).prev_sample
        images.append(decode_latents(vae, latents))
    return torch.cat(images)
