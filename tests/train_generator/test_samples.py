"""Samples of stage 2, the conditions they become, and the terms of their loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from faceclip.encoder import TEMPLATE
from faceclip.towers.text import tokenize
from faceclip.training import parse_config
from faceclip.training.sampler import fetch
from tests.train_generator.conftest import features_of
from train_generator.adapter import add_adapter
from train_generator.config import PRESETS, DropoutConfig, GeneratorConfig
from train_generator.loading import build_pipeline
from train_generator.samples import GenerationSource
from train_generator.task import GeneratorTask


@pytest.mark.parametrize("channel", [True, False])
def test_a_sample_says_who_is_known_and_the_terms_are_summed_by_their_weights(arguments, tmp_path, channel):
    words = [
        *arguments,
        f"out={tmp_path}",
        "adapter.shading=false",
        "loss.sampled_identity=0",
        f"adapter.identity.enabled={channel}".lower(),
    ]
    config = parse_config(GeneratorConfig, words, presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    features = features_of(config, pipeline, "train")
    task = GeneratorTask(pipeline, config, features)
    batch = fetch(task.validation_source, [(row, 0) for row in range(3)], 0)
    batch["keep_face"], batch["keep_identity"] = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    noise, timesteps = torch.randn(batch["latents"].shape), torch.tensor([50, 60, 70])
    with torch.no_grad():
        sample = task.sample(batch, noise, timesteps)
    assert sample.knows_person.tolist() == [True, channel, False]
    torch.testing.assert_close(sample.noisy, pipeline.scheduler.add_noise(batch["latents"], noise, timesteps))
    told = replace(sample, prediction=sample.prediction.requires_grad_())
    total, parts = task.terms(told)
    weights = {"noise": 1.0} | vars(config.loss)
    expected = sum(weights[name.removeprefix("loss_")] * float(value) for name, value in parts.items())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5) and total.requires_grad


def test_samples_have_the_words_of_a_caption_and_references_of_the_person(arguments, tmp_path):
    config = parse_config(GeneratorConfig, [*arguments, f"out={tmp_path}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    features = features_of(config, pipeline, "train")
    people = features.arrays.identity.tolist()
    source = GenerationSource(features, DropoutConfig(all=0, text=0), same_picture=0.0)
    for row, who in enumerate(people):
        assert source.people.others(row).tolist() == [at for at, one in enumerate(people) if one == who and at != row]
    for index in range(8):
        sample = source.get(index, np.random.default_rng(index))
        prefix = TEMPLATE if sample["keep_face"] else ""
        texts = [tokenize(f"{prefix}{caption.text}")[0].tolist() for caption in features.arrays.captions[index]]
        assert sample["tokens"].tolist() in texts
    words = GenerationSource(features, DropoutConfig(all=0, text=0.999, reference=0.999), same_picture=0.0)
    sample = words.get(0, np.random.default_rng(0))
    assert not any(sample[name] for name in ("keep_face", "keep_identity", "keep_shading"))
    assert sample["keep_text"]  # whatever the share of dropped texts


def test_references_are_other_pictures_but_for_a_share_and_as_alike_as_asked(arguments, tmp_path):
    config = parse_config(GeneratorConfig, [*arguments, f"out={tmp_path}"], presets=PRESETS)
    features = features_of(config, build_pipeline(config), "train")
    faces = np.asarray(features.identity, np.float64)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    cosines, people = faces @ faces.T, np.asarray(features.arrays.identity)
    others = (people[:, None] == people) & ~np.eye(len(people), dtype=bool)

    def references(**settings) -> list[tuple[int, int]]:
        """Target and reference of ten draws of every row."""
        source = GenerationSource(features, DropoutConfig(), **settings)
        pairs = [
            (row, source.get(row, np.random.default_rng([row, n]))) for n in range(10) for row in range(len(people))
        ]
        return [(row, int(np.abs(features.identity[:] - s["face_identity"]).sum(axis=1).argmin())) for row, s in pairs]

    assert all(others[pair] for pair in references(same_picture=0.0))
    assert all(row == reference for row, reference in references(same_picture=1.0))
    usual = references(same_picture=config.same_picture)
    share = np.mean([row == reference for row, reference in usual])
    assert config.same_picture == 0.15 and 0.09 < share < 0.22 and len(usual) == 320
    middle = float(np.median(cosines[others]))
    near = others & (cosines >= middle)
    for row, reference in references(same_picture=0.0, pair_cosine=(middle, 1.0)):
        assert near[row, reference] or (not near[row].any() and others[row, reference])
    assert not all(near[pair] for pair in references(same_picture=0.0))


def test_samples_and_conditions_tell_the_true_size_of_a_picture(arguments, tmp_path):
    config = parse_config(GeneratorConfig, [*arguments, f"out={tmp_path}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    renders = features_of(config, pipeline)
    sizes = np.tile(np.array([[900, 1600, 256, 1280]], np.float32), (len(renders.arrays), 1))
    cut = replace(renders, arrays=replace(renders.arrays, sizes=sizes))
    side = float(config.size)
    for features, expected in ((renders, [side, side, 0, 0]), (cut, [900, 1600, 256, 1280])):
        task = GeneratorTask(pipeline, config, features)
        batch = fetch(task.validation_source, [(row, 0) for row in range(2)], 0)
        assert task.conditions(batch).time_ids.tolist() == [[*expected, side, side]] * 2
