"""What the trained baselines stand on: a window fused to one vector, by the value decoder's kind of trunk.

Shapes: B batch, W window slots (slot 0 is the anchor), C cameras, D embedding, S state, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sarm2_models.config import RewardModelConfig
from sarm2_models.layers import CausalTrunk, Standardise


class FusedWindow(nn.Module):
    """Cameras, state and, if asked for, the instruction; as wide and as deep as the value decoder.

    Args:
        config: `config.value` and the shapes are used.
        instruction: whether the instruction's text stands at every slot.
    """

    def __init__(self, config: RewardModelConfig, *, instruction: bool) -> None:
        super().__init__()
        part, cameras = config.value, len(config.cameras)
        self.embedding_statistics = Standardise(cameras, config.embedding_dim)
        self.image_in = nn.Linear(config.embedding_dim, part.dim)
        self.state_in = nn.Linear(config.state_dim, part.dim)
        self.instruction_in = nn.Linear(config.embedding_dim, part.dim) if instruction else None
        tokens = cameras + 1 + int(instruction)
        self.trunk = CausalTrunk(
            dim=part.dim,
            heads=part.heads,
            layers=part.layers,
            dropout=part.dropout,
            slots=config.window.slots,
            tokens_per_slot=tokens,
        )
        self.fuse = nn.Sequential(nn.LayerNorm(tokens * part.dim), nn.Linear(tokens * part.dim, part.dim))

    def forward(
        self,
        embeddings_BWCD: Tensor,
        state_BWS: Tensor,
        mask_BW: Tensor,
        instruction_BD: Tensor | None = None,
    ) -> Tensor:
        """(B, d). Inputs as the value decoder's."""
        parts = [
            self.image_in(self.embedding_statistics(embeddings_BWCD)),
            self.state_in(state_BWS)[:, :, None],
        ]
        if self.instruction_in is not None:
            assert instruction_BD is not None
            text_Bd = self.instruction_in(instruction_BD)
            parts.append(text_Bd[:, None, None].expand(-1, state_BWS.shape[1], 1, -1))
        last_BMd = self.trunk.last_slot(torch.cat(parts, dim=2), mask_BW)
        fused_Bd: Tensor = self.fuse(last_BMd.flatten(1))
        return fused_Bd
