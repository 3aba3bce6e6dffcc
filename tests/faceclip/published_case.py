"""A small FaceCLIP in the published layout, with weights that are a function of their names alone.

The golden outputs (`data/published_outputs.safetensors`, numbers only) were made by running the original classes of
bytedance/FaceCLIP (its `TextFaceEmbeddingFuser`, its face `VisionTransformer`, open_clip's text transformer, put
together as its `TextImageBranch.forward`) at this size on these weights; the two agreed to 1.4e-6 everywhere.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

from faceclip.encoder import FaceCLIP
from faceclip.published.checkpoint import to_published

CONFIG = {
    "face": {"image_size": 112, "patch_size": 9, "width": 32, "depth": 2, "heads": 2, "embedding_dim": 16},
    "text_l": {"width": 32, "layers": 2, "heads": 2, "quick_gelu": True, "embed_dim": 32},
    "text_g": {"width": 48, "layers": 2, "heads": 2, "quick_gelu": False, "embed_dim": 48},
    "fusion": {"layers": 3, "attention_width": 32, "text_hidden": 32, "face_hidden": 64},
    "joint": None,
}
# Plain, empty, with "id" again, non-ASCII, longer than 77 tokens, and one that looks like the template.
PROMPTS = ["a man in a red hat", "", "an id card with an id", "größe 日本語 ñ", "word " * 200, "Photo of a id person."]


def faces() -> Tensor:
    """(6, 3, 130, 130) in [0, 1]."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(1)).random((6, 3, 130, 130), dtype=np.float32))


def published_state() -> dict[str, Tensor]:
    """All published tensors of the small size, layer-scale gammas of order one."""
    model = FaceCLIP(**CONFIG)
    state = to_published(model.state_dict(), _unused(model))
    return {name: _values(name, tuple(tensor.shape)) for name, tensor in sorted(state.items())}


def _unused(model: FaceCLIP) -> dict[str, Tensor]:
    """Shapes of what the release stores without using it, from the layers that do compute their face half."""
    out = {}
    last = CONFIG["fusion"]["layers"] - 1
    for branch, root in (("l", "face_clip_l"), ("g", "face_clip_g")):
        width = CONFIG[f"text_{branch}"]["width"]
        full = {k: v for k, v in model.state_dict().items() if k.startswith(f"{branch}.fusion.layers.0.")}
        first = to_published(full, {})
        prefix = f"{root}.fuser.encoder."
        for name, tensor in first.items():
            moved = name.replace(".0.", f".{last}.", 1)
            dead = [f"fusion_layers.0.{d}" for d in ("gamma_v", "attn.values_l_proj", "attn.out_v_proj")]
            if name.removeprefix(prefix).startswith(("layers.", *dead)):
                out[moved] = tensor
        out |= {f"{root}.logit_scale": torch.zeros(()), f"{root}.logit_bias": torch.zeros(())}
        out |= {f"{root}.fuser.enc_output.weight": torch.zeros(width, width)}
        out |= {
            f"{root}.fuser.{n}": torch.zeros(width)
            for n in ("enc_output.bias", "enc_output_norm.weight", "enc_output_norm.bias")
        }
    return out


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    key = name.replace("face_clip_g.face_encoder", "face_clip_l.face_encoder")
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    values = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    scale = ("running_var", ".feature.1.weight", ".feature.3.weight")
    if name.endswith(scale) or (name.endswith("weight") and ("norm" in name or ".ln_" in name)):
        values = 1 + 0.2 * np.tanh(values)
    elif "gamma" in name:
        values = 0.5 + 0.5 * np.tanh(values)
    elif len(shape) >= 2 and not name.endswith(
        ("pos_embed", "mask_token", "positional_embedding", "token_embedding.weight")
    ):
        values = values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.3 * values
    return torch.from_numpy(np.asarray(values, np.float32))
