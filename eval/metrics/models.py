"""Networks whose features metrics compare: CLIP, DINO, the Inception of FID, the layers of LPIPS.

A network is named by a local folder or file, or by a hub id (`owner/name` or `owner/name@revision`) that lies in the
hub's cache. Nothing is downloaded here: `MissingModelError` says which command gets what is missing, and reports show
"not measured" in its column. Pickles are read as weights only.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from faceclip.errors import CheckpointError
from faceclip.storage.hashes import module_hash, settings_text, tensors_hash
from faceclip.storage.loading import DAMAGE
from faceclip.storage.regular import open_regular, read_settings
from faceclip.towers.text import tokenize

BATCH = 32
Pictures = Sequence[NDArray[np.uint8]]


class MissingModelError(CheckpointError):
    """A metric's network is not on this machine; the message ends with the command that gets it."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The facts about a metric's network in a result file. sha256: of its weights and configuration."""

    id: str
    revision: str
    sha256: str
    preprocessing: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def locate(name: str) -> tuple[Path, str]:
    """Returns the folder or file of a model named by path or hub id, and its revision ("" for paths).

    Raises MissingModelError with the command that gets it.
    """
    place = Path(name).expanduser()
    if place.exists():
        return place, ""
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MissingModelError(f"{name} is no file or folder: name one, or a model of the hub as owner/name")
    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    try:
        folder = snapshot_download(repository, revision=revision or None, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise MissingModelError(f"{name} is neither a folder nor in the hub's cache; get it by: {command}") from error
    return Path(folder), Path(folder).name


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns tensors by name of a safetensors file or of a pickle that holds tensors alone.

    Raises CheckpointError for anything else, also for a pickle with code.
    """
    try:
        with open_regular(path):
            pass
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # unpickling damaged data raises whatever it likes
        raise CheckpointError(f"{path} cannot be read as weights ({error}): fetch the file again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} does not hold tensors by name: give a file of weights")
    return state


class ClipModel:
    """CLIP in the layout of transformers: pictures and texts → projected embeddings (N, D), and unprojected ones."""

    def __init__(self, name: str) -> None:
        folder, revision = locate(name)
        self.model = _pretrained(folder, "CLIPModel", ("clip",))
        self.pixels = _pixels_of(folder, self.model.config.vision_config.image_size)
        text = "text cut at 77 tokens"
        self.facts = ModelFacts(
            id=name, revision=revision, sha256=network_hash(self.model), preprocessing=f"{self.pixels.text}; {text}"
        )

    @torch.no_grad()
    def pictures(self, images: Pictures) -> NDArray[np.float32]:
        """Returns projected embeddings (N, D), not of unit length."""
        return _batched(images, lambda part: self.model.visual_projection(self._pooled(part)))

    @torch.no_grad()
    def pooled(self, images: Pictures) -> NDArray[np.float32]:
        """Returns the vision tower's pooled state (N, W) before the projection."""
        return _batched(images, self._pooled)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns projected embeddings (N, D) of texts; what lies beyond 77 tokens is cut."""
        context = self.model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = tokenize(list(texts[start : start + BATCH]), context=context)
            state = self.model.text_model(input_ids=tokens).last_hidden_state
            end = tokens.argmax(dim=1)  # the end token has the largest id
            parts.append(self.model.text_projection(state[torch.arange(len(state)), end]).float().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def _pooled(self, images: Pictures) -> Tensor:
        return self.model.vision_model(pixel_values=self.pixels(images)).pooler_output


class DinoModel:
    """DINO (ViT) or DINOv2 in the layout of transformers: pictures → the class token's last state (N, W).

    The pooler of DINO's ViT was never trained; it is not used.
    """

    def __init__(self, name: str) -> None:
        folder, revision = locate(name)
        self.model = _pretrained(folder, "AutoModel", ("vit", "dinov2"))
        self.pixels = _pixels_of(folder, self.model.config.image_size)
        self.facts = ModelFacts(
            id=name, revision=revision, sha256=network_hash(self.model), preprocessing=self.pixels.text
        )

    @torch.no_grad()
    def pictures(self, images: Pictures) -> NDArray[np.float32]:
        """Returns class tokens (N, W)."""
        return _batched(images, lambda part: self.model(pixel_values=self.pixels(part)).last_hidden_state[:, 0])


class LpipsModel:
    """AlexNet's five activations with LPIPS's weights of version 0.1.

    weights: file of torchvision's AlexNet. heads: LPIPS's own file, `alex.pth` of the packages lpips and torchmetrics;
    None finds it there.
    """

    ENDS = (2, 5, 8, 10, 12)
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def __init__(self, weights: str, heads: Path | None = None) -> None:
        from torchvision.models import alexnet

        path = locate_file(weights, "wget https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
        self.layers = alexnet(weights=None).features.eval().requires_grad_(False)
        prefix = "features."
        state = {name.removeprefix(prefix): value for name, value in read_weights(path).items() if prefix in name}
        try:
            self.layers.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{path} is not the expected network ({error}): fetch the named file") from error
        head_state = read_weights(heads or self._packaged_heads())
        try:
            self.weights = [head_state[f"lin{layer}.model.1.weight"].reshape(-1) for layer in range(5)]
        except KeyError as error:
            raise CheckpointError(f"{heads}: {error} is missing: give LPIPS's alex.pth of version 0.1") from error
        self.facts = ModelFacts(
            id=f"lpips-alex-0.1 on {weights}",
            revision="",
            sha256=module_hash(self.layers),
            preprocessing="RGB in [−1, 1], shifted and scaled as LPIPS does; no resizing",
        )

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """Returns feature maps of pictures (N, 3, H, W) in [0, 1]. Raises ValueError for another range."""
        if images.numel() and (images.min() < 0 or images.max() > 1):
            raise ValueError(f"pictures must be in [0, 1], got {images.min():.2f} … {images.max():.2f}")
        shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (self.SHIFT, self.SCALE))
        x = (images * 2 - 1 - shift) / scale
        maps, start = [], 0
        for end in self.ENDS:
            x = self.layers[start:end](x)
            maps.append(x)
            start = end
        return maps

    @staticmethod
    def _packaged_heads() -> Path:
        for package, inside in (("torchmetrics", "functional/image/lpips_models"), ("lpips", "weights/v0.1")):
            spec = find_spec(package)
            if spec is not None and spec.origin is not None:
                path = Path(spec.origin).parent / inside / "alex.pth"
                if path.is_file():
                    return path
        raise MissingModelError("LPIPS's heads are not installed; get them by: pip install torchmetrics")


class InceptionModel:
    """FID's Inception by torch-fidelity: pictures → 2,048 features, resized inside as TensorFlow 1 did."""

    def __init__(self, weights: str) -> None:
        if find_spec("torch_fidelity") is None:
            raise MissingModelError("torch-fidelity is not installed; get it by: pip install torch-fidelity")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        command = "wget https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
        path = locate_file(weights, command)
        read_weights(path)  # refuses code before torch-fidelity, which does not, reads the file
        try:
            self.model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        except DAMAGE as error:
            raise CheckpointError(f"{path} is not FID's Inception ({error}): get it by {command}") from error
        self.facts = ModelFacts(
            id=weights, revision="", sha256=module_hash(self.model), preprocessing="uint8 RGB, bilinear to 299 as TF1"
        )

    @torch.no_grad()
    def pictures(self, images: Pictures) -> NDArray[np.float32]:
        """Returns features (N, 2048)."""

        def features(part: Pictures) -> Tensor:
            rows = [self.model(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0] for image in part]
            return torch.cat(rows)

        return _batched(images, features)


