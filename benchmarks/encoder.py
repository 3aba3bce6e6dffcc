"""Speed and memory of the joint encoder: `python benchmarks/encoder.py [--batch 16] [--threads 2]`.

1. `FaceCLIP.encode` against the straightforward form of the published computation: a face encoder pass per branch and
   the dead face half of the last fusion layer computed.
2. The sigmoid loss, in row blocks against dense autograd: time of forward and backward, bytes held for backward.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip.encoder import TEMPLATE, FaceCLIP
from faceclip.fusion import DeformableLayer
from faceclip.losses import sigmoid_contrastive_loss
from faceclip.text_tower import tokenize

# A quarter of the published width, so that the comparison fits a laptop; proportions as published.
CONFIG = {
    "face": {"image_size": 112, "patch_size": 9, "width": 384, "depth": 12, "heads": 8, "embedding_dim": 512},
    "text_l": {"width": 256, "layers": 6, "heads": 4, "embed_dim": 256},
    "text_g": {"width": 384, "layers": 12, "heads": 6, "quick_gelu": False, "embed_dim": 384},
    "fusion": {"layers": 6, "attention_width": 512, "text_hidden": 512, "face_hidden": 1024},
}


def best_of(repeat: int, action) -> float:
    """Least seconds of some runs, after one to warm up."""
    action()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def straightforward(model: FaceCLIP, dead: dict[str, DeformableLayer], tokens: Tensor, faces: Tensor) -> Tensor:
    """The published flow: every branch runs its own face encoder, and the last layer's face half."""
    fused = []
    for name, branch in (("l", model.l), ("g", model.g)):
        features = model.face_encoder(faces)
        fused.append(branch(tokens, features, model.face_encoder.pos_embed).fused)
        face = branch.face_projection(features.tokens)
        dead[name](face, branch.face_position_projection(model.face_encoder.pos_embed))
    return torch.cat(fused, -1)


def dense_loss(q: Tensor, t: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss by plain autograd."""
    sign = (labels[:, None] == labels) * 2.0 - 1.0
    return F.softplus(-sign * (scale.exp() * q @ t.T + bias)).sum() / len(q)


def held_bytes(loss) -> int:
    """Distinct bytes that autograd keeps between forward and backward."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    model = FaceCLIP(**CONFIG).eval()
    dead = {name: DeformableLayer(CONFIG[f"text_{name}"]["width"], 8, 4, 1024).eval() for name in ("l", "g")}
    tokens = tokenize([TEMPLATE + "a person with a red hat"] * arguments.batch)
    faces = torch.rand(arguments.batch, 3, 448, 448)
    with torch.no_grad():
        ours = best_of(arguments.repeat, lambda: model.encode(tokens, faces))
        theirs = best_of(arguments.repeat, lambda: straightforward(model, dead, tokens, faces))
        features = model.face_features(faces)
        cached = best_of(arguments.repeat, lambda: model.encode(tokens, face_features=features))
    print(f"encode, batch {arguments.batch}: {ours:.3f} s; straightforward {theirs:.3f} s ({theirs / ours:.2f} ×); "
          f"with cached face features {cached:.3f} s ({theirs / cached:.2f} ×)")  # fmt: skip

    print("sigmoid loss, D = 256, forward + backward; bytes held for backward")
    for rows in arguments.rows:
        q = F.normalize(torch.randn(rows, 256), dim=1).requires_grad_()
        t = F.normalize(torch.randn(rows, 256), dim=1)
        scale, bias = torch.tensor(2.3, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
        labels = torch.randint(0, rows // 4, (rows,))

        def blocks(q=q, t=t, scale=scale, bias=bias, labels=labels) -> Tensor:
            return sigmoid_contrastive_loss(q, t, scale, bias, labels, labels)

        def dense(q=q, t=t, scale=scale, bias=bias, labels=labels) -> Tensor:
            return dense_loss(q, t, scale, bias, labels)

        line = f"  N = {rows:6d}: row blocks {best_of(arguments.repeat, lambda f=blocks: f().backward()):7.3f} s"
        line += f", {held_bytes(blocks) / 2**20:8.1f} MiB"
        if rows <= 16384:  # beyond, the dense form does not fit
            line += f"; dense {best_of(arguments.repeat, lambda f=dense: f().backward()):7.3f} s"
            line += f", {held_bytes(dense) / 2**20:8.1f} MiB"
        print(line)


if __name__ == "__main__":
    main()
