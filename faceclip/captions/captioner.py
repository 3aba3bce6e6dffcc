"""Captions by a vision-language model that the user gives, in the layout of transformers: folder or hub id.

The question is versioned, answers are not sampled (temperature 0), and every reply is kept as it came.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from PIL import Image

from faceclip.captions.mentions import link_mentions
from faceclip.data.records import Caption
from faceclip.errors import CheckpointError, DataError
from faceclip.storage.hashes import bytes_hash, tensors_hash
from faceclip.storage.loading import DAMAGE
from faceclip.storage.regular import read_settings

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

    Raises CheckpointError for a model that is not there, damaged, or has no eyes.
    """

    def __init__(self, name: str) -> None:
        import transformers

        folder = locate(name)
        try:
            read_settings(folder / "config.json")
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
        except (*DAMAGE, DataError) as error:
            raise CheckpointError(
                f"captioner={name}: {folder} is no model that transformers loads for image-text-to-text ({error}): "
                "name one such as Qwen2-VL or LLaVA, or fetch it again"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise CheckpointError(f"captioner={name}: its processor has no chat template: give an instruction model")
        self.model.eval()
        weights = tensors_hash(self.model.state_dict().items(), self.model.config.to_json_string())
        self.facts = f"captioner {weights[:16]}, {QUESTION} {bytes_hash(QUESTIONS[QUESTION].encode())[:8]}"

    @torch.no_grad()
    def ask(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str]:
        """The replies to portraits (S, S, 3), one after another."""
        replies = []
        for picture in pictures:
            content = [
                {"type": "image", "image": Image.fromarray(picture)},
                {"type": "text", "text": QUESTIONS[QUESTION]},
            ]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self.model.device)
            output = self.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            replies.append(self.processor.batch_decode(new, skip_special_tokens=True)[0])
        return replies


def caption_of(reply: str) -> Caption | None:
    """The first line of a reply that has letters, as a free caption whose mentions of regions are linked; None for a
    reply without one, and for one of more than `MOST` characters, which is no sentence."""
    lines = (re.sub(r"\s+", " ", line).strip(' "') for line in reply.splitlines())
    text = next((line for line in lines if re.search(r"\w", line)), "")
    return link_mentions(text) if text and len(text) <= MOST else None


def locate(name: str) -> Path:
    """The folder of a model. Raises CheckpointError with the command that gets it."""
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
