"""Finds a saved pipeline: in a directory, among those that ship with the package, or in a repository of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from faceclip.errors import CheckpointError
from faceclip.published.files import is_hub_id
from makeup_plugin.arguments import path_of
from makeup_plugin.saving.adapters import CONFIG_FILE
from makeup_plugin.saving.shipped import SHIPPED, is_shipped, shipped_pipeline


def local_directory(path_or_id: str | Path, kwargs: dict[str, Any]) -> Path:
    """The directory itself, or a snapshot of the hub's whole repository, since the LoRA is no diffusers component.

    It takes the hub's arguments (revision, token, cache_dir, local_files_only) out of `kwargs`. Raises CheckpointError
    for a name that is neither a directory, nor shipped, nor a hub id, and for a repository that cannot be fetched.
    """
    directory = path_of("path_or_id", path_or_id)
    if directory.is_dir():
        return directory
    text = str(path_or_id)
    if is_shipped(text):
        return shipped_pipeline(text)
    if not is_hub_id(text):
        raise CheckpointError(
            f"{text} is neither a directory, nor a hub id of the form owner/name, nor one of {', '.join(SHIPPED)}"
        )
    names = ("revision", "token", "cache_dir", "local_files_only")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    try:
        # This file comes first and alone: a repository without it may hold many useless gigabytes.
        hf_hub_download(text, CONFIG_FILE, **options)
        return Path(snapshot_download(text, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise CheckpointError(
                f"{text} has no {CONFIG_FILE}, so it is not a saved FaceMakeUpPipeline: load a plain SDXL base with"
                " FaceMakeUpPipeline.from_base(id, joint_encoder=...)"
            ) from error
        raise CheckpointError(f"{text} is no local directory and could not be fetched from the hub: {error}") from error
