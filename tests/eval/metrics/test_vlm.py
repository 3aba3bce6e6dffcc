"""Scores of a vision-language model: what counts as a reply, and what is kept."""

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from eval.metrics import vlm
from eval.metrics.vlm import VlmModel, parse_score, vlm_scores
from faceclip.errors import CheckpointError
from tests.captioners import save_llava

PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 87}', 87),
        ('```json\n{"score": 0}\n```', 0),
        ('{"score": 101}', None),
        ('{"score": "87"}', None),
        ('{"score": true}', None),
        ('{"score": 1} or {"score": 2}', None),
        ("87", None),
        ('{"points": 3}', None),
        ("{score: 3}", None),
    ],
)
def test_only_one_object_with_a_number_is_a_score(reply, score):
    found = parse_score(reply)
    assert found == score if score is not None else np.isnan(found)


def test_unparsable_replies_are_kept_and_counted():
    asked = []

    def ask(image, text):
        asked.append(text)
        return '{"score": 40}' if "red hat" in text else "a lovely face"

    found = vlm_scores(ask, [PICTURE, PICTURE], ["a red hat", "a {odd} text"], question="prompt@1")
    np.testing.assert_allclose(found.scores, [40, np.nan])
    assert found.unparsable == 1 and found.replies[1] == "a lovely face" and "a {odd} text" in asked[1]


def test_a_model_without_eyes_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"config\.json.*'bert'"):
        VlmModel(str(tmp_path))


def test_a_model_with_missing_weights_scores_nothing(tmp_path, monkeypatch):
    save_llava(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(key for key in weights if "q_proj" in key)]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(vlm, "read_settings", lambda path: {"model_type": "qwen2_vl"})  # a small one is LLaVA's here
    with pytest.raises(CheckpointError, match=r"lacks the weights .*q_proj"):
        VlmModel(str(tmp_path))
