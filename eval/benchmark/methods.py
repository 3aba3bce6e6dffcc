"""Methods that are compared: everything that makes a picture of a person from references, a prompt and a seed.

methods:
  - {name: ours, kind: pipeline, model: runs/generator/export}
  - {name: without face, kind: plain, model: runs/generator/export}
  - {name: elsewhere, kind: folder, folder: pictures}
  - {name: another photo, kind: real}
  - {name: a stranger, kind: stranger}
  - {name: FaceID, kind: peer, adapter: ip_adapter, options: {base: …}}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.benchmark.peers import load_peer
from eval.benchmark.references import References
from eval.benchmark.suite import Job, Suite
from eval.hashes import pipeline_hash
from faceclip.errors import CheckpointError, ConfigError, DataError
from faceclip.faces import load_image
from faceclip.settings import load_config, setting
from faceclip.storage.hashes import file_hash
from faceclip.storage.regular import parse_json, read_regular
from makeup_plugin.loading import load_pipeline
from makeup_plugin.marking.provenance import Provenance

CALIBRATION = ("real", "stranger")
"""Kinds whose rows say what real photos get; they take no part in the comparison of methods."""
PLAIN = "plain"
"""The kind that sees no face: its pictures are those "without identity" of clip_i/noid and facesim/prior."""


@dataclass(kw_only=True)
class MethodSettings:
    """One method of METHODS.yaml. kind: pipeline (ours, any export), plain (the same without a face), peer (an
    adapter), folder (finished pictures with manifest.json), real (another photo of the person), stranger."""

    name: str = setting(help="in tables; unique")
    kind: Literal["pipeline", "plain", "peer", "folder", "real", "stranger"]
    model: str = setting("tiny", "pipeline, plain: folder, hub id, or the one that ships", path=True)
    steps: int | None = setting(None, "sampler steps; by default those that suit the model")
    guidance: float | None = setting(None, "guidance scale; by default the one that suits the model")
    guide_shading: bool | None = setting(None, "whether guidance strengthens the shading channel")
    identity_scale: float | None = setting(None, "weight of the identity channel")
    shading_scale: float | None = setting(None, "weight of the shading channel")
    adapter: str = setting("", "peer: name of `eval.benchmark.peers.PEERS`, or module:factory")
    folder: Path | None = setting(None, "folder: of finished pictures")
    options: dict[str, Any] = setting(factory=dict, help="peer: what its adapter takes")
    licence: str = setting("", "of the model, as it stands in the report")

    def __post_init__(self) -> None:
        if self.kind == "folder" and self.folder is None:
            raise ConfigError(f"methods: {self.name}: a folder of finished pictures needs folder: DIR")
        if self.kind == "peer" and not self.adapter:
            raise ConfigError(f"methods: {self.name}: a peer needs adapter: NAME")


@dataclass(kw_only=True)
class MethodsFile:
    """METHODS.yaml."""

    methods: list[MethodSettings]

    def __post_init__(self) -> None:
        names = [method.name.casefold() for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ConfigError(f"methods: {f'{twice[0]} stands twice' if twice else 'none is named'}; name each once")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture (H, W, 3) and what is written into its file."""

    image: NDArray[np.uint8]
    provenance: Provenance | None = None


class Method(Protocol):
    """The interface of a method that the runner uses."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON that differs between versions of the method."""

    def applies(self, job: Job) -> bool:
        """Returns whether the method can have this picture; a person with one photo has no other photo."""

    def draw(self, job: Job) -> Drawn:
        """Returns the picture of a job. Every exception is recorded as a failure of this picture."""


@dataclass(frozen=True, kw_only=True)
class PipelineMethod:
    """Our pipeline, with the reference or (`face` false) without it."""

    pipeline: Any
    suite: Suite
    call: Mapping[str, Any]
    face: bool
    facts: Mapping[str, Any]

    def applies(self, job: Job) -> bool:
        return True

    def draw(self, job: Job) -> Drawn:
        photo = self.suite.references.photos[job.reference]
        given: dict[str, Any] = {}
        if self.face:
            given = {"image": photo.image, "landmarks": photo.landmarks}
        height, width = self.suite.settings.size
        output = self.pipeline(
            self.suite.prompts[job.prompt].text,
            height=height,
            width=width,
            generator=torch.Generator().manual_seed(job.seed),
            **self.call,
            **given,
        )
        return Drawn(image=np.asarray(output.images[0].convert("RGB")), provenance=output.provenance[0])


