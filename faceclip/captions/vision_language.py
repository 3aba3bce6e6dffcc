"""Vision-language models in the layout of transformers: a reply to a picture and a text, without sampling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from faceclip.errors import CheckpointError, DataError, listed
from faceclip.storage.hashes import files_hash, settings_text, tensors_hash
from faceclip.storage.loading import DAMAGE, check_finite
from faceclip.storage.regular import read_settings


class VisionLanguageModel:
    """An image-text-to-text model of a folder, in float32 on the CPU. `where` begins the messages of errors.

    `hash` is that of weights and configuration, `settings_hash` that of the other files that decide replies.

    Raises CheckpointError for a model that is damaged or incomplete, or has no eyes or no chat template.
    """

    def __init__(self, folder: Path, where: str) -> None:
        import transformers

        def refusal(error: Exception) -> CheckpointError:
            return CheckpointError(
                f"{where} is no model that transformers loads for image-text-to-text ({error}): name one such as "
                "Qwen2-VL or LLaVA, or fetch it again"
            )

        try:
            read_settings(folder / "config.json")
            if (folder / "generation_config.json").exists():  # transformers passes over a damaged one
                read_settings(folder / "generation_config.json")
            self.processor: Any = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
            self.settings_hash = files_hash(_files(folder))
        except (*DAMAGE, SafetensorError, DataError) as error:
            raise refusal(error) from error
        except Exception as error:
            if type(error) is not Exception:  # the Rust tokenizers raise this class itself for damaged files
                raise
            raise refusal(error) from error
        self.model: Any = loaded[0].eval()
        _check(self.model, loaded[1], where)
        if not getattr(self.processor, "chat_template", None):
            raise CheckpointError(f"{where}: its processor has no chat template: give an instruction model")
        config = {key: value for key, value in self.model.config.to_dict().items() if key != "transformers_version"}
        self.hash = tensors_hash(self.model.state_dict().items(), settings_text(config))

    @torch.no_grad()
    def ask(self, picture: NDArray[np.uint8], text: str, *, tokens: int) -> str:
        """Returns the reply, of at most `tokens` tokens, to one picture (H, W, 3) and one text."""
        content = [{"type": "image", "image": Image.fromarray(picture)}, {"type": "text", "text": text}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Returns what decides replies beside weights and configuration: template, processor, tokenizer, generation."""
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
    """Raises CheckpointError for weights that are missing or not finite: transformers draws random numbers for what is
    missing and only logs it. Weights of other shapes it refuses itself."""
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise CheckpointError(f"{where} lacks the weights {listed(missing)}: fetch it again")
    check_finite(model.state_dict(), where)
