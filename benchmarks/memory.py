"""Memory of a stage-1 step: a plan from formulae, and the same formulae against a measured step.

    python benchmarks/memory.py plan [--preset bigg14] [--processes 8] [--layout replicated|zero-2|zero-3]
    python benchmarks/memory.py measure [--width 128]                # a small model on the CPU, seconds
    python benchmarks/memory.py measure --size published [--preset bigg14] [--queries 2]   # on the meta device, seconds

The formulae count what autograd keeps for backward, operator by operator, in elements; bytes are those of float32.
With bf16 autocast most of these tensors take half of that, but copies of the weights in bf16 are added: the plan keeps
float32 for the activations, as an upper bound, and adds the copies. `docs/scaling.md` says what has been measured.

On the meta device tensors have shapes and storages but no memory, so the full-size step runs on any machine: forward,
backward from the gradients of its features, AdamW. The loss does not run there (it picks rows by masks); at the fullest
moment it is over. Attention on this device takes PyTorch's plain form, which keeps scaled queries and keys and the
matrix of weights; CPUs and GPUs take fused kernels, so both are counted.
"""

import argparse
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.encoder import TEMPLATE, FaceCLIP
from faceclip.fusion import FeatureFusion
from faceclip.losses import BLOCK_ENTRIES
from faceclip.published.checkpoint import CONFIG as PUBLISHED
from faceclip.towers.image import ImageTower
from faceclip.towers.text import tokenize
from faceclip.training import StepContext, parse_config
from faceclip.training.accumulation import first_pass, pull_back
from train_encoder.config import PRESETS, EncoderConfig, FusionConfig, LossConfig
from train_encoder.task import EncoderTask

TEXTS = 77  # tokens of a text
FULL_TEXT_G = {"bigg14": PUBLISHED["text_g"], "faceclip": PUBLISHED["text_g"], "l14": {"quick_gelu": False}}


def text_tower(width: int, layers: int, heads: int, quick_gelu: bool) -> int:
    """Elements per query that a frozen text tower keeps because the identity token at its input is trained."""
    block = (14 if quick_gelu else 10) * width + heads + 4  # x·σ(1.702x) keeps more than GELU
    return TEXTS * (layers * block + width + 2)


def fusion(
    width: int,
    faces: int,
    *,
    layers: int,
    attention_width: int,
    attention_heads: int,
    text_hidden: int,
    face_heads: int,
    points: int,
    face_hidden: int,
) -> int:
    """Elements per query of one branch's fusion over `faces` face tokens, with the projection of the text."""
    a, h, both = attention_width, attention_heads, faces + TEXTS
    cross = 3 * (a + width) * both + 2 * h * faces * TEXTS + 2 * both
    last = 2 * a * both + width * (2 * both + TEXTS) + h * faces * TEXTS + 2 * both  # no face half
    text = TEXTS * (9 * width + text_hidden + h + 4)
    face = faces * ((7 + points) * width + 4 * face_heads * points + face_hidden + 4)
    return (layers - 1) * (cross + face) + last + layers * text + TEXTS * width


def pools(tokens: int, heads: int) -> int:
    """Elements per query of the three attention pools over tokens of width `tokens`, which share their input."""
    return 3 * (tokens * (2 * TEXTS + heads + 6) + (2 + heads) * TEXTS + 2) - 2 * TEXTS * tokens