def locate_file(name: str, command: str) -> Path:
    """Returns a weights file by its path. Raises MissingModelError that ends with `command`."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise MissingModelError(f"{name} is no file of weights; get it by: {command}")
    return path


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Preprocessing of a tower: shortest side to `size` (bicubic, antialiased), central square, normalization."""

    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def text(self) -> str:
        mean, deviation = ([round(v, 4) for v in values] for values in (self.mean, self.deviation))
        return (
            f"RGB, shortest side to {self.size} px bicubic, central {self.size}² px, mean {mean}, deviation {deviation}"
        )

    def __call__(self, images: Pictures) -> Tensor:
        """Turns pictures of any sizes into (N, 3, size, size)."""
        parts = []
        for image in images:
            picture = Image.fromarray(np.asarray(image))
            factor = self.size / min(picture.size)
            wide, high = (max(self.size, round(side * factor)) for side in picture.size)
            picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
            left, top = (wide - self.size) // 2, (high - self.size) // 2
            picture = picture.crop((left, top, left + self.size, top + self.size))
            parts.append(torch.from_numpy(np.array(picture, np.float32) / 255).permute(2, 0, 1))
        mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (self.mean, self.deviation))
        return (torch.stack(parts) - mean) / deviation


def _pixels_of(folder: Path, size: int) -> Pixels:
    settings = read_settings(folder / "preprocessor_config.json")
    mean, deviation = settings.get("image_mean"), settings.get("image_std")
    if not (isinstance(mean, list) and isinstance(deviation, list) and len(mean) == len(deviation) == 3):
        path = folder / "preprocessor_config.json"
        raise CheckpointError(f"{path}: image_mean and image_std must be three numbers each: fetch it again")
    return Pixels(size=size, mean=tuple(mean), deviation=tuple(deviation))


def _pretrained(folder: Path, kind: str, types: tuple[str, ...]) -> Any:
    import transformers

    found = read_settings(folder / "config.json").get("model_type")
    if found not in types:
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {found!r}, a metric needs {' or '.join(types)}")
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (*DAMAGE, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as {kind} ({error}): fetch it again") from error
    missing = [name for name in info["missing_keys"] if "pooler" not in name and "position_ids" not in name]
    if missing or info["mismatched_keys"]:
        raise CheckpointError(f"{folder}: weights lack {', '.join(missing[:3]) or 'the right shapes'}: fetch it again")
    return model.eval().requires_grad_(False)


def _batched(images: Pictures, features: Callable[[Pictures], Tensor]) -> NDArray[np.float32]:
    starts = range(0, len(images), BATCH)
    found = [features(images[start : start + BATCH]).float().cpu().numpy() for start in starts]
    return np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def network_hash(model: Any) -> str:
    """Returns the SHA-256 of weights and configuration of a model of transformers."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "transformers_version"}
    return tensors_hash(model.state_dict().items(), settings_text(config))
