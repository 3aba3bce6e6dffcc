"""Nodes for ComfyUI (V3 schema). A file `custom_nodes/face_makeup.py` of this one line adds them:

from makeup_plugin.comfy import comfy_entrypoint
"""

from __future__ import annotations

from typing import Any

__all__ = ["comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    """The extension that ComfyUI asks for. Nothing of ComfyUI is imported before."""
    from makeup_plugin.comfy.nodes import FaceMakeUpExtension

    return FaceMakeUpExtension()
