"""Speed and memory of the joint encoder, as Markdown tables.

    python benchmarks/encoder.py forward [--size quarter|published] [--batch 16] [--threads 1]
    python benchmarks/encoder.py step [--size published] [--data DIR] [--persons 8] [--images 4]
    python benchmarks/encoder.py loss [--rows 1024 4096 16384 65536]

forward: `FaceCLIP.encode` against the straightforward form of the published computation: a face encoder pass per
branch, the dead face half of the last fusion layer computed, the fuser in float32. step: one step of stage 1 with
cached features against the same step that computes them, on the shipped towers or, as the preset `bigg14` has them, on
towers of the published size with random weights (19 GB of memory). loss: row blocks against dense autograd.

CPU s: processor time of this process (with one thread, what the work costs whatever else the machine does). Wall s: as
the clock says. Each is the least of some runs after one to warm up. On a GPU (--device cuda) only wall time counts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip import weights
from faceclip.cpu_matmul import has_onednn
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.encoder import ID_INDEX, TEMPLATE, FaceCLIP, FaceCLIPBranch
from faceclip.face_encoder import FaceFeatures, FaceViT
from faceclip.faces.align import align_face
from faceclip.fusion import FusionLayer
from faceclip.image_tower import ImageTower
from faceclip.losses import infonce_loss, sigmoid_contrastive_loss
from faceclip.published import CONFIG as PUBLISHED
from faceclip.text_tower import TextTower, tokenize, used_tokens

# A third to a half of the published widths and half the depth, so that batch 16 fits a laptop.
QUARTER: dict[str, Any] = {
    "face": {"image_size": 112, "patch_size": 9, "width": 384, "depth": 12, "heads": 8, "embedding_dim": 512},
    "text_l": {"width": 256, "layers": 6, "heads": 4, "embed_dim": 256},
    "text_g": {"width": 384, "layers": 12, "heads": 6, "quick_gelu": False, "embed_dim": 384},
    "fusion": {"layers": 6, "attention_width": 512, "text_hidden": 512, "face_hidden": 1024},
}
# The image tower of preset `bigg14`, open_clip's ViT-bigG-14.
BIGG_IMAGE = {"image_size": 224, "patch_size": 14, "width": 1664, "layers": 48, "heads": 16, "embed_dim": 1280,
              "mlp_ratio": 4.9231}  # fmt: skip
# The fusion that `python -m train_encoder` trains by default.
TINY_FUSION = {"layers": 3, "attention_width": 128, "text_hidden": 256, "face_hidden": 256, "layer_scale": 0.3}
DENSE_LIMIT = 16384  # rows; beyond, the dense loss' matrices do not fit a small machine


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Least processor and wall seconds of some runs."""

    cpu: float
    wall: float


def timed(action: Callable[[], object], repeat: int, device: torch.device, warm_up: int = 1) -> Timing:
    """Runs `warm_up` times, then `repeat` times."""
    cpu, wall = [], []
    for number in range(warm_up + repeat):
        started = time.process_time(), time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= warm_up:
            cpu.append(time.process_time() - started[0])
            wall.append(time.perf_counter() - started[1])
    return Timing(cpu=min(cpu), wall=min(wall))


def speed(reference: Timing, other: Timing, device: torch.device) -> str:
    """How many times faster than the reference: by processor time, on a GPU by wall time."""
    ratio = reference.wall / other.wall if device.type == "cuda" else reference.cpu / other.cpu
    return f"{ratio:.2f} ×"


