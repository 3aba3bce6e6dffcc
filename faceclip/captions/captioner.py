"""Captions by a vision-language model that the user gives, in the layout of transformers: folder or hub id.

The question is versioned, answers are not sampled (temperature 0), and every reply is kept as it came.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from faceclip.captions.mentions import link_mentions
from faceclip.data.records import Caption
from faceclip.errors import CheckpointError, DataError
from faceclip.storage.hashes import bytes_hash, files_hash, settings_text, tensors_hash
from faceclip.storage.loading import DAMAGE, check_finite
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

    Raises CheckpointError for a model that is not there, damaged or incomplete, or has no eyes.
    """

    def __init__(self, name: str) -> None:
        import transformers

        folder = locate(name)
        refusal = (
            f"captioner={name}: {folder} is no model that transformers loads for image-text-to-text ({{}}): "
            "name one such as Qwen2-VL or LLaVA, or fetch it again"
        )
        try:
            read_settings(folder / "config.json")
            if (folder / "generation_config.json").exists():  # transformers passes over a damaged one
                read_settings(folder / "generation_config.json")
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            settings = files_hash(_files(folder))
        except (*DAMAGE, SafetensorError, DataError) as error:
            raise CheckpointError(refusal.format(error)) from error
        except Exception as error:
            if type(error) is not Exception:  # the Rust tokenizers raise this class itself for damaged files
                raise
            raise CheckpointError(refusal.format(error)) from error
        self.model: Any = loaded[0]
        _check(self.model, loaded[1], f"captioner={name}: {folder}")
        if not getattr(self.processor, "chat_template", None):
            raise CheckpointError(f"captioner={name}: its processor has no chat template: give an instruction model")
        self.model.eval()
        config = {key: value for key, value in self.model.config.to_dict().items() if key != "transformers_version"}
        weights = tensors_hash(self.model.state_dict().items(), settings_text(config))
        question = bytes_hash(QUESTIONS[QUESTION].encode())
        self.facts = f"captioner {weights[:16]}, settings {settings[:16]}, {QUESTION} {question[:8]}"

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


def _files(folder: Path) -> list[tuple[str, Path]]:
    """What decides replies beside weights and configuration: chat template, processor, tokenizer, generation."""
    found = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    named = {file.relative_to(folder).as_posix(): file for file in found if file.is_file()}
    other = ("README.md", "config.json")
    weights = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
    return sorted(
        (name, file)
        for name, file in named.items()
        if not (name.startswith(".") or name in other or name.lower().endswith(weights))
    )


def _check(model: Any, info: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError for weights that are missing, of another shape, or not finite: transformers draws random
    numbers for what is missing and only logs it."""
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    other = [str(key) for key in info["mismatched_keys"]]
    for problem, names in (("lacks the weights", missing), ("has other shapes of", other)):
        if names:
            listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            raise CheckpointError(f"{where} {problem} {listed}: fetch it again")
    check_finite(model.state_dict(), where)


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