def activations(model: FaceCLIP, settings: EncoderConfig) -> int:
    """Elements per query that one chunk keeps between forward and backward."""
    face, left, right = model.face_encoder.config, model.l.text.config, model.g.text.config
    faces = (face.image_size // face.patch_size) ** 2
    shape = {k: v for k, v in asdict(settings.fusion).items() if k != "layer_scale"}
    towers = 0  # read from disk, or run without a graph
    if settings.train_identity:
        towers = sum(text_tower(t.width, t.layers, t.heads, t.quick_gelu) for t in (left, right))
    branches = sum(fusion(t.width, faces, **shape) for t in (left, right))
    tokens = left.width + right.width
    return towers + branches + faces * face.width + pools(tokens, settings.heads.heads) + TEXTS * tokens


@dataclass(frozen=True)
class Step:
    """Sizes of a step of one process: `chunk` queries per chunk, `queries` per process, `everyone` of all."""

    chunk: int
    queries: int
    everyone: int


def plan(
    model: FaceCLIP, settings: EncoderConfig, step: Step, *, layout: str, processes: int, half: bool, block: int
) -> dict[str, float]:
    """Bytes by name on one process at the fullest moment: backward of a chunk that is not the first."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    e, c = model.face_encoder.config.embedding_dim, model.g.text.config.embed_dim
    joint = e + c
    by_rank = processes if layout in ("zero-2", "zero-3") else 1
    weights = (trained + frozen) / (processes if layout == "zero-3" else 1)
    learned = e + c + 2 * joint + 1  # query_face, query_text, query_joint, gallery, drift
    constant = e + 2 * c + 1
    found = {
        "weights": 4 * weights,
        "weights in bf16 (autocast)": 2 * (trained + frozen) * half,
        "gradients": 4 * trained / by_rank,
        "buckets of gradients": 4 * trained if processes > 1 else 0,
        "Adam's moments": 8 * trained / by_rank,
        "fp32 weights of ZeRO": 4 * trained / by_rank if by_rank > 1 else 0,
        "features, their gradients": 4 * step.queries * (2 * learned + constant),
        "activations of a chunk": 4 * step.chunk * activations(model, settings),
        # Only while the loss is computed, when no activations exist:
        "(loss: targets of all ranks)": 4 * step.everyone * (e + 2 * c + 3 * joint),
        "(loss: blocks)": 4 * 3 * min(block, step.queries * step.everyone),
    }
    return {name: float(size) for name, size in found.items()}


def total(found: dict[str, float]) -> float:
    """The fullest moment: activations and loss never exist together."""
    always = sum(size for name, size in found.items() if not name.startswith("(") and "activations" not in name)
    loss = sum(size for name, size in found.items() if name.startswith("("))
    return always + max(loss, found["activations of a chunk"])


def show(found: dict[str, float]) -> None:
    for name, size in found.items():
        print(f"  {name:32s} {size / 2**30:9.3f} GiB")
    print(f"  {'peak':32s} {total(found) / 2**30:9.3f} GiB")


def saved_bytes(run, own: list[Tensor]) -> int:
    """Distinct bytes that autograd keeps between forward and backward, `own` left out."""
    known = {_storage(p) for p in own}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # not its address, which is 0 for all tensors of the meta device


def peak_bytes(run) -> int:
    """Most bytes that `run` has allocated at once, from the profiler's allocation events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def small(width: int, settings: EncoderConfig | None = None) -> tuple[FaceCLIP, EncoderConfig]:
    """A model that fits any machine, proportioned like the full one."""
    settings = settings or EncoderConfig()
    settings.fusion.attention_width = settings.fusion.text_hidden = settings.fusion.face_hidden = width
    text = {"layers": 3, "heads": 4, "vocabulary": list(range(1, 2000))}
    model = FaceCLIP(
        face={"image_size": 54, "patch_size": 9, "width": width, "depth": 1, "heads": 4, "embedding_dim": 64},
        text_l={"width": width, "embed_dim": width, **text},
        text_g={"width": 2 * width, "embed_dim": width, "quick_gelu": False, **text},
        fusion=asdict(settings.fusion),
        joint=asdict(settings.heads),
    )
    return model, settings


def random_chunk(model: FaceCLIP, persons: int, pictures: int, *, cached_text: bool = False) -> dict[str, Tensor]:
    """A chunk with the fields of `QuerySource`, random."""
    face, c = model.face_encoder.config, model.g.text.config.embed_dim
    shape, rows = (persons, pictures), persons * pictures
    tokens = (face.image_size // face.patch_size) ** 2
    width = model.l.text.config.width + model.g.text.config.width
    states = {"text_states": torch.randn(*shape, TEXTS, width, dtype=torch.float16)} if cached_text else {}
    return states | {
        "face_tokens": torch.randn(*shape, tokens, face.width, dtype=torch.float16),
        "face_identity": torch.randn(*shape, face.embedding_dim),
        "tokens": tokenize([TEMPLATE + "a person"] * rows).view(*shape, -1),
        "text": torch.randn(*shape, c),
        "answer_identity": torch.randn(*shape, face.embedding_dim),
        "answer_image": torch.randn(*shape, c),
        "mode": torch.randint(3, shape),
        "row": torch.arange(rows).view(shape),
        "person": torch.arange(persons)[:, None].expand(shape),
        "words": torch.arange(rows).view(shape),
    }


def measure(width: int, persons: int, chunks: int) -> None:
    """One exact step of the real task, formula against measurement."""
    torch.manual_seed(0)
    model, settings = small(width)
    c = model.g.text.config.embed_dim
    tower = ImageTower(image_size=16, patch_size=8, width=32, layers=1, heads=2, embed_dim=c)
    task = EncoderTask(model, tower, LossConfig(), None, 0)
    trained = [p for p in task.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    pictures = settings.sampling.images
    batches = [random_chunk(model, persons, pictures) for _ in range(chunks)]
    context = StepContext(step=0, steps=1, micro_step=0, device=torch.device("cpu"), generator=torch.Generator())

    def encode(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return task.encode(batch, context)

    def step() -> None:
        first = first_pass(encode, batches, lambda features: task.loss_of(features, context)[0], parameters=trained)
        for parameter, gradient in zip(trained, first.own, strict=True):
            parameter.grad = gradient
        for number, batch in enumerate(batches):
            pull_back(encode(batch), first.cotangents[number]).backward()
        optimizer.step()
        optimizer.zero_grad()

    queries = persons * pictures * chunks
    sizes = Step(chunk=persons * pictures, queries=queries, everyone=queries)
    found = plan(model, settings, sizes, layout="replicated", processes=1, half=False, block=BLOCK_ENTRIES["cpu"])
    own = [*task.modules.parameters(), *task.modules.buffers()]
    held = saved_bytes(lambda: encode(batches[0]), own)
    print(f"chunk of {sizes.chunk} queries, {chunks} chunks, trained weights {sum(p.numel() for p in trained)}")
    line("activations of a chunk", found["activations of a chunk"], held)
    with torch.autocast("cpu", torch.bfloat16):
        line(
            "the same under bf16 autocast",
            found["activations of a chunk"],
            saved_bytes(lambda: encode(batches[0]), own),
        )
    step()
    state = sum(v.numel() * 4 for s in optimizer.state.values() for v in s.values() if v.ndim)
    line("Adam's moments", found["Adam's moments"], state)
    line("weights", found["weights"], sum(4 * p.numel() for p in nn.Module.parameters(model)))
    dynamic = total(found) - found["weights"] - found["Adam's moments"]
    line("peak of a step (without both)", dynamic, peak_bytes(step))


def full_size(preset: str, device: str | torch.device = "meta") -> tuple[FaceCLIP, EncoderConfig]:
    """The model of a full-size preset with random weights, on the meta device without any, and the preset."""
    settings = parse_config(EncoderConfig, ["--preset", preset, "data=none"], presets=PRESETS)
    if settings.init:  # the published encoder, which brings its fusion
        parameters = inspect.signature(FeatureFusion).parameters.values()
        usual = {p.name: p.default for p in parameters if p.default is not p.empty}
        settings.fusion = FusionConfig(**usual | PUBLISHED["fusion"])
    with torch.device(device):
        model = FaceCLIP(
            face={}, text_l={}, text_g=FULL_TEXT_G[preset], fusion=asdict(settings.fusion), joint=asdict(settings.heads)
        )
    model.freeze_towers()
    for branch in model.branches:
        branch.identity_projection.requires_grad_(settings.train_identity)
    return model, settings


@contextmanager
def fused_attention() -> Iterator[None]:
    """Context in which attention is the fused operator of the CPU, which the meta device knows but does not choose."""
    plain = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return operator(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def count_full_size(preset: str, queries: int) -> tuple[dict[str, float], dict[str, float]]:
    """The plan of a step of `queries` queries in float32 on one process, and bytes counted on the meta device by the
    same names; "activations, plain attention" is only counted."""
    model, settings = full_size(preset)
    meta = torch.device("meta")
    with meta:
        c = model.g.text.config.embed_dim
        tower = ImageTower(image_size=16, patch_size=8, width=32, layers=1, heads=2, embed_dim=c)  # takes no part
        task = EncoderTask(model, tower, LossConfig(), None, 0, train_identity=settings.train_identity)
    chunk = random_chunk(model, 1, queries, cached_text=settings.cached_text)
    batch = {name: value.to(meta) for name, value in chunk.items()}
    context = StepContext(step=0, steps=1, micro_step=0, device=meta, generator=torch.Generator())
    own = [*task.modules.parameters(), *task.modules.buffers()]
    trained = [p for p in task.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    counted = {"activations, plain attention": saved_bytes(lambda: task.encode(batch, context), own)}
    features: dict[str, Tensor] = {}
    with fused_attention():
        counted["activations of a chunk"] = saved_bytes(lambda: features.update(task.encode(batch, context)), own)
    features = {name: value for name, value in features.items() if value.is_floating_point()}
    cotangents = {name: torch.empty_like(value) for name, value in features.items() if value.requires_grad}
    pull_back(features, cotangents).backward()
    for scalar in task.modules["scales"].parameters():
        scalar.grad = torch.empty_like(scalar)  # what the loss would give
    optimizer.step()
    held = {
        "weights": list(model.parameters()),
        "gradients": [p.grad for p in trained],
        "Adam's moments": [v for state in optimizer.state.values() for v in state.values() if v.is_meta],
        "features, their gradients": [*features.values(), *cotangents.values()],
    }
    counted |= {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in held.items()}
    step = Step(chunk=queries, queries=queries, everyone=queries)
    found = plan(model, settings, step, layout="replicated", processes=1, half=False, block=BLOCK_ENTRIES["cpu"])
    return found, {name: float(size) for name, size in counted.items()}


def measure_full_size(preset: str, queries: int) -> None:
    """The plan of a full-size preset against the count."""
    found, counted = count_full_size(preset, queries)
    print(f"{preset}, {queries} queries, one process, float32, meta device")
    plain = counted.pop("activations, plain attention")
    for name, size in counted.items():
        line(name, found[name], size)
    line("all of these", sum(found[name] for name in counted), sum(counted.values()))
    line("activations, plain attention", found["activations of a chunk"], plain)


def line(name: str, predicted: float, measured: float) -> None:
    print(
        f"  {name:32s} predicted {predicted / 2**20:9.2f} MiB, measured {measured / 2**20:9.2f} MiB "
        f"({measured / predicted:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["plan", "measure"])
    parser.add_argument("--preset", choices=sorted(FULL_TEXT_G), default="bigg14")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--layout", choices=["replicated", "zero-2", "zero-3"], default="replicated")
    parser.add_argument("--size", choices=["small", "published"], default="small", help="measure")
    parser.add_argument("--queries", type=int, default=2, help="measure --size published")
    parser.add_argument("--width", type=int, default=128, help="measure --size small")
    parser.add_argument("--persons", type=int, default=8, help="measure --size small")
    parser.add_argument("--chunks", type=int, default=3, help="measure --size small")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        if arguments.size == "published":
            measure_full_size(arguments.preset, arguments.queries)
        else:
            measure(arguments.width, arguments.persons, arguments.chunks)
        return
    model, settings = full_size(arguments.preset)
    trainer = settings.trainer
    chunk = trainer.batch_size * settings.sampling.images
    queries = chunk * trainer.accumulate
    step = Step(chunk=chunk, queries=queries, everyone=queries * arguments.processes)
    print(
        f"{arguments.preset}, {arguments.processes} × {arguments.layout}: {step}; "
        f"{activations(model, settings) * 4 / 2**20:.0f} MiB of activations per query (float32)"
    )
    show(
        plan(
            model,
            settings,
            step,
            layout=arguments.layout,
            processes=arguments.processes,
            half=trainer.precision == "bf16",
            block=BLOCK_ENTRIES["cuda"],
        )
    )


if __name__ == "__main__":
    main()
