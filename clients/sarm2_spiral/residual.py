"""The networks of the residual update: what is added to the base policy's chunk, and what judges the sum.

Both take M chunks of every state, those of a state in a row. Most of a first layer's work is about the state,
and is done once for all its chunks: an update of image policies costs half as much.

Shapes: B states, F features, M chunks of a state, R = B x M rows, K = executed actions x A (a flat executed
chunk), N critics, d width.
"""

from __future__ import annotations

import copy
import math
from typing import cast

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
        self._inputs = [features, chunk]
        first, *hidden = trunk(features + chunk, config.width, config.layers)
        self.first = cast(nn.Linear, first)
        last = nn.Linear(config.width, chunk)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*hidden, last)

    def forward(self, features_BF: Tensor, base_RK: Tensor) -> Tensor:
        """The correction (R, K) of the base policy's flat chunks; features standardised."""
        of_state_dF, of_chunk_dK = torch.split(self.first.weight, self._inputs, dim=1)
        state_Bd = functional.linear(features_BF, of_state_dF, self.first.bias)
        residual_RK: Tensor = self.scale * self.net(_spread(state_Bd, base_RK @ of_chunk_dK.T)).tanh()
        return residual_RK


def _spread(state_Bd: Tensor, chunk_Rd: Tensor) -> Tensor:
    """The sum of what a first layer makes of the states, and of each one's chunks."""
    *members, states, width = state_Bd.shape
    sum_BMd = state_Bd.unsqueeze(-2) + chunk_Rd.view(*members, states, -1, width)
    return sum_BMd.flatten(-3, -2)


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
        return torch.addcmul(self.bias, functional.layer_norm(rows_NBd, rows_NBd.shape[-1:]), self.gain)


class CriticEnsemble(nn.Module):
    """N critics of a state and an executed chunk, as batched matrix products."""

    def __init__(self, features: int, chunk: int, config: UpdateConfig) -> None:
        super().__init__()
        self.members, self._inputs = config.critics, [features, chunk]
        members, width = config.critics, config.width
        self.first = _Parallel(members, features + chunk, width)
        hidden: list[nn.Module] = [_ParallelNorm(members, width), nn.SiLU()]
        for _ in range(config.layers - 1):
            hidden += [_Parallel(members, width, width), _ParallelNorm(members, width), nn.SiLU()]
        self.net = nn.Sequential(*hidden, _Parallel(members, width, 1))

    def forward(self, features_BF: Tensor, chunk_RK: Tensor) -> Tensor:
        """Values (N, R)."""
        of_state_NFd, of_chunk_NKd = torch.split(self.first.weight, self._inputs, dim=1)
        features_NBF, chunk_NRK = (rows.expand(self.members, -1, -1) for rows in (features_BF, chunk_RK))
        state_NBd = torch.baddbmm(self.first.bias, features_NBF, of_state_NFd)
        value_NR1: Tensor = self.net(_spread(state_NBd, chunk_NRK @ of_chunk_NKd))
        return value_NR1.squeeze(-1)


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

    def corrected(self, features_BF: Tensor, base_RK: Tensor) -> Tensor:
        """The base policy's chunks plus the correction, within [-1, 1]."""
        sum_RK: Tensor = (base_RK + self.actor(features_BF, base_RK)).clamp(-1.0, 1.0)
        return sum_RK

    @torch.no_grad()
    def best(self, features_F: Tensor, base_MK: Tensor) -> Tensor:
        """Of M corrected chunks of a frame the one that the critics' minimum prefers, (K,); raw features."""
        features_1F = self.standardise(features_F)[None]
        chunk_MK = self.corrected(features_1F, base_MK)
        value_M = self.critics(features_1F, chunk_MK).min(0).values
        chosen: Tensor = chunk_MK[value_M.argmax()]
        return chosen

    @torch.no_grad()
    def follow(self) -> None:
        """Move the slow copies a little."""
        pairs = ((self.slow_actor, self.actor), (self.slow_critics, self.critics))
        for slow, fast in pairs:
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.lerp_(new, self.config.tau)
