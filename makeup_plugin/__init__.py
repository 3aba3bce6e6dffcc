"""FaceMakeUp: identity-preserving portraits with a diffusers SDXL pipeline conditioned by FaceCLIP.

Names are resolved on first use, so that importing the package is cheap and never pulls in training code.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "FaceMakeUpPipeline": "makeup_plugin.pipeline",
    "FaceMakeUpImg2ImgPipeline": "makeup_plugin.editing",
    "FaceMakeUpInpaintPipeline": "makeup_plugin.editing",
    "FaceMakeUpOutput": "makeup_plugin.output",
    "Identity": "makeup_plugin.identities",
    "IdentityChannel": "makeup_plugin.identity",
    "Conditions": "makeup_plugin.conditioning",
    "LoraSettings": "makeup_plugin.saving.adapters",
    "load_adapter": "makeup_plugin.saving.adapters",
    "save_adapter": "makeup_plugin.saving.adapters",
    "unload_adapter": "makeup_plugin.saving.adapters",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'makeup_plugin' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