class Straightforward:
    """The published flow with our weights, written plainly; towers and projections run in the model's dtype, the
    fuser in float32, as under the release's autocast."""

    def __init__(self, model: FaceCLIP, fusion: dict[str, Any]) -> None:
        self.model = model
        self.last = {name: self._last(branch, fusion) for name, branch in (("l", model.l), ("g", model.g))}

    @staticmethod
    def _last(branch: FaceCLIPBranch, fusion: dict[str, Any]) -> FusionLayer:
        sizes = {"attention_width": 1024, "attention_heads": 4, "text_hidden": 1024, "face_heads": 8, "points": 4,
                 "face_hidden": 2048, "layer_scale": 1e-4}  # fmt: skip
        sizes |= {name: value for name, value in fusion.items() if name != "layers"}
        weight = branch.text_projection.weight
        layer = FusionLayer(len(weight), last=False, **sizes).to(weight.device)  # with the face half
        layer.load_state_dict(branch.fusion.layers[-1].state_dict(), strict=False)
        return layer.float().eval()

    def __call__(self, tokens: Tensor, faces: Tensor) -> Tensor:
        fused = []
        for name, branch in (("l", self.model.l), ("g", self.model.g)):
            encoder = self.model.face_encoder
            face = encoder(faces.to(encoder.dtype))
            word = branch.identity_projection(face.identity / face.identity.norm(dim=-1, keepdim=True))
            hidden = branch.text(tokens, replace_index=ID_INDEX, replace_with=word).hidden
            streams = (
                branch.face_projection(face.tokens),
                branch.face_position_projection(encoder.pos_embed),
                branch.text_projection(hidden),
                branch.text_position_projection(branch.text.tower.positional_embedding[None]),
            )
            patches, face_position, text, text_position = (stream.float() for stream in streams)
            for layer in (*branch.fusion.layers[:-1], self.last[name]):
                patches, text = layer(patches, face_position, text, text_position)
            fused.append(text)
        return torch.cat(fused, dim=-1)


@torch.no_grad()
def forward(arguments: argparse.Namespace) -> None:
    """Table of forward passes."""
    device, repeat = torch.device(arguments.device), arguments.repeat
    size = arguments.size or "quarter"
    config = {"quarter": QUARTER, "published": PUBLISHED}[size]
    with device:
        model = FaceCLIP(**config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("face_scale", "text_scale")):
            parameter.fill_(0.5)  # a trained layer scale; at the initial 1e-4 the fusion would not show in the numbers
    tokens = tokenize([TEMPLATE + "a person with a red hat"] * arguments.batch).to(device)
    faces = torch.rand(arguments.batch, 3, 448, 448, device=device)
    exact: Tensor | None = None
    print(f"forward, {size} size, batch {arguments.batch}, {describe(device)}\n")
    print("| forward | CPU s | wall s | speed | error |\n| --- | --- | --- | --- | --- |", flush=True)

    def measure(title: str, action: Callable[[], Tensor], reference: Timing | None = None) -> Timing:
        output: list[Tensor] = []
        timing = timed(lambda: output.append(action()), repeat, device)
        nonlocal exact
        exact = output[-1].float() if exact is None else exact
        error = (output[-1].float() - exact).norm() / exact.norm()
        ratio = speed(reference or timing, timing, device)
        print(f"| {title} | {timing.cpu:.3f} | {timing.wall:.3f} | {ratio} | {error:.1e} |", flush=True)
        return timing

    def encode() -> Tensor:
        return model.encode(tokens, faces).tokens

    form = Straightforward(model, config["fusion"])
    plain = measure("straightforward, float32", lambda: form(tokens, faces))
    measure("`encode`, float32", encode, plain)
    known = model.face_features(faces)
    measure("`encode`, float32, cached face features", lambda: model.encode(tokens, face_features=known).tokens, plain)
    fusions = [branch.fusion for branch in (model.l, model.g)]
    model.to(torch.bfloat16)
    for fusion in fusions:
        fusion.float()
    mixed = measure("straightforward, towers bfloat16, fuser float32", lambda: form(tokens, faces))
    for fusion in fusions:
        fusion.bfloat16()
    measure("`encode`, all bfloat16", encode, mixed)

    print("\nSpeed: against the straightforward form above it. Error of the tokens: root mean square, relative to the "
          "first line's.")  # fmt: skip


