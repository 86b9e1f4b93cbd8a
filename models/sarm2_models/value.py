"""The value decoder: progress from the anchor and the recent frames, by a mixture of experts behind one gate
per primitive group (MMoE; arXiv 2606.10305).

Shapes: B batch, W window slots (slot 0 is the anchor), C cameras, D embedding, S state, G groups = gates,
E experts, M tokens of a slot, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from sarm2_models.config import RewardModelConfig, ValueConfig
from sarm2_models.layers import CausalTrunk, ParallelMLP, Standardise, pad_rows
from sarm2_models.vocabulary import Vocabulary, load_vocabulary

TEXT_TOKENS = 2
"""The primitive's text and the instruction's."""


@dataclass(frozen=True)
class ValueOutput:
    """What the decoder says of a batch.

    Attributes:
        progress_B: float32 in [0, 1]: 1 - normalised steps-to-go.
        weights_BE: float32, the experts' weights: `top_k` of them positive and summing to 1, the rest zero.
        gate_probs_BE: float32, the selected gate's softmax over all experts.
    """

    progress_B: Tensor
    weights_BE: Tensor
    gate_probs_BE: Tensor


class ValueDecoder(nn.Module):
    """Progress of the newest frame of each window.

    Args:
        config: sizes; `config.value` and the shapes are used.
        vocabulary: G comes from here; by default the one that the config names.
    """

    def __init__(self, config: RewardModelConfig, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        words = vocabulary or load_vocabulary(config.vocabulary)
        part, cameras = config.value, len(config.cameras)
        self.inputs, self.top_k = part.inputs, part.top_k
        self.embedding_statistics = Standardise(cameras, config.embedding_dim)
        self.text_statistics = Standardise(config.embedding_dim)
        self.image_in = nn.Linear(config.embedding_dim, part.dim)
        self.primitive_in = nn.Linear(config.embedding_dim, part.dim)
        self.instruction_in = nn.Linear(config.embedding_dim, part.dim)
        self.state_in = nn.Linear(config.state_dim, part.dim)
        tokens = TEXT_TOKENS + {"all": cameras + 1, "state": 1, "images": cameras}[part.inputs]
        self.trunk = CausalTrunk(
            dim=part.dim,
            heads=part.heads,
            layers=part.layers,
            dropout=part.dropout,
            slots=config.window.slots,
            tokens_per_slot=tokens,
        )
        self.fuse_norm = nn.LayerNorm(tokens * part.dim)
        self.fuse = nn.Linear(tokens * part.dim, part.dim)
        self.gates = ParallelMLP(len(words.groups), (part.dim, part.gate_hidden, part.experts))
        hidden = part.expert_hidden
        self.experts = ParallelMLP(part.experts, (part.dim, hidden, hidden, 1), layer_norm=True)

    def fit_inputs(self, embeddings_TCD: Tensor, texts_ND: Tensor) -> None:
        """Take the statistics of training embeddings (per camera) and of texts; call before training."""
        self.embedding_statistics.fit(embeddings_TCD)
        self.text_statistics.fit(texts_ND)

    def forward(
        self,
        embeddings_BWCD: Tensor,
        state_BWS: Tensor,
        mask_BW: Tensor,
        primitive_text_BD: Tensor,
        instruction_BD: Tensor,
        group_B: Tensor,
    ) -> ValueOutput:
        """Score a batch of windows.

        Args:
            embeddings_BWCD: float16 or float32 image embeddings.
            state_BWS: float32, standardised with the training statistics.
            mask_BW: bool, True where the slot holds a frame.
            primitive_text_BD: text embedding of the current primitive (of `null` through the `other` gate).
            instruction_BD: text embedding of the instruction.
            group_B: int64, which gate routes each row.
        """
        tokens = self.tokens(embeddings_BWCD, state_BWS, primitive_text_BD, instruction_BD)
        last_BMd = self.trunk.last_slot(tokens, mask_BW)
        fused_Bd = self.fuse(self.fuse_norm(pad_rows(last_BMd.flatten(1))))
        # float32 from here on, under autocast too: progress needs more than 8 bits.
        gates_BGE = self.gates(fused_Bd).float()
        count = len(group_B)
        rows = torch.arange(count, device=group_B.device)
        gate_probs_BE = gates_BGE[rows, group_B].softmax(-1)
        weights_BE = keep_top(gate_probs_BE, self.top_k)
        steps_to_go_B = (weights_BE * self.experts(fused_Bd)[:count, :, 0].float()).sum(-1).sigmoid()
        return ValueOutput(1 - steps_to_go_B, weights_BE, gate_probs_BE)

    def tokens(
        self, embeddings_BWCD: Tensor, state_BWS: Tensor, primitive_text_BD: Tensor, instruction_BD: Tensor
    ) -> Tensor:
        """Cameras, primitive, instruction, state: (B, W, M, d). The texts stand at every slot."""
        texts_B2d = torch.stack(
            [
                self.primitive_in(self.text_statistics(pad_rows(primitive_text_BD))),
                self.instruction_in(self.text_statistics(pad_rows(instruction_BD))),
            ],
            dim=1,
        )[: len(primitive_text_BD)]
        parts = [texts_B2d[:, None].expand(-1, embeddings_BWCD.shape[1], -1, -1)]
        if self.inputs != "state":
            parts.insert(0, self.image_in(self.embedding_statistics(embeddings_BWCD)))
        if self.inputs != "images":
            parts.append(self.state_in(state_BWS)[:, :, None])
        return torch.cat(parts, dim=2)


def keep_top(probs_BE: Tensor, top_k: int) -> Tensor:
    """The `top_k` largest of each row, renormalised to sum 1; the rest exactly zero."""
    top_values, top_indices = probs_BE.topk(top_k, dim=-1)
    kept = torch.zeros_like(probs_BE).scatter(-1, top_indices, top_values)
    return kept / kept.sum(-1, keepdim=True)


ProgressError: TypeAlias = Literal["squared", "cross_entropy"]
"""What is made small: the squared error, as published, or a quarter of the cross entropy, which weighs errors
more than the former where progress is below .15 or above .85. Both are least at the mean of the targets, but
the squared error hardly pulls where the sigmoid is flat: there nearly done and done are told apart."""


@dataclass(frozen=True)
class ValueLoss:
    """The loss and its parts, scalars. `total` is what to minimise; the others are for the log."""

    total: Tensor
    error: Tensor
    load_variance: Tensor
    importance_variance: Tensor
    entropy: Tensor


def value_loss(
    output: ValueOutput,
    target_B: Tensor,
    weight_B: Tensor | None = None,
    *,
    config: ValueConfig | None = None,
    error: ProgressError = "squared",
) -> ValueLoss:
    """Error of progress + auxiliary (load Var(load) + importance Var(importance) - entropy H(gate)).

    load: each expert's mean routed weight; importance: its mean gate probability; both sum to 1 over the
    experts. Rows of weight zero (padding, unlabelled frames) enter no term.

    Args:
        output: of the decoder.
        target_B: float32 true progress in [0, 1]; anything where the weight is zero.
        weight_B: float or bool, not negative; by default all ones.
        config: the terms' weights; by default the published ones.
        error: which error of progress; the squared one is the published one.
    """
    part = config or ValueConfig()
    weight = torch.ones_like(target_B) if weight_B is None else weight_B.to(target_B.dtype)
    share_B = weight / weight.sum().clamp_min(1e-8)
    # `where`, not a product: a NaN target of weight zero must not reach the sum.
    true_B = torch.where(weight > 0, target_B, torch.zeros_like(target_B))
    mean = (share_B * progress_error(output.progress_B, true_B, error)).sum()
    load = (share_B[:, None] * output.weights_BE).sum(0).var(correction=0)
    importance = (share_B[:, None] * output.gate_probs_BE).sum(0).var(correction=0)
    entropy_B = -(output.gate_probs_BE * output.gate_probs_BE.clamp_min(1e-12).log()).sum(-1)
    entropy = (share_B * entropy_B).sum()
    extra = part.load * load + part.importance * importance - part.entropy * entropy
    return ValueLoss(mean + part.auxiliary * extra, mean, load, importance, entropy)


def progress_error(progress_B: Tensor, target_B: Tensor, kind: ProgressError) -> Tensor:
    """The error of each row, float32 (B,), not negative."""
    if kind == "cross_entropy":
        return binary_cross_entropy(progress_B, target_B, reduction="none") / 4
    return (progress_B - target_B).square()
