"""Plain text-to-image sampling with a base model alone: no face, no plugin."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from faceclip.towers.text_pair import TextPair
from makeup_plugin.conditioning import Conditions, concatenate, time_ids
from makeup_plugin.losses import decode_latents
from makeup_plugin.sampling import denoise, make_timesteps


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
        sizes = time_ids(size, size, count)
        negative = Conditions(
            tokens=nothing.tokens.expand(count, -1, -1), pooled=nothing.pooled.expand(count, -1), time_ids=sizes
        )
        positive = Conditions(tokens=text.tokens, pooled=text.pooled, time_ids=sizes)
        noise = [
            torch.randn(unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(seed + i))
            for i in range(start, start + count)
        ]
        latents = denoise(
            unet,
            scheduler,
            torch.stack(noise),
            concatenate([negative, positive]),
            timesteps=make_timesteps(scheduler, steps, "cpu"),
            guidance_scale=guidance,
        )
        images.append(decode_latents(vae, latents))
    return torch.cat(images)
