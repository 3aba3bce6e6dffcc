"""Methods: our pipeline, finished pictures, real photos, peers; what is refused and by which name."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from eval.benchmark.methods import MethodSettings, fit, load_method, read_methods
from eval.benchmark.peers import PEERS, load_peer
from faceclip.errors import CheckpointError, ConfigError, DataError, MissingExtraError


def test_our_pipeline_draws_what_its_call_draws(suite, pipeline_export):
    given = {"steps": 2, "guidance": 2.0, "guide_shading": True}
    method = load_method(MethodSettings(name="ours", kind="pipeline", model=str(pipeline_export), **given), suite)
    job = suite.jobs[1]
    drawn = method.draw(job)
    photo = suite.references.photos[job.reference]
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "guide_shading": True, "height": 64, "width": 64}
    expected = method.pipeline(
        suite.prompts[job.prompt].text,
        image=photo.image,
        landmarks=photo.landmarks,
        generator=torch.Generator().manual_seed(job.seed),
        **options,
    )
    np.testing.assert_array_equal(drawn.image, np.asarray(expected.images[0]))
    assert drawn.provenance is not None and len(method.facts["model"]) == 64
    plain = replace(method, face=False)
    assert (plain.draw(job).image != drawn.image).any()


def test_finished_pictures_stay_in_their_folder(suite, tmp_path):
    key = suite.jobs[0].key
    Image.new("RGB", (100, 50), "red").save(tmp_path / "a.png")
    manifest = {"pictures": {key: "a.png", suite.jobs[1].key: "../a.png"}}
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "a.png").rename(folder / "a.png")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    method = load_method(MethodSettings(name="done", kind="folder", folder=folder), suite)
    assert method.draw(suite.jobs[0]).image.shape == (64, 64, 3)
    with pytest.raises(DataError, match="outside"):
        method.draw(suite.jobs[1])
    with pytest.raises(DataError, match=suite.jobs[2].key):
        method.draw(suite.jobs[2])
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"methods: done: .*manifest\.json"):
        load_method(MethodSettings(name="done", kind="folder", folder=folder), suite)


def test_real_photos_are_held_ones(suite):
    same = load_method(MethodSettings(name="same", kind="real"), suite)
    other = load_method(MethodSettings(name="other", kind="stranger"), suite)
    for job in suite.jobs:
        person = suite.references.photos[job.reference].person
        held = suite.references.held
        np.testing.assert_array_equal(same.draw(job).image, suite.references.photos[held[person]].image)
        stranger = next(row for name, row in held.items() if name != person)
        np.testing.assert_array_equal(other.draw(job).image, suite.references.photos[stranger].image)


def test_a_picture_is_fitted_without_distortion():
    image = np.zeros((50, 100, 3), np.uint8)
    image[:, 25:75] = 255
    assert (fit(image, (50, 50)) == 255).all()
    assert fit(image, (64, 64)).shape == (64, 64, 3) and fit(image, (200, 10)).shape == (200, 10, 3)


def test_peers_have_one_signature_and_say_what_they_need(suite, adapter_folder):
    options = {"fails": []}
    settings = MethodSettings(name="n", kind="peer", adapter="benchmark_noise:make", options=options)
    first, again = (load_method(settings, suite).draw(suite.jobs[0]).image for _ in range(2))
    np.testing.assert_array_equal(first, again)
    with pytest.raises(ConfigError, match="ip_adapter"):
        load_peer("nobody", {}, "cpu")
    with pytest.raises(ConfigError, match="no_module"):
        load_peer("no_module:factory", {}, "cpu")
    with pytest.raises(ConfigError, match=r"options\.scales"):
        load_peer("ip_adapter", {"base": "b", "scales": 1}, "cpu")
    with pytest.raises(ConfigError, match=r"options\.base"):
        load_peer("photomaker_v2", {}, "cpu")
    with pytest.raises(MissingExtraError, match=r"pip install .*PhotoMaker"):
        load_peer("photomaker_v2", {"base": "b"}, "cpu")
    assert set(PEERS) == {"ip_adapter", "photomaker_v2", "instantid", "uniid"}


UNIID = '''
"""The interface of UniID's inference.py that the adapter uses; a picture says by its colour what it was asked."""

from PIL import Image


class Inference:
    def __init__(self, pretrained_model_name_or_path, pretrained_face_recog_model_path, insightface_root, **settings):
        self.tokens = settings["num_text_branch_tokens"], settings["num_adapter_tokens"]
        assert settings["celeb_names_file"].endswith("names.txt")
        assert settings["load_text_branch_from_checkpoint"] == "t"

    def infer(self, prompts, cv2_image, num_images_per_prompt, seed, save_grid_images, **settings):
        assert num_images_per_prompt == 1 and not save_grid_images and settings["text_branch_scale"] == 1.8
        return [Image.new("RGB", (1024, 1024), (seed, int(cv2_image[0, 0, 0]), sum(self.tokens)))]
'''


def test_uniid_is_read_from_its_clone_and_gets_blue_first(tmp_path, monkeypatch):
    options = {"base": "b", "text_branch": "t", "adapter_branch": "a", "recognizer": "r", "names": "names.txt"}
    with pytest.raises(ConfigError, match=r"options\.repository"):
        load_peer("uniid", options, "cpu")
    with pytest.raises(MissingExtraError, match="git clone"):
        load_peer("uniid", {**options, "repository": str(tmp_path / "absent")}, "cpu")
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        (folder / "inference.py").write_text(UNIID)
    monkeypatch.setitem(sys.modules, "inference", None)  # so that it is taken out again
    del sys.modules["inference"]
    draw = load_peer("uniid", {**options, "repository": str(tmp_path)}, "cpu")
    picture = draw([Image.new("RGB", (8, 8), (200, 0, 90))], "a person", 7, (48, 32))
    assert picture.size == (32, 48) and picture.getpixel((0, 0)) == (7, 90, 28)
    with pytest.raises(ConfigError, match="inference"):
        load_peer("uniid", {**options, "repository": str(tmp_path / "other")}, "cpu")


def test_a_file_of_methods_names_each_once(tmp_path):
    path = tmp_path / "methods.yaml"
    path.write_text("methods:\n- {name: a, kind: real}\n- {name: b, kind: folder, folder: made}\n")
    assert read_methods(path)[1].folder == tmp_path / "made"
    path.write_text("methods:\n- {name: a, kind: real}\n- {name: A, kind: stranger}\n")
    with pytest.raises(ConfigError, match="a stands twice"):
        read_methods(path)
    for line, key in (("{name: b, kind: folder}", "b: .*folder"), ("{name: c, kind: peer}", "c: .*adapter")):
        path.write_text(f"methods: [{line}]")
        with pytest.raises(ConfigError, match=key):
            read_methods(path)


def test_a_method_that_cannot_be_loaded_is_named(suite, tmp_path):
    with pytest.raises(CheckpointError, match=r"methods: mine: .*nothing"):
        load_method(MethodSettings(name="mine", kind="pipeline", model=str(tmp_path / "nothing")), suite)
