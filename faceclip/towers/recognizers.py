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
    config, source = encoder.config, name.partition(":")[0]
    if isinstance(encoder, DlibFaceEncoder):
        red, green, blue = encoder.mean.tolist()
        return RecognizerFacts(
            name=name,
            image_size=encoder.chip_size,
            channels="RGB",
            mean=(red, green, blue),
            scale=256.0,
            licence="CC0-1.0",
            commercial_ok=True,
            differentiable=True,
        )
    if isinstance(encoder, OnnxFaceEncoder):
        mean, scale = float(config.pixel_mean), float(config.pixel_scale)
        licence = "that of the file; insightface's packs are for non-commercial research only"
        commercial = False
    else:
        mean, scale = (127.5, 127.5) if isinstance(encoder, FaceResNet) else (0.0, 255.0)
        published = source == "arcface"
        licence = "insightface: non-commercial research only" if published else "that of the weights' model card"
        commercial = False
        if not published and name.startswith("tiny/"):
            licence, commercial = "Apache-2.0", True
    return RecognizerFacts(
        name=name,
        image_size=int(config.image_size),
        channels="RGB",
        mean=(mean, mean, mean),
        scale=scale,
        licence=licence,
        commercial_ok=commercial,
        differentiable=encoder.differentiable if isinstance(encoder, OnnxFaceEncoder) else True,
    )
