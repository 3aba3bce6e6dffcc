"""Renders a portrait with all its labels: picture, regions, shading map and landmarks.

One z-buffered rasterization of everything (bust, eyes, teeth, hair, beard, hat, glasses) at twice the resolution;
then each material colours its own pixels from coordinates of the mean head, so textures follow shape and expression.
"""

from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np

from faceclip.data.records import REGIONS
from faceclip.face3d.camera import pose_vertices, project
from faceclip.face3d.light import shade
from faceclip.face3d.model import BODY, LEFT_EYE, RIGHT_EYE, HeadModel, default_head
from faceclip.face3d.rasterizer import interpolate, rasterize, vertex_normals
from faceclip.face3d.shading import shade_face
from faceclip.people import geometry, skin
from faceclip.people.geometry import EYE_CENTER, Part, Skull, smoothstep
from faceclip.people.parameters import Identity, Scene

SUPERSAMPLE = 2
BUST, EYE, TEETH, HAIR, BEARD, HAT, BRIM, FRAME, LENS = range(9)
REGION = {name: number for number, name in enumerate(REGIONS)}

HAIR_COLORS = {
    "black": (0.07, 0.06, 0.06),
    "brown": (0.33, 0.20, 0.11),
    "blond": (0.86, 0.69, 0.36),
    "red": (0.68, 0.25, 0.09),
    "gray": (0.66, 0.66, 0.68),
}
CLOTH_COLORS = {
    "red": (0.80, 0.12, 0.12),
    "orange": (0.95, 0.50, 0.10),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.13, 0.55, 0.22),
    "blue": (0.14, 0.28, 0.78),
    "purple": (0.50, 0.18, 0.62),
    "white": (0.95, 0.95, 0.95),
    "black": (0.09, 0.09, 0.10),
    "gray": (0.50, 0.50, 0.52),
}
BACKGROUNDS = {
    "white": (0.93, 0.93, 0.93),
    "gray": (0.55, 0.56, 0.57),
    "blue": (0.42, 0.60, 0.82),
    "green": (0.45, 0.66, 0.45),
    "beige": (0.84, 0.76, 0.62),
    "pink": (0.90, 0.68, 0.74),
    "dark": (0.16, 0.17, 0.20),
}
LIPSTICKS = ((0.72, 0.06, 0.14), (0.80, 0.15, 0.35), (0.55, 0.05, 0.25))
EYESHADOWS = ((0.35, 0.25, 0.55), (0.20, 0.40, 0.55), (0.45, 0.28, 0.20))


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A rendered portrait of S px: image, shading (S, S, 3) uint8 RGB; regions (S, S) uint8 index into `REGIONS`;
    landmarks_5 (5, 2), landmarks_68 (68, 2) float32 pixels (x, y), pixel centres at integers."""

    image: np.ndarray
    regions: np.ndarray
    shading: np.ndarray
    landmarks_5: np.ndarray
    landmarks_68: np.ndarray


@dataclass(frozen=True)
class _Person:
    """What is computed once for an identity."""

    neutral: np.ndarray
    skull: Skull
    skin: np.ndarray
    brows: np.ndarray


class PortraitRenderer:
    """Renders scenes of identities; deterministic. Keeps the textures of the last few identities."""

    def __init__(self, model: HeadModel | None = None, *, keep: int = 4) -> None:
        self.model = model or default_head()
        self._people: OrderedDict[tuple[int, int], _Person] = OrderedDict()
        self._keep = keep
        self._blush, self._eyeshadow, self._lashes = skin.blush_mask(), skin.eyeshadow_mask(), skin.lash_mask()

    def _person(self, identity: Identity) -> _Person:
        key = (identity.index, identity.detail_seed)
        if key not in self._people:
            neutral = self.model.vertices(identity.shape)
            texture, brows = skin.paint_skin(identity)
            self._people[key] = _Person(neutral, Skull.measure(self.model, neutral), texture, brows)
            if len(self._people) > self._keep:
                self._people.popitem(last=False)
        self._people.move_to_end(key)
        return self._people[key]

    def render(self, identity: Identity, scene: Scene, size: int) -> Portrait:
        """Renders a portrait of `size` × `size` pixels (multiples of 8 from 32 on are sensible)."""
        model, person = self.model, self._person(identity)
        rng = np.random.Generator(np.random.Philox(scene.detail_seed))
        vertices = model.vertices(identity.shape, scene.expression)
        posed_body = pose_vertices(vertices, model.head_weight, scene.pose)
        parts = self._parts(person, vertices, scene, rng)

        posed = [posed_body] + [pose_vertices(p.vertices, p.head_weight, scene.pose) for _, p in parts]
        faces = [model.faces] + [p.faces for _, p in parts]
        canonical = [model.template] + [p.canonical for _, p in parts]
        body_kind = np.where(np.isin(model.part, (RIGHT_EYE, LEFT_EYE)), EYE, np.where(model.part == BODY, BUST, TEETH))
        kinds = [body_kind[model.faces[:, 0]]] + [np.full(len(p.faces), kind) for kind, p in parts]
        starts = np.cumsum([0] + [len(v) for v in posed[:-1]])
        normals = np.concatenate([vertex_normals(v, f) for v, f in zip(posed, faces, strict=True)])
        lips = np.zeros(sum(map(len, posed)), np.float32)
        lips[: len(model.lips)] = model.lips
        values = np.concatenate([normals, np.concatenate(canonical), lips[:, None]], 1)
        faces = np.concatenate([f + s for f, s in zip(faces, starts, strict=True)])
        points = project(np.concatenate(posed), scene.camera, size * SUPERSAMPLE)

        triangle, weights, _ = rasterize(points, faces, size * SUPERSAMPLE)
        pixels = interpolate(values, faces, triangle, weights)
        kind = np.where(triangle >= 0, np.concatenate(kinds)[triangle], -1)
        image, regions = self._color(identity, person, scene, kind, pixels, size * SUPERSAMPLE, rng)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        landmarks = project(posed_body, scene.camera, size)[:, :2]
        return Portrait(
            image=np.round(np.clip(image, 0, 1) * 255).astype(np.uint8),
            regions=np.ascontiguousarray(regions[1::2, 1::2]),
            shading=shade_face(model, posed_body, scene.camera, scene.light, size),
            landmarks_5=model.landmarks_5(landmarks).astype(np.float32),
            landmarks_68=landmarks[model.landmarks_68].astype(np.float32),
        )

    def _parts(
        self, person: _Person, vertices: np.ndarray, scene: Scene, rng: np.random.Generator
    ) -> list[tuple[int, Part]]:
        model, words = self.model, scene.attributes
        normals = vertex_normals(vertices, model.faces)
        crown, brim = geometry.hat(model, vertices, normals, person.skull, words["hat"])
        frame, lenses = geometry.glasses(model, vertices, words["glasses"])
        hair = geometry.hair(
            model,
            vertices,
            normals,
            person.skull,
            words["hair_length"],
            words["hair_texture"],
            words["hat"] != "none",
            rng,
        )
        beard = geometry.beard(model, vertices, normals, words["beard"], rng)
        groups = ((HAIR, hair), (BEARD, beard), (HAT, crown), (BRIM, brim), (FRAME, frame), (LENS, lenses))
        return [(kind, part) for kind, parts in groups for part in parts]

    def _color(
        self,
        identity: Identity,
        person: _Person,
        scene: Scene,
        kind: np.ndarray,
        pixels: np.ndarray,
        size: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        words = scene.attributes
        image = _background(words["background_color"], size, rng)
        regions = np.zeros((size, size), np.uint8)
        hair_color = np.asarray(HAIR_COLORS[words["hair_color"]], np.float32) * rng.uniform(0.9, 1.1)
        hat_color = np.asarray(CLOTH_COLORS[words["hat_color"]], np.float32)
        frame_color = np.asarray(((0.08, 0.08, 0.09), (0.35, 0.18, 0.08), (0.30, 0.05, 0.08))[rng.integers(3)])
        painters = {
            BUST: lambda p, n: self._bust(identity, person, scene, p, n, hair_color, rng),
            EYE: lambda p, n: _eyes(identity, scene, p),
            TEETH: lambda p, n: (np.full_like(p, (0.93, 0.91, 0.86)), np.full(len(p), REGION["lips"])),
            HAIR: lambda p, n: (_strands(p, hair_color, words["hair_texture"], n), np.full(len(p), REGION["hair"])),
            BEARD: lambda p, n: (_strands(p, 0.85 * hair_color, "curly", n), np.full(len(p), REGION["beard"])),
            HAT: lambda p, n: (_knit(p, hat_color, words["hat"] == "beanie"), np.full(len(p), REGION["hat"])),
            BRIM: lambda p, n: (np.broadcast_to(0.85 * hat_color, p.shape), np.full(len(p), REGION["hat"])),
            FRAME: lambda p, n: (np.broadcast_to(frame_color, p.shape), np.full(len(p), REGION["glasses"])),
            LENS: lambda p, n: (_lens(p), np.full(len(p), REGION["glasses"])),
        }
        for material, paint in painters.items():
            where = kind == material
            if not where.any():
                continue
            chosen = pixels[where]
            normal = chosen[:, :3]
            normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
            if material in (HAIR, BRIM, LENS, FRAME, HAT):  # sheets are seen from both sides
                normal = normal * np.where(normal[:, 2:] < 0, -1, 1)
            position = chosen[:, 3:6] if material != BUST else chosen[:, 3:7]
            albedo, region = paint(position, normal)
            light = shade(normal, scene.light)
            if material == EYE:  # wet and shaded by the lids: flatter light
                light = 0.35 * light + 0.62
            image[where] = albedo * light + _gloss(material, normal, scene.light)
            regions[where] = region
        return image, regions

    def _bust(
        self,
        identity: Identity,
        person: _Person,
        scene: Scene,
        position: np.ndarray,
        normal: np.ndarray,
        hair_color: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        words = scene.attributes
        p, lips = position[:, :3], position[:, 3]
        x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
        region = np.full(len(p), REGION["skin"], np.uint8)
        u, v = skin.to_texture(p[:, 0], p[:, 1])

        def look_up(texture: np.ndarray) -> np.ndarray:
            return _sample(texture, u, v)

        front = smoothstep(z, 0.55, 0.8)[:, None]
        albedo = identity.skin_tone * (1 + front * (look_up(person.skin) - 1))
        if words["hair_length"] in ("short", "bald") or words["beard"] == "stubble":
            grown = 0.55 * geometry.beard_field(p) if words["beard"] == "stubble" else 0 * y
            if words["hair_length"] == "short":
                grown = np.maximum(grown, 0.7 * geometry.scalp_field(p))
            albedo = albedo + grown[:, None] * (0.8 * hair_color - albedo)
        if words["hair_length"] in ("medium", "long"):
            albedo = albedo + 0.9 * geometry.scalp_field(p)[:, None] * (0.8 * hair_color - albedo)
        if words["makeup"] == "full":
            shadow = np.asarray(EYESHADOWS[rng.integers(len(EYESHADOWS))])
            albedo = albedo + (0.75 * front[:, 0] * look_up(self._eyeshadow))[:, None] * (shadow - albedo)
            albedo = albedo + (0.32 * front[:, 0] * look_up(self._blush))[:, None] * ((0.85, 0.25, 0.32) - albedo)
        lash = (1.0 if words["makeup"] == "full" else 0.7) * look_up(self._lashes) * front[:, 0]
        albedo = albedo * (1 - 0.85 * lash[:, None])
        brow = look_up(person.brows) * front[:, 0]
        brow_color = np.minimum(0.6 * hair_color, 0.75 * identity.skin_tone + 0.02)
        albedo = albedo + (0.92 * brow)[:, None] * (brow_color - albedo)

        lip = smoothstep(lips, 0.14, 0.34)[:, None]
        lip_color = identity.lip_tone
        if words["makeup"] != "none":
            lip_color = np.asarray(LIPSTICKS[rng.integers(len(LIPSTICKS))], np.float32)
        albedo = albedo + lip * (lip_color - albedo)
        mouth = (x < 0.24) & (np.abs(y - 6.625) < 0.12) & (z < 1.435) & (z > 0.7)
        albedo[mouth] = (0.22, 0.05, 0.06)

        nose = (y > 6.81) & (y < 7.24) & (x < 0.175 - 0.20 * np.clip(y - 6.98, 0, 1)) & (z > 1.30)
        region[nose] = REGION["nose"]
        ear = (x > 0.735) & (y > 6.72) & (y < 7.40) & (z > 0.12) & (z < 0.64)
        region[ear] = REGION["ears"]
        region[((y < 6.20 - 0.35 * (1.3 - z)) & (z < 1.3)) | ((z < 0.45) & (y < 6.75) & (x < 0.72))] = REGION["neck"]
        if words["beard"] == "stubble":
            region[geometry.beard_field(p) > 0.5] = REGION["beard"]
        region[brow > 0.45] = REGION["brows"]
        region[(lips > 0.24) | mouth] = REGION["lips"]
        if words["hair_length"] != "bald":  # short hair shows the scalp between the strands: call it hair
            region[geometry.scalp_field(p) > 0.6] = REGION["hair"]
        # Light does not reach under the chin.
        under = smoothstep(6.30 - 0.30 * (1.3 - z) - y, 0.0, 0.12) * smoothstep(y, 5.75, 6.1)
        albedo = albedo * (1 - 0.28 * under[:, None])

        cloth = _clothes_mask(words["clothes"], p)
        color = _cloth(words["clothes"], np.asarray(CLOTH_COLORS[words["clothes_color"]]), p)
        albedo = np.where(cloth[:, None], color, albedo)
        region[cloth] = REGION["clothes"]
        return albedo.astype(np.float32), region


def _sample(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns bilinear values (N, …) of a texture at pixels (u, v); by blocks, as OpenCV maps at most 32766 rows."""
    columns = 256
    pad = -len(u) % columns
    block = [np.pad(c.astype(np.float32), (0, pad)).reshape(-1, columns) for c in (u, v)]
    found = cv2.remap(texture, *block, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.reshape(-1, *texture.shape[2:])[: len(u)]


def _background(color: str, size: int, rng: np.random.Generator) -> np.ndarray:
    base = np.asarray(BACKGROUNDS[color], np.float32) * rng.uniform(0.92, 1.08)
    coarse = rng.normal(0, 0.05, (4, 4, 1)) + rng.normal(0, 0.015, (4, 4, 3))
    mottle = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    slope = np.linspace(rng.uniform(-0.08, 0.12), rng.uniform(-0.12, 0.08), size)[:, None, None]
    return (base * (1 + slope) * (1 + mottle)).astype(np.float32)


def _eyes(identity: Identity, scene: Scene, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    center = EYE_CENTER * np.where(p[:, :1] < 0, (-1, 1, 1), (1, 1, 1))
    ray = p - center
    ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-6)
    right, up = scene.gaze
    gaze = np.asarray([np.sin(right), np.sin(up) - 0.08, 1.0])
    angle = np.arccos(np.clip(ray @ (gaze / np.linalg.norm(gaze)), -1, 1))
    iris = identity.eye_color * (0.65 + 1.1 * np.clip(angle / 0.5, 0, 1))[:, None]
    color = np.where((angle < 0.5)[:, None], iris, (0.92, 0.91, 0.90))
    color = np.where(((angle > 0.44) & (angle < 0.53))[:, None], 0.4 * identity.eye_color, color)
    color = np.where((angle < 0.2)[:, None], 0.03, color)
    glint = np.linalg.norm(ray - np.asarray([0.22, 0.25, 0.94]), axis=1) < 0.13
    return np.where(glint[:, None], 1.0, color).astype(np.float32), np.full(len(p), REGION["eyes"], np.uint8)


def _strands(p: np.ndarray, color: np.ndarray, texture: str, normal: np.ndarray) -> np.ndarray:
    angle = np.arctan2(p[:, 0], p[:, 2] - geometry.HEAD_AXIS)
    bend = {"straight": 0.3, "wavy": 1.2, "curly": 2.5}[texture] * np.sin(5 * p[:, 1] + 3 * angle)
    fine = 0.10 * np.sin(47 * angle + 3 * bend) + 0.08 * np.sin(83 * angle + 5 * bend)
    if texture == "curly":
        fine = fine + 0.14 * np.sin(34 * p[:, 1] + 21 * angle) * np.sin(29 * p[:, 0] + 13 * p[:, 2])
    shine = 0.35 * np.clip(1 - np.abs(normal[:, 1] - 0.55) / 0.25, 0, 1)
    return np.clip(color * (1 + fine + shine)[:, None], 0, 1).astype(np.float32)


def _knit(p: np.ndarray, color: np.ndarray, knitted: bool) -> np.ndarray:
    if not knitted:
        seam = np.abs(np.sin(3 * np.arctan2(p[:, 0], p[:, 2] - geometry.HEAD_AXIS))) < 0.06
        return color * np.where(seam, 0.75, 1.0)[:, None]
    ribs = 0.12 * np.sin(60 * np.arctan2(p[:, 0], p[:, 2] - geometry.HEAD_AXIS))
    cuff = np.where(p[:, 1] < 7.86 + 0.12 * (p[:, 2] - geometry.HEAD_AXIS), 0.85, 1.0)
    return color * ((1 + ribs) * cuff)[:, None]


def _lens(p: np.ndarray) -> np.ndarray:
    sheen = 0.12 * smoothstep(p[:, 1], 7.25, 7.5)
    return (0.05 + sheen)[:, None] * np.ones(3)


def _clothes_mask(kind: str, p: np.ndarray) -> np.ndarray:
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    slope = 0.20 * (0.6 - z)  # collars sit higher at the nape
    if kind == "tshirt":
        return y < 5.83 + slope
    if kind == "shirt":  # open collar: skin in a V
        return (y < 5.98 + slope) & ~((y > 5.3) & (x < 0.55 * (y - 5.3)) & (z > 0.4))
    if kind == "sweater":
        return y < 6.06 + slope
    return y < 5.95 + 1.3 * slope


def _cloth(kind: str, color: np.ndarray, p: np.ndarray) -> np.ndarray:
    x, y, z = np.abs(p[:, 0]), p[:, 1], p[:, 2]
    pattern = np.ones(len(p))
    slope = 0.20 * (0.6 - z)
    if kind == "tshirt":
        pattern = np.where(y > 5.77 + slope, 0.8, 1.0)
    elif kind == "shirt":
        flap = (x - 0.55 * np.maximum(y - 5.3, 0) < 0.16) & (y > 5.45)
        pattern = np.where(flap, 1.12, 1.0) * np.where((x < 0.02) & (y <= 5.3), 0.75, 1.0)
    elif kind == "sweater":
        pattern = 1 + 0.10 * np.sin(45 * y) + np.where(y > 5.92 + slope, -0.12, 0.0)
    else:
        cord = (np.abs(x - 0.16) < 0.022) & (y > 5.0) & (z > 0.5)
        pattern = np.where(y > 5.78 + slope, 0.72, 1.0) * np.where(cord, 1.6, 1.0)
    return np.clip(color * pattern[:, None], 0, 1)


def _gloss(material: int, normal: np.ndarray, light: np.ndarray) -> np.ndarray | float:
    """Returns a weak highlight where the surface faces between viewer and main light (first-order harmonics)."""
    strength = {BUST: 0.05, LENS: 0.25, FRAME: 0.1}.get(material, 0.0)
    if strength == 0.0:
        return 0.0
    direction = np.asarray(light)[[3, 1, 2]].mean(1)  # Y11, Y1-1, Y10 are x, y, z
    half = direction / max(np.linalg.norm(direction), 1e-6) + np.asarray([0, 0, 1.0])
    half /= np.linalg.norm(half)
    return (strength * np.clip(normal @ half, 0, 1) ** 24)[:, None]
