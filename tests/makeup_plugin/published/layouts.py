"""Small published adapters and bases whose weights are a function of their names alone.

The golden numbers (`data/published_outputs.safetensors`) were made once by running the original classes on these
weights: tencent-ailab/IP-Adapter's projections and attention processors, InstantID's resampler and processors, and
Face-MakeUp's; the ControlNet, the base and the schedule are diffusers'.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from tests.makeup_plugin.bases import make_base, make_image_tower, make_recognizer
from tests.makeup_plugin.conftest import IDENTITY, IMAGE

GOLDEN = Path(__file__).parent / "data" / "published_outputs.safetensors"
WIDTH, RANK, DEPTH = 64, 4, 4
CASES = {  # name -> (kind, base)
    "faceid_sd15": ("ip-adapter-faceid", "sd15"),
    "faceid_sdxl": ("ip-adapter-faceid", "sdxl"),
    "plus_sd15": ("ip-adapter-faceid-plus", "sd15"),
    "plusv2_sd15": ("ip-adapter-faceid-plusv2", "sd15"),
    "plusv2_sdxl": ("ip-adapter-faceid-plusv2", "sdxl"),
    "facemakeup": ("facemakeup-v1", "sd15"),
    "instantid": ("instantid", "sdxl"),
}
CONTROLLED = ("facemakeup", "instantid")
PROMPT, NEGATIVE = "a man in a hat", "ugly"
STEPS, GUIDANCE = 3, 3.0


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of a tensor called `name`, of a size at which signals neither vanish nor explode."""
    numbers = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if len(shape) >= 2:
        numbers = numbers / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("weight", "running_var")):
        numbers = 1 + 0.2 * np.tanh(numbers)
    else:
        numbers = 0.2 * numbers
    return torch.from_numpy(np.asarray(numbers, np.float32))


def fill(module: nn.Module, prefix: str) -> nn.Module:
    """The module with weights by name."""
    state = module.state_dict()
    drawn = {key: values(f"{prefix}.{key}", tuple(value.shape)) for key, value in state.items() if value.ndim}
    floating = {key: value for key, value in drawn.items() if state[key].is_floating_point()}
    module.load_state_dict({**state, **floating})
    return module.eval()


def filled_base(form: str) -> dict[str, Any]:
    parts = make_base(form, context=WIDTH)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if name in parts:
            fill(parts[name], f"{form}.{name}")
    return parts


def filled_tower() -> nn.Module:
    return fill(make_image_tower(), "image_encoder")


def filled_recognizer() -> nn.Module:
    return fill(make_recognizer.__wrapped__(), "face_encoder")


def filled_control(unet: UNet2DConditionModel) -> ControlNetModel:
    channels = (4, 8, 8)  # the small VAE shrinks four times
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    return fill(control, "controlnet")


def adapter_state(case: str, unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """The file of a kind, in its published layout, for a small UNet."""
    state = {"image_proj": _projection(case), "ip_adapter": _attention(unet, lora=case != "instantid")}
    if case == "facemakeup":
        state["controlnet"] = filled_control(unet).state_dict()
    return {
        root: {name: value if root == "controlnet" else values(f"{root}.{name}", value) for name, value in part.items()}
        for root, part in state.items()
    }


def _projection(case: str) -> dict[str, Any]:
    if case == "instantid":
        hidden = 128
        return {"latents": (1, 6, hidden), **_resampler("", hidden, IDENTITY, depth=2, inner=128)}
    shapes = {
        "proj.0.weight": (2 * IDENTITY, IDENTITY),
        "proj.0.bias": (2 * IDENTITY,),
        "proj.2.weight": (4 * WIDTH, 2 * IDENTITY),
        "proj.2.bias": (4 * WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if case.startswith("faceid"):
        return shapes
    return shapes | _resampler("perceiver_resampler.", WIDTH, IMAGE, depth=DEPTH, inner=64)


def _resampler(prefix: str, width: int, read: int, *, depth: int, inner: int) -> dict[str, Any]:
    shapes = {
        f"{prefix}proj_in.weight": (width, read),
        f"{prefix}proj_in.bias": (width,),
        f"{prefix}proj_out.weight": (WIDTH, width),
        f"{prefix}proj_out.bias": (WIDTH,),
        f"{prefix}norm_out.weight": (WIDTH,),
        f"{prefix}norm_out.bias": (WIDTH,),
    }
    for layer in range(depth):
        attention, forward = f"{prefix}layers.{layer}.0.", f"{prefix}layers.{layer}.1."
        for norm in (f"{attention}norm1", f"{attention}norm2", f"{forward}0"):
            shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        shapes |= {f"{attention}to_q.weight": (inner, width), f"{attention}to_kv.weight": (2 * inner, width)}
        shapes |= {f"{attention}to_out.weight": (width, inner)}
        shapes |= {f"{forward}1.weight": (4 * width, width), f"{forward}3.weight": (width, 4 * width)}
    return shapes


def _attention(unet: UNet2DConditionModel, *, lora: bool) -> dict[str, Any]:
    modules, shapes = dict(unet.named_modules()), {}
    for index, name in enumerate(unet.attn_processors):
        attn = modules[name.removesuffix(".processor")]
        linears = {"to_q": attn.to_q, "to_k": attn.to_k, "to_v": attn.to_v, "to_out": attn.to_out[0]}
        for kind, linear in linears.items() if lora else ():
            shapes[f"{index}.{kind}_lora.down.weight"] = (RANK, linear.in_features)
            shapes[f"{index}.{kind}_lora.up.weight"] = (linear.out_features, RANK)
        if "attn2" in name:
            for kind in ("to_k_ip", "to_v_ip"):
                shapes[f"{index}.{kind}.weight"] = (attn.inner_dim, WIDTH)
    return shapes


def unet_inputs(form: str) -> dict[str, Tensor]:
    """Two rows of everything that a UNet reads."""
    inputs = {
        "latents": 3 * values("input.latents", (2, 4, 8, 8)) * 16,
        "timesteps": torch.tensor([100, 700]),
        "text": values("input.text", (2, 7, WIDTH)) * 20,
        "identity": 3 * values("input.identity", (2, IDENTITY)),
        "image_tokens": values("input.image_tokens", (2, 5, IMAGE)) * 10,
        "map": values("input.map", (2, 3, 32, 32)).abs().clamp(0, 1),
    }
    if form == "sdxl":
        inputs |= {"pooled": values("input.pooled", (2, 24)), "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    return inputs


def first_noise() -> Tensor:
    """Latents (1,4,8,8) of unit variance."""
    return 16 * values("pipeline.latents", (1, 4, 8, 8))


def photo() -> np.ndarray:
    return np.random.Generator(np.random.PCG64(9)).integers(0, 255, (80, 80, 3), dtype=np.uint8)


POINTS = np.array([[30, 30], [50, 30], [40, 42], [32, 52], [48, 52]], dtype=np.float32)
