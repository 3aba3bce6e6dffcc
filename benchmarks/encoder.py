"""Speed and memory of the joint encoder, as Markdown tables.

    python benchmarks/encoder.py forward [--size quarter|published] [--batch 16] [--threads 1]
    python benchmarks/encoder.py step [--size published] [--data DIR] [--persons 8] [--images 4] [--precision bf16]
                                       [--frozen-identity]
    python benchmarks/encoder.py loss [--rows 1024 4096 16384 65536] [--plain-products] [--width 256] [--half]
    python benchmarks/encoder.py profile [--size quarter|published] [--batch 16]

forward: `FaceCLIP.encode` against two plain forms by torch's own kernels: the straightforward form of the published
computation (a face encoder pass per branch, the dead face half of the last fusion layer computed, the fuser in
float32), and a fair one, which does no work twice or in vain and has one type throughout. profile: where the time of
`encode` and of the fair form goes, by operator. step (`encoder_step.py`): the
trainer's step of stage 1 on the feature cache against the same step that computes the features, on the shipped towers
or, as the preset `bigg14` has them, on towers of the published size with random weights (19 GB of memory; leave --data
out, the cache of its few pictures is built first). loss: row blocks against dense autograd, with `--half` on features
of bfloat16, beside a form that mixes both kinds of numbers, and with the errors of each against float64; `--alike 1.4`
gives the features of a person a cosine of about .67.

CPU s: processor time of this process (with one thread, what the work costs whatever else the machine does). Wall s: as
the clock says. Each is the least of some runs after one to warm up. On a GPU (--device cuda) only wall time counts.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contrastive import block_infonce, block_sigmoid, dense_infonce, dense_sigmoid, mixed_infonce, mixed_sigmoid
from encoder_step import step
from timing import Timing, describe, ratio, speed, timed, use_plain_products
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from faceclip.branch import ID_INDEX, TEMPLATE, FaceCLIPBranch
from faceclip.encoder import FaceCLIP
from faceclip.fusion import FeatureFusion
from faceclip.published.checkpoint import CONFIG as PUBLISHED
from faceclip.towers.text import tokenize

# A third to a half of the published widths and half the depth, so that batch 16 fits a laptop.
QUARTER: dict[str, Any] = {
    "face": {"image_size": 112, "patch_size": 9, "width": 384, "depth": 12, "heads": 8, "embedding_dim": 512},
    "text_l": {"width": 256, "layers": 6, "heads": 4, "embed_dim": 256},
    "text_g": {"width": 384, "layers": 12, "heads": 6, "quick_gelu": False, "embed_dim": 384},
    "fusion": {"layers": 6, "attention_width": 512, "text_hidden": 512, "face_hidden": 1024},
}
DENSE_LIMIT = 16384  # rows; beyond, the dense loss' matrices do not fit a small machine


class Straightforward:
    """The published flow with our weights, written plainly; towers and projections run in the model's dtype, the
    fuser in float32, as under the release's autocast.

    fair: one pass of the face encoder, no face half in the last layer, and the fuser in the model's dtype.
    """

    def __init__(self, model: FaceCLIP, fusion: dict[str, Any], *, fair: bool = False) -> None:
        self.model, self.fair = model, fair
        self.last = {"l": model.l.fusion.layers[-1], "g": model.g.fusion.layers[-1]}
        if fair:
            return
        self.last = {name: self._last(branch, fusion) for name, branch in (("l", model.l), ("g", model.g))}

    @staticmethod
    def _last(branch: FaceCLIPBranch, fusion: dict[str, Any]) -> nn.Module:
        weight, sizes = branch.text_projection.weight, fusion | {"layers": 2}
        layer = FeatureFusion(len(weight), **sizes).layers[0].to(weight.device)  # with the face half
        layer.load_state_dict(branch.fusion.layers[-1].state_dict(), strict=False)
        return layer.float().eval()

    def __call__(self, tokens: Tensor, faces: Tensor) -> Tensor:
        fused = []
        encoder = self.model.face_encoder
        face = encoder(faces.to(encoder.dtype))
        for name, branch in (("l", self.model.l), ("g", self.model.g)):
            if name == "g" and not self.fair:
                face = encoder(faces.to(encoder.dtype))
            word = branch.identity_projection(face.identity / face.identity.norm(dim=-1, keepdim=True))
            hidden = branch.text(tokens, replace_index=ID_INDEX, replace_with=word).hidden
            streams = (
                branch.face_projection(face.tokens),
                branch.face_position_projection(encoder.pos_embed),
                branch.text_projection(hidden),
                branch.text_position_projection(branch.text.tower.positional_embedding[None]),
            )
            dtype = encoder.dtype if self.fair else torch.float32
            patches, face_position, text, text_position = (stream.to(dtype) for stream in streams)
            for layer in (*branch.fusion.layers[:-1], self.last[name]):
                patches, text = layer(patches, face_position, text, text_position)
            fused.append(text)
        return torch.cat(fused, dim=-1)


def _inputs(arguments: argparse.Namespace) -> tuple[FaceCLIP, dict[str, Any], Tensor, Tensor]:
    """A random model, its configuration, and token ids and faces of a batch."""
    device = torch.device(arguments.device)
    config = {"quarter": QUARTER, "published": PUBLISHED}[arguments.size or "quarter"]
    with device:
        model = FaceCLIP(**config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("face_scale", "text_scale")):
            parameter.fill_(0.5)  # a trained layer scale; at the initial 1e-4 the fusion would not show in the numbers
    tokens = tokenize([TEMPLATE + "a person with a red hat"] * arguments.batch).to(device)
    return model, config, tokens, torch.rand(arguments.batch, 3, 448, 448, device=device)


PRODUCTS = ("linear", "mm", "bmm", "convolution", "attention")  # by the names of their operators


@torch.no_grad()
def profiles(arguments: argparse.Namespace) -> None:
    """Tables of where the time of a forward pass goes, on the CPU. Shares are of the profiler's wall time, GFLOP/s by
    processor time."""
    model, config, tokens, faces = _inputs(arguments)
    model.requires_grad_(False)
    fair = Straightforward(model, config["fusion"], fair=True)
    forms = {"fair": lambda: fair(tokens, faces), "`encode`": lambda: model.encode(tokens, faces).tokens}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        with FlopCounterMode(display=False) as counter:
            fair(tokens, faces)
        flops = counter.get_total_flops()
        for title, action in forms.items():
            seconds = timed(action, arguments.repeat, torch.device("cpu")).cpu
            with profile(activities=[ProfilerActivity.CPU]) as found:
                action()
            rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
            whole = sum(row.self_cpu_time_total for row in rows)
            share = sum(row.self_cpu_time_total for row in rows if any(part in row.key for part in PRODUCTS)) / whole
            print(
                f"\n{title}, {dtype}, batch {arguments.batch}: {seconds:.3f} CPU s, {flops / 1e9:.0f} GFLOP, "
                f"{flops / seconds / 1e9:.0f} GFLOP/s in all and {flops / seconds / share / 1e9:.0f} in products\n"
            )
            print("| operator | calls | share |\n| --- | --- | --- |")
            for row in rows[:12]:
                print(f"| `{row.key}` | {row.count} | {row.self_cpu_time_total / whole:.1%} |", flush=True)


@torch.no_grad()
def forward(arguments: argparse.Namespace) -> None:
    """Table of forward passes."""
    device, repeat = torch.device(arguments.device), arguments.repeat
    model, config, tokens, faces = _inputs(arguments)
    exact: Tensor | None = None
    print(f"forward, {arguments.size or 'quarter'} size, batch {arguments.batch}, {describe(device)}\n")
    print("| forward | CPU s | wall s | speed | error |\n| --- | --- | --- | --- | --- |", flush=True)

    def measure(title: str, action: Callable[[], Tensor], reference: Timing | None = None) -> Timing:
        output: list[Tensor] = []
        timing = timed(lambda: output.append(action()), repeat, device)
        nonlocal exact
        exact = output[-1].float() if exact is None else exact
        error = (output[-1].float() - exact).norm() / exact.norm()
        faster = speed(reference or timing, timing, device)
        print(f"| {title} | {timing.cpu:.3f} | {timing.wall:.3f} | {faster} | {error:.1e} |", flush=True)
        return timing

    def encode() -> Tensor:
        return model.encode(tokens, faces).tokens

    form = Straightforward(model, config["fusion"])
    fair = Straightforward(model, config["fusion"], fair=True)
    plain = measure("straightforward, float32", lambda: form(tokens, faces))
    fair_plain = measure("fair, float32", lambda: fair(tokens, faces), plain)
    ours = measure("`encode`, float32", encode, plain)
    against = [("float32", fair_plain, ours)]
    known = model.face_features(faces)
    measure("`encode`, float32, cached face features", lambda: model.encode(tokens, face_features=known).tokens, plain)
    fusions = [branch.fusion for branch in (model.l, model.g)]
    model.to(torch.bfloat16)
    for fusion in fusions:
        fusion.float()
    mixed = measure("straightforward, towers bfloat16, fuser float32", lambda: form(tokens, faces))
    for fusion in fusions:
        fusion.bfloat16()
    fair_half = measure("fair, all bfloat16", lambda: fair(tokens, faces), mixed)
    against.append(("bfloat16", fair_half, measure("`encode`, all bfloat16", encode, mixed)))

    faster = ", ".join(f"{speed(theirs, mine, device)} in {name}" for name, theirs, mine in against)
    print(f"\n`encode` against the fair form: {faster}.")
    print(
        "\nSpeed: against the straightforward form above it. Error of the tokens: root mean square, relative to the "
        "first line's."
    )


def saved_by(form: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> int:
    """Forward and backward; returns the distinct bytes that autograd saved between them."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = form(*inputs)
    value.backward()
    return sum(seen.values())


