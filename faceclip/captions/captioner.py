"""Captions by a vision-language model that the user gives, in the layout of transformers: folder or hub id.

The question is versioned, answers are not sampled (temperature 0), and every reply is kept as it came.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray

from faceclip.captions.mentions import link_mentions
from faceclip.captions.vision_language import VisionLanguageModel
from faceclip.data.records import Caption
from faceclip.errors import CheckpointError
from faceclip.storage.hashes import bytes_hash

QUESTIONS = {
    "portrait@1": (
        "Describe the person in this portrait in one sentence: hair, eyes, expression, what the person wears, "
        "background and light. Say only what can be seen. Give no name, and guess neither age nor origin. Answer with "
        "the sentence alone."
    )
}
"""Version → what is asked; a changed text gets a new version."""
QUESTION = "portrait@1"
TOKENS = 96  # of a reply at most
MOST = 600  # characters of a caption


class Captioner:
    """An image-text-to-text model. name: folder, or hub id (OWNER/NAME or OWNER/NAME@REVISION) in the hub's cache.

    Raises CheckpointError for a model that is not there, and as `VisionLanguageModel`.
    """

    def __init__(self, name: str) -> None:
        folder = locate(name)
        self.model = VisionLanguageModel(folder, f"captioner={name}: {folder}")
        question = bytes_hash(QUESTIONS[QUESTION].encode())
        settings = self.model.settings_hash
        self.facts = f"captioner {self.model.hash[:16]}, settings {settings[:16]}, {QUESTION} {question[:8]}"

    def ask(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Returns the replies to portraits (S, S, 3), one after another."""
        return [self.model.ask(picture, QUESTIONS[QUESTION], tokens=TOKENS) for picture in pictures]


def caption_of(reply: str) -> Caption | None:
    """Returns the first line of a reply that has letters, as a free caption whose mentions of regions are linked; None
    for a reply without one, and for one of more than `MOST` characters, which is no sentence."""
    lines = (re.sub(r"\s+", " ", line).strip(' "') for line in reply.splitlines())
    text = next((line for line in lines if re.search(r"\w", line)), "")
    return link_mentions(text) if text and len(text) <= MOST else None


def locate(name: str) -> Path:
    """Finds the folder of a model. Raises CheckpointError with the command that gets it."""
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise CheckpointError(
            f"captioner={name}: neither a folder nor in the hub's cache; get it by: {command}"
        ) from error
