"""The parts of a pipeline that are transformers' classes: CLIP text towers, their tokenizers, and a CLIP image tower.

They are loaded strictly: from safetensors alone, with every tensor that the configuration asks for and no other.
transformers would draw random numbers for what is missing and only log it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from faceclip.errors import CheckpointError
from faceclip.storage.loading import DAMAGE, building, check_finite
from faceclip.storage.regular import read_settings
from makeup_plugin.saving.index import INDEX_FILE

KINDS = (CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection)
# Buffers that earlier versions of transformers stored.
_FORMER = ("position_ids",)
_LISTED = 3


def dtype_of(given: Mapping[str, Any], name: str) -> Any:
    """The precision that the arguments of `from_pretrained` ask for of the part `name`: one for all, or one by name."""
    dtype = given.get("torch_dtype", given.get("dtype"))
    return dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype


def load_clip_parts(directory: Path, names: Iterable[str], *, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those parts `names` of a saved pipeline that its model_index.json gives to transformers.

    given: the arguments of `from_pretrained`. Parts among them are not looked at.

    Raises CheckpointError for another class than the four that a pipeline has, and as `load_clip_part`.
    """
    index = read_settings(directory / INDEX_FILE)
    kinds = {kind.__name__: kind for kind in KINDS}
    kinds["CLIPTokenizerFast"] = CLIPTokenizer  # its name in earlier versions
    parts = {}
    for name in names:
        entry = index.get(name)
        if name in given or not isinstance(entry, list) or len(entry) != 2 or entry[0] != "transformers":
            continue
        if entry[1] not in kinds:
            raise CheckpointError(
                f"{directory}: {name} is {entry!r}, and of transformers a pipeline has {', '.join(kinds)} alone; save"
                " or fetch the pipeline again"
            )
        parts[name] = load_clip_part(kinds[entry[1]], directory, subfolder=name, dtype=dtype_of(given, name))
    return parts


def load_clip_part(
    kind: Any,
    source: str | Path,
    *,
    subfolder: str = "",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> Any:
    """A model (in float32 unless `dtype` says otherwise) or a tokenizer of a folder or a hub id.

    Raises CheckpointError, which names the folder, where something is missing, damaged, or not that of the class.
    """
    where = f"{source}/{subfolder}" if subfolder else str(source)
    remedy = f"give a folder of a {kind.__name__}, or fetch it again"
    local = Path(source).is_dir()
    if local and not Path(source, subfolder).is_dir():
        raise CheckpointError(f"{where} is missing: {remedy}")
    options: dict[str, Any] = {"subfolder": subfolder, "revision": revision, "local_files_only": local}
    if issubclass(kind, PreTrainedModel):
        if local:
            read_settings(Path(source, subfolder, "config.json"))
        options |= {"dtype": dtype or torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        with building:
            found = kind.from_pretrained(str(source), **options)
    except (*DAMAGE, SafetensorError) as error:
        raise CheckpointError(f"{where} cannot be loaded as {kind.__name__} ({error}): {remedy}") from error
    except Exception as error:
        if type(error) is not Exception:  # the Rust tokenizers raise this class itself for damaged files
            raise
        raise CheckpointError(f"{where} cannot be loaded as {kind.__name__} ({error}): {remedy}") from error
    if not issubclass(kind, PreTrainedModel):
        return found
    model, info = found
    problems = {name: _listed(info.get(name) or ()) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if found_problems := {name: names for name, names in problems.items() if names}:
        raise CheckpointError(f"{where} does not fit {kind.__name__}, {found_problems}: {remedy}")
    check_finite(model.state_dict(), where)
    return model.eval()


def _listed(names: Any) -> list[str]:
    shown = sorted(str(name) for name in names if not str(name).endswith(_FORMER))
    return shown[:_LISTED] + ["…"] * (len(shown) > _LISTED)
