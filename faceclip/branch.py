"""One branch of FaceCLIP: a CLIP text tower that reads the identity in place of a word, and fusion with the face."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.fusion import FeatureFusion
from faceclip.towers.text import TextFeatures, TextTower

TEMPLATE = "Photo of a id person. "
TEMPLATE_START = (1125, 539, 320, 1014)  # tokens 1 to 4 of the template: "photo of a id"
ID_INDEX = 4  # of the token "id", which the identity replaces


class FaceCLIPBranch(nn.Module):
    """Text tower, identity token and fusion of one branch."""

    def __init__(self, text: TextTower, face_width: int, identity_dim: int, fusion: dict[str, Any]) -> None:
        super().__init__()
        width = text.config.width
        self.text = text
        self.identity_projection = nn.Linear(identity_dim, width)
        self.face_projection = nn.Linear(face_width, width)
        self.face_position_projection = nn.Linear(face_width, width)
        self.text_projection = nn.Linear(width, width)
        self.text_position_projection = nn.Linear(width, width)
        self.fusion = FeatureFusion(width, **fusion)

    def read(self, tokens: Tensor, identity: Tensor, has_face: bool | Tensor = True) -> TextFeatures:
        """What the text tower makes of tokens (B, 77) ids and the identities (B, E) of B faces.

        The identity takes the place of "id" in rows that begin with the template and have a face; has_face: of all
        rows, or (B,) bool.
        """
        plain = self.text.tower.token_embedding(self.text.rows(tokens[:, ID_INDEX]))
        identity = identity.to(self.identity_projection.weight.dtype)  # the towers may be in 16 bits, and this not
        word = self.identity_projection(F.normalize(identity, dim=-1)).to(plain.dtype)
        # Compared with numbers: a tensor of them would be copied to the device, which waits for it.
        begins = torch.stack([tokens[:, place] == word for place, word in enumerate(TEMPLATE_START, start=1)])
        replaced = begins.all(dim=0) & has_face
        return self.text(tokens, replace_index=ID_INDEX, replace_with=torch.where(replaced[:, None], word, plain))

    def forward(self, text: Tensor, face: Tensor, face_position: Tensor) -> Tensor:
        """Text tokens that have seen the face (B, 77, width).

        Args:
            text: (B, 77, width) states of the text tower. face: (B, P, face width) tokens of the face encoder.
            face_position: (1, P, face width), its positional embedding.
        """
        dtype = self.text_projection.weight.dtype
        position = self.text.tower.positional_embedding[None, : text.shape[1]]
        return self.fusion(
            self.face_projection(face.to(dtype)),
            self.face_position_projection(face_position.to(dtype)),
            self.text_projection(text.to(dtype)),
            self.text_position_projection(position.to(dtype)),
        )

    @torch.no_grad()
    def start_near_text(self) -> None:
        """Makes the untrained fusion nearly pass the text through, up to the layer norms that it consists of.

        What reads the tokens was trained on the towers' states; from here on training moves them as far as it pays.
        """
        nn.init.eye_(self.text_projection.weight)
        nn.init.zeros_(self.text_projection.bias)
        for layer in self.fusion.layers:
            for linear in (layer.text.out, layer.text.down):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        # The last norm takes the scale of the tower's own last norm.
        last = self.fusion.layers[-1].text.output_norm
        last.weight.copy_(self.text.tower.ln_final.weight)
        last.bias.copy_(self.text.tower.ln_final.bias)
