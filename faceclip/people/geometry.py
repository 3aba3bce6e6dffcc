"""Meshes of what a person wears: hair, beard, hat and glasses, built around one person's neutral head.

Positions are decimetres in the head's rest pose; `template` is the mean head, whose coordinates say *where on a head*
a vertex lies, for every head.
"""

from dataclasses import dataclass

import numpy as np

from faceclip.face3d.model import BODY, HeadModel

EYE_CENTER = np.array([0.289, 7.309, 1.24], np.float32)  # of the mean head, +x side
HEAD_AXIS = 0.45  # z of the vertical axis of the skull


@dataclass(frozen=True, kw_only=True)
class Part:
    """A mesh piece: vertices (V, 3), faces (F, 3), how far it follows the head (V,), coordinates for texture (V, 3)."""

    vertices: np.ndarray
    faces: np.ndarray
    head_weight: np.ndarray
    canonical: np.ndarray


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def scalp_field(template: np.ndarray, fringe: float = 0.0) -> np.ndarray:
    """Returns how deep inside the hairline a point of the mean head lies, 0 outside to 1; `fringe` lowers the front."""
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    front = 7.93 - fringe - 0.25 * np.clip(x - 0.45, 0, 1)
    line = np.interp(z, [0.0, 0.25, 0.42, 0.75, 0.9, 1.1], [6.55, 6.6, 7.2, 7.2, 7.55, 8.0])
    line = np.where(z > 0.95, front, np.minimum(line, np.maximum(front, 7.0)))
    ear = (x > 0.72) & (y < 7.42) & (z > 0.1) & (z < 0.62)
    return np.where(ear, 0.0, smoothstep(y - line, 0.0, 0.12))


def beard_field(template: np.ndarray) -> np.ndarray:
    """Returns where a full beard grows on the mean head, 0 to 1: jaw, chin and cheeks, not lips, with the moustache."""
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    cheek_line = np.interp(x, [0.0, 0.25, 0.45, 0.62, 0.75], [6.78, 6.76, 6.62, 6.85, 7.2])
    jaw = smoothstep(cheek_line - y, 0.0, 0.08) * smoothstep(y, 6.02, 6.2) * smoothstep(z, 0.45, 0.65)
    mouth = (x / 0.22) ** 2 + ((y - 6.615) / 0.085) ** 2 < 1.0
    return np.maximum(np.where(mouth, 0.0, jaw), mustache_field(template))


def mustache_field(template: np.ndarray) -> np.ndarray:
    x, y, z = np.abs(template[:, 0]), template[:, 1], template[:, 2]
    top, bottom = 6.835 - 0.25 * x, 6.715 - 0.35 * np.maximum(x - 0.06, 0)
    return smoothstep(y, bottom - 0.015, bottom + 0.03) * smoothstep(top - y, 0, 0.03) * (x < 0.33) * (z > 1.2)


def shell(
    model: HeadModel, vertices: np.ndarray, normals: np.ndarray, thickness: np.ndarray, *, minimum: float = 1e-3
) -> Part | None:
    """Returns the body surface lifted by `thickness` (V,) along its normals, where that is above `minimum`."""
    chosen = (thickness > minimum) & (model.part == BODY)
    faces = model.faces[chosen[model.faces].any(1) & (model.part == BODY)[model.faces].all(1)]
    if len(faces) == 0:
        return None
    used = np.unique(faces)
    table = np.zeros(len(vertices), np.int32)
    table[used] = np.arange(len(used))
    # A hair's breadth below the skin at the rim, so that the rim emerges smoothly.
    lift = np.where(chosen, thickness, -0.02)[used, None]
    return Part(
        vertices=vertices[used] + normals[used] * lift,
        faces=table[faces],
        head_weight=model.head_weight[used],
        canonical=model.template[used],
    )


def grid(
    points: np.ndarray, canonical: np.ndarray, head_weight: np.ndarray | np.floating, closed: bool = False
) -> Part:
    """Returns a sheet from a lattice of points (R, C, 3); `closed` joins the last column to the first."""
    rows, columns = points.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    right = np.roll(index, -1, 1) if closed else index[:, 1:]
    left = index if closed else index[:, :-1]
    a, b, c, d = left[:-1], right[:-1], right[1:], left[1:]
    faces = np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    return Part(
        vertices=points.reshape(-1, 3).astype(np.float32),
        faces=faces.astype(np.int32),
        head_weight=np.broadcast_to(head_weight, (rows, columns)).reshape(-1).astype(np.float32),
        canonical=canonical.reshape(-1, 3).astype(np.float32),
    )


