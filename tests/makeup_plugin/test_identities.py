"""Identities as values: the same pictures as from photos, averages, files, and what is refused."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError, ConfigError
from faceclip.face3d.fitter import FaceFitter
from faceclip.faces.images import load_image
from makeup_plugin.identities import Identity, outliers, similarities
from makeup_plugin.known_faces import KnownFaces
from makeup_plugin.references import prepare_references
from tests.makeup_plugin.calls import run


@pytest.fixture
def other(photo) -> np.ndarray:
    return np.ascontiguousarray(255 - photo)


@pytest.fixture
def identity(pipeline, photo, points) -> Identity:
    return pipeline.encode_identity(photo, landmarks=points)


def test_an_identity_draws_the_picture_of_its_photo(pipeline, identity, photo, points, tmp_path):
    """To the bit, also from a file, and the photo was read once."""
    wanted = run(pipeline, photo, points)
    identity.save(tmp_path / "anna.safetensors")
    for person in (identity, Identity.load(tmp_path / "anna.safetensors")):
        assert np.array_equal(run(pipeline, None, None, identity=person), wanted)
    assert not np.array_equal(run(pipeline, None, None), wanted)


def test_a_batch_of_identities_has_rows_without_a_face(pipeline, identity):
    output = pipeline("a man", identity=[identity, None], num_inference_steps=1)
    assert [face is not None for face in output.faces] == [True, False]
    assert [record.has_reference_face for record in output.provenance] == [True, False]
    assert output.shading_maps[0] is not None and output.shading_maps[1] is None
    assert np.array_equal(output.faces[0].crop, identity.crops[0])
    with pytest.raises(ConfigError, match=r"identity: 2 .* 3 prompts"):
        pipeline(["a", "b", "c"], identity=[identity, None])


def test_several_photos_are_averaged_on_the_sphere(pipeline, photo, other, points):
    one, two = (pipeline.encode_identity(image, landmarks=points) for image in (photo, other))
    both = pipeline.encode_identity([photo, other], weights=[3, 1], landmarks=[points, points])
    wanted = torch.nn.functional.normalize(0.75 * one.embedding + 0.25 * two.embedding, dim=0)
    torch.testing.assert_close(both.embedding, wanted)
    torch.testing.assert_close(both.features.tokens, 0.75 * one.features.tokens + 0.25 * two.features.tokens)
    torch.testing.assert_close(both.image_tokens, 0.75 * one.image_tokens + 0.25 * two.image_tokens)
    torch.testing.assert_close(both.fit.shape, 0.75 * one.fit.shape + 0.25 * two.fit.shape)
    assert torch.equal(both.fit.pose, one.fit.pose)  # of the photo with the largest weight
    assert [photo.weight for photo in both.photos] == [0.75, 0.25] and both.outliers == []
    mixed = Identity.mix([one, two], [0.75, 0.25])
    for name, value in mixed.tensors().items():
        torch.testing.assert_close(value, both.tensors()[name], msg=name)
    assert mixed.photos == () and mixed.face is None


def test_a_photo_of_somebody_else_is_reported():
    people = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0], [1, -0.1, 0], [1, 0, 0.1], [0, 0.2, 1]]), dim=1)
    found = similarities(people, [0.25] * 4)
    assert outliers(found) == [False, False, False, True]
    assert outliers(similarities(people[2:], [0.5, 0.5])) == [False, False]  # two cannot say which one is wrong
    assert similarities(people[:1], [1.0]) == [None]
    assert similarities(people[:2], [1.0, 0.0])[0] == pytest.approx(float(people[0] @ people[1]), abs=1e-6)


def test_a_second_picture_of_a_face_needs_no_preparation(pipeline, photo, points):
    """Neither detection, crop, encoders nor fit run again, until their weights change."""
    counts = {"face": 0, "fit": 0, "tower": 0}

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    pipeline.joint_encoder.face_encoder.register_forward_hook(count("face"))
    pipeline.image_encoder.register_forward_hook(count("tower"))
    fit, pipeline.face_fitter.fit = pipeline.face_fitter.fit, None

    def counted(*args, **kwargs):
        counts["fit"] += 1
        return fit(*args, **kwargs)

    pipeline.face_fitter.fit = counted
    first = run(pipeline, photo, points, guidance_scale=1.0)
    assert counts == {"face": 1, "fit": 1, "tower": 1}
    assert np.array_equal(run(pipeline, photo.copy(), points, guidance_scale=1.0), first)
    assert counts == {"face": 1, "fit": 1, "tower": 1}
    with torch.no_grad():
        pipeline.image_encoder.tower.conv1.weight.mul_(-9)
        pipeline.joint_encoder.face_encoder.pos_embed.mul_(-9)
    assert not np.array_equal(run(pipeline, photo, points, guidance_scale=1.0), first)
    assert counts == {"face": 2, "fit": 1, "tower": 2}
    pipeline.forget_faces()
    run(pipeline, photo, points, guidance_scale=1.0)
    assert counts == {"face": 3, "fit": 2, "tower": 3}


def test_another_precision_encodes_faces_anew_and_takes_the_same_identity(pipeline, identity, photo, points):
    pipeline.to(torch.bfloat16)
    seen = []
    pipeline.joint_encoder.face_encoder.register_forward_hook(lambda *_: seen.append(1))
    again = pipeline.encode_identity(photo, landmarks=points)
    assert seen and again.recognizer == identity.recognizer and again.image_tower == identity.image_tower
    assert not torch.equal(again.features.tokens, identity.features.tokens)
    torch.testing.assert_close(again.embedding, identity.embedding, atol=0.05, rtol=0)
    output = pipeline("a man", identity=[identity, again], num_inference_steps=1, output_type="np")
    assert np.isfinite(output.images).all()


def test_a_known_face_is_found_by_the_detector_that_is_set(pipeline, photo, points):
    class Detector:
        def __init__(self, shift: float) -> None:
            self.shift, self.calls = shift, 0

        def detect(self, image):
            from faceclip.faces import Face

            self.calls += 1
            five = (points + self.shift) * (image.shape[0] / 80)
            return [Face(box=np.array([*five.min(0), *five.max(0)], np.float32), landmarks=five, score=1.0)]

    pipeline.detector = first = Detector(0)
    one = pipeline.encode_identity(photo)
    calls = first.calls
    assert torch.equal(pipeline.encode_identity(photo).embedding, one.embedding) and first.calls == calls > 0
    pipeline.detector = second = Detector(3)
    assert not torch.equal(pipeline.encode_identity(photo).embedding, one.embedding)
    calls = second.calls
    found = pipeline("a man", photo, num_inference_steps=1).faces[0]
    found.crop[:] = 0  # the user's own copy
    assert pipeline("a man", photo, num_inference_steps=1).faces[0].crop.any() and second.calls == calls


def test_identities_of_other_networks_are_rejected(pipeline, identity):
    with torch.no_grad():
        pipeline.image_encoder.tower.conv1.weight.mul_(1.5)
    with pytest.raises(ConfigError, match=r"identity .*image tower"):
        pipeline("a man", identity=identity)
    with torch.no_grad():
        pipeline.joint_encoder.face_encoder.pos_embed.mul_(1.5)
    with pytest.raises(ConfigError, match=r"identity .*recognizer"):
        pipeline("a man", identity=identity)
    with pytest.raises(ConfigError, match=r"identities\[1\] .*recognizer"):
        Identity.mix([identity, replace(identity, recognizer="0" * 64)])
    with pytest.raises(ConfigError, match="image tokens"):
        pipeline(
            "a man", identity=replace(identity, recognizer=pipeline_hash(pipeline), image_tokens=None, image_tower=None)
        )


@pytest.mark.parametrize("name", ["shape", "expression"])
def test_a_fit_with_other_coefficients_is_rejected(pipeline, identity, name):
    fit = replace(identity.fit, shape=torch.zeros(1, 48), expression=torch.zeros(1, 21))
    pipeline.register_modules(face_fitter=FaceFitter(image_size=32, widths=(8, 8), hidden=8).eval())
    pipeline("a man", identity=replace(identity, fit=fit), num_inference_steps=1)
    fit = replace(fit, **{name: torch.zeros(1, 3)})
    with pytest.raises(ConfigError, match=f"identity.* 3 coefficients of {name}"):
        pipeline("a man", identity=replace(identity, fit=fit))


def pipeline_hash(pipeline) -> str:
    image = np.zeros((80, 80, 3), np.uint8)
    points = np.array([[30, 30], [50, 30], [40, 42], [32, 52], [48, 52]], dtype=np.float32)
    return pipeline.encode_identity(image, landmarks=points).recognizer


def test_impossible_arguments_are_named(pipeline, identity, photo, points):
    for arguments, message in (
        ({"identity": photo}, "identity must be an Identity"),
        ({"identity": identity, "image": photo}, "identity and image exclude"),
        ({"identity": identity, "landmarks": points}, "landmarks"),
        ({"identity": []}, "identity is an empty list"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline("a man", **arguments)
    for images, weights, message in (
        ([], None, "images is an empty list"),
        ([photo, None], None, "images 1 is None"),
        ([photo], [1, 2], "weights: 1 images"),
        ([photo], [float("nan")], "weights must be finite"),
        ([photo, photo], [0, 0], "weights are all zero"),
    ):
        with pytest.raises(ConfigError, match=message):
            pipeline.encode_identity(images, weights=weights, landmarks=[points] * len(images) or None)
    with pytest.raises(ConfigError, match="identities is empty"):
        Identity.mix([])
    opposite = replace(identity, features=replace(identity.features, identity=-identity.features.identity))
    with pytest.raises(ConfigError, match="cancel"):
        Identity.mix([identity, opposite])
    for change, message in (
        ({"image_tokens": identity.image_tokens.half()}, "image_tokens must be float32"),
        ({"image_tokens": identity.image_tokens * torch.inf}, "image_tokens holds NaN"),
        ({"image_tokens": identity.image_tokens[0]}, "image_tokens must be one row"),
        ({"crops": identity.crops / 255}, "crops"),
        ({"photo_size": None}, "photo_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(identity, **change)


def test_files_that_hold_no_identity_are_rejected(identity, tmp_path):
    path = tmp_path / "anna.safetensors"
    with pytest.raises(CheckpointError, match=r"anna\.safetensors is missing"):
        Identity.load(path)
    identity.save(path, crops=False)
    assert Identity.load(path).face is None and Identity.load(path).photos == identity.photos
    tensors = load_file(path)
    whole = path.read_bytes()
    for damaged, message in ((whole[:-5], "damaged"), (b"", "damaged"), (whole[:3], "damaged")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            Identity.load(path)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="format None"):
        Identity.load(path)
    metadata = {"format": "makeup_plugin.identity", "version": "1", "facts": "{}"}
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="photo_size is missing"):
        Identity.load(path)
    identity.save(path)
    facts = path.read_bytes()
    start = facts.index(b'\\"outlier')
    path.write_bytes(facts[:start] + b'\\"OUTLIER' + facts[start + 9 :])
    with pytest.raises(CheckpointError, match="outlier is missing"):
        Identity.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Identity.load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features.identity", lambda x: x * float("nan"), "features.identity holds NaN"),
        ("features.tokens", lambda x: x.double(), "features.tokens must be float32"),
        ("fit.pose", lambda x: x[:, :2].contiguous(), "fit.pose"),
        ("crops", lambda x: x.float(), "crops"),
        ("fit.light", None, "fit.light is missing"),
        ("surplus", lambda _: torch.zeros(1), "surplus"),
    ],
)
def test_every_tensor_of_a_file_is_checked(identity, tmp_path, name, change, message):
    from safetensors import safe_open

    path = tmp_path / "anna.safetensors"
    identity.save(path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        Identity.load(path)


def test_a_known_face_of_a_picture_on_its_side_stands_upright():
    """The picture comes back turned as it was when its face was found."""
    astronaut = load_image(Path(importlib.util.find_spec("skimage").origin).parent / "data/astronaut.png")
    lying = np.ascontiguousarray(np.rot90(astronaut[:256, 100:356]))
    known = KnownFaces()
    first, again = (prepare_references(lying, known=known).faces[0] for _ in range(2))
    plain = prepare_references(lying).faces[0]
    assert plain.turn == first.turn == again.turn == 270 and len(known) == 1
    for found in (first, again):
        assert np.array_equal(found.image, plain.image) and np.array_equal(found.crop, plain.crop)
        assert np.array_equal(found.face.landmarks, plain.face.landmarks)
