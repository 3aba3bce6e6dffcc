"""How much longer a call of FaceMakeUpPipeline takes than StableDiffusionXLPipeline with text towers on the same UNet.

    python benchmarks/pipeline_speed.py [--steps 30] [--batch 1] [--repeat 3]

The shipped tiny towers, UNet and autoencoder, with a fusion of the tiny preset's sizes (`--fusion published`: of the
published ones, several times those of this UNet) and channels of random weights: time does not depend on weights. All
calls are interleaved, each with a prompt of its own, and each row is the ratio of least processor times. "known face"
draws a face that the pipeline remembers; "new face" is the first call with one, without detection. "ControlNet alone"
is what the shading channel's network takes in these steps by itself. Below: the shading map and the watermark of
1,024 px.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from timing import describe, timed

from faceclip import weights
from faceclip.encoder import FaceCLIP
from faceclip.face3d.camera import Camera
from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.light import ambient_light
from faceclip.face3d.shading import shading_map
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.marking import watermark
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.shipped import shipped_pipeline
from makeup_plugin.shading import shading_channel_from_unet
from train_encoder.config import FusionConfig

PROMPTS = (f"a smiling person with red hair, number {number}" for number in itertools.count())
POINTS = np.array([[48, 56], [80, 56], [64, 76], [52, 92], [76, 92]], dtype=np.float32)


def parts(fusion: dict) -> dict:
    """The shipped towers and base, and a fusion of random weights."""
    kinds = (FaceViT, "tiny/recognizer"), (TextTower, "tiny/text_tower_l"), (TextTower, "tiny/text_tower_g")
    towers = [kind.from_pretrained(weights.path(name)) for kind, name in kinds]
    base = {
        "unet": UNet2DConditionModel.from_pretrained(shipped_pipeline("tiny") / "unet"),
        "vae": AutoencoderKL.from_pretrained(shipped_pipeline("tiny") / "vae"),
    }
    joint_encoder = FaceCLIP.from_components(*towers, fusion=fusion).eval()
    return {**base, "scheduler": DDIMScheduler(), "joint_encoder": joint_encoder}


def arms(steps: int, batch: int, fusion: dict) -> dict[str, Callable[[], object]]:
    """The calls that are compared; the first is the reference."""
    torch.manual_seed(0)
    base = parts(fusion)
    plain = FaceMakeUpPipeline(**base, add_watermark=False)
    adapted = base["unet"].__class__.from_config(base["unet"].config)
    adapted.load_state_dict(base["unet"].state_dict())
    tower = ImageTower.from_pretrained(weights.path("tiny/image_tower"))
    channel = IdentityChannel.from_unet(
        adapted, identity_dim=base["joint_encoder"].face_encoder.config.embedding_dim, image_dim=tower.config.width
    )
    full = FaceMakeUpPipeline(
        **{**base, "unet": adapted},
        image_encoder=tower,
        shading_channel=shading_channel_from_unet(adapted, vae_scale_factor=plain.vae_scale_factor),
        identity_channel=channel,
        face_fitter=FaceFitter.from_pretrained(weights.path("tiny/fitter")),
        add_watermark=False,
    )
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    sdxl = {name: base[name] for name in ("unet", "vae")}
    theirs = StableDiffusionXLPipeline(**sdxl, **none, scheduler=DDIMScheduler(), add_watermarker=False)
    for pipeline in (plain, full, theirs):
        pipeline.set_progress_bar_config(disable=True)
    photo = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    settings = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "np"}

    @torch.no_grad()
    def reference() -> None:
        states = base["joint_encoder"].text_states([next(PROMPTS), ""])
        pooled = states[:, 0, -plain.joint_encoder.branches[-1].text.config.width :]
        rows = {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:]}
        rows |= {"pooled_prompt_embeds": pooled[:1], "negative_pooled_prompt_embeds": pooled[1:]}
        theirs(**rows, num_images_per_prompt=batch, **settings)

    def ours(pipeline: FaceMakeUpPipeline, *, known: bool = True, **arguments) -> Callable[[], object]:
        def call() -> None:
            if not known:
                pipeline.forget_faces()
            pipeline(next(PROMPTS), photo, landmarks=POINTS, num_images_per_prompt=batch, **settings, **arguments)

        return call

    @torch.no_grad()
    def controlnet_alone() -> None:
        network, width = full.shading_channel, full.unet.config.cross_attention_dim
        size, unet = full.unet.config.sample_size, full.unet.config
        pooled = full.joint_encoder.branches[-1].text.config.width
        inputs = torch.zeros(2 * batch, unet.in_channels, size, size), torch.tensor(10)
        added = {"text_embeds": torch.zeros(2 * batch, pooled), "time_ids": torch.zeros(2 * batch, 6)}
        tokens = torch.zeros(2 * batch, channel.config.num_tokens, width)
        shading = torch.zeros(2 * batch, 3, size * full.vae_scale_factor, size * full.vae_scale_factor)
        for _ in range(steps):
            network(
                *inputs,
                encoder_hidden_states=tokens,
                controlnet_cond=shading,
                added_cond_kwargs=added,
                return_dict=False,
            )

    return {
        "StableDiffusionXLPipeline": reference,
        "joint tokens, known face": ours(plain),
        "joint tokens, new face": ours(plain, known=False),
        "identity channel at scale 0": ours(full, identity_scale=0, shading_scale=0),
        "identity channel": ours(full, shading_scale=0),
        "all channels, map guided": ours(full, guide_shading=True),
        "all channels": ours(full),
        "all channels, new face": ours(full, known=False),
        "ControlNet alone": controlnet_alone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--fusion", choices=("tiny", "published"), default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls = arms(options.steps, options.batch, {} if options.fusion == "published" else asdict(FusionConfig()))
    least = dict.fromkeys(calls, float("inf"))
    for number in range(options.repeat + 1):  # the first warms up
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:
                least[name] = min(least[name], time.process_time() - started)
    print(f"{options.steps} steps, batch {options.batch}, {describe(torch.device('cpu'))}")
    first = next(iter(least.values()))
    for name, seconds in least.items():
        print(f"{name:32} {1000 * seconds:8.0f} ms  {seconds / first:5.2f} ×")
    light, camera = ambient_light(np.full(3, 0.8)), Camera()
    picture = np.random.default_rng(0).random((1024, 1024, 3))
    smooth = np.asarray(torch.nn.functional.avg_pool2d(torch.from_numpy(picture).permute(2, 0, 1), 9, 1, 4)).transpose(
        1, 2, 0
    )
    for name, action in (
        (
            "shading map, 1,024 px",
            lambda: shading_map(np.zeros(48), np.zeros(21), (10.0, 5.0, 0.0), camera, light, 1024),
        ),
        ("watermark, 1,024 px", lambda: watermark.embed(smooth)),
    ):
        print(f"{name:32} {1000 * timed(action, options.repeat, torch.device('cpu')).cpu:8.0f} ms")


if __name__ == "__main__":
    main()
