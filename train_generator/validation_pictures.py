"""Measures pictures that a validation of stage 2 draws of fixed people: identity, text and pose.

The figures use the pipeline's own frozen parts, with which it was trained: the recognizer and the CLIP towers. They are
meant to choose between checkpoints of one run; `eval.benchmark` compares methods by judges that training never sees.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip.face3d.fitter import FaceFitter
from faceclip.faces.align import align_tensor
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.losses import decode_latents


def picture_names(pipeline: FaceMakeUpPipeline) -> tuple[str, ...]:
    """Returns the names of `picture_figures`' figures for the parts that this pipeline has."""
    names = ["picture_identity", "picture_identity_rank1"]
    if _reads_text(pipeline):
        names.append("picture_text")
    if isinstance(pipeline.face_fitter, FaceFitter):
        names.append("picture_pose")
    return tuple(names)


def picture_figures(pipeline: FaceMakeUpPipeline, batch: dict[str, Tensor], pictures: Tensor) -> dict[str, float]:
    """Means over pictures (B, 3, S, S) in [0, 1], drawn for the samples of a batch with all conditions.

    picture_identity: cosine between the face, cut where the target has it, and that of the reference;
    picture_identity_rank1: share of faces that are nearest to a reference of their own person among those of the batch;
    picture_text: cosine of the CLIP embeddings of picture and prompt, where image and text tower have one space;
    picture_pose: mean difference in degrees of the yaw, pitch and roll that the 3D fitter, where there is one, reads
    off the picture and off the decoded target.
    """
    recognizer = pipeline.joint_encoder.face_encoder
    crops = align_tensor(pictures.float(), batch["landmarks"].float(), recognizer.config.image_size)
    seen = F.normalize(recognizer(crops).identity.float(), dim=-1)
    cosines = seen @ F.normalize(batch["face_identity"].float(), dim=-1).T
    nearest = batch["person"][cosines.argmax(dim=1)]
    figures = {
        "picture_identity": float(cosines.diagonal().mean()),
        "picture_identity_rank1": float((nearest == batch["person"]).float().mean()),
    }
    if _reads_text(pipeline):
        text = pipeline.joint_encoder.g.text(batch["tokens"]).embedding
        tower = pipeline.image_encoder  # takes no part in training and lies where it was loaded
        image = tower(pictures.to(next(tower.parameters()).device)).embedding
        figures["picture_text"] = float(
            F.cosine_similarity(image.float(), text.float().to(image.device), dim=-1).mean()
        )
    if isinstance(pipeline.face_fitter, FaceFitter):
        figures["picture_pose"] = _pose_difference(pipeline, batch, pictures)
    return figures


def _reads_text(pipeline: FaceMakeUpPipeline) -> bool:
    return pipeline.image_encoder.config.embed_dim == pipeline.joint_encoder.g.text.config.embed_dim


def _pose_difference(pipeline: FaceMakeUpPipeline, batch: dict[str, Tensor], pictures: Tensor) -> float:
    points = batch["landmarks"].float().cpu().numpy()
    targets = decode_latents(pipeline.vae, batch["latents"])
    fits = [pipeline.face_fitter.fit(_bytes(images), points) for images in (pictures, targets)]
    return float((fits[0].pose - fits[1].pose).abs().mean())


def _bytes(pictures: Tensor) -> list[np.ndarray]:
    """Converts pictures (B, 3, S, S) in [0, 1] to a list of (S, S, 3) uint8."""
    return list((pictures.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
