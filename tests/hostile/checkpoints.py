"""Hostile checkpoints, each drawn from its number: a damaged pipeline draws, or an error of ours names the file.

python -m tests.hostile.checkpoints 0 10000 --folder /dev/shm/hostile

The command prints every case that ends otherwise and a count every 100 cases; any range can be run again.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging

from faceclip.errors import CheckpointError, FaceClipError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import LoraSettings, add_lora
from makeup_plugin.shading import shading_channel_from_unet
from tests.hostile import damage
from tests.makeup_plugin.conftest import MeanFitter, make_base, make_channel, make_image_tower, make_unet

PARTS = ("vae", "unet", "joint_encoder", "image_encoder", "identity_channel", "shading_channel", "face_fitter")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SECONDS = 60  # for one case on a busy machine; a hang takes longer
POINTS = np.array([[30, 30], [50, 30], [40, 42], [32, 52], [48, 52]], dtype=np.float32)
PHOTO = np.random.default_rng(9).integers(0, 255, (80, 80, 3), dtype=np.uint8)


class Hung(BaseException):
    """A case took longer than its time."""


def small_pipeline() -> FaceMakeUpPipeline:
    """The whole pipeline, every part of the shipped classes and as small as they go."""
    parts = make_base()
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 4}
    ups = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "block_out_channels": (8, 16)}
    parts["unet"] = make_unet(**blocks, **ups, attention_head_dim=(2, 2))
    pipeline = FaceMakeUpPipeline(
        **parts,
        image_encoder=make_image_tower(),
        identity_channel=make_channel(parts["unet"], depth=1),
        shading_channel=shading_channel_from_unet(parts["unet"], vae_scale_factor=4).eval(),
        face_fitter=MeanFitter().eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Attacks:
    """Two saved pipelines, without a LoRA and with one, the loaded parts of the first, and what happened.

    An attack on one part takes the road of somebody who gives the other parts by name, so that only that one is read;
    an attack on what concerns all parts loads all of them, and one on the adapter takes `load_adapter`, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pipeline = small_pipeline()
        pipeline.save_pretrained(folder / "plain")
        add_lora(pipeline.unet, LoraSettings(rank=2))
        pipeline.save_pretrained(folder / "adapted")
        loaded = FaceMakeUpPipeline.from_pretrained(folder / "plain")
        self.parts: dict[str, Any] = {name: getattr(loaded, name) for name in (*PARTS, "scheduler")}
        self.elsewhere: list[str] = []
        self.watching = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        """Notes what writes outside of the folder, talks to others, or starts a program."""
        if not self.watching:
            return
        place = str(arguments[0]) if arguments else ""
        if event in ("os.system", "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "os.exec"):
            self.elsewhere.append(f"{event} {place}")
        elif event == "open":
            flags = arguments[2]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not place.startswith((str(self.folder), "/dev/null")):
                self.elsewhere.append(f"{event} {place}")
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir") and not place.startswith(str(self.folder)):
            self.elsewhere.append(f"{event} {place}")

    def attack(self, number: int) -> str:
        """Draws one damage, loads, and draws a picture where it loads: "drawn", or the name of the typed error.

        Raises AssertionError for a case that ends otherwise, and Hung.
        """
        rng = random.Random(f"checkpoint {number}")
        kind = rng.choice(("settings", "settings", "weights", "weights", "index", "adapter", "lora", "scheduler"))
        part = rng.choice(PARTS)
        source = "adapted" if kind in ("adapter", "lora") else "plain"
        given = dict(self.parts)
        if kind == "index":
            file, damages = "model_index.json", damage.OF_SETTINGS
            given = {}
        elif kind in ("adapter", "lora"):
            file, damages = {
                "adapter": ("adapter.json", damage.OF_SETTINGS),
                "lora": ("lora.safetensors", damage.OF_WEIGHTS),
            }[kind]
            del given["unet"]  # it takes the LoRA
        elif kind == "scheduler":
            file, damages = "scheduler/scheduler_config.json", damage.OF_SETTINGS
            del given["scheduler"]
        else:
            file = f"{part}/{'config.json' if kind == 'settings' else WEIGHTS}"
            damages = damage.OF_SETTINGS if kind == "settings" else (*damage.OF_WEIGHTS, damage.change_format)
            del given[part]
        with self._copy(source) as copy:
            rng.choice(damages)(self._own(copy / file), rng)
            return self._try(copy, given, (copy / file).parent / "ran")

    @contextmanager
    def _copy(self, source: str) -> Iterator[Path]:
        """A copy of a saved pipeline, whose files are links to the same data."""
        copy = self.folder / "copy"
        shutil.copytree(self.folder / source, copy, copy_function=os.link)
        try:
            yield copy
        finally:
            shutil.rmtree(copy)

    @staticmethod
    def _own(path: Path) -> Path:
        """The file with data of its own."""
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        return path

    def _try(self, copy: Path, given: dict[str, Any], trace: Path) -> str:
        self.watching = True
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            outcome = self._load_and_draw(copy, given)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.watching = False
            elsewhere, self.elsewhere = self.elsewhere, []
        assert not trace.exists(), "a pickle ran"
        assert not elsewhere, f"it reached {elsewhere[:3]}"
        return outcome

    def _load_and_draw(self, copy: Path, given: dict[str, Any]) -> str:
        try:
            pipeline = FaceMakeUpPipeline.from_pretrained(copy, **given)
        except CheckpointError as error:
            assert str(copy) in str(error), f"it does not name the folder: {error}"
            assert len(str(error)) <= 2000
            return "CheckpointError"
        for name in PARTS:
            for key, value in getattr(pipeline, name).state_dict().items() if getattr(pipeline, name) else ():
                assert not value.is_meta, f"{name}: {key} is empty"
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        face = {"image": PHOTO, "landmarks": POINTS} if pipeline.image_encoder is not None else {}
        try:
            result = pipeline("a man", num_inference_steps=2, generator=generator, output_type="np", **face)
        except FaceClipError as error:
            assert len(str(error)) <= 2000
            return f"call: {type(error).__name__}"
        assert np.isfinite(result.images).all() and result.images.shape[-1] == 3
        return "drawn"


def run(attacks: Attacks, first: int, end: int) -> tuple[collections.Counter[str], list[str]]:
    """Counts of what happened, and the cases with another end than the promised ones."""
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []

    def alarm(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for number in range(first, end):
            try:
                outcome = attacks.attack(number)
            except (Exception, Hung) as error:  # what strangers' files give: all of it is what the run looks for
                outcome = "fault"
                faults.append(f"case {number}: {type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc()}")
                print(faults[-1], flush=True)
            counts[outcome] += 1
            if (number + 1) % 100 == 0:
                print(time.strftime("%H:%M:%S"), f"{first} to {number + 1}:", dict(counts), flush=True)
    finally:
        signal.signal(signal.SIGALRM, before)
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the copies are made")
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        counts, faults = run(Attacks(folder), options.first, options.end)
    finally:
        shutil.rmtree(folder)
    print(f"{options.first} to {options.end}: {dict(counts)}, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
