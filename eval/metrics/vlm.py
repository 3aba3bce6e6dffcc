"""A vision-language model's score of a picture: a versioned question, temperature 0, every raw reply kept."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.metrics.models import ModelFacts, locate
from faceclip.captions.vision_language import VisionLanguageModel
from faceclip.errors import CheckpointError
from faceclip.storage.regular import read_settings

QUESTIONS = {
    "authenticity@1": (
        "How authentic does the face in this picture look? Answer with one line of JSON and nothing else: "
        '{"score": N} where N is a whole number from 0 (not at all) to 100 (like a photograph).'
    ),
    "prompt@1": (
        "How well does this picture show what the following text describes? Answer with one line of JSON and nothing "
        'else: {{"score": N}} where N is a whole number from 0 (not at all) to 100 (completely). Text: {prompt}'
    ),
}
_OBJECT = re.compile(r"\{[^{}]*\}")
TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class VlmScores:
    """Scores 0 … 100 (N,), NaN where the reply could not be parsed; the raw replies; how many were unparsable."""

    scores: NDArray[np.float64]
    replies: tuple[str, ...]
    unparsable: int


def parse_score(reply: str) -> float:
    """Reads a reply's score, NaN unless it has exactly one JSON object with a number from 0 to 100 under "score"."""
    found = _OBJECT.findall(reply)
    if len(found) != 1:
        return float("nan")
    try:
        value = json.loads(found[0]).get("score")
    except ValueError:
        return float("nan")
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
    return float(value) if good else float("nan")


def vlm_scores(
    ask: Callable[[NDArray[np.uint8], str], str],
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[str],
    *,
    question: str = "authenticity@1",
) -> VlmScores:
    """Asks one question of `QUESTIONS` about each picture; `ask` gives the model's reply to a picture and a text."""
    text = QUESTIONS[question]
    replies = tuple(
        ask(image, text.format(prompt=prompt) if "{prompt}" in text else text)
        for image, prompt in zip(images, prompts, strict=True)
    )
    scores = np.array([parse_score(reply) for reply in replies])
    return VlmScores(scores=scores, replies=replies, unparsable=int(np.isnan(scores).sum()))


class VlmModel:
    """A Qwen-VL class model in the layout of transformers, by folder or hub id."""

    def __init__(self, name: str) -> None:
        folder, revision = locate(name)
        kind = str(read_settings(folder / "config.json").get("model_type"))
        if "vl" not in kind:
            raise CheckpointError(
                f"{folder / 'config.json'}: model_type is {kind!r}, the score needs one of Qwen-VL's kind"
            )
        self.model = VisionLanguageModel(folder, str(folder))
        self.facts = ModelFacts(
            id=name, revision=revision, sha256=self.model.hash, preprocessing="the processor of the model"
        )

    def ask(self, image: NDArray[np.uint8], text: str) -> str:
        """Returns the reply to one picture (H, W, 3) and one question, without sampling."""
        return self.model.ask(image, text, tokens=TOKENS)
