"""Small bases in the layouts of Stable Diffusion 1.5 and SDXL: CLIP text towers and tokenizers of transformers."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from faceclip.towers.face import FaceViT
from tests.makeup_plugin.conftest import CONTEXT, IDENTITY, IMAGE, POOLED, make_unet, make_vae

KINDS = ("sd15", "sdxl")
SD15 = {"addition_embed_type": None, "projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None}
SCHEDULE = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]


def make_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer with the letters as its vocabulary, 77 tokens long."""
    words = [*_WORDS, "!", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def make_text_tower(kind: type, width: int, seed: int, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": len(_WORDS) + 3, "bos_token_id": len(_WORDS) + 1, "eos_token_id": len(_WORDS) + 2}
    return kind(CLIPTextConfig(max_position_embeddings=77, **sizes, **tokens, **changes)).eval()


def make_base(kind: str, *, context: int = CONTEXT) -> dict[str, Any]:
    """The parts of a base that a pipeline with plain text has, the same on every call."""
    parts: dict[str, Any] = {"vae": make_vae(), "scheduler": DDIMScheduler(**SCHEDULE), "tokenizer": make_tokenizer()}
    if kind == "sd15":
        text = make_text_tower(CLIPTextModel, context, 21)
        return parts | {"unet": make_unet(**SD15, cross_attention_dim=context), "text_encoder": text}
    second = make_text_tower(CLIPTextModelWithProjection, POOLED, 23, projection_dim=POOLED, hidden_act="gelu")
    return parts | {
        "unet": make_unet(cross_attention_dim=context),
        "text_encoder": make_text_tower(CLIPTextModel, context - POOLED, 22),
        "text_encoder_2": second,
        "tokenizer_2": make_tokenizer("!"),
    }


def diffusers_pipeline(kind: str) -> Any:
    """diffusers' own pipeline of the base."""
    parts = make_base(kind)
    if kind == "sd15":
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **extra)
    else:
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_base(kind: str, folder: Path) -> Path:
    """The base in diffusers' layout."""
    diffusers_pipeline(kind).save_pretrained(folder)
    return folder


def make_image_tower() -> CLIPVisionModelWithProjection:
    """transformers' CLIP image tower at 8 px: a class token and four patches."""
    torch.manual_seed(24)
    sizes = {"hidden_size": IMAGE, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=8, **sizes)).eval()


@cache
def make_recognizer() -> FaceViT:
    torch.manual_seed(25)
    return FaceViT(image_size=16, patch_size=8, width=12, depth=1, heads=2, embedding_dim=IDENTITY).eval()
