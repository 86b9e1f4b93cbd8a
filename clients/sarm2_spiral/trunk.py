"""The hidden layers that the flow policy and the residual actor have in common."""

from __future__ import annotations

import itertools

from torch import nn


def trunk(inputs: int, width: int, layers: int) -> list[nn.Module]:
    """`layers` times Linear, LayerNorm and SiLU, from `inputs` to `width` numbers."""
    found: list[nn.Module] = []
    for wide, narrow in itertools.pairwise([inputs, *[width] * layers]):
        found += [nn.Linear(wide, narrow), nn.LayerNorm(narrow), nn.SiLU()]
    return found
