"""Inputs of every network in units of the demonstrations' standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STD_FLOOR = 1e-4
CLIP = 5.0
"""An absurd reading stays one absurd input."""


class Standardise(nn.Module):
    """(x - mean) / std with statistics of the demonstrations, clipped."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("std_F", torch.ones(features))

    def fit(self, features_NF: Tensor) -> None:
        """Take the statistics of these rows."""
        self.mean_F = features_NF.float().mean(0)
        self.std_F = features_NF.float().std(0).clamp_min(STD_FLOOR)

    def forward(self, features_BF: Tensor) -> Tensor:
        """Standardised features, within +-CLIP."""
        return ((features_BF.float() - self.mean_F) / self.std_F).clamp(-CLIP, CLIP)