def loss(arguments: argparse.Namespace) -> None:
    """Table of losses, forward and backward."""
    device = torch.device(arguments.device)
    numbers = "bfloat16" if arguments.half else "float32"
    print(f"loss, D = {arguments.width}, {numbers}, {describe(device)}\n")
    print("| loss | N | gradient for | blocks, CPU s (wall) | saved | dense, CPU s (wall) | saved | blocks / dense |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for title, blocks, dense in (("sigmoid", block_sigmoid, dense_sigmoid), ("InfoNCE", block_infonce, dense_infonce)):
        for rows in arguments.rows:
            for both in (False, True) if rows <= 4096 else (True,):
                if arguments.half and not both:
                    continue
                _loss_row(title, blocks, dense, rows, both, arguments, device)


def _loss_row(
    title: str, blocks, dense, rows: int, both: bool, arguments: argparse.Namespace, device: torch.device
) -> None:
    generator, repeat = torch.Generator(device).manual_seed(0), arguments.repeat
    width = arguments.width
    labels = torch.randint(0, rows // 4, (rows,), device=device, generator=generator)
    common = torch.randn(rows, width, device=device, generator=generator)[labels] * arguments.alike
    q, t = (F.normalize(torch.randn(rows, width, device=device, generator=generator) + common, dim=1) for _ in "qt")
    if arguments.half:
        q, t = q.bfloat16(), t.bfloat16()
    q.requires_grad_()
    t.requires_grad_(both)
    scale, bias = (torch.tensor(x, device=device, requires_grad=True) for x in (2.3, -10.0))
    inputs = (q, t, scale, bias, labels)
    long = rows > 4096 and device.type == "cpu"  # minutes, which vary little

    def cells(form: Callable[..., Tensor]) -> tuple[Timing, str]:
        held: list[int] = []
        timing = timed(lambda: held.append(saved_by(form, inputs)), 1 if long else repeat, device, 0 if long else 1)
        return timing, f"{timing.cpu:.3f} ({timing.wall:.3f}) | {held[-1] / 2**20:.1f} MiB"

    ours, text = cells(blocks)
    line = f"| {title} | {rows} | {'both sides' if both else 'queries'} | {text} |"
    if rows <= DENSE_LIMIT or device.type == "cuda":
        try:
            theirs, text = cells(dense)
            print(f"{line} {text} | {ratio(ours, theirs, device):.2f} |", flush=True)
            if arguments.half:
                mixed = {dense_sigmoid: mixed_sigmoid, dense_infonce: mixed_infonce}[dense]
                print(f"  mixed form: {timed(lambda: mixed(*inputs).backward(), repeat, device).cpu:.3f} CPU s")
                for name, form in (("blocks", blocks), ("dense", dense), ("mixed", mixed)):
                    print(f"  errors, {name}: {_errors(form, dense, inputs)}", flush=True)
            return
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    print(f"{line} does not fit | | |", flush=True)


def _errors(form, exact, inputs: tuple[Tensor, ...]) -> str:
    """Relative errors of value and gradients against those of the exact form in float64."""
    wide = tuple(x.detach().double().requires_grad_() for x in inputs[:4]) + inputs[4:]
    found, expected = form(*inputs), exact(*wide)
    names = ("loss", "queries", "targets", "scale", "bias")
    with_gradient = 3 if exact is dense_infonce else 4
    ours = (found, *torch.autograd.grad(found, inputs[:with_gradient]))
    theirs = (expected, *torch.autograd.grad(expected, wide[:with_gradient]))
    pairs = zip(names, ours, theirs, strict=False)
    return ", ".join(f"{name} {((a.double() - b).norm() / b.norm()).item():.1e}" for name, a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("forward", "profile", "step", "loss"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--plain-products", action="store_true", help="no oneDNN products on the CPU")
    parser.add_argument(
        "--size",
        choices=("quarter", "shipped", "published"),
        help="forward: quarter (default) or published; step: shipped (default) or published",
    )
    parser.add_argument("--batch", type=int, default=16, help="forward")
    parser.add_argument("--data", type=Path, help="step: a synthetic data set (made anew if not given)")
    parser.add_argument("--persons", type=int, default=8, help="step")
    parser.add_argument("--images", type=int, default=4, help="step: of each person")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="step: bf16 is autocast")
    parser.add_argument(
        "--frozen-identity",
        action="store_true",
        help="step: the identity's projections not trained, the states of the text towers cached, too",
    )
    parser.add_argument("--width", type=int, default=256, help="loss: numbers of a feature")
    parser.add_argument("--half", action="store_true", help="loss: features of bfloat16, and the errors of each form")
    parser.add_argument("--alike", type=float, default=0.0, help="loss: what a person's features share, against noise")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="loss")
    arguments = parser.parse_args()
    wrong = {"forward": "shipped", "profile": "shipped", "step": "quarter"}
    if arguments.size == wrong.get(arguments.table, ""):
        parser.error(f"--size {arguments.size} is none of {arguments.table}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if arguments.plain_products:
        use_plain_products()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    {"forward": forward, "step": step, "loss": loss, "profile": profiles}[arguments.table](arguments)


if __name__ == "__main__":
    main()
