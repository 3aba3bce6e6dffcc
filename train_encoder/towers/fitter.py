"""Trains the 3D channel's fitter, which maps an aligned crop to head shape, expression, pose, camera and light.

python -m train_encoder.towers.fitter data=DIR [--preset tiny] [trainer.steps=…]
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError
from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.frames import FaceFit, move_fit, rotation_matrices
from faceclip.face3d.model import HeadModel, default_head
from faceclip.face3d.points import HeadPoints, border_vertices
from faceclip.face3d.rasterizer import vertex_normals
from faceclip.faces.align import align_face, similarity_transform
from faceclip.faces.batches import detected_faces
from faceclip.settings import setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.training import MapSource, StepContext, Task, TrainerConfig
from faceclip.training.towers.command import TowerConfig, run_tower
from faceclip.training.towers.crops import JitterConfig, jitter_image

EARLIER = 0.7  # weight of a fit's losses relative to those of the fit after the next look
SURFACE_POINTS = 256  # evenly spaced vertices of the face, at which position and shading are compared


@dataclass(kw_only=True)
class FitterSizes:
    """Sizes of `FaceFitter`."""

    image_size: int = setting(112, "px of the crop")
    view: float = setting(1.45, "side of the crop in sides of the face crop")
    widths: list[int] = setting(factory=lambda: [24, 48, 96, 160], help="channels of the stages")
    depths: list[int] | None = setting(None, "blocks of the stages; null: one each")
    reduced: int = setting(32, "channels before the fully connected part")
    hidden: int = setting(384, "width of the fully connected part")
    looks: int = setting(0, "second looks at the landmarks")
    look_points: int = setting(96, "points of a look")
    look_channels: int = setting(16, "channels of a look")
    look_hidden: int = setting(128, "width of a look")


@dataclass(kw_only=True)
class LossWeights:
    """Weights of the loss terms."""

    parameters: float = setting(1.0, "standardized parameters")
    pose: float = setting(1.0, "angles of the head, per 10°")
    points: float = setting(0.5, "projected points, per 1 % of the crop")
    shading: float = setting(1.0, "of the surface, per 0.1")


@dataclass(kw_only=True)
class FitterConfig(TowerConfig):
    """Settings of the command."""

    out: str = setting("runs/towers/fitter", "folder of the run", resume="free", path=True)
    init: str = setting("", "export of this command whose weights the training starts from", resume="free", path=True)
    model: FitterSizes = field(default_factory=FitterSizes)
    weights: LossWeights = field(default_factory=LossWeights)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def true_fit(arrays: FaceArrays) -> FaceFit:
    """Returns the true parameters of a split's renders, in the frame of the portraits."""
    fields = {name: torch.from_numpy(np.array(getattr(arrays, name))) for name in ("shape", "expression", "pose")}
    light = torch.from_numpy(np.array(arrays.light)).unflatten(1, (9, 3))
    return FaceFit(**fields, camera=torch.from_numpy(np.array(arrays.camera)), light=light)


