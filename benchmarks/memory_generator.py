"""What a step of stage 2 on SDXL needs of memory, and how that was checked.

    python -m benchmarks.memory_generator plan [WORDS …]       for one 24 GB, one 80 GB and eight 80 GB GPUs
    python -m benchmarks.memory_generator measure [WORDS …]    formula against a count of every tensor of a real step

WORDS are settings of `train_generator --preset sdxl`, such as size=512 trainer.batch_size=1 adapter.unet=full. The
count runs the published sizes on fake tensors, which have shapes and no memory: forward and backward of UNet, identity
channel and shading channel under bf16 autocast.
"""

import argparse
import dataclasses
import weakref
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import full_size
from benchmarks.sdxl_files import IMAGE_TOWER, UNET, VAE, WEIGHTS
from faceclip.settings.config import parse_config
from faceclip.training.int8_moments import moment_bytes
from makeup_plugin.conditioning import Conditions, predict
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.saving.adapters import LoraSettings, add_lora
from makeup_plugin.shading import shading_channel_from_unet
from train_generator.adapter import train_shading
from train_generator.checkpointing import checkpoint_gradients
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.precision import DTYPES, norms_in_float32

DECODER_BLOCK = 1100  # numbers per pixel of its widest residual block, 256 to 128 channels, in backward
FITTED = ["adapter.shading_layers=new", "adapter.lora_rank=32", "trainer.moments=int8"]
SETUPS = [  # name, layout, processes, settings
    ("one 24 GB GPU", "replicated", 1, [*FITTED, "loss.identity=0", "trainer.batch_size=1", "trainer.accumulate=8"]),
    ("one 80 GB GPU", "replicated", 1, ["trainer.batch_size=2", "trainer.accumulate=4"]),
    ("eight 80 GB GPUs, DDP", "replicated", 8, ["trainer.batch_size=2"]),
    ("eight 80 GB GPUs, ZeRO-2", "zero-2", 8, []),
    ("eight 80 GB GPUs, ZeRO-2, whole UNet", "zero-2", 8, ["adapter.unet=full", "trainer.batch_size=2"]),
]


