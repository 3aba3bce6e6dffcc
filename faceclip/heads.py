"""Heads of the joint encoder: projections of the fused tokens for alignment, and the joint retrieval embedding.

The release flattens all tokens into one matrix (77·d·d weights); here a few learned queries pool them. The joint
embedding lives in [face space ; image space]: it starts as the plain concatenation of the recognizer's identity and
the text's embedding, which the fused tokens correct and weigh (a residual combiner, cf. Baldrati et al. 2022).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class JointEmbedding:
    """Projections of (face, prompt) pairs, all of unit length: face (B, E) aligned with face embeddings; text (B, C)
    aligned with CLIP text and image embeddings; joint (B, E + C), comparable with `JointHeads.gallery`."""

    face: Tensor
    text: Tensor
    joint: Tensor


class AttentionPool(nn.Module):
    """Pools tokens (B, L, width) into (B, out) by attention from one learned query.

    One query for all tokens lets both projections be taken out of the sum over the tokens, which is the same number
    for 1/L of the products: q·(K x) is (Kᵀ q)·x, and Σ a (V x) is V Σ a x.
    """

    def __init__(self, width: int, out: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.key_value = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, out))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        key, value = self.key_value.weight.unflatten(0, (2, self.heads, -1))  # (heads, width / heads, width) each
        query = self.query.view(self.heads, 1, -1) * key.shape[1] ** -0.5
        # The key's bias adds the same number to all tokens' logits, which the softmax takes away again.
        attention = F.linear(tokens, (query @ key).squeeze(1)).softmax(dim=1)  # (B, L, heads)
        seen = attention.to(tokens.dtype).transpose(1, 2) @ tokens  # (B, heads, width)
        bias = self.key_value.bias.unflatten(0, (2, self.heads, 1, -1))[1]
        pooled = seen.transpose(0, 1) @ value.transpose(1, 2) + bias  # (heads, B, width / heads)
        return self.mlp(pooled.transpose(0, 1).flatten(1))


class JointHeads(nn.Module):
    """Alignment projections, the joint embedding of queries and that of gallery pictures.

    Args:
        token_width: of the fused tokens of both branches. face_dim: E. text_dim: C of the CLIP space.
        hidden: width of the gallery side's correction. heads: of the attention pools; must divide token_width.
    """

    def __init__(self, token_width: int, face_dim: int, text_dim: int, hidden: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.face_pool = AttentionPool(token_width, face_dim, heads)
        self.text_pool = AttentionPool(token_width, text_dim, heads)
        self.gate_pool = AttentionPool(token_width, 1, heads)
        self.face_step = nn.Parameter(torch.tensor(0.1))
        self.text_step = nn.Parameter(torch.tensor(0.1))
        nn.init.zeros_(self.gate_pool.mlp[-1].weight)
        nn.init.zeros_(self.gate_pool.mlp[-1].bias)
        both = face_dim + text_dim
        self.gallery_mlp = nn.Sequential(nn.Linear(both, hidden), nn.GELU(), nn.Linear(hidden, both))
        nn.init.zeros_(self.gallery_mlp[-1].weight)
        nn.init.zeros_(self.gallery_mlp[-1].bias)
        self.face_dim = face_dim

    def forward(
        self, tokens: Tensor, *, identity: Tensor | None, text: Tensor, has_text: Tensor, has_face: Tensor | None = None
    ) -> JointEmbedding:
        """Embeddings of fused tokens (B, 77, W) with the inputs' own embeddings.

        Args:
            identity: (B, E) of the reference faces, None without faces. text: (B, C) embedding of the plain prompts.
            has_text, has_face: (B,) bool; what a row lacks has no part in its joint embedding.
        """
        face = F.normalize(self.face_pool(tokens).float(), dim=-1)
        words = F.normalize(self.text_pool(tokens).float(), dim=-1)
        face_input = torch.zeros_like(face) if identity is None else F.normalize(identity.float(), dim=-1)
        if has_face is not None:
            face_input = face_input * has_face[:, None]
        text_input = F.normalize(text.float(), dim=-1) * has_text[:, None]
        who = F.normalize(face_input + self.face_step * face, dim=-1)
        what = F.normalize(text_input + self.text_step * words, dim=-1)
        # Roots of the shares sigmoid(gate) and 1 − sigmoid(gate), 0.5 each at the start. By their logarithms: the root
        # of a share that rounds to 0 has no finite gradient.
        gate = self.gate_pool(tokens).float()
        face_root, text_root = (torch.exp(0.5 * F.logsigmoid(x)) for x in (gate, -gate))
        # Without a description the face decides alone, without a face the description.
        no_text = ~has_text[:, None]
        face_root, text_root = face_root.masked_fill(no_text, 1.0), text_root.masked_fill(no_text, 0.0)
        if identity is None:
            face_root, text_root = torch.zeros_like(face_root), torch.ones_like(text_root)
        elif has_face is not None:
            no_face = ~has_face[:, None]
            face_root, text_root = face_root.masked_fill(no_face, 0.0), text_root.masked_fill(no_face, 1.0)
        joint = torch.cat([face_root * who, text_root * what], dim=-1)
        return JointEmbedding(face=face, text=words, joint=joint)

    def gallery(self, identity: Tensor, image: Tensor) -> Tensor:
        """Unit embedding (B, E + C) of pictures from identity (B, E) and CLIP image embedding (B, C); at the start the
        plain concatenation of both, normalized. Float32, on the heads' device, whatever the inputs' and theirs is."""
        weight = self.gallery_mlp[0].weight
        plain = torch.cat([F.normalize(x.to(weight.device).float(), dim=-1) for x in (identity, image)], dim=-1)
        moved = plain + self.gallery_mlp(plain.to(weight.dtype)).float()
        who, what = moved[:, : self.face_dim], moved[:, self.face_dim :]
        return torch.cat([F.normalize(who, dim=-1), F.normalize(what, dim=-1)], dim=-1) * 0.5**0.5