def dense_sigmoid(q: Tensor, t: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss by plain autograd."""
    sign = (labels[:, None] == labels) * 2.0 - 1.0
    return -F.logsigmoid(sign * (scale.exp() * q @ t.T + bias)).sum() / len(q)


def dense_infonce(q: Tensor, t: Tensor, scale: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss by plain autograd, positives averaged outside the log."""
    positive = labels[:, None] == labels
    log_probability = (scale.exp() * q @ t.T).log_softmax(1)
    return -(torch.where(positive, log_probability, 0).sum(1) / positive.sum(1)).mean()


def block_sigmoid(q: Tensor, t: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss in row blocks."""
    return sigmoid_contrastive_loss(q, t, scale, bias, labels, labels)


def block_infonce(q: Tensor, t: Tensor, scale: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss in row blocks."""
    return infonce_loss(q, t, scale, labels, labels)


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
    print(f"loss, D = 256, float32, {describe(device)}\n")
    print("| loss | N | gradient for | blocks, CPU s (wall) | saved | dense, CPU s (wall) | saved | blocks / dense |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for title, blocks, dense in (("sigmoid", block_sigmoid, dense_sigmoid), ("InfoNCE", block_infonce, dense_infonce)):
        for rows in arguments.rows:
            for both in (False, True) if rows <= 4096 else (True,):
                _loss_row(title, blocks, dense, rows, both, arguments.repeat, device)


def _loss_row(title: str, blocks, dense, rows: int, both: bool, repeat: int, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(0)
    q, t = (F.normalize(torch.randn(rows, 256, device=device, generator=generator), dim=1) for _ in "qt")
    q.requires_grad_()
    t.requires_grad_(both)
    scale, bias = (torch.tensor(x, device=device, requires_grad=True) for x in (2.3, -10.0))
    labels = torch.randint(0, rows // 4, (rows,), device=device, generator=generator)
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
            ratio = ours.wall / theirs.wall if device.type == "cuda" else ours.cpu / theirs.cpu
            print(f"{line} {text} | {ratio:.2f} |", flush=True)
            return
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    print(f"{line} does not fit | | |", flush=True)


def shipped_parts() -> tuple[FaceCLIP, ImageTower]:
    """The shipped towers with a new fusion, and the shipped image tower."""
    face = FaceViT.from_pretrained(weights.path("tiny/recognizer"))
    towers = (TextTower.from_pretrained(weights.path(f"tiny/text_tower_{name}")) for name in "lg")
    model = FaceCLIP.from_components(face, *towers, fusion=TINY_FUSION, joint={})
    return model, ImageTower.from_pretrained(weights.path("tiny/image_tower"))


def published_parts() -> tuple[FaceCLIP, ImageTower]:
    """What preset `bigg14` trains, with random weights."""
    return FaceCLIP(**PUBLISHED | {"joint": {"hidden": 1024, "heads": 8}}), ImageTower(**BIGG_IMAGE)


class Stage1Step:
    """One step of stage 1: the frozen work, and what is trained on it.

    As in training, a query is a portrait of a person with the caption of another portrait of this person, the answer.
    """

    def __init__(self, model: FaceCLIP, image: ImageTower, arrays: FaceArrays, persons: int, images: int) -> None:
        self.arrays = arrays
        self.model, self.image = model.train(), image.requires_grad_(False).eval()
        trained = model.freeze_towers()
        self.scales = torch.nn.ParameterList(torch.tensor(x) for x in (2.3, -10.0))
        self.optimizer = torch.optim.AdamW([*trained, *self.scales], lr=1e-4)
        identity = np.asarray(arrays.identity)
        chosen = [np.flatnonzero(identity == who)[: 2 * images] for who in np.unique(identity)[:persons]]
        self.query = np.concatenate([rows[::2] for rows in chosen])
        self.answer = np.concatenate([rows[1::2] for rows in chosen])
        self.labels = torch.tensor(identity[self.answer].astype(np.int64))
        self.captions = [arrays.captions[row][0].text for row in self.answer]
        self.tokens = tokenize([TEMPLATE + text for text in self.captions])

    @torch.no_grad()
    def features(self) -> dict[str, Tensor]:
        """All frozen work of a step: pictures cut and encoded, captions embedded."""
        face = self.model.face_encoder
        size = face.config.image_size
        query, answer = (face(self._crops(rows, size)) for rows in (self.query, self.answer))
        pictures = np.stack([np.asarray(self.arrays.images[row]) for row in self.answer])
        text = self.model.g.text(used_tokens(tokenize(self.captions))).embedding
        return {"tokens": query.tokens, "identity": query.identity, "answer": answer.identity,
                "image": self.image(_unit(pictures)).embedding, "text": text}  # fmt: skip

    def _crops(self, rows: np.ndarray, size: int) -> Tensor:
        marks = self.arrays.landmarks_5
        return _unit(np.stack([align_face(np.asarray(self.arrays.images[row]), np.array(marks[row], np.float64), size)
                               for row in rows]))  # fmt: skip

    def train(self, features: dict[str, Tensor]) -> None:
        """Encoder, heads, four losses, backward, optimizer."""
        face = FaceFeatures(tokens=features["tokens"], identity=features["identity"])
        tokens = self.model.encode(self.tokens, face_features=face).tokens
        query = self.model.heads(
            tokens, identity=face.identity, text=features["text"], has_text=torch.ones(len(tokens), dtype=torch.bool)
        )
        gallery = self.model.heads.gallery(features["answer"], features["image"])
        targets = [F.normalize(features[name], dim=-1) for name in ("answer", "text", "image")]
        pairs = zip((query.face, query.text, query.text, query.joint), (*targets, gallery), strict=True)
        total = sum(sigmoid_contrastive_loss(a, b, *self.scales, self.labels, self.labels) for a, b in pairs)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def _unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def step(arguments: argparse.Namespace) -> None:
    """Table of a training step with and without cached features."""
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = Path(folder) / "data"
            command = [sys.executable, "-m", "faceclip.data.synthetic", "--out", str(data), "--identities", "12"]
            command += ["--images-per-identity", "8", "--size", "64", "--workers", "1", "--splits", "8", "2", "2"]
            subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
        arrays = load_arrays(data, "train")
        parts = {"shipped": shipped_parts, "published": published_parts}[size := arguments.size or "shipped"]
        work = Stage1Step(*parts(), arrays, arguments.persons, arguments.images)
        cached = work.features()
        cpu = torch.device("cpu")
        without = timed(lambda: work.train(work.features()), arguments.repeat, cpu)
        frozen = timed(work.features, arguments.repeat, cpu)
        withal = timed(lambda: work.train(cached), arguments.repeat, cpu)
    print(f"step, {size} towers, {len(work.query)} queries, {describe(cpu)}\n")
    print("| step of stage 1 | CPU s | wall s | speed |\n| --- | --- | --- | --- |")
    for title, timing in (("features computed", without), ("features cached", withal)):
        print(f"| {title} | {timing.cpu:.3f} | {timing.wall:.3f} | {speed(without, timing, cpu)} |")
    print(f"| the frozen work alone | {frozen.cpu:.3f} | {frozen.wall:.3f} | |")


def describe(device: torch.device) -> str:
    """The circumstances, for a table's caption."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    kernels = "" if device.type == "cuda" else f", oneDNN products {'on' if has_onednn() else 'off'}"
    return f"{where}, torch {torch.__version__}{kernels}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("forward", "step", "loss"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="forward and loss: cpu or cuda")
    parser.add_argument("--size", choices=("quarter", "shipped", "published"), help="forward: quarter (default) or "
                        "published; step: shipped (default) or published")  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, help="forward")
    parser.add_argument("--data", type=Path, help="step: a synthetic data set (made anew if not given)")
    parser.add_argument("--persons", type=int, default=8, help="step")
    parser.add_argument("--images", type=int, default=4, help="step: of each person")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="loss")
    arguments = parser.parse_args()
    wrong = {"forward": "shipped", "step": "quarter"}
    if arguments.size == wrong.get(arguments.table, ""):
        parser.error(f"--size {arguments.size} is none of {arguments.table}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    {"forward": forward, "step": step, "loss": loss}[arguments.table](arguments)


if __name__ == "__main__":
    main()
