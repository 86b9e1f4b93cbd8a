"""The networks of the residual update: what is added to the base policy's chunk, and what judges the sum.

Shapes: B batch, F features, K = executed actions x A (a flat executed chunk), N critics, d width.
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sarm2_spiral.config import UpdateConfig
from sarm2_spiral.standardise import Standardise
from sarm2_spiral.trunk import trunk


class ResidualActor(nn.Module):
    """s(features, base chunk): a correction within +-scale. A fresh one corrects nothing."""

    def __init__(self, features: int, chunk: int, config: UpdateConfig) -> None:
        super().__init__()
        self.scale = config.scale
        hidden = trunk(features + chunk, config.width, config.layers)
        last = nn.Linear(config.width, chunk)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*hidden, last)

    def forward(self, features_BF: Tensor, base_BK: Tensor) -> Tensor:
        """The correction (B, K) of the base policy's flat chunk; features standardised."""
        residual_BK: Tensor = self.scale * self.net(torch.cat([features_BF, base_BK], dim=1)).tanh()
        return residual_BK


class _Parallel(nn.Module):
    """N linear layers side by side."""

    def __init__(self, members: int, wide: int, narrow: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(wide)
        self.weight = nn.Parameter(torch.empty(members, wide, narrow).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, narrow).uniform_(-bound, bound))

    def forward(self, rows_NBd: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, rows_NBd, self.weight)


class _ParallelNorm(nn.Module):
    """LayerNorm with gain and bias for each of N members: without it the critics diverge."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, rows_NBd: Tensor) -> Tensor:
        return functional.layer_norm(rows_NBd, rows_NBd.shape[-1:]) * self.gain + self.bias


class CriticEnsemble(nn.Module):
    """N critics of a state and an executed chunk, as batched matrix products."""

    def __init__(self, features: int, chunk: int, config: UpdateConfig) -> None:
        super().__init__()
        self.members = config.critics
        sizes = [features + chunk, *[config.width] * config.layers]
        hidden: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(sizes):
            hidden += [
                _Parallel(config.critics, wide, narrow),
                _ParallelNorm(config.critics, narrow),
                nn.SiLU(),
            ]
        self.net = nn.Sequential(*hidden, _Parallel(config.critics, config.width, 1))

    def forward(self, features_BF: Tensor, chunk_BK: Tensor) -> Tensor:
        """Values (N, B)."""
        joined_BX = torch.cat([features_BF, chunk_BK], dim=1)
        value_NB1: Tensor = self.net(joined_BX.expand(self.members, *joined_BX.shape))
        return value_NB1.squeeze(-1)


class Learner(nn.Module):
    """Actor, critics, and the slow copies of both that make the targets."""

    def __init__(self, features: int, actions: int, config: UpdateConfig) -> None:
        super().__init__()
        chunk = config.executed * actions
        self.config = config
        self.standardise = Standardise(features)
        self.actor = ResidualActor(features, chunk, config)
        self.critics = CriticEnsemble(features, chunk, config)
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)

    def corrected(self, features_BF: Tensor, base_BK: Tensor) -> Tensor:
        """The base policy's chunk plus the correction, within [-1, 1]."""
        sum_BK: Tensor = (base_BK + self.actor(features_BF, base_BK)).clamp(-1.0, 1.0)
        return sum_BK

    @torch.no_grad()
    def best(self, features_F: Tensor, base_MK: Tensor) -> Tensor:
        """Of M corrected chunks of a frame the one that the critics' minimum prefers, (K,); raw features."""
        features_MF = self.standardise(features_F).expand(len(base_MK), -1)
        chunk_MK = self.corrected(features_MF, base_MK)
        value_M = self.critics(features_MF, chunk_MK).min(0).values
        chosen: Tensor = chunk_MK[value_M.argmax()]
        return chosen

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copies a little."""
        pairs = ((self.slow_actor, self.actor), (self.slow_critics, self.critics))
        for slow, fast in pairs:
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, self.config.tau)
