"""What makes large models fit into memory changes no figure: checkpointed gradients, parts of batches, encodings."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Encoder
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from faceclip.data.arrays import load_arrays
from faceclip.data.blocks import kept_rows
from faceclip.encoder import FaceCLIP
from faceclip.errors import DataError
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from faceclip.training import StepContext, parse_config
from faceclip.training.sampler import fetch
from tests.full_disk import largest_file
from tests.stages import save_base, save_towers
from train_generator.adapter import add_adapter
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.loading import build_pipeline
from train_generator.reference_features import ReferenceFeatures, reference_features
from train_generator.task import GeneratorTask
from train_generator.towers.latents import cached_latents
from train_generator.towers.vae import batch_at, encode_mean


@pytest.fixture(scope="module")
def parts(tiny_dataset: Path, tmp_path_factory) -> tuple[list[str], ReferenceFeatures]:
    """Arguments of a toy stage 2, and the features of its training split."""
    root = tmp_path_factory.mktemp("memory")
    save_towers(root / "towers")
    save_base(root / "base")
    towers = root / "towers"
    encoder = FaceCLIP.from_components(
        FaceViT.from_pretrained(towers / "recognizer"),
        TextTower.from_pretrained(towers / "text_l"),
        TextTower.from_pretrained(towers / "text_g"),
        fusion={"layers": 2, "attention_width": 32, "text_hidden": 32, "face_hidden": 32, "face_heads": 4},
    )
    encoder.eval().save_pretrained(root / "encoder")
    ImageTower.from_pretrained(towers / "image").save_pretrained(root / "encoder" / "image_tower")
    words = [
        f"data={tiny_dataset}",
        f"encoder={root / 'encoder'}",
        f"base={root / 'base'}",
        "fitter=''",
        "adapter.lora_rank=2",
        "adapter.identity.depth=1",
        "adapter.identity.heads=2",
        "adapter.identity.dim_head=8",
        "loss.alignment=0.5",
        "loss.identity_below=700",
        "sample_steps=1",
        "size=64",
        "loss.sampled_identity=0.3",
        "loss.sampled_rows=3",
    ]
    pipeline = build_pipeline(parse_config(GeneratorConfig, words, presets=PRESETS))
    features = reference_features(
        tiny_dataset,
        "train",
        size=64,
        vae=root / "base" / "vae",
        encoder=pipeline.joint_encoder,
        image_tower=pipeline.image_encoder,
        cache=root / "cache",
    )
    return words, features


def task_of(parts: tuple[list[str], ReferenceFeatures], *words: str) -> GeneratorTask:
    """The same random weights at every call, none of them zero."""
    config = parse_config(GeneratorConfig, [*parts[0], *words], presets=PRESETS)
    torch.manual_seed(3)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    torch.manual_seed(3)  # the same however many numbers the adapter drew
    task = GeneratorTask(pipeline, config, parts[1])
    with torch.no_grad():
        for parameter in task.modules.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return task


def gradients(task: GeneratorTask) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """Parts of the loss, gradients by name, and bytes that autograd keeps for backward."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    task.modules.train()
    batch = fetch(task.validation_source, [(row, 0) for row in range(4)], 0)
    generator = torch.Generator().manual_seed(0)
    context = StepContext(step=0, steps=1, micro_step=0, device=torch.device("cpu"), generator=generator)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, found = task.loss(batch, context)
    loss.backward()
    named = task.modules.named_parameters()
    return found, {name: parameter.grad for name, parameter in named if parameter.grad is not None}, sum(kept.values())


def test_checkpointed_gradients_are_the_same(parts):
    words = ["loss.identity=0.2", "loss.identity_below=1000"]
    losses, expected, whole = gradients(task_of(parts, *words))
    again, found, kept = gradients(task_of(parts, *words, "gradient_checkpointing=true"))
    assert losses["loss_alignment"] > 0 and losses["loss_identity"] > 0
    assert found.keys() == expected.keys()
    assert any("unet" in name for name in found) and any("shading_channel" in name for name in found)
    for name, value in losses.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    assert kept < 0.8 * whole


@pytest.fixture
def encoded():
    """Shapes of what goes through encoders of autoencoders."""
    shapes = []
    hook = register_module_forward_pre_hook(
        lambda module, inputs: shapes.append(tuple(inputs[0].shape)) if isinstance(module, Encoder) else None
    )
    yield shapes
    hook.remove()


def test_few_large_pictures_are_encoded_at_once(parts, encoded):
    sizes = (64, 128, 256, 512, 1024, 2048)
    assert [batch_at(size, torch.device("cpu")) for size in sizes] == [32, 8, 2, 1, 1, 1]
    assert [batch_at(size, torch.device("cuda")) for size in sizes] == [64, 64, 16, 4, 1, 1]
    base = Path(next(word for word in parts[0] if word.startswith("base=")).removeprefix("base="))
    model = AutoencoderKL.from_pretrained(base / "vae")
    images = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)
    found = encode_mean(model, images)
    assert encoded == [(2, 3, 256, 256), (2, 3, 256, 256), (1, 3, 256, 256)]
    with torch.no_grad():
        pixels = torch.from_numpy(images[3:].transpose(0, 3, 1, 2)).float() / 127.5 - 1
        torch.testing.assert_close(found[3:], model.encode(pixels).latent_dist.mean, atol=1e-4, rtol=1e-4)