@dataclass(frozen=True, kw_only=True)
class PeerMethod:
    """Another project's pipeline behind an adapter of one signature: (references, prompt, seed, size) → picture."""

    peer: Callable[[Sequence[Image.Image], str, int, tuple[int, int]], Image.Image]
    suite: Suite
    facts: Mapping[str, Any]

    def applies(self, job: Job) -> bool:
        return True

    def draw(self, job: Job) -> Drawn:
        photo = self.suite.references.photos[job.reference]
        prompt = self.suite.prompts[job.prompt].text
        image = self.peer([Image.fromarray(photo.image)], prompt, job.seed, self.suite.settings.size)
        if not isinstance(image, Image.Image):
            raise TypeError(f"the adapter gave a {type(image).__name__}, a picture of PIL is expected")
        return Drawn(image=np.asarray(image.convert("RGB")))


@dataclass(frozen=True, kw_only=True)
class FolderMethod:
    """Finished pictures: manifest.json says which file is the picture of which job."""

    folder: Path
    files: Mapping[str, str]
    facts: Mapping[str, Any]
    size: tuple[int, int]

    def applies(self, job: Job) -> bool:
        return True

    def draw(self, job: Job) -> Drawn:
        if job.key not in self.files:
            raise DataError(f"{self.folder / 'manifest.json'} names no picture of {job.key}: add it")
        path = (self.folder / self.files[job.key]).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise DataError(f"{self.folder / 'manifest.json'}: {self.files[job.key]} lies outside the folder")
        return Drawn(image=fit(load_image(path), self.size))


@dataclass(frozen=True, kw_only=True)
class RealMethod:
    """Real photos in the place of pictures: the person's held one, or a stranger's. No metric compares with these."""

    references: References
    same: bool
    size: tuple[int, int]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def _rows(self, job: Job) -> list[int]:
        person = self.references.photos[job.reference].person
        held = self.references.held
        if self.same:
            return [held[person]] if person in held else []
        return [row for other, row in held.items() if other != person]

    def applies(self, job: Job) -> bool:
        return bool(self._rows(job))

    def draw(self, job: Job) -> Drawn:
        rows = self._rows(job)
        row = rows[int(np.random.default_rng(job.seed).integers(len(rows)))]
        return Drawn(image=fit(self.references.photos[row].image, self.size))


def fit(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns a picture in the middle of height × width px in its proportions; parts beyond the edges are cut off."""
    height, width = size
    factor = max(height / image.shape[0], width / image.shape[1])
    large = max(width, round(image.shape[1] * factor)), max(height, round(image.shape[0] * factor))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = image if large == (image.shape[1], image.shape[0]) else cv2.resize(image, large, interpolation=way)
    top, left = (large[1] - height) // 2, (large[0] - width) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def read_methods(path: Path) -> list[MethodSettings]:
    """Reads methods from a YAML file; paths are relative to the file's folder. Raises ConfigError naming the key."""
    methods = load_config(MethodsFile, path).methods
    for method in methods:
        if method.folder is not None:
            method.folder = path.parent / method.folder
        if (path.parent / method.model).is_dir():
            method.model = str(path.parent / method.model)
    return methods


def load_method(settings: MethodSettings, suite: Suite, device: str = "cpu") -> Method:
    """Loads the method of its settings. Raises ConfigError, CheckpointError or DataError that begins with its name."""
    try:
        return _load(settings, suite, device)
    except (ConfigError, CheckpointError, DataError) as error:
        raise type(error)(f"methods: {settings.name}: {error}") from error


def _load(settings: MethodSettings, suite: Suite, device: str) -> Method:
    size = suite.settings.size
    if settings.kind in CALIBRATION:
        return RealMethod(references=suite.references, same=settings.kind == "real", size=size)
    if settings.kind == "folder":
        assert settings.folder is not None  # checked by the settings
        files, facts = _read_manifest(settings.folder)
        return FolderMethod(folder=settings.folder, files=files, facts=facts, size=size)
    if settings.kind == "peer":
        peer = load_peer(settings.adapter, settings.options, device)
        facts = {"adapter": settings.adapter, "options": settings.options}
        return PeerMethod(peer=peer, suite=suite, facts=facts)
    pipeline = load_pipeline(settings.model, device=device, progress=False)
    call = asdict(
        pipeline.call_defaults.filled(
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            guide_shading=settings.guide_shading,
            identity_scale=settings.identity_scale,
            shading_scale=settings.shading_scale,
        )
    )
    facts = {"model": pipeline_hash(settings.model), **call}
    return PipelineMethod(pipeline=pipeline, suite=suite, call=call, face=settings.kind == "pipeline", facts=facts)


def _read_manifest(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    path = folder / "manifest.json"
    try:
        content = parse_json(read_regular(path, 2**28))
        files = {str(key): str(name) for key, name in content["pictures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path} cannot be read ({error!r}): it holds {{"pictures": {{JOB: FILE}}}}, with the jobs of plan.json'
        ) from error
    return files, {"manifest": file_hash(path)}