class Live(TorchDispatchMode):
    """Bytes of the storages that operators have made and that still exist, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def ignore(self, *modules: nn.Module) -> None:
        """Leaves the tensors of modules out of the count."""
        for module in modules:
            for value in (*module.parameters(), *module.buffers()):
                self._known.add(value.untyped_storage()._cdata)

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def made_fake(parts: nn.Module) -> None:
    """Puts fake tensors in the place of those of the meta device; what modules share stays shared."""
    known: dict[int, nn.Parameter] = {}
    for module in parts.modules():
        for key, value in list(module.named_parameters(recurse=False)):
            if id(value) not in known:
                empty = torch.empty(value.shape, dtype=value.dtype)
                known[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad)
            module.register_parameter(key, known[id(value)])
        for key, value in list(module.named_buffers(recurse=False)):
            module.register_buffer(key, torch.zeros(value.shape, dtype=value.dtype))


def networks(config: GeneratorConfig) -> tuple[UNet2DConditionModel, IdentityChannel, nn.Module]:
    """UNet with LoRA or trained as a whole, identity channel and shading channel of the published sizes; without memory
    under the meta device."""
    unet = UNet2DConditionModel(**UNET).requires_grad_(False)
    if config.adapter.unet == "lora":
        unet.to(DTYPES[config.frozen])
        norms_in_float32(unet)
    sizes = {name: value for name, value in dataclasses.asdict(config.adapter.identity).items() if name != "enabled"}
    identity = IdentityChannel.from_unet(unet, identity_dim=512, image_dim=IMAGE_TOWER["width"], **sizes)
    share = config.adapter.unet == "lora"
    shading = shading_channel_from_unet(unet, share=share)
    train_shading(shading, unet, config.adapter)
    identity.attach(unet)
    if config.adapter.unet == "full":
        unet.requires_grad_(True)
    else:
        for parameter in add_lora(unet, LoraSettings(rank=config.adapter.lora_rank)):
            parameter.data = parameter.data.float()
    return unet, identity, shading


def conditions(batch: int, size: int) -> Conditions:
    """Those of a batch in which everything is given."""
    return Conditions(
        tokens=torch.zeros(batch, 77, 2048),
        pooled=torch.zeros(batch, 1280),
        time_ids=torch.zeros(batch, 6),
        identity=torch.zeros(batch, 512),
        image_tokens=torch.zeros(batch, 257, IMAGE_TOWER["width"]),
        shading=torch.zeros(batch, 3, size, size),
    )


def count(config: GeneratorConfig, batch: int) -> dict[str, int]:
    """Bytes by name of a step of one process, counted: weights, gradients, moments, and the most that lives beside
    weights and gradients."""
    with torch.device("meta"):
        unet, identity, shading = networks(config)
    parts = nn.ModuleList([unet, identity, shading])
    with FakeTensorMode(allow_non_fake_inputs=True):
        made_fake(parts)
        if config.gradient_checkpointing:
            checkpoint_gradients(unet)
            checkpoint_gradients(shading)
        trained = [p for p in parts.parameters() if p.requires_grad]
        given, side = conditions(batch, config.size), config.size // 8
        noisy, times = torch.zeros(batch, 4, side, side), torch.zeros(batch, dtype=torch.long)
        live = Live()
        live.ignore(parts)
        with live:
            with torch.autocast("cpu", torch.bfloat16):
                prediction = predict(unet, noisy, times, given, identity_channel=identity, shading_channel=shading)
                loss = prediction.float().square().mean()
            del prediction
            kept = live.now
            loss.backward()
        return {
            "weights": sum(p.numel() * p.element_size() for p in parts.parameters()),
            "gradients": sum(p.grad.numel() * p.grad.element_size() for p in trained),
            "kept for backward": kept,
            "the most at once, gradients too": live.most,
        }


# (level, width of the input, width, transformer blocks) of each residual block; the level halves the side once more.
_DOWN = [(0, 320, 320, 0)] * 2 + [(1, 320, 640, 2), (1, 640, 640, 2), (2, 640, 1280, 10), (2, 1280, 1280, 10)]
_MIDDLE = [(2, 1280, 1280, 10), (2, 1280, 1280, 0)]
_UP = [(2, 2560, 1280, 10)] * 2 + [(2, 1920, 1280, 10), (1, 1920, 640, 2), (1, 1280, 640, 2), (1, 960, 640, 2)]
_UP += [(0, 960, 320, 0), (0, 640, 320, 0), (0, 640, 320, 0)]


def kept_elements(size: int) -> dict[str, int]:
    """Numbers of bf16 that a picture of `size` px leaves for backward, with checkpointed gradients, by network.

    Of a residual block its input stays, of a transformer its input (for its norm) and that of each of its blocks, of a
    layer that changes the resolution its input. The first residual block in the middle is not checkpointed by
    diffusers: what its two norms, activations and convolutions read stays.
    """
    places = [(size // 8) ** 2, (size // 16) ** 2, (size // 32) ** 2]

    def blocks(rows: list[tuple[int, int, int, int]]) -> int:
        return sum(places[at] * (wide + (width * (1 + depth) if depth else 0)) for at, wide, width, depth in rows)

    down = blocks(_DOWN) + 320 * places[0] + 640 * places[1]  # the inputs of the convolutions that halve the side
    up = 1280 * places[1] + 640 * places[0]  # of those that double it
    middle = blocks(_MIDDLE) + 5 * 1280 * places[2]
    ends = 3 * 320 * places[0]  # norm, activation and convolution at the end
    # The map's embedding: outputs of convolutions and activations, and the map itself (float32 and bf16).
    widths = [(1, 16), (1, 16), (2, 32), (2, 32), (4, 96), (4, 96), (8, 256)]
    embedding = 2 * sum(width * (size // step) ** 2 for step, width in widths[1:]) + 2 * 16 * size**2 + 3 * 3 * size**2
    return {
        "UNet": down + middle + blocks(_UP) + up + ends,
        "shading channel": down + middle + 1280 * places[2] + embedding,
    }


def decoder_elements(size: int) -> int:
    """The same of the decoder, which the loss on identity runs for each picture it looks at."""
    widths = [(8, 5 * 512), (4, 4 * 512), (2, 512 + 3 * 256), (1, 256 + 2 * 128 + 3 * 128)]
    return sum(width * (size // step) ** 2 for step, width in widths)


def count_decoder(size: int) -> dict[str, int]:
    """What decoding one picture keeps for backward, and the most at once, counted."""
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made_fake(vae)
        checkpoint_gradients(vae)
        latents = torch.zeros(1, 4, size // 8, size // 8, requires_grad=True)
        live = Live()
        live.ignore(vae)
        with live:
            with torch.autocast("cpu", torch.bfloat16):
                loss = vae.decode(latents).sample.float().square().mean()
            kept = live.now
            loss.backward()
    return {"kept": kept, "most": live.most}


def copies(unet: nn.Module, identity: IdentityChannel, shading: nn.Module) -> int:
    """Bytes of the bf16 copies of trained weights that autograd keeps, those of layers outside of checkpoints."""
    named = [*unet.named_parameters(), *shading.named_parameters(), *identity.projection.named_parameters()]
    inside, outside = (".resnets.", ".transformer_blocks."), "mid_block.resnets.0."
    return 2 * sum(
        value.numel()
        for name, value in named
        if value.requires_grad and value.ndim > 1
        if name.startswith(outside) or not any(part in name for part in inside)
    )


@cache
def encoder_weights() -> tuple[int, int]:
    """Weights of the joint encoder's towers and of its other parts."""
    with torch.device("meta"):
        encoder = full_size("bigg14")[0]
    towers = sum(p.numel() for tower in encoder.towers() for p in tower.parameters())
    return towers, sum(p.numel() for p in encoder.parameters()) - towers


