"""The table `step` of `encoder.py`: the trainer's step of stage 1, its frozen features read or computed.

Both ways draw the same queries with `QuerySource`, read the next batch in a thread while a step computes, and train
with `EncoderTask` as `python -m train_encoder` does: all loss terms, queries with a face only, a text only or both,
backward, clipping, AdamW. Cached: the features come from the files that the trainer reads, 16-bit tokens included.
Computed: the thread cuts the crops and tokenizes the captions of these queries, each once, and the step sends them
through the frozen towers, which take the kernels of inference there.

With `--frozen-identity` the projections of the identity are not trained (as in `train_encoder` with
`train_identity=false cached_text=true`), so that the text towers belong to the frozen work: computed, they run in the
step, forward only; cached, their states are read.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from timing import describe, speed, timed
from torch import Tensor

from faceclip.cpu.inference import cpu_inference
from faceclip.cpu.training import cpu_training
from faceclip.data.arrays import FaceArrays
from faceclip.encoder import FaceCLIP
from faceclip.faces.align import align_face
from faceclip.published.checkpoint import CONFIG as PUBLISHED
from faceclip.towers.image import ImageTower
from faceclip.towers.text import tokenize, used_tokens
from faceclip.training import StepContext, parse_config
from faceclip.training.engines import prepare, start
from faceclip.training.optimization import decay_groups
from faceclip.training.prefetch import Prefetcher
from faceclip.training.sampler import OrderedSampler, fetch
from faceclip.training.step_module import StepModule
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.features import load_features
from train_encoder.queries import TEXT_ONLY, QuerySource
from train_encoder.split_features import SplitFeatures
from train_encoder.task import EncoderTask
from train_encoder.text_states import TextStates, text_states_of
from train_encoder.towers_io import Towers, load_towers

# The image tower of preset `bigg14`, open_clip's ViT-bigG-14.
BIGG_IMAGE = {
    "image_size": 224,
    "patch_size": 14,
    "width": 1664,
    "layers": 48,
    "heads": 16,
    "embed_dim": 1280,
    "mlp_ratio": 4.9231,
}
PRESET = {"shipped": "tiny", "published": "bigg14"}


def configuration(
    size: str, data: Path, *, persons: int, images: int, precision: str, device: str, frozen_identity: bool
) -> EncoderConfig:
    """The configuration of the preset of this size, in float32 unless asked otherwise."""
    words = [
        f"data.path={data}",
        f"data.device={device}",
        f"sampling.images={images}",
        f"trainer.batch_size={persons}",
        f"trainer.precision={precision}",
    ]
    words += ["train_identity=false", "cached_text=true"] if frozen_identity else []
    return parse_config(EncoderConfig, ["--preset", PRESET[size], *words], presets=PRESETS)


def parts(size: str, config: EncoderConfig) -> tuple[FaceCLIP, Towers]:
    """What the preset trains, and its towers: the shipped ones, or random ones of the published size."""
    trained = {"fusion": asdict(config.fusion), "joint": asdict(config.heads)}
    if size == "shipped":
        towers = load_towers(config.towers)
        return FaceCLIP.from_components(towers.recognizer, towers.text_l, towers.text_g, **trained), towers
    model = FaceCLIP(**PUBLISHED | trained)
    model.freeze_towers()
    image = ImageTower(**BIGG_IMAGE).requires_grad_(False).eval()
    # The model's own towers: a second copy, which the trainer has, would only need memory.
    return model, Towers(recognizer=model.face_encoder, text_l=model.l.text, text_g=model.g.text, image=image)


class Way(Protocol):
    """Where a step's features come from."""

    def read(self, position: int) -> dict[str, Tensor]:
        """What the loader gives, on the CPU."""
        ...

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `QuerySource`, from what `read` gave, on the device."""
        ...


class Cached:
    """Features from the files of the cache."""

    def __init__(self, features: SplitFeatures, config: EncoderConfig, states: TextStates | None) -> None:
        self.source, self.batch = QuerySource(features, config.sampling, states), config.trainer.batch_size
        self.sampler = OrderedSampler(len(self.source), 0)

    def read(self, position: int) -> dict[str, Tensor]:
        return fetch(self.source, self.sampler.slots(position * self.batch, self.batch), 0)

    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch


class Computed(Cached):
    """The same batches, their features computed from pictures and texts by the towers."""

    def __init__(
        self,
        features: SplitFeatures,
        config: EncoderConfig,
        towers: Towers,
        states: TextStates | None,
        device: torch.device,
    ) -> None:
        rows, captions = np.arange(len(features.identity)), np.arange(len(features.caption))
        # Row numbers in place of features: the draws are the same, and say which features are needed.
        super().__init__(replace(features, identity=rows, tokens=rows, image=rows, caption=captions), config, states)
        self.arrays, self.towers = features.portraits, towers
        self.device, self.half = device, config.trainer.precision == "bf16"
        self.texts = [caption.text for captions in features.portraits.captions for caption in captions]
        self.size = towers.recognizer.config.image_size
        for tower in (towers.recognizer, towers.text_g, towers.image):
            tower.to(device)

    def read(self, position: int) -> dict[str, Tensor]:
        """Row numbers, and the distinct crops, pictures and captions that they stand for."""
        batch = super().read(position)
        batch.pop("text_states", None)  # the text towers run in the step
        shown = batch["face_identity"][batch["mode"] != TEXT_ONLY]  # of the others no feature is looked at
        people = torch.cat([shown, batch["answer_identity"].flatten()]).unique()
        answers, captions = batch["answer_image"].unique(), batch["text"].unique()
        images, marks = self.arrays.images, self.arrays.landmarks_5
        crops = [align_face(np.asarray(images[i]), np.array(marks[i], np.float64), self.size) for i in people.tolist()]
        return batch | {
            "people": people,
            "crops": torch.from_numpy(np.stack(crops)),
            "answers": answers,
            "pictures": torch.from_numpy(np.stack([np.asarray(images[i]) for i in answers.tolist()])),
            "captions": captions,
            "words_of_captions": used_tokens(tokenize([self.texts[i] for i in captions.tolist()])),
        }

    @torch.no_grad()
    def features(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half), cpu_inference(self.device):
            face = self.towers.recognizer(_unit(batch.pop("crops")))
            image = self.towers.image(_unit(batch.pop("pictures"))).embedding.float()
            text = self.towers.text_g(batch.pop("words_of_captions")).embedding.float()
        people, answers, captions = (batch.pop(name) for name in ("people", "answers", "captions"))
        references = torch.searchsorted(people, batch["face_identity"]).clamp_max(len(people) - 1)
        identity = face.identity.float()
        return batch | {
            "face_tokens": face.tokens[references],
            "face_identity": identity[references],
            "answer_identity": identity[torch.searchsorted(people, batch["answer_identity"])],
            "answer_image": image[torch.searchsorted(answers, batch["answer_image"])],
            "text": text[torch.searchsorted(captions, batch["text"])],
        }


def _unit(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


class TrainingStep:
    """Loss, backward, clipping and AdamW, by the trainer's own parts."""

    def __init__(self, task: EncoderTask, config: EncoderConfig, *, cpu: bool) -> None:
        settings, accelerator = config.trainer, start(cpu=cpu)
        self.device = accelerator.device
        task.modules.to(self.device)
        trained = [(n, p) for n, p in task.modules.named_parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            decay_groups(trained, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        module = StepModule(task, self.device, half=settings.precision == "bf16", compiled=False).train()
        self.engine = prepare(
            accelerator, module, optimizer, batch_size=settings.batch_size, max_norm=settings.max_grad_norm
        )
        self.context = StepContext(
            step=0, steps=1, micro_step=0, device=self.device, generator=torch.Generator(self.device)
        )

    def __call__(self, batch: dict[str, Tensor]) -> None:
        """One step. Raises ArithmeticError when its loss or gradient is not finite."""
        loss, _ = self.engine.model(batch, self.context)
        self.engine.backward(loss)
        norm = self.engine.clip()
        if not torch.isfinite(loss.detach() + norm):
            raise ArithmeticError(f"loss {loss.item()}, gradient {norm}")
        self.engine.step()

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch where the step computes."""
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}


@contextmanager
def steps(step: TrainingStep, way: Way) -> Iterator:
    """A function that makes the next step, the batch after it being read meanwhile."""
    numbers = itertools.count()
    with cpu_training(), Prefetcher(way.read) as ahead:

        def next_step() -> None:
            number = next(numbers)
            step(way.features(step.to_device(ahead.take(number, following=number + 1))))

        yield next_step


@contextmanager
def data_set(folder: Path | None, persons: int, images: int) -> Iterator[Path]:
    """The data set of this folder, or a new one in which every person of a batch has two pictures to spare."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        people = ["--identities", str(persons + 4), "--images-per-identity", str(images + 2)]
        people += ["--size", "64", "--workers", "1", "--splits", str(persons), "2", "2"]
        command = [sys.executable, "-m", "faceclip.people", "--out", temporary, *people]
        subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
        yield Path(temporary)


def step(arguments: argparse.Namespace) -> None:
    """Table of a training step with and without cached features."""
    device, size, repeat = torch.device(arguments.device), arguments.size or "shipped", arguments.repeat
    with data_set(arguments.data, arguments.persons, arguments.images) as data:
        config = configuration(
            size,
            data,
            persons=arguments.persons,
            images=arguments.images,
            precision=arguments.precision,
            device=arguments.device,
            frozen_identity=arguments.frozen_identity,
        )
        model, towers = parts(size, config)
        features = load_features(config.data, "train", towers, config.cache_path)
        if not isinstance(features.portraits, FaceArrays):
            raise SystemExit(f"--data {data}: only data in this project's own layout give their pictures back")
        task = EncoderTask(
            model, towers.image, config.loss, features, config.validation_queries, train_identity=config.train_identity
        )
        states = None
        if config.cached_text:
            states = text_states_of(model, features, config.sampling, config.data, config.cache_path)
        train = TrainingStep(task, config, cpu=device.type == "cpu")
        computed = Computed(features, config, towers, states, device)
        with steps(train, computed) as next_step:
            without = timed(next_step, repeat, device)
        numbers = itertools.count()
        frozen = timed(lambda: computed.features(train.to_device(computed.read(next(numbers)))), repeat, device)
        cached = Cached(features, config, states)
        with steps(train, cached) as next_step:
            withal = timed(next_step, repeat, device)
        read = timed(lambda: cached.read(next(numbers)), repeat, device)
    queries = arguments.persons * arguments.images
    frozen_too = ", identity projections frozen" if arguments.frozen_identity else ""
    print(f"step, {size} towers, {queries} queries, {arguments.precision}{frozen_too}, {describe(device)}\n")
    print("| step of stage 1 | CPU s | wall s | speed |\n| --- | --- | --- | --- |")
    for title, timing in (("features computed", without), ("features cached", withal)):
        print(f"| {title} | {timing.cpu:.3f} | {timing.wall:.3f} | {speed(without, timing, device)} |")
    for title, timing in (("the frozen work alone", frozen), ("reading the cache alone", read)):
        print(f"| {title} | {timing.cpu:.3f} | {timing.wall:.3f} | |")
