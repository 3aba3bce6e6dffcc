"""The parts of `benchmarks/gpu.py`: each measures one thing and returns its figures by name.

Weights are random wherever the real ones would have to be downloaded: they take the same time and memory. With `small`
the same code runs at sizes that a CPU computes in seconds.
"""

import gc
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
Figures = dict[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how large; `work` is a folder for files that later parts read."""

    device: torch.device
    small: bool
    work: Path

    def pick(self, full: Any, small: Any) -> Any:
        """One of both by `small`."""
        return small if self.small else full


def gpu_seconds(action: Callable[[], object], setting: Setting, repeat: int = 3) -> float:
    """Least wall seconds of some runs after one to warm up."""
    from benchmarks.timing import timed

    return timed(action, setting.pick(repeat, 1), setting.device).wall


def peak_gib(setting: Setting) -> float:
    """Most GiB that torch has held on the device since the start of the process; on a CPU those of the process."""
    from faceclip.training.accelerators import memory_gib

    return memory_gib(setting.device)


def plain_forms() -> Any:
    """The module `encoder.py`, which is a script and imports its neighbours by their names alone."""
    sys.path.insert(0, str(HERE))
    try:
        import encoder
    finally:
        sys.path.remove(str(HERE))
    return encoder


# --- loss, encoder, UNet ---------------------------------------------------------------------------------------------


def loss(setting: Setting) -> Figures:
    """Contrastive losses, forward and backward for both sides, in row blocks; the dense form where it fits."""
    from benchmarks import contrastive

    found: Figures = {}
    rows, width = setting.pick(65536, 256), setting.pick(1024, 32)
    generator = torch.Generator(setting.device).manual_seed(0)
    q, t = (torch.randn(rows, width, device=setting.device, generator=generator) for _ in "qt")
    q, t = (F.normalize(x, dim=1).requires_grad_() for x in (q, t))
    scale, bias = (torch.tensor(x, device=setting.device, requires_grad=True) for x in (2.3, -10.0))
    labels = torch.randint(0, rows // 4, (rows,), device=setting.device, generator=generator)
    for kind in ("sigmoid", "infonce"):
        for form in ("block", "dense"):
            action = getattr(contrastive, f"{form}_{kind}")
            try:
                seconds = gpu_seconds(lambda action=action: action(q, t, scale, bias, labels).backward(), setting)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                found[f"{kind}, {form}"] = "does not fit"
                continue
            found[f"{kind}, {form}, ms"] = 1000 * seconds
            found.setdefault("peak of the sigmoid's blocks, GiB", peak_gib(setting))  # before any dense form ran
    return found


@torch.no_grad()
def encoder(setting: Setting) -> Figures:
    """`FaceCLIP.encode` against a fair plain form."""
    from benchmarks.memory import small as small_model
    from faceclip.encoder import TEMPLATE, FaceCLIP
    from faceclip.published.checkpoint import CONFIG as PUBLISHED
    from faceclip.towers.text import tokenize

    forms, batch = plain_forms(), setting.pick(16, 2)
    with setting.device:
        model = (small_model(32)[0] if setting.small else FaceCLIP(**PUBLISHED)).eval().requires_grad_(False)
    tokens = tokenize([TEMPLATE + "a person with a red hat"] * batch).to(setting.device)
    faces = torch.rand(batch, 3, 448, 448, device=setting.device)
    found: Figures = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model.to(dtype)
        fair = forms.Straightforward(model, {}, fair=True)
        found[f"encode, {name}, ms"] = 1000 * gpu_seconds(lambda: model.encode(tokens, faces), setting)
        found[f"fair form, {name}, ms"] = 1000 * gpu_seconds(lambda fair=fair: fair(tokens, faces), setting)
    return found | {"peak, GiB": peak_gib(setting)}


@torch.no_grad()
def unet(setting: Setting) -> Figures:
    """A pass of SDXL's UNet in bf16, plain, channels-last, and with its transformer blocks compiled."""
    from diffusers import UNet2DConditionModel

    from benchmarks.sdxl_files import _TINY_UNET, UNET

    sizes = UNET | (_TINY_UNET if setting.small else {})
    with setting.device:
        model = UNet2DConditionModel(**sizes).to(torch.bfloat16).eval()
    side, width = setting.pick(128, 8), sizes["cross_attention_dim"]
    pooled = sizes["projection_class_embeddings_input_dim"] - 6 * sizes["addition_time_embed_dim"]
    numbers = {"device": setting.device, "dtype": torch.bfloat16}
    inputs = torch.randn(2, 4, side, side, **numbers), torch.tensor(500, device=setting.device)
    states = torch.randn(2, 77, width, **numbers)
    added = {"text_embeds": torch.randn(2, pooled, **numbers), "time_ids": torch.zeros(2, 6, **numbers)}

    def call() -> None:
        model(*inputs, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)

    found: Figures = {"plain, ms": 1000 * gpu_seconds(call, setting)}
    model.to(memory_format=torch.channels_last)
    found["channels-last, ms"] = 1000 * gpu_seconds(call, setting)
    model.compile_repeated_blocks(backend=setting.pick("inductor", "aot_eager"))
    found["compiled blocks, ms"] = 1000 * gpu_seconds(call, setting)  # compiled by the run that is not counted
    return found | {"peak, GiB": peak_gib(setting)}


# --- steps of training -----------------------------------------------------------------------------------------------


def last_line(out: Path) -> Figures:
    """Figures of the last step in a run's log."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    line = [line for line in lines if line["kind"] == "train"][-1]
    names = {"memory_gib": "peak, GiB", "flops_percent": "flops, %", "loss": "loss"}
    figures = {title: line[name] for name, title in names.items() if name in line}
    return {"samples/s": line["samples_per_second"]} | figures


def fitting(config: Any, run: Callable[[Any], Figures]) -> Figures:
    """`run` with the configuration, or with half of its batch and twice as many chunks until it fits."""
    while True:
        trainer = config.trainer
        try:
            return {"batch": f"{trainer.batch_size} × {trainer.accumulate} chunks"} | run(config)
        except torch.OutOfMemoryError:
            if trainer.batch_size == 1:
                raise
        gc.collect()  # the trainer that did not fit
        torch.cuda.empty_cache()
        fewer = replace(trainer, batch_size=trainer.batch_size // 2, accumulate=trainer.accumulate * 2)
        config = replace(config, trainer=fewer)


def short_words(setting: Setting) -> list[str]:
    """Settings of a run of three steps; on a small scale, of two with little in a batch."""
    words = ["log_every=1", "validate_every=0", "save_every=0", "best_metric=null", "warmup_steps=1"]
    words += setting.pick(["steps=3"], ["steps=2", "batch_size=2"])
    words += ["device=cpu"] if setting.device.type == "cpu" else []
    return [f"trainer.{word}" for word in words]


def full_encoder(preset: str, setting: Setting) -> Figures:
    """Three steps of stage 1 in a preset of full size on random weights and features, by the trainer itself."""
    from benchmarks.memory import full_size, random_chunk
    from benchmarks.memory import small as small_model
    from faceclip.settings.config import parse_config
    from faceclip.towers.image import ImageTower
    from faceclip.training import MapSource, Trainer
    from train_encoder.config import PRESETS, EncoderConfig
    from train_encoder.task import EncoderTask

    words = ["--preset", preset, "data=none", *short_words(setting)]
    config = parse_config(EncoderConfig, words + setting.pick([], ["trainer.accumulate=2"]), presets=PRESETS)

    class Features(MapSource):
        """A pool of random persons, again and again."""

        def __init__(self, model: Any) -> None:
            self.pictures = config.sampling.images
            self.pool = random_chunk(model, setting.pick(64, 4), self.pictures, cached_text=config.cached_text)

        def __len__(self) -> int:
            return 4096

        def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
            found = {name: value[index % len(value)] for name, value in self.pool.items()}
            numbers = torch.arange(index * self.pictures, (index + 1) * self.pictures)
            return found | {"row": numbers, "words": numbers, "person": torch.full_like(numbers, index)}

    class Alone(EncoderTask):
        """The step: there is no validation split, and nothing is exported."""

        def validate(self, step: int) -> dict[str, float]:
            return {}

        def figures(self) -> tuple[str, ...]:
            return ()

        def export(self, directory: Path) -> None:
            (directory / "none.txt").write_text("A benchmark of steps exports nothing.\n")

    if setting.small:
        model, _ = small_model(32)
    else:
        model, _ = full_size(preset, setting.device)
    with torch.device("cpu"):
        width = model.g.text.config.embed_dim
        tower = ImageTower(image_size=16, patch_size=8, width=32, layers=1, heads=2, embed_dim=width)  # not run

    def run(config: EncoderConfig) -> Figures:
        model.zero_grad()  # of a batch that did not fit
        with tempfile.TemporaryDirectory(dir=setting.work) as folder:
            none: Any = None
            task = Alone(model, tower, config.loss, none, 0, train_identity=config.train_identity)
            Trainer(config.trainer, task, Features(model), Path(folder) / "run").fit()
            return last_line(Path(folder) / "run")

    return fitting(config, run)


def renders(setting: Setting, size: int) -> Path:
    """A folder of rendered people of this size, made where it is missing."""
    folder = setting.work / f"renders-{size}"
    if not (folder / "done").exists():
        people = ["--identities", "6", "--images-per-identity", "4", "--splits", "4", "1", "1", "--seed", "7"]
        command = [sys.executable, "-m", "faceclip.people", "--out", str(folder), *people, "--size", str(size)]
        subprocess.run([*command, "--workers", "1", "--quiet"], check=True)
        (folder / "done").write_text("")
    return folder


def shipped_encoder(preset: str, setting: Setting) -> Figures:
    """Three steps of stage 1 on the shipped towers, by the user's road. Preset `tiny` leaves its export to stage 2."""
    from faceclip.settings.config import parse_config
    from train_encoder.__main__ import prepare
    from train_encoder.config import PRESETS, EncoderConfig

    data = renders(setting, setting.pick(128, 64))
    words = [f"data.path={data}", f"data.device={setting.device}", "validation_queries=4", *short_words(setting)]
    towers = {"recognizer": "recognizer", "text_l": "text_tower_l", "text_g": "text_tower_g", "image": "image_tower"}
    if preset != "tiny":
        words += [f"towers.{name}=tiny/{folder}" for name, folder in towers.items()]
    config = parse_config(EncoderConfig, ["--preset", preset, *words], presets=PRESETS)

    def run(config: EncoderConfig) -> Figures:
        with tempfile.TemporaryDirectory(dir=setting.work) as folder:
            out = Path(folder) / "run"
            prepare(replace(config, out=str(out))).fit()
            if preset == "tiny":
                shutil.rmtree(setting.work / "encoder", ignore_errors=True)
                (out / "export").rename(setting.work / "encoder")
            return last_line(out)

    return fitting(config, run)


def generator_words(preset: str, setting: Setting) -> list[str]:
    """The command line of stage 2 in a preset: on what ships, or on SDXL's random weights."""
    if preset == "sdxl":
        parts = setting.work / "sdxl"
        size = setting.pick(1024, 64)
        words = [f"base={parts / 'base'}", f"encoder={parts / 'encoder'}", "licence=openrail++", f"size={size}"]
        words += setting.pick([], ["adapter.identity.heads=2", "adapter.identity.dim_head=8", "adapter.lora_rank=4"])
    else:
        words = ["base=tiny", "fitter=tiny/fitter", f"encoder={setting.work / 'encoder'}"]
    words += setting.pick([], ["loss.sampled_rows=1", "loss.sampled_steps=2"])
    return ["--preset", preset, *words, "validation_rows=1", "sample_steps=2"]


def generator(preset: str, setting: Setting) -> Figures:
    """Three steps of stage 2 and a validation of one row by the user's road; nothing is exported."""
    from faceclip.settings.config import parse_config
    from train_generator.__main__ import prepare
    from train_generator.config import PRESETS, GeneratorConfig

    size = setting.pick(1024, 64) if preset == "sdxl" else 128  # of the base that ships
    words = [*generator_words(preset, setting), *short_words(setting), f"data={renders(setting, size)}"]
    config = parse_config(GeneratorConfig, words, presets=PRESETS)

    def run(config: GeneratorConfig) -> Figures:
        with tempfile.TemporaryDirectory(dir=setting.work) as folder:
            out = Path(folder) / "run"
            trainer = prepare(replace(config, out=str(out)))
            trainer.task.export = lambda directory: None  # 15 GB of SDXL, which nobody reads
            trainer.fit()
            return last_line(out)

    return fitting(config, run)


def files(setting: Setting) -> Figures:
    """SDXL and `bigg14` with random weights in the hub's layout, which the parts after it read."""
    from benchmarks.sdxl_files import write_parts

    write_parts(setting.work / "sdxl", tiny=setting.small)
    size = sum(path.stat().st_size for path in (setting.work / "sdxl").rglob("*") if path.is_file())
    return {"size, GB": size / 1e9}


# --- drawing ---------------------------------------------------------------------------------------------------------


def pipeline(base: str, setting: Setting) -> Figures:
    """A call of the pipeline with a face that it has not seen, all channels on; SDXL in bf16 on random weights."""
    from faceclip.settings.config import parse_config
    from makeup_plugin import FaceMakeUpPipeline
    from train_generator.adapter import add_adapter
    from train_generator.config import PRESETS, GeneratorConfig
    from train_generator.loading import build_pipeline

    steps, size = setting.pick(30, 2), 128
    if base == "tiny":
        pipe = FaceMakeUpPipeline.from_pretrained("tiny").to(setting.device)
    else:
        size = setting.pick(1024, 64)
        words = [*generator_words("sdxl", setting), "frozen=fp32", "data=none"]
        config = parse_config(GeneratorConfig, words, presets=PRESETS)
        pipe = build_pipeline(config)
        add_adapter(pipe, config.adapter)
        pipe = pipe.to(setting.device, torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    photo = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    points = np.array([[48, 56], [80, 56], [64, 76], [52, 92], [76, 92]], dtype=np.float32)

    def call() -> None:
        pipe.forget_faces()
        pipe(
            "a smiling person",
            photo,
            landmarks=points,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )

    seconds = gpu_seconds(call, setting)
    return {"pixels": size, "steps": steps, "call, s": seconds, "peak, GiB": peak_gib(setting)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the table: what it runs, in words, and which parts leave what it reads."""

    run: Callable[[Setting], Figures]
    about: str
    needs: tuple[str, ...] = ()
    leaves: str = ""  # in the folder `work`


def _stage1(preset: str, about: str, *, full: bool = False, leaves: str = "") -> Part:
    form = full_encoder if full else shipped_encoder
    return Part(run=lambda setting: form(preset, setting), about=about, leaves=leaves)


def _stage2(preset: str, about: str, needs: str) -> Part:
    return Part(run=lambda setting: generator(preset, setting), about=about, needs=(needs,))


# In the order in which they run: what is worth most comes first.
PARTS: dict[str, Part] = {
    "loss": Part(run=loss, about="contrastive losses, N = 65,536, D = 1,024, both sides"),
    "encoder": Part(run=encoder, about="`FaceCLIP.encode` at the published size, batch 16"),
    "unet": Part(run=unet, about="SDXL's UNet in bf16, two rows of 1,024 px: plain, channels-last, compiled blocks"),
    "bigg14": _stage1("bigg14", "stage 1, `bigg14`: three steps on random weights", full=True),
    "l14": _stage1("l14", "stage 1, `l14`: the same", full=True),
    "faceclip": _stage1("faceclip", "stage 1, `faceclip`: the same", full=True),
    "tiny": _stage1("tiny", "stage 1, `tiny`: three steps, validation, export", leaves="encoder"),
    "small": _stage1("small", "stage 1, `small`, on the shipped towers: the same"),
    "pipeline-tiny": Part(run=lambda s: pipeline("tiny", s), about="a call of the shipped pipeline, 30 steps"),
    "generator-tiny": _stage2("tiny", "stage 2, `tiny`: three steps, validation", "tiny"),
    "generator-small": _stage2("small", "stage 2, `small`, on the shipped base: the same", "tiny"),
    "generator-portraits": _stage2("portraits", "stage 2, `portraits`, on the shipped base: the same", "tiny"),
    "files": Part(run=files, about="SDXL and `bigg14` written with random weights, 11 GB", leaves="sdxl"),
    "generator-sdxl": _stage2("sdxl", "stage 2, `sdxl` at 1,024 px: the same", "files"),
    "pipeline-sdxl": Part(
        run=lambda s: pipeline("sdxl", s), about="a call of SDXL in bf16, 1,024 px, 30 steps", needs=("files",)
    ),
}
