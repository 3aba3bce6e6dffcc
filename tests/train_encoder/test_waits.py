"""A step of stage 1 on a GPU never waits for it: shown on fake tensors, which have a device and no values."""

import pytest
import torch

from faceclip.encoder import FaceCLIP
from faceclip.towers.image import ImageTower
from faceclip.training import StepContext
from tests.waits import fake_batch, on_fake_gpu
from train_encoder.config import LossConfig
from train_encoder.task import EncoderTask

ROWS = (2, 3)  # persons, pictures


def small_task() -> EncoderTask:
    text = {"width": 32, "layers": 1, "heads": 2, "embed_dim": 32, "vocabulary": list(range(2000))}
    model = FaceCLIP(
        face={"image_size": 36, "patch_size": 9, "width": 48, "depth": 1, "heads": 4, "embedding_dim": 32},
        text_l=text,
        text_g=text | {"quick_gelu": False},
        fusion={"layers": 2, "attention_width": 32, "text_hidden": 32, "face_hidden": 32, "face_heads": 4},
        joint={"hidden": 32},
    )
    tower = ImageTower(image_size=16, patch_size=8, width=32, layers=1, heads=2, embed_dim=32)
    return EncoderTask(model, tower, LossConfig(), None, 0)


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_is_read_or_copied(cached):
    task = small_task()
    batch = {
        "face_tokens": torch.empty(*ROWS, 16, 48, dtype=torch.float16),
        "tokens": torch.empty(*ROWS, 77, dtype=torch.int64),
        **{name: torch.empty(*ROWS, 32) for name in ("face_identity", "text", "answer_identity", "answer_image")},
        **{name: torch.empty(ROWS, dtype=torch.int64) for name in ("mode", "row", "person", "words")},
    }
    if cached:
        batch["text_states"] = torch.empty(*ROWS, 77, 64, dtype=torch.float16)
    with on_fake_gpu(task.modules) as copies:
        device = torch.device("cuda")
        context = StepContext(step=0, steps=1, micro_step=0, device=device, generator=torch.Generator())
        given = fake_batch(batch)
        copies.seen.clear()
        loss, parts = task.loss(given, context)
    assert loss.device.type == "cuda" and {value.device.type for value in parts.values()} == {"cuda"}
    assert not copies.seen