@dataclass(frozen=True, kw_only=True)
class Skull:
    """Half width and half depth of one person's head above the ears, measured once."""

    half_width: float
    front: float  # z of the forehead
    back: float  # z of the back of the head
    top: float

    @classmethod
    def measure(cls, model: HeadModel, vertices: np.ndarray) -> "Skull":
        band = (model.part == BODY) & (np.abs(model.template[:, 1] - 7.75) < 0.12)
        return cls(
            half_width=float(np.abs(vertices[band, 0]).max()),
            front=float(vertices[band, 2].max()),
            back=float(vertices[band, 2].min()),
            top=float(vertices[model.part == BODY, 1].max()),
        )

    def around(self, angle: np.ndarray, grow: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns x and z of the ellipse about the head; angle 0 is the front, positive towards +x."""
        middle, half = (self.front + self.back) / 2, (self.front - self.back) / 2
        return (self.half_width + grow) * np.sin(angle), middle + (half + grow) * np.cos(angle)


def hair(
    model: HeadModel,
    vertices: np.ndarray,
    normals: np.ndarray,
    skull: Skull,
    length: str,
    texture: str,
    under_hat: bool,
    rng: np.random.Generator,
) -> list[Part]:
    """Returns hair as a lifted scalp and, for medium and long hair, a curtain round the back and sides."""
    if length == "bald":
        return []
    fringe = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.1, 0.28))
    field = scalp_field(model.template, fringe)
    thick = 0.07 if length == "short" else 0.10
    thick *= {"straight": 0.85, "wavy": 1.1, "curly": 1.6}[texture]
    thick = min(thick, 0.05) if under_hat else thick
    t = model.template
    bumps = {"straight": 0.0, "wavy": 0.15, "curly": 0.4}[texture]
    phase = rng.uniform(0, 6.28, 3)
    ripple = np.sin(9 * t[:, 0] + phase[0]) * np.sin(8 * t[:, 1] + phase[1]) * np.sin(8 * t[:, 2] + phase[2])
    parting = 1 + 0.35 * np.tanh(4 * (t[:, 0] - rng.uniform(-0.4, 0.4))) * rng.choice([-1, 1])
    crown = smoothstep(t[:, 1], 7.4, 8.3)
    parts = [shell(model, vertices, normals, field * thick * (1 + bumps * ripple) * (1 + 0.4 * crown * parting))]
    if length != "short":
        parts.append(_curtain(skull, length, texture, thick, rng))
    return [p for p in parts if p is not None]


def _curtain(skull: Skull, length: str, texture: str, thick: float, rng: np.random.Generator) -> Part:
    opening = rng.uniform(1.0, 1.25)  # radians from the front
    angle = np.linspace(opening, 2 * np.pi - opening, 61)[None]
    t = np.linspace(0, 1, 25)[:, None]
    bottom = {"medium": rng.uniform(6.2, 6.6), "long": rng.uniform(5.1, 5.7)}[length]
    y = 7.85 + t * (bottom - 7.85) + 0 * angle
    strands = 0.03 * np.sin(23 * angle + rng.uniform(0, 6.28)) + 0.02 * np.sin(41 * angle + rng.uniform(0, 6.28))
    wave = {"straight": 0.0, "wavy": 0.05, "curly": 0.10}[texture]
    wobble = wave * np.sin(15 * t + 5 * np.sin(4 * angle)) * t
    grow = 0.4 * thick + 0.04 + 0.13 * np.sin(np.pi * np.minimum(t * 1.3, 1)) + strands * t + wobble
    x, z = skull.around(angle + 0 * t, grow)
    points = np.stack([x, y, z], -1)
    canonical = np.stack([np.sin(angle) + 0 * t, y, np.cos(angle) + 0 * t], -1)
    return grid(points, canonical, 1 - 0.55 * smoothstep(t, 0.35, 1.0))


def beard(
    model: HeadModel, vertices: np.ndarray, normals: np.ndarray, kind: str, rng: np.random.Generator
) -> list[Part]:
    """Returns a full beard or a moustache as a lifted skin (stubble has no geometry)."""
    if kind not in ("full", "mustache"):
        return []
    t = model.template
    ripple = 1 + 0.3 * np.sin(31 * t[:, 0] + rng.uniform(0, 6)) * np.sin(17 * t[:, 1] + rng.uniform(0, 6))
    if kind == "full":
        chin = 1 + 1.2 * smoothstep(6.6 - t[:, 1], 0.0, 0.35) * smoothstep(t[:, 2], 0.9, 1.3)
        thickness = 0.055 * beard_field(t) * chin * ripple
    else:
        thickness = 0.06 * mustache_field(t) * ripple
    part = shell(model, vertices, normals, thickness, minimum=4e-3)
    return [] if part is None else [part]


def hat(
    model: HeadModel, vertices: np.ndarray, normals: np.ndarray, skull: Skull, kind: str
) -> tuple[list[Part], list[Part]]:
    """Returns (crown, brim) of a hat; the crown is a lifted scalp."""
    if kind == "none":
        return [], []
    t = model.template
    rim = {"cap": 7.78, "beanie": 7.68, "brimmed": 7.82}[kind] + 0.12 * (t[:, 2] - HEAD_AXIS) / 0.9
    inside = smoothstep(t[:, 1] - rim, 0.0, 0.05)
    lift = {"cap": 0.13, "beanie": 0.16, "brimmed": 0.14}[kind]
    tall = {"cap": 0.10, "beanie": 0.14, "brimmed": 0.24}[kind] * smoothstep(t[:, 1], 7.8, 8.2)
    crown = shell(model, vertices, normals, inside * (lift + tall))
    if kind == "beanie":
        return [p for p in (crown,) if p is not None], []
    if kind == "cap":
        angle = np.linspace(-1.05, 1.05, 25)[None]
        out = np.linspace(0, 1, 7)[:, None]
        reach = 0.62 * out * np.cos(angle * 0.9)
        drop = -0.16 * out - 0.10 * (angle / 1.05) ** 2
    else:
        angle = np.linspace(-np.pi, np.pi, 48, endpoint=False)[None]
        out = np.linspace(0, 1, 6)[:, None]
        reach = 0.5 * out * (1 + 0.05 * np.cos(2 * angle))
        drop = -0.06 * out + 0.08 * out * np.sin(angle) ** 2
    x, z = skull.around(angle + 0 * out, 0.10 + reach)
    y = 7.86 + 0.10 * np.cos(angle) + drop
    points = np.stack([x, y + 0 * out, z], -1)
    brim = grid(points, points, np.float32(1), closed=kind == "brimmed")
    return [p for p in (crown,) if p is not None], [brim]


def glasses(model: HeadModel, vertices: np.ndarray, kind: str) -> tuple[list[Part], list[Part]]:
    """Returns (frame, lenses) placed on one person's eyes, nose and ears; lenses only for sunglasses."""
    if kind == "none":
        return [], []
    right, left = (vertices[i] for i in model.eye_front)
    power, half_width, half_height = {
        "round": (2.0, 0.205, 0.205),
        "square": (5.0, 0.235, 0.165),
        "sunglasses": (3.0, 0.245, 0.19),
    }[kind]
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    contour = np.stack(
        [np.sign(c) * np.abs(c) ** (2 / power) * half_width, np.sign(s) * np.abs(s) ** (2 / power) * half_height], -1
    )
    tube = 0.030
    frames, lenses = [], []
    for eye, side in ((right, -1), (left, 1)):
        center = np.asarray([eye[0] + 0.012 * side, eye[1] - 0.02, eye[2] + 0.13])
        ring = center + np.concatenate([contour, -0.25 * np.abs(contour[:, :1] * side).clip(0) ** 2], 1)
        outward = np.concatenate([contour / np.linalg.norm(contour, axis=1, keepdims=True), np.zeros((32, 1))], 1)
        turn = np.linspace(0, 2 * np.pi, 6)[:, None, None]
        points = ring[None] + tube * (np.cos(turn) * outward[None] + np.sin(turn) * np.asarray([0, 0, 1.0]))
        frames.append(grid(points, points, np.float32(1), closed=True))
        if kind == "sunglasses":
            radius = np.linspace(0, 1, 3)[:, None, None]
            disc = center + radius * (ring - center)[None] + (1 - radius**2) * np.asarray([0, 0, 0.03])
            lenses.append(grid(disc, disc, np.float32(1), closed=True))
        ear = np.asarray([side * (np.abs(vertices[_ear(model, side), 0]) + 0.02), eye[1] + 0.03, 0.5])
        start = center + np.asarray([side * half_width, 0.05, -0.01])
        frames.append(_bar(start, ear, 0.028))
    start, end = (
        np.asarray([e[0] - s * (half_width - 0.02), e[1] + 0.01, e[2] + 0.14]) for e, s in ((right, -1), (left, 1))
    )
    frames.append(_bar(start, end, 0.025))
    return frames, lenses


def _ear(model: HeadModel, side: int) -> int:
    t = model.template
    return int(np.argmin(np.linalg.norm(t - np.asarray([side * 0.76, 7.3, 0.5]), axis=1)))


def _bar(start: np.ndarray, end: np.ndarray, half: float) -> Part:
    t = np.linspace(0, 1, 5)[:, None, None]
    offsets = half * np.asarray([[0, 1, 0], [0.5, 0, 0.5], [0, -1, 0], [-0.5, 0, -0.5]])[None]
    points = start + t * (end - start) + offsets
    return grid(points, points, np.float32(1), closed=True)
