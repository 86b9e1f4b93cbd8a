"""The stage estimator: which primitive is the robot in, from the recent frames and the state alone.

Task-agnostic: it sees neither the instruction nor the anchor. Shapes: B batch, W window slots (slot 0 is the
anchor, unused here), C cameras, D embedding, S state, P primitives, M tokens of a slot, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sarm2_models.config import RewardModelConfig
from sarm2_models.layers import CausalTrunk, Standardise, pad_rows
from sarm2_models.vocabulary import Vocabulary, load_vocabulary


class StageEstimator(nn.Module):
    """Logits over the primitives for the newest frame of each window.

    Args:
        config: sizes; `config.stage` and the shapes are used.
        vocabulary: P comes from here; by default the one that the config names.
    """

    def __init__(self, config: RewardModelConfig, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        words = vocabulary or load_vocabulary(config.vocabulary)
        part, cameras = config.stage, len(config.cameras)
        self.inputs = part.inputs
        self.embedding_statistics = Standardise(cameras, config.embedding_dim)
        self.image_in = nn.Linear(config.embedding_dim, part.dim)
        self.state_in = nn.Linear(config.state_dim, part.dim)
        tokens = {"all": cameras + 1, "state": 1, "images": cameras}[part.inputs]
        self.trunk = CausalTrunk(
            dim=part.dim,
            heads=part.heads,
            layers=part.layers,
            dropout=part.dropout,
            slots=config.window.length,
            tokens_per_slot=tokens,
        )
        self.fuse_norm = nn.LayerNorm(tokens * part.dim)
        self.fuse = nn.Linear(tokens * part.dim, part.dim)
        self.head = nn.Linear(part.dim, len(words.primitives))

    def fit_inputs(self, embeddings_TCD: Tensor) -> None:
        """Take the training embeddings' statistics, per camera and dimension; call before training."""
        self.embedding_statistics.fit(embeddings_TCD)

    def forward(self, embeddings_BWCD: Tensor, state_BWS: Tensor, mask_BW: Tensor) -> Tensor:
        """Logits (B, P), float32, before calibration.

        Args:
            embeddings_BWCD: float16 or float32 image embeddings.
            state_BWS: float32, standardised with the training statistics.
            mask_BW: bool, True where the slot holds a frame.
        """
        logits: Tensor = self.head(self.fused(embeddings_BWCD, state_BWS, mask_BW))[: len(mask_BW)]
        return logits

    def fused(self, embeddings_BWCD: Tensor, state_BWS: Tensor, mask_BW: Tensor) -> Tensor:
        """The newest slot's tokens as one vector, (B or more, d): rows are padded, see `pad_rows`."""
        tokens = self.tokens(embeddings_BWCD[:, 1:], state_BWS[:, 1:])
        last_BMd = self.trunk.last_slot(tokens, mask_BW[:, 1:])
        return nn.functional.relu(self.fuse(self.fuse_norm(pad_rows(last_BMd.flatten(1)))))

    def tokens(self, embeddings_BWCD: Tensor, state_BWS: Tensor) -> Tensor:
        """Cameras, then state: (B, W, M, d)."""
        parts = []
        if self.inputs != "state":
            parts.append(self.image_in(self.embedding_statistics(embeddings_BWCD)))
        if self.inputs != "images":
            parts.append(self.state_in(state_BWS)[:, :, None])
        return torch.cat(parts, dim=2)


def stage_loss(logits_BP: Tensor, target_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Cross entropy, a weighted mean over rows; rows of weight zero (padding, no label) do not enter."""
    weight = torch.ones(len(target_B)).to(logits_BP) if weight_B is None else weight_B.to(logits_BP.dtype)
    safe_B = torch.where(weight > 0, target_B, torch.zeros_like(target_B))
    loss_B = nn.functional.cross_entropy(logits_BP, safe_B, reduction="none")
    return (weight * loss_B).sum() / weight.sum().clamp_min(1e-8)
