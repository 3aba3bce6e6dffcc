"""Distance of a restored portrait from the true one, measured by the face recognizer."""

import torch
from torch import Tensor, nn

from faceclip.faces.align import align_tensor
from faceclip.towers.face import FaceViT
from makeup_plugin.losses import feature_distance


class Likeness(nn.Module):
    """A frozen recognizer that compares two pictures of the same face, aligned by the same points."""

    def __init__(self, recognizer: FaceViT) -> None:
        super().__init__()
        self.recognizer = recognizer.eval().requires_grad_(False)

    def forward(self, restored: Tensor, true: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Compares restored pictures (B, 3, S, S) in [0, 1] with true ones, aligned by landmarks (B, 5, 2) px.

        Returns the distance of the patch tokens, in [0, 4], and the mean of 1 − cosine of the identities, in [0, 2].
        """
        size = self.recognizer.config.image_size
        found = self.recognizer(align_tensor(restored.float(), landmarks, size))
        with torch.no_grad():
            wanted = self.recognizer(align_tensor(true.float(), landmarks, size))
        tokens = feature_distance([found.tokens.transpose(1, 2)], [wanted.tokens.transpose(1, 2)])
        cosine = torch.cosine_similarity(found.identity.float(), wanted.identity.float(), dim=-1)
        return tokens, 1 - cosine.mean()
