"""The kinds of published weights that a pipeline draws with: what their files hold, and how their authors use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faceclip.errors import ConfigError
from faceclip.published.files import LICENSE as FACECLIP_LICENCE

_RESEARCH = "research only, no commercial use (its model card)"


@dataclass(frozen=True, kw_only=True)
class PublishedKind:
    """One kind of published adapter.

    form, shortcut, normalized, nobody, view: of its `IdentityChannel`. files: name in its repository, by base. bases:
    those that it is made for. roots: entries of the file. control_folder: a ControlNet's folder beside the file.
    control_map: what the ControlNet reads, "" where there is none. licence: of the weights. The recognizers that go
    with them have their own.
    """

    form: str
    files: Mapping[str, str]
    licence: str
    roots: tuple[str, ...] = ("image_proj", "ip_adapter")
    shortcut: bool = False
    normalized: bool = True
    nobody: str = "zero_tokens"
    view: str = "aligned"
    control_map: str = ""
    control_folder: str = ""
    bases: tuple[str, ...] = ("sd15", "sdxl")

    def settings(self, shortcut: bool | None) -> dict[str, Any]:
        """Settings of its `IdentityChannel`; `shortcut` in place of its own unless None.

        Raises ConfigError for a shortcut where there is none.
        """
        settings: dict[str, Any] = {"normalized": self.normalized, "nobody": self.nobody, "view": self.view}
        if self.form == "perceiver":
            return settings | {"shortcut": self.shortcut if shortcut is None else shortcut}
        if shortcut is not None:
            raise ConfigError(f"shortcut={shortcut}, but this kind reads no image tokens: leave shortcut out")
        return settings


FACECLIP = "faceclip-sdxl"


def _makeup(control_map: str, view: str, licence: str) -> PublishedKind:
    return PublishedKind(
        form="perceiver",
        files={"sd15": "model.bin"},
        bases=("sd15",),
        roots=("image_proj", "ip_adapter", "controlnet"),
        shortcut=True,
        nobody="zero_image",
        view=view,
        control_map=control_map,
        licence=licence,
    )


KINDS = {
    "facemakeup-v1": _makeup("five_points", "picture", "not stated"),
    "facemakeup-v2": _makeup("shading", "square", "MIT"),
    "ip-adapter-faceid": PublishedKind(
        form="mlp",
        files={"sd15": "ip-adapter-faceid_sd15.bin", "sdxl": "ip-adapter-faceid_sdxl.bin"},
        licence=_RESEARCH,
    ),
    "ip-adapter-faceid-plus": PublishedKind(
        form="perceiver",
        files={"sd15": "ip-adapter-faceid-plus_sd15.bin"},
        nobody="zero_image",
        licence=_RESEARCH,
    ),
    "ip-adapter-faceid-plusv2": PublishedKind(
        form="perceiver",
        files={"sd15": "ip-adapter-faceid-plusv2_sd15.bin", "sdxl": "ip-adapter-faceid-plusv2_sdxl.bin"},
        shortcut=True,
        nobody="zero_image",
        licence=_RESEARCH,
    ),
    "instantid": PublishedKind(
        form="resampler",
        files={"sdxl": "ip-adapter.bin"},
        bases=("sdxl",),
        normalized=False,
        control_map="five_points",
        control_folder="ControlNetModel",
        licence="Apache-2.0; its authors release the checkpoints for research only",
    ),
}
LICENCES = {FACECLIP: FACECLIP_LICENCE} | {name: kind.licence for name, kind in KINDS.items()}


def kind_of(name: str) -> PublishedKind:
    """The kind of published adapters called `name`. Raises ConfigError, which lists them, for another name."""
    if name not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(LICENCES)}, got {name!r}")
    return KINDS[name]