def test_interrupted_latents_resume(tiny_dataset, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr("train_generator.towers.latents.kept_rows", partial(kept_rows, rows=8))
    arrays = load_arrays(tiny_dataset, "train", size=32)
    folder = save_base(tmp_path) / "vae"
    other = AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(0.5)
    other.save_pretrained(folder)

    def stop(module, inputs) -> None:
        if isinstance(module, Encoder) and len(encoded) > 2:
            raise KeyboardInterrupt

    hook = register_module_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        cached_latents(folder, arrays)
    hook.remove()
    assert len(encoded) == 3
    latents = cached_latents(folder, arrays)
    assert len(encoded) == 5  # chunks of 8 of 32 rows: two were done, the third was interrupted
    expected = encode_mean(other, arrays.images) * other.config.scaling_factor
    torch.testing.assert_close(torch.from_numpy(np.array(latents)), expected, atol=1e-5, rtol=1e-5)


def test_validation_in_parts_gives_the_figures_of_one_batch(parts, tmp_path):
    words = [f"out={tmp_path}", "validation_rows=12", "loss.identity=0.2", "loss.identity_rows=7"]
    seen = []
    figures = {}
    for size in (12, 5):
        task = task_of(parts, *words, f"trainer.batch_size={size}")
        task.modules.eval()
        hook = task.pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        figures[size] = task.validate(size)
        hook.remove()
    # Nine samples count for the six-step samples; guidance doubles the eight of the grid.
    assert seen == [12, *[9] * 6, 16, 5, 5, 2, *[5] * 6, *[4] * 6, 10, 6]
    assert figures[5].keys() == figures[12].keys()
    assert min(figures[12].values()) > 0
    for name, value in figures[12].items():
        assert figures[5][name] == pytest.approx(value, rel=2e-5), name
    pictures = [np.asarray(Image.open(tmp_path / "samples" / f"{size:06d}.png"), int) for size in (12, 5)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_grid_that_does_not_fit_on_the_disk_is_named_and_leaves_the_earlier_one(parts, tmp_path):
    task = task_of(parts, f"out={tmp_path}", "validation_rows=4", "loss.sampled_identity=0")
    task.modules.eval()
    task.validate(1)
    (grid,) = (tmp_path / "samples").iterdir()
    before = grid.read_bytes()
    with largest_file(len(before) // 2), pytest.raises(DataError, match=r"/000001\.png .*Errno 27"):
        task.validate(1)
    assert grid.read_bytes() == before and list((tmp_path / "samples").iterdir()) == [grid]


def test_validation_equals_the_loss_of_the_batch(parts, tmp_path):
    """Figures of runs before and after validation went by parts can be compared."""
    words = ["validation_rows=12", "trainer.batch_size=5", "loss.identity=0.2", "loss.sampled_identity=0"]
    task = task_of(parts, f"out={tmp_path}", *words)
    task.modules.eval()
    rows = np.random.default_rng(5).permutation(len(task.validation_source))[:12]
    batch = fetch(task.validation_source, [(int(row), 0) for row in rows], 5)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(batch["latents"].shape, generator=generator)
    steps = torch.linspace(20, len(task.schedule) - 20, 12).long()
    with torch.no_grad():
        total, expected = task.terms(task.sample(batch, noise, steps))
    found = task.validate(0)
    assert found.pop("loss") == pytest.approx(float(total), rel=2e-5)
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=2e-5)


@pytest.mark.parametrize("numbers", ["bf16", "fp16"])
def test_frozen_weights_of_16_bits_train_as_float32_does(parts, numbers):
    words = ["trainer.precision=bf16", "adapter.shading_layers=all"]
    whole, task = task_of(parts, *words), task_of(parts, *words, f"frozen={numbers}")
    trained = {name for name, value in whole.modules.named_parameters() if value.requires_grad}
    values = {name: value for name, value in whole.modules.state_dict().items() if name in trained}
    task.modules.load_state_dict(values, strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        losses, expected, _ = gradients(whole)
        again, found, _ = gradients(task)
    unet, channel = task.pipeline.unet, task.pipeline.shading_channel
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[numbers]
    assert unet.conv_in.weight.dtype == task.pipeline.joint_encoder.g.text.dtype == dtype
    assert {p.dtype for p in task.modules.parameters() if p.requires_grad} == {torch.float32}
    assert channel.conv_in.weight.data_ptr() != unet.conv_in.weight.data_ptr()
    assert found.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(again[name], value, rtol=0.05, atol=0.02)
    assert torch.cosine_similarity(flat(found), flat(expected), dim=0) > 0.98


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_new_layers_of_the_shading_channel_share_the_rest_with_the_unet(parts):
    task = task_of(parts, "adapter.shading_layers=new", "trainer.precision=bf16", "frozen=bf16")
    unet, channel = task.pipeline.unet, task.pipeline.shading_channel
    assert channel.conv_in.weight is unet.conv_in.weight
    trained = {name.split(".")[0] for name, value in channel.named_parameters() if value.requires_grad}
    assert trained == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}
    with torch.autocast("cpu", torch.bfloat16):
        _, found, _ = gradients(task)
    assert any(name.startswith("shading_channel.controlnet_mid") for name in found)


def test_a_unet_that_is_trained_as_a_whole_is_not_read_from_files_of_16_bits():
    words = ["--preset", "sdxl", "data=DIR", "encoder=DIR"]
    assert parse_config(GeneratorConfig, words, presets=PRESETS).frozen_unet == "bf16"
    whole = parse_config(GeneratorConfig, [*words, "adapter.unet=full"], presets=PRESETS)
    assert whole.frozen_unet == "fp32" and whole.frozen == "bf16"
