"""How far a restored portrait is from the true one in the eyes of the face recognizer."""

import torch
from torch import Tensor, nn

from faceclip.faces.align import align_tensor
from faceclip.towers.face import FaceViT
from makeup_plugin.losses import feature_distance


class Likeness(nn.Module):
    """A frozen recognizer that compares two pictures of one face, aligned by the same points."""

    def __init__(self, recognizer: FaceViT) -> None:
        super().__init__()
        self.recognizer = recognizer.eval().requires_grad_(False)

    def forward(self, restored: Tensor, true: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Two losses of restored pictures (B, 3, S, S) in [0, 1] against true ones, with the five points (B, 5, 2) px
        of both: the distance of the patch tokens in [0, 4], and 1 − the cosine of the identities in [0, 2]."""
        size = self.recognizer.config.image_size
        found = self.recognizer(align_tensor(restored.float(), landmarks, size))
        with torch.no_grad():
            wanted = self.recognizer(align_tensor(true.float(), landmarks, size))
        tokens = feature_distance([found.tokens.transpose(1, 2)], [wanted.tokens.transpose(1, 2)])
        cosine = torch.cosine_similarity(found.identity.float(), wanted.identity.float(), dim=-1)
        return tokens, 1 - cosine.mean()
