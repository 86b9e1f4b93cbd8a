"""ReWiND's form (arXiv 2505.10911): progress from frames and the instruction alone, without stages.

It learns what failure looks like from rewound windows, and that an instruction matters from windows that are
given another task's: their progress is 0.

Shapes: B batch, W window slots, C cameras, D embedding, S state.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from sarm2_models.benchmark.fused_window import FusedWindow
from sarm2_models.config import RewardModelConfig
from sarm2_models.train.heads import other_instructions
from sarm2_models.window import Float32Array, IntArray

REWIND = 0.8
"""Share of the windows that end in frames played backwards."""

MISMATCHED = 0.2
"""Share of the windows that are given another task's instruction."""


class LanguageProgress(nn.Module):
    """One model for all tasks: a window and an instruction in, progress out."""

    def __init__(self, config: RewardModelConfig) -> None:
        super().__init__()
        self.window = FusedWindow(config, instruction=True)
        width, hidden = config.value.dim, config.value.expert_hidden
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1),
        )

    def forward(
        self, embeddings_BWCD: Tensor, state_BWS: Tensor, mask_BW: Tensor, instruction_BD: Tensor
    ) -> Tensor:
        """Progress (B,) in [0, 1]."""
        fused_Bd = self.window(embeddings_BWCD, state_BWS, mask_BW, instruction_BD)
        progress_B: Tensor = self.head(fused_Bd)[:, 0].float().sigmoid()
        return progress_B


def mismatch(
    rng: np.random.Generator, task_B: IntArray, progress_B: Float32Array, tasks: int
) -> tuple[IntArray, Float32Array]:
    """Instructions (task indices, B) and targets (B,): a share `MISMATCHED` asks for another task and gets 0.

    With a single task there is no other one, and nothing changes.
    """
    asked_B, wrong_B = other_instructions(rng, task_B, tasks, MISMATCHED)
    return asked_B, np.where(wrong_B, 0.0, progress_B).astype(np.float32)
