"""Fusion of text tokens with face tokens: the feature enhancer of GroundingDINO (Liu et al. 2023, section 3.1).

Per layer: (1) bi-directional cross-attention between face and text, (2) self-attention over the text, (3) deformable
self-attention over the square of face tokens (Zhu et al. 2021). As published for FaceCLIP, three things differ from
what one would write anew: the residual of (1) is added to the *normalized* input, (2) has no mask at all, and one
matrix of attention logits is softmaxed both ways. Only the text side is an output, so the face half of the last layer
is never computed. The deformable part is `grid_sample`: no compiled operator, CPU and GPU alike.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BiAttention(nn.Module):
    """Face and text look at each other through one matrix of logits; layer scale on what each adds."""

    def __init__(self, width: int, attention_width: int, heads: int, layer_scale: float, *, update_face: bool) -> None:
        super().__init__()
        self.heads, self.update_face = heads, update_face
        self.face_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)
        self.face_query = nn.Linear(width, attention_width)
        self.text_key = nn.Linear(width, attention_width)
        self.face_value = nn.Linear(width, attention_width)
        self.text_out = nn.Linear(attention_width, width)
        self.text_scale = nn.Parameter(torch.full((width,), layer_scale))
        if update_face:
            self.text_value = nn.Linear(width, attention_width)
            self.face_out = nn.Linear(attention_width, width)
            self.face_scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, face: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """face (B, P, width), text (B, L, width) → the same, both normalized and updated (face only normalized in the
        last layer)."""
        face, text = self.face_norm(face), self.text_norm(text)
        query, key = self._split(self.face_query(face)), self._split(self.text_key(text))
        # Scaled before the product, which in float16 could exceed 65,504.
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)  # (B, heads, P, L)
        from_face = logits.transpose(2, 3).softmax(-1) @ self._split(self.face_value(face))
        new_text = text + self.text_scale * self.text_out(from_face.transpose(1, 2).flatten(2))
        if self.update_face:
            from_text = logits.softmax(-1) @ self._split(self.text_value(text))
            face = face + self.face_scale * self.face_out(from_text.transpose(1, 2).flatten(2))
        return face, new_text

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class TextLayer(nn.Module):
    """Post-norm transformer layer; position enters queries and keys only (Carion et al. 2020), ReLU, no mask."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, text: Tensor, position: Tensor) -> Tensor:
        """text (B, L, width), position (1, L, width) → (B, L, width)."""
        placed = text + position
        heads = [
            m(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for m, x in ((self.query, placed), (self.key, placed), (self.value, text))
        ]
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        text = self.attention_norm(text + self.out(mixed))
        return self.output_norm(text + self.down(F.relu(self.up(text))))


class DeformableLayer(nn.Module):
    """Post-norm layer of single-level deformable self-attention over a square of tokens (Zhu et al. 2021, eq. 2)."""

    def __init__(self, width: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * points * 2)
        self.weights = nn.Linear(width, heads * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width)
        # Points start on rays in as many directions as there are heads, at distances 1 … points.
        angle = torch.arange(heads) * (2 * torch.pi / heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        start = ray[:, None, :] * torch.arange(1, points + 1)[None, :, None]
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(start.flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def forward(self, face: Tensor, position: Tensor) -> Tensor:
        """face (B, side², width), position (1, side², width) → (B, side², width)."""
        batch, count, width = face.shape
        side = round(count**0.5)
        placed = face + position
        value = self.value(face).view(batch, side, side, self.heads, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        # Places are float32 at any precision of the rest: 16 bits resolve a grid of 12 to a tenth of a token only.
        offsets = self.offsets(placed).float().view(batch, count, self.heads, self.points, 2)
        weights = self.weights(placed).view(batch, count, self.heads, self.points).softmax(-1)
        centre = (torch.arange(side, device=face.device, dtype=offsets.dtype) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        reference = torch.stack([x, y], -1).view(1, count, 1, 1, 2)
        places = 2 * (reference + offsets / side) - 1  # grid_sample's coordinates: -1 and 1 are the outer edges
        places = places.permute(0, 2, 1, 3, 4).flatten(0, 1)  # (B·heads, P, points, 2)
        value = value.to(places.dtype)
        sampled = F.grid_sample(value, places, mode="bilinear", padding_mode="zeros", align_corners=False)
        weights = weights.permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(1)  # (B·heads, 1, P, points)
        mixed = (sampled * weights).sum(-1).to(face.dtype).view(batch, width, count).transpose(1, 2)
        face = self.attention_norm(face + self.out(mixed))
        return self.output_norm(face + self.down(F.relu(self.up(face))))


class FusionLayer(nn.Module):
    """One layer of the feature enhancer; the last one has no part that only the face would need."""

    def __init__(self, cross: BiAttention, text: TextLayer, face: DeformableLayer | None) -> None:
        super().__init__()
        self.cross, self.text, self.face = cross, text, face

    def forward(
        self, face: Tensor, face_position: Tensor, text: Tensor, text_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        face, text = self.cross(face, text)
        text = self.text(text, text_position)
        if self.face is not None:
            face = self.face(face, face_position)
        return face, text


class FeatureFusion(nn.Module):
    """`layers` fusion layers; returns the text side.

    Published size: 6 layers, attention_width 1024, 4 heads, text_hidden 1024, 8 face heads, 4 points, face_hidden
    2048, layer_scale 1e-4.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int = 6,
        attention_width: int = 1024,
        attention_heads: int = 4,
        text_hidden: int = 1024,
        face_heads: int = 8,
        points: int = 4,
        face_hidden: int = 2048,
        layer_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        checks = (("attention_heads", attention_heads, attention_width), ("attention_heads", attention_heads, width))
        for name, heads, size in (*checks, ("face_heads", face_heads, width)):
            if size % heads:
                raise ValueError(f"{name}={heads} does not divide {size}")
        self.layers = nn.ModuleList()
        for number in range(layers):
            last = number == layers - 1
            cross = BiAttention(width, attention_width, attention_heads, layer_scale, update_face=not last)
            text = TextLayer(width, attention_heads, text_hidden)
            face = None if last else DeformableLayer(width, face_heads, points, face_hidden)
            self.layers.append(FusionLayer(cross, text, face))

    def forward(self, face: Tensor, face_position: Tensor, text: Tensor, text_position: Tensor) -> Tensor:
        """face (B, P, width) with P a square, text (B, L, width); positions with one row → fused text (B, L, width).

        Raises ValueError when the number of face tokens is not a square.
        """
        if round(face.shape[1] ** 0.5) ** 2 != face.shape[1]:
            raise ValueError(f"face tokens must form a square, got {face.shape[1]} of them")
        for layer in self.layers:
            face, text = layer(face, face_position, text, text_position)
        return text
