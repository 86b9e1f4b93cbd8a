"""Building blocks of the two heads.

Shapes: B batch, W window slots (slot 0 is the anchor), C cameras, D embedding, S state, M tokens of one slot,
L = W x M tokens in time-major order, d width of the trunk, N parallel networks.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

STD_FLOOR = 1e-4
CLIP = 10.0
"""Standardised inputs are clipped to this many deviations: an absurd reading stays one absurd token."""


def block_causal_mask(mask_BW: Tensor, tokens_per_slot: int) -> Tensor:
    """Who may look at whom, for tokens in time-major order.

    A token of slot w sees all tokens of every slot up to w that is not masked, and always its own slot (so
    that a masked slot, which nobody else sees, still has a defined output).

    Args:
        mask_BW: bool, True where the slot holds a frame.
        tokens_per_slot: M.

    Returns:
        bool (B, 1, L, L), True where row may attend to column.
    """
    slots = mask_BW.shape[1]
    slot_W = torch.arange(slots, device=mask_BW.device)
    earlier_WW = slot_W[:, None] > slot_W[None, :]
    own_WW = slot_W[:, None] == slot_W[None, :]
    seen_BWW = (earlier_WW & mask_BW[:, None, :]) | own_WW
    tokens = tokens_per_slot
    return seen_BWW.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)[:, None]


MIN_ROWS = 4


def pad_rows(rows: Tensor) -> Tensor:
    """Repeat the last row until there are `MIN_ROWS`.

    A CPU's matrix product gives a row the same bits in any batch of at least that many rows, not in smaller
    ones. So what has one row an answer (fused tokens, texts, pooled pictures) is padded, and what has many
    (the tokens of a Transformer) needs nothing.
    """
    missing = MIN_ROWS - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


class Standardise(nn.Module):
    """(x - mean) / std with statistics of the training data, clipped. Until fitted: the clip alone.

    Args:
        shape: trailing shape of the input, (C, D) for images or (D,) for texts.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def fit(self, rows: Tensor) -> None:
        """Take the statistics of `rows` (rows, *shape); a deviation counts as at least `STD_FLOOR`."""
        rows = rows.to(self.mean)
        self.mean.copy_(rows.mean(0))
        self.scale.copy_(1 / rows.std(0, correction=0).clamp_min(STD_FLOOR))

    def forward(self, x: Tensor) -> Tensor:
        """Float32 of the input's shape."""
        return ((x.to(self.mean.dtype) - self.mean) * self.scale).clamp(-CLIP, CLIP)


class Block(nn.Module):
    """One pre-norm Transformer layer: attention, then a GELU feed-forward of 4 x width."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.feed_norm = nn.LayerNorm(dim)
        self.feed_in = nn.Linear(dim, 4 * dim)
        self.feed_out = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLd: Tensor, mask_B1LL: Tensor, last: int | None = None) -> Tensor:
        """All tokens, or only the `last` ones: (B, L, d) or (B, last, d). Either way the same numbers."""
        batch, length, dim = x_BLd.shape
        rows = length if last is None else last
        query, key, value = (
            part.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(x_BLd)).chunk(3, dim=-1)
        )
        attended = functional.scaled_dot_product_attention(
            query[:, :, -rows:],
            key,
            value,
            attn_mask=mask_B1LL[:, :, -rows:],
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        x = x_BLd[:, -rows:] + self.dropout(
            self.attention_out(attended.transpose(1, 2).reshape(batch, rows, dim))
        )
        hidden = functional.gelu(self.feed_in(self.feed_norm(x)))
        result: Tensor = x + self.dropout(self.feed_out(self.dropout(hidden)))
        return result


class CausalTrunk(nn.Module):
    """A Transformer over slots of M tokens in which no slot sees a later one.

    Args:
        dim, heads, layers, dropout: of the Transformer.
        slots: W, how many slots have a position embedding.
        tokens_per_slot: M, one embedding for each kind of token (cameras, texts, state).
    """

    def __init__(
        self, *, dim: int, heads: int, layers: int, dropout: float, slots: int, tokens_per_slot: int
    ) -> None:
        super().__init__()
        self.tokens_per_slot = tokens_per_slot
        self.slot_embedding = nn.Parameter(0.02 * torch.randn(slots, 1, dim))
        self.kind_embedding = nn.Parameter(0.02 * torch.randn(tokens_per_slot, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))

    def forward(self, tokens_BWMd: Tensor, mask_BW: Tensor) -> Tensor:
        """Every slot's tokens after the last layer, (B, W, M, d)."""
        x_BLd, mask = self._flatten(tokens_BWMd, mask_BW)
        for block in self.blocks:
            x_BLd = block(x_BLd, mask)
        return x_BLd.view(tokens_BWMd.shape)

    def last_slot(self, tokens_BWMd: Tensor, mask_BW: Tensor) -> Tensor:
        """The last slot's tokens, (B, M, d): as `forward` gives them, at less cost in the last layer."""
        x_BLd, mask = self._flatten(tokens_BWMd, mask_BW)
        *earlier, final = self.blocks
        for block in earlier:
            x_BLd = block(x_BLd, mask)
        result: Tensor = final(x_BLd, mask, last=self.tokens_per_slot)
        return result

    def _flatten(self, tokens_BWMd: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
        placed = tokens_BWMd + self.slot_embedding + self.kind_embedding
        return placed.flatten(1, 2), block_causal_mask(mask_BW, self.tokens_per_slot)


class ParallelMLP(nn.Module):
    """N independent GELU networks of the same sizes, run as batched products.

    All N are computed for every row: at these sizes (a few million multiplications) that is cheaper than
    sorting rows by network, and a network that is weighted zero gets a gradient of exactly zero.

    Args:
        count: N.
        sizes: widths, input first, output last.
        layer_norm: whether each network starts with its own LayerNorm.
    """

    def __init__(self, count: int, sizes: tuple[int, ...], *, layer_norm: bool = False) -> None:
        super().__init__()
        first = sizes[0]
        self.norm_scale = nn.Parameter(torch.ones(count, 1, first)) if layer_norm else None
        self.norm_shift = nn.Parameter(torch.zeros(count, 1, first)) if layer_norm else None
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(
            _uniform(count, fan_in, fan_out, fan_in=fan_in) for fan_in, fan_out in pairs
        )
        self.biases = nn.ParameterList(
            _uniform(count, 1, fan_out, fan_in=fan_in) for fan_in, fan_out in pairs
        )

    def forward(self, x_Bd: Tensor) -> Tensor:
        """(B, d) to (B, N, out)."""
        x_NBd = x_Bd.expand(self.weights[0].shape[0], *x_Bd.shape)
        if self.norm_scale is not None and self.norm_shift is not None:
            x_NBd = functional.layer_norm(x_NBd, x_NBd.shape[-1:]) * self.norm_scale + self.norm_shift
        final = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x_NBd = torch.baddbmm(bias, x_NBd, weight)
            if layer < final:
                x_NBd = functional.gelu(x_NBd)
        return x_NBd.transpose(0, 1)


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