def plan(config: GeneratorConfig, *, layout: str, processes: int) -> dict[str, float]:
    """Bytes by name on one GPU. What begins with ( is there at the end of the forward pass, "gradients" at the end of
    the backward pass, and the rest always."""
    with torch.device("meta"):
        unet, identity, shading = networks(config)
    parts = nn.ModuleList([unet, identity, shading])
    trained = [p for p in parts.parameters() if p.requires_grad]
    count, (towers, others) = sum(p.numel() for p in trained), encoder_weights()
    by_rank = processes if layout == "zero-2" else 1
    moments = 8 * count
    if config.trainer.moments == "int8":
        moments = sum(moment_bytes(parameter) for parameter in trained)
    batch = config.trainer.batch_size
    rows = min(batch, config.loss.identity_rows) if config.loss.identity else 0
    own = sum(p.numel() * p.element_size() for p in parts.parameters())
    return {
        "weights": own + DTYPES[config.frozen].itemsize * towers + 4 * others + 4 * WEIGHTS["vae"],
        "moments": moments / by_rank,
        "fp32 weights of ZeRO": 4 * count / by_rank if by_rank > 1 else 0,
        "buckets of gradients": 4 * count if processes > 1 else 0,
        "gradients": 4 * count / by_rank,
        "(bf16 copies of trained weights)": 2 * count,
        "(kept for backward)": 2 * batch * sum(kept_elements(config.size).values()),
        "(kept by the decoder)": 2 * rows * decoder_elements(config.size),
        "(widest block of the decoder)": 2 * rows * DECODER_BLOCK * config.size**2,
    }


def total(found: dict[str, float]) -> float:
    """The fullest moment: the end of the forward pass, or that of the backward pass."""
    always = sum(size for name, size in found.items() if name[0] != "(" and name != "gradients")
    return always + max(found["gradients"], sum(size for name, size in found.items() if name[0] == "("))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["plan", "measure"])
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    if given.what == "measure":
        measure(configuration(given.words))
        return
    for name, layout, processes, words in SETUPS:
        config = configuration([*words, *given.words])
        found = plan(config, layout=layout, processes=processes)
        print(f"{name}: {' '.join(words) or 'as in the preset'}")
        for part, size in found.items():
            print(f"  {part:32s} {size / 2**30:8.2f} GiB")
        print(f"  {'at the fullest moment':32s} {total(found) / 2**30:8.2f} GiB")


def configuration(words: list[str]) -> GeneratorConfig:
    """Preset `sdxl` with settings."""
    return parse_config(GeneratorConfig, ["--preset", "sdxl", "data=none", *words], presets=PRESETS)


def measure(config: GeneratorConfig) -> None:
    """The formulae against the counts."""
    batch = config.trainer.batch_size
    counted = count(config, batch)
    for name, size in counted.items():
        print(f"  {name:32s} {size / 2**30:8.3f} GiB")
    with torch.device("meta"):
        kept = 2 * batch * sum(kept_elements(config.size).values()) + copies(*networks(config))
    print(f"  kept for backward, formula       {kept / 2**30:8.3f} GiB ({kept / counted['kept for backward']:.3f})")
    decoder, kept = count_decoder(config.size), 2 * decoder_elements(config.size)
    print(f"  decoder, kept {decoder['kept'] / 2**30:.3f}, formula {kept / 2**30:.3f} ({kept / decoder['kept']:.3f})")
    print(f"  decoder, most {decoder['most'] / 2**30:.3f}")


if __name__ == "__main__":
    main()
