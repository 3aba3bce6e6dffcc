"""Which face recognizers there are, and on what terms: one entry for each kind of name that `load_tower` takes."""

from dataclasses import dataclass

from faceclip.towers.dlib import DlibFaceEncoder
from faceclip.towers.face import FaceViT
from faceclip.towers.iresnet import FaceResNet
from faceclip.towers.onnx import OnnxFaceEncoder

FaceEncoder = FaceViT | FaceResNet | OnnxFaceEncoder | DlibFaceEncoder


@dataclass(frozen=True, kw_only=True)
class RecognizerFacts:
    """name: as `load_tower` takes it. image_size: px of its network's input. channels: their order there. mean, scale:
    that input is (pixel in 0 … 255 − mean) / scale. licence: of the weights. commercial_ok: whether it allows
    commercial use; False where that is not known. differentiable: whether gradients pass to the pictures."""

    name: str
    image_size: int
    channels: str
    mean: tuple[float, float, float]
    scale: float
    licence: str
    commercial_ok: bool
    differentiable: bool


def recognizer_facts(name: str, encoder: FaceEncoder) -> RecognizerFacts:
    """Returns what is known of a recognizer that `load_tower(name, "face")` gave. Embeddings of different recognizers
    are compared by nobody: caches and indexes carry the hash of the one that made them."""
    config, image_size, scale, means = encoder.config, int(encoder.config.image_size), 255.0, (0.0,) * 3
    licence, commercial = "that of the weights' model card", False
    if isinstance(encoder, DlibFaceEncoder):
        image_size, scale, means = encoder.chip_size, 256.0, tuple(encoder.mean.tolist())
        licence, commercial = "CC0-1.0", True
    elif isinstance(encoder, OnnxFaceEncoder):
        scale, means = float(config.pixel_scale), (float(config.pixel_mean),) * 3
        licence = "that of the file; insightface's packs are for non-commercial research only"
    elif isinstance(encoder, FaceResNet):
        scale, means = 127.5, (127.5,) * 3
    if name.partition(":")[0] == "arcface":
        licence = "insightface: non-commercial research only"
    elif name.startswith("tiny/"):
        licence, commercial = "Apache-2.0", True
    red, green, blue = means
    return RecognizerFacts(
        name=name,
        image_size=image_size,
        channels="RGB",
        mean=(red, green, blue),
        scale=scale,
        licence=licence,
        commercial_ok=commercial,
        differentiable=encoder.differentiable if isinstance(encoder, OnnxFaceEncoder) else True,
    )
