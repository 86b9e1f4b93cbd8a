"""SARM's first form (arXiv 2509.25358): a model of its own for each task, which knows the task's stages.

It says which stage the robot is in and how far through it, and progress is the share of the stages before
plus that much of this one's. There is no text, no vocabulary shared over tasks and no mixture of experts.

Shapes: B batch, T frames, K stages of the task.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sarm2_models.benchmark.fused_window import FusedWindow
from sarm2_models.config import RewardModelConfig
from sarm2_models.window import Float32Array, IntArray


class StageProgress(nn.Module):
    """One task's model.

    Args:
        config: sizes.
        shares: of the K stages in the task's time, in order, summing to 1.
    """

    before_K: Tensor
    share_K: Tensor

    def __init__(self, config: RewardModelConfig, shares: tuple[float, ...]) -> None:
        super().__init__()
        self.window = FusedWindow(config, instruction=False)
        width = config.value.dim
        self.stage = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(shares)))
        self.within = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(shares)))
        self.register_buffer("share_K", torch.tensor(shares))
        self.register_buffer("before_K", torch.tensor(stage_starts(shares)))

    def forward(self, embeddings_BWCD: Tensor, state_BWS: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the stages (B, K) and how far through each (B, K) in [0, 1]."""
        fused_Bd = self.window(embeddings_BWCD, state_BWS, mask_BW)
        return self.stage(fused_Bd).float(), self.within(fused_Bd).float().sigmoid()

    def progress(self, logits_BK: Tensor, within_BK: Tensor) -> Tensor:
        """Progress (B,) in [0, 1], by the most likely stage."""
        stage_B = logits_BK.argmax(-1)
        through_B = within_BK.gather(1, stage_B[:, None])[:, 0]
        return self.before_K[stage_B] + self.share_K[stage_B] * through_B


def stage_starts(shares: tuple[float, ...]) -> list[float]:
    """The progress at which each stage begins."""
    return [0.0, *np.cumsum(shares)[:-1].tolist()]


def stage_targets(progress_T: Float32Array, shares: tuple[float, ...]) -> tuple[IntArray, Float32Array]:
    """Stage (T,) and how far through it (T,), which `StageProgress.progress` makes `progress_T` of."""
    starts = np.asarray(stage_starts(shares))
    stage_T = np.searchsorted(starts, progress_T, side="right") - 1
    within_T = (progress_T - starts[stage_T]) / np.asarray(shares)[stage_T]
    return stage_T.astype(np.int64), np.clip(within_T, 0.0, 1.0).astype(np.float32)


def stage_progress_loss(logits_BK: Tensor, within_BK: Tensor, stage_B: Tensor, within_B: Tensor) -> Tensor:
    """Cross entropy of the stage plus squared error of how far through the true one."""
    through_B = within_BK.gather(1, stage_B[:, None])[:, 0]
    return functional.cross_entropy(logits_BK, stage_B) + functional.mse_loss(through_B, within_B)
