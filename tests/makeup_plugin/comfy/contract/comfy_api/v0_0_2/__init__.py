"""What our nodes use of ComfyUI's `comfy_api.v0_0_2`, as strict as the original about names and arguments.

The original is no package of PyPI. This stand-in follows its documented contract; the same tests run against a checkout
of ComfyUI by `COMFYUI=FOLDER python -m pytest tests/makeup_plugin/comfy`.
"""

from . import io, ui


class ComfyExtension:
    async def on_load(self) -> None: ...


__all__ = ["ComfyExtension", "io", "ui"]
