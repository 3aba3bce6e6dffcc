"""The objective of stage 1: aligns the fused tokens with the face, text and image spaces, and trains composed
queries."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.encoder import FaceCLIP
from faceclip.losses import gather_targets, sigmoid_contrastive_loss
from faceclip.towers.face import FaceFeatures
from faceclip.towers.image import ImageTower
from faceclip.training import ContrastiveTask, StepContext
from faceclip.training.collectives import gather_rows, sum_over_ranks, world_size
from train_encoder.config import LossConfig
from train_encoder.queries import FACE_ONLY, TEXT_ONLY
from train_encoder.split_features import SplitFeatures
from train_encoder.validation import figure_names, rank1_figures

TERMS = ("face", "text", "image", "joint")


class EncoderTask(ContrastiveTask):
    """Stage 1 as a task of the shared trainer.

    The first four terms are sigmoid contrastive losses, each with its own scale and bias:

    - face: projection of the fused tokens against the answer's identity; the same person is positive.
    - text: the same against the caption's embedding; equal captions are positive.
    - image: the same against the answer's CLIP image embedding; only the answer is positive, even among equal captions.
    - joint: query against gallery embedding. With a description only the answer is positive, and the same person under
      other descriptions is a negative; without one, every picture of the person is positive.
    - tokens: squared distance of the fused tokens from the text towers' states, relative to the size of these.

    train_identity: whether the branches' projections of the identity are trained; false if batches hold text_states.
    """

    def __init__(
        self,
        model: FaceCLIP,
        image_tower: ImageTower,
        config: LossConfig,
        validation: SplitFeatures,
        queries: int,
        *,
        train_identity: bool = True,
    ) -> None:
        self.model, self.image_tower, self.config = model, image_tower, config
        self.validation, self.queries = validation, queries
        model.freeze_towers()
        for branch in model.branches:
            branch.identity_projection.requires_grad_(train_identity)
        scales = {f"{term}_log_scale": nn.Parameter(torch.tensor(config.log_scale)) for term in TERMS}
        biases = {f"{term}_bias": nn.Parameter(torch.tensor(config.bias)) for term in TERMS}
        self.modules = nn.ModuleDict({"model": model, "scales": nn.ParameterDict(scales | biases)})

    def encode(self, batch: dict[str, Tensor], context: StepContext) -> dict[str, Tensor]:
        """Returns what the loss compares, per query: embeddings, labels and modes, the drift (Q,) of the fused tokens
        from the towers' states, and the power (Q,) of these states."""
        flat = {name: value.flatten(0, 1) for name, value in batch.items()}  # persons × images → queries
        has_face, has_text = flat["mode"] != TEXT_ONLY, flat["mode"] != FACE_ONLY
        features = FaceFeatures(tokens=flat["face_tokens"], identity=flat["face_identity"])
        conditioning = self.model.encode(
            flat["tokens"], face_features=features, has_face=has_face, text_states=flat.get("text_states")
        )
        heads = self.model.joint_heads()
        query = heads(
            conditioning.tokens, identity=conditioning.identity, text=flat["text"], has_text=has_text, has_face=has_face
        )
        plain = conditioning.text.float()
        fixed = {name: F.normalize(flat[name].float(), dim=-1) for name in ("answer_identity", "answer_image", "text")}
        return fixed | {
            "query_face": query.face,
            "query_text": query.text,
            "query_joint": query.joint,
            "gallery": heads.gallery(flat["answer_identity"], flat["answer_image"]),
            "drift": (conditioning.tokens.float() - plain).square().mean((1, 2)),
            "power": plain.detach().square().mean((1, 2)),
            "labels": torch.stack([flat["person"], flat["row"], flat["words"]], dim=1),
            "mode": flat["mode"],
        }

    def loss_of(self, features: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of this rank's queries against the targets of all ranks, and its parts.

        Its mean over the ranks, and the mean of its gradients, equal those of all queries on one rank. For that, sums
        are divided by the number of queries on all ranks, because ranks differ in how many queries a term has. The
        gallery embedding is trained, so its rows must also receive gradients from the queries of other ranks
        (`gather_rows`); frozen targets are only copied.
        """
        has_face, has_text = features["mode"] != TEXT_ONLY, features["mode"] != FACE_ONLY
        uses = {
            "face": has_face,
            "text": has_text,
            "both": has_face & has_text,
            "face_only": has_face & ~has_text,
            "text_only": has_text & ~has_face,
        }
        local = torch.stack([*(use.sum().float() for use in uses.values()), features["power"].sum()])
        *counts, power = (sum_over_ranks(local) / world_size()).unbind()
        # Weights of the queries in each kind. Rows of other kinds keep weight 0 instead of being left out, because that
        # would read the masks on the host, and a step on a GPU would wait.
        least = 1 / world_size()
        weights = {n: use / count.clamp_min(least) for (n, use), count in zip(uses.items(), counts, strict=True)}
        person, row, words = features["labels"].unbind(1)
        people, rows, texts = gather_targets(features["labels"]).unbind(1)
        # For a face alone all pictures of the person are right; a description asks for one picture.
        nobody = torch.full_like(person, -1)
        asked = torch.stack([row, torch.where(uses["face_only"], person, nobody)], dim=1)
        identity, image, text = (gather_targets(features[name]) for name in ("answer_identity", "answer_image", "text"))
        gallery = gather_rows(features["gallery"])
        face, words_space, joint = (features[f"query_{name}"] for name in ("face", "text", "joint"))
        losses = {
            "face": self._term("face", face, identity, person, people, weights["face"]),
            "text": self._term("text", words_space, text, words, texts, weights["text"]),
            "image": self._term("image", words_space, image, row, rows, weights["text"]),
            "joint": self._term(
                "joint",
                joint,
                gallery,
                asked,
                torch.stack([rows, people], dim=1),
                weights["both"] + 0.5 * (weights["face_only"] + weights["text_only"]),
            ),
            "tokens": features["drift"].sum() / power,
        }
        total = sum(getattr(self.config, name) * value for name, value in losses.items())
        parts = {f"loss_{name}": value.detach() for name, value in losses.items()}
        scales = {name: value.detach() for name, value in self.modules["scales"].items()}
        parts |= {f"logit_scale_{term}": scales[f"{term}_log_scale"].exp() for term in TERMS}
        parts |= {f"logit_bias_{term}": scales[f"{term}_bias"].clone() for term in TERMS}
        return total, parts

    def _term(
        self, name: str, queries: Tensor, targets: Tensor, labels: Tensor, names: Tensor, weights: Tensor
    ) -> Tensor:
        """Returns the weighted sum of a term over the queries."""
        scale, bias = self.modules["scales"][f"{name}_log_scale"], self.modules["scales"][f"{name}_bias"]
        mean = sigmoid_contrastive_loss(queries, targets, scale, bias, labels, names, query_weights=weights)
        return mean * len(queries)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Returns rank-1 of composed queries and of faces alone on validation identities, and of the baselines."""
        return rank1_figures(self.model, self.validation, self.queries)

    def figures(self) -> tuple[str, ...]:
        """Returns the names of `validate`'s figures."""
        return figure_names(self.validation)

    def export(self, directory: Path) -> None:
        """Saves FaceCLIP with its heads, and in `image_tower/` the CLIP image tower that galleries need."""
        self.model.save_pretrained(directory)
        self.image_tower.save_pretrained(directory / "image_tower")