class FittedSource(MapSource):
    """Aligned, jittered crops (3, S, S) uint8 with the true parameter vectors (P,) in the frames of the crops."""

    def __init__(self, directory: Path, split: str, *, size: int, jitter: JitterConfig, view: float = 1.0) -> None:
        self.arrays = load_arrays(directory, split)
        self.small = load_arrays(directory, split, size=64) if jitter.half_resolution else None
        self.size, self.view, self.jitter = size, view, jitter
        self.truth = true_fit(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns one training sample; `collate` adds the parameters of the whole batch."""
        arrays = self.arrays
        if self.small is not None and rng.random() < self.jitter.half_resolution:
            arrays = self.small
        points = np.array(arrays.landmarks_5[index], dtype=np.float64)
        span = np.linalg.norm(points - points.mean(axis=0), axis=1).mean()
        points += rng.standard_normal((5, 2)) * (self.jitter.landmarks * 4 * span)
        crop = align_face(np.asarray(arrays.images[index]), points, self.size, view=self.view)
        crop = jitter_image(crop, rng, self.jitter)
        matrix = similarity_transform(torch.from_numpy(points), self.size, view=self.view).numpy()
        return {"crop": crop.transpose(2, 0, 1), "matrix": matrix, "row": index, "portrait": arrays.size}

    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """Stacks the crops, and moves the true fits into the frames of the crops."""
        matrices = torch.from_numpy(np.stack([sample["matrix"] for sample in samples])).float()
        # Parameters are relative to the portrait's side, so scale every matrix to the same number of px.
        sizes = torch.tensor([sample["portrait"] for sample in samples])
        zoom = (sizes / self.arrays.size)[:, None, None].float()
        linear, shift = matrices[:, :, :2], matrices[:, :, 2:]
        # p_small = (p + ½)·zoom − ½, hence A·p_small + b = (zoom·A)·p + b + A·(½·zoom − ½).
        shift = shift + (linear * ((zoom - 1) / 2)).sum(dim=2, keepdim=True)
        truth = self.truth.rows([sample["row"] for sample in samples])
        moved = move_fit(truth, torch.cat([linear * zoom, shift], dim=2), before=self.arrays.size, after=self.size)
        crops = torch.from_numpy(np.stack([sample["crop"] for sample in samples]))
        return {"crop": crops, "target": FaceFitter.pack(moved)}

    def statistics(self, count: int = 4096) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation (P,) of the parameter vectors in the crops' frames, over `count` rows."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist()
        points = torch.from_numpy(np.array(self.arrays.landmarks_5)[rows])
        matrix = similarity_transform(points, self.size, view=self.view)
        moved = move_fit(self.truth.rows(rows), matrix, before=self.arrays.size, after=self.size)
        values = FaceFitter.pack(moved)
        return values.mean(dim=0), values.std(dim=0).clamp_min(1e-3)


class Surface(HeadPoints):
    """Points of the head model at which fits are compared: landmarks, the face's border, and evenly spaced vertices."""

    def __init__(self, head: HeadModel, count: int = SURFACE_POINTS) -> None:
        face = np.flatnonzero(head.face_mask)
        inside = face[np.linspace(0, len(face) - 1, count).astype(int)]
        picked = np.concatenate([head.landmarks_68, border_vertices(head), inside])
        super().__init__(head, picked)
        # Near the mean head, normals are linear in the coefficients: take their change for half a unit of each.
        normals = vertex_normals(head.template, head.faces)
        bases = np.concatenate([head.shape_basis, head.expression_basis])
        turned = np.stack([vertex_normals(head.template + 0.5 * basis, head.faces)[picked] for basis in bases])
        self.keep("normals", normals[picked], (turned - normals[picked]) / 0.5)

    def shading(self, fit: FaceFit) -> Tensor:
        """Returns the shading (B, N, 3) of the points; 1 is full albedo."""
        return sh_values(self._posed_normals(fit)) @ fit.light

    def visibility(self, fit: FaceFit) -> Tensor:
        """Returns weights (B, N) of mean 1, ten times larger for points that face the viewer than for those turned
        away."""
        weights = (self._posed_normals(fit)[..., 2] * 2.5 + 0.75).clamp(0.1, 1)
        return weights / weights.mean(dim=1, keepdim=True)

    def _posed_normals(self, fit: FaceFit) -> Tensor:
        normals = F.normalize(self.linear(fit, "normals"), dim=-1)
        return normals @ rotation_matrices(fit.pose).transpose(1, 2)


def sh_values(normals: Tensor) -> Tensor:
    """Returns `faceclip.face3d.light.sh_basis` for tensors: (…, 9) of unit normals (…, 3)."""
    x, y, z = normals.unbind(-1)
    first = [torch.full_like(x, 0.282095), 0.488603 * y, 0.488603 * z, 0.488603 * x]
    second = [1.092548 * x * y, 1.092548 * y * z, 0.315392 * (3 * z * z - 1), 1.092548 * x * z]
    return torch.stack([*first, *second, 0.546274 * (x * x - y * y)], dim=-1)


class FitterTask(Task):
    """Regresses all parameters, with further losses on what is visible: pose, projected points, shading."""

    def __init__(self, model: FaceFitter, weights: LossWeights, directory: Path) -> None:
        self.modules = nn.ModuleDict({"fitter": model})
        self.surface = Surface(default_head())
        self.weights, self.directory = weights, directory

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of one batch of `FittedSource` and its parts."""
        model, surface = self.modules["fitter"], self.surface
        fits = model.successive_fits(batch["crop"].float() / 255)
        with torch.autocast(context.device.type, enabled=False):
            target = batch["target"]
            truth = model.unpack(target)
            seen = surface.visibility(truth)[..., None]
            places, shades = surface.positions(truth), surface.shading(truth)
            total = torch.zeros((), device=target.device)
            for later, fit in enumerate(reversed(fits)):
                error = (model.pack(fit) - target) / model.deviation
                parts = {
                    "parameters": F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.5),
                    "pose": F.l1_loss(fit.pose, truth.pose) / 10,
                    "points": ((surface.positions(fit) - places).abs() * seen).mean() * 100,
                    "shading": ((surface.shading(fit) - shades).abs() * seen).mean() * 10,
                }
                loss = sum(getattr(self.weights, name) * part for name, part in parts.items())
                total = total + loss * EARLIER**later
                if later == 0:
                    last = {name: part.detach() for name, part in parts.items()}
        return total, last | {"first": loss.detach()}  # the loop ends with the fit before any look

    def validate(self, step: int) -> dict[str, float]:
        """Returns the card's figures on 20 validation identities."""
        figures = measure(self.modules["fitter"], self.directory, "validation", people=20)
        return {name: figure.value for name, figure in figures.items()}

    def export(self, directory: Path) -> None:
        """Saves the fitter for `FaceFitter.from_pretrained`."""
        self.modules["fitter"].save_pretrained(directory)


def measure(
    model: FaceFitter,
    directory: Path,
    split: str,
    *,
    people: int | None = None,
    per_person: int = 4,
    detected: bool = False,
) -> dict[str, Estimate]:
    """Measures pose and shading errors in the portraits' frame, over the first `per_person` portraits of each identity.

    people: number of identities; None: all. Faces are cut by true landmarks. `detected` adds the same figures, named
    …_detected, by the landmarks of the detector for the faces that it finds, and the share of these.
    """
    arrays = load_arrays(directory, split)
    model.eval()
    identity = np.asarray(arrays.identity)
    rows = np.flatnonzero(np.asarray(arrays.index) < per_person)
    if people is not None:
        rows = rows[np.isin(identity[rows], np.unique(identity)[:people])]
    figures = _figures(model, arrays, rows, np.array(arrays.landmarks_5)[rows])
    if detected:
        faces = detected_faces([np.asarray(arrays.images[row]) for row in rows], label="finding faces")
        figures["faces_found"] = identity_bootstrap(faces.found.astype(np.float64), identity[rows])
        if faces.found.any():
            found = _figures(model, arrays, rows[faces.found], faces.landmarks[faces.found])
            figures |= {f"{name}_detected": figure for name, figure in found.items()}
    return figures


@torch.inference_mode()
def _figures(
    model: FaceFitter, arrays: FaceArrays, rows: np.ndarray, landmarks: np.ndarray, *, batch: int = 64
) -> dict[str, Estimate]:
    """Measures the errors of portraits cut by `landmarks` (N, 5, 2) px.

    shading_rmse: root mean square error of the fitted map within the true face, in grey levels from 0 to 1.
    shading_rmse_inside: the same where the fitted face covers the true one. Rendering takes .03 s each.
    """
    pose, shading, inside = [], [], []
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        fit = model.fit([np.asarray(arrays.images[row]) for row in chunk], landmarks[start : start + batch])
        pose.append(np.abs(fit.pose.numpy() - np.asarray(arrays.pose)[chunk]))
        maps = model.shading(fit, arrays.size).permute(0, 2, 3, 1).numpy()
        for drawn, row in zip(maps, chunk, strict=True):
            truth = np.asarray(arrays.shading[row]).astype(np.float32) / 255
            face = truth.max(axis=-1) > 0
            error = np.square(drawn - truth)
            shading.append(np.sqrt(error[face].mean()))
            both = face & (drawn.max(axis=-1) > 0)
            inside.append(np.sqrt(error[both].mean()) if both.any() else 1.0)
    pose, owner = np.concatenate(pose), np.asarray(arrays.identity)[rows]
    figures = {
        "pose_error_degrees": identity_bootstrap(pose.mean(axis=1), owner),
        "shading_rmse": identity_bootstrap(np.array(shading), owner),
        "shading_rmse_inside": identity_bootstrap(np.array(inside), owner),
    }
    for axis, name in enumerate(("yaw", "pitch", "roll")):
        figures[f"{name}_error_degrees"] = identity_bootstrap(pose[:, axis], owner)
    return figures


def build(config: FitterConfig) -> tuple[FitterTask, FittedSource]:
    """Returns task and source of a configuration. Raises as `_start_from` does."""
    sizes = config.model
    source = FittedSource(Path(config.data), "train", size=sizes.image_size, view=sizes.view, jitter=config.jitter)
    model = FaceFitter(
        shape_size=source.arrays.shape.shape[1], expression_size=source.arrays.expression.shape[1], **vars(sizes)
    )
    mean, deviation = source.statistics()
    model.mean.copy_(mean)
    model.deviation.copy_(deviation)
    if config.init:
        _start_from(model, Path(config.init))
    return FitterTask(model, config.weights, Path(config.data)), source


def _start_from(model: FaceFitter, folder: Path) -> None:
    """Copies an export's weights and standardization.

    Raises CheckpointError if there is no export, and ConfigError if it has other sizes.
    """
    earlier = FaceFitter.from_pretrained(folder).float()
    sizes = {
        name: (value, model.config[name])
        for name, value in earlier.config.items()
        if name[0] != "_" and value != model.config[name]
    }
    if sizes:
        told = ", ".join(f"{name}={there} where the configuration has {here}" for name, (there, here) in sizes.items())
        raise ConfigError(f"init={folder}: a fitter of other sizes, {told}")
    model.load_state_dict(earlier.state_dict())


main = partial(
    run_tower,
    FitterConfig,
    package="train_encoder.towers",
    name="fitter",
    build=build,
    measure=lambda path, config: measure(FaceFitter.from_pretrained(path), Path(config.data), "test", detected=True),
    title="Face fitter (3D channel)",
    summary=(
        "A small residual network that reads head shape, expression, pose, camera and spherical-harmonics light "
        "from one aligned crop, so that the shading map of any reference image can be drawn."
    ),
    notes=(
        "`shading_rmse` is taken over all pixels of the true face, `shading_rmse_inside` over those that the "
        "fitted face covers too; the difference is a silhouette that lies a part of a pixel off. Crops are cut by "
        "the portraits' true landmarks; figures called …_detected by those that MTCNN finds, without the faces "
        "that it misses. The shipped weights began with the first 4,000 steps of a run of 22,000 with two looks at "
        "three maps, 12 channels each; the first map and four channels were added with weights of zero, and "
        "the command of this card went on from there (init=)."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
