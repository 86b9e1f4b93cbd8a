"""Training windows: which frame, which slots, which label.

Every window comes from `sarm2_models.window.window_slots`, as in scoring. Two things are added for training
alone: windows are drawn half from demonstrations and half from rollouts, and a share of them ends in a few
frames played backwards (rewind augmentation). A rewound window's label is that of the frame it ends on:
progress is a property of the world's state, so going back to a state goes back to its progress.

Shapes: T frames, B batch, W window slots, C cameras, D embedding, S state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sarm2_models.config import WindowConfig
from sarm2_models.train.corpus import Corpus, by_axis, starts
from sarm2_models.train.targets import stage_rests
from sarm2_models.window import BoolArray, Float16Array, Float32Array, IntArray, window_slots
from sarm2_rollouts.labels import STALL_FRAMES

CHANGE_SCALE = 5.0
"""Brings changes of progress, mostly under .3, to the size of the other hints."""

MAX_REWIND = 3
"""Frames of a window that are played backwards, at most."""


@dataclass(frozen=True)
class Frames:
    """What heads are trained on: all frames of a corpus with their embeddings and labels.

    Attributes:
        embeddings_TCD: float16. state_TS: float32, standardised. progress_T, primitive_T: labels.
        task_T: task index. first_T, last_T: first and last frame of each frame's episode.
        weight_T: chance of each frame to be drawn; sums to 1.
        gap: frames between neighbouring slots. length: slots besides the anchor.
        anchor: whether windows show the episode's first frame (an ablation masks it).
        device: where heads learn from them; the arrays themselves stay in memory.
    """

    embeddings_TCD: Float16Array
    state_TS: Float32Array
    progress_T: Float32Array
    primitive_T: IntArray
    task_T: IntArray
    first_T: IntArray
    last_T: IntArray
    weight_T: npt.NDArray[np.float64]
    gap: int
    length: int
    anchor: bool = True
    device: str = "cpu"

    def __len__(self) -> int:
        return len(self.progress_T)

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        embeddings_TCD: Float16Array,
        state_TS: Float32Array,
        window: WindowConfig,
        device: str = "cpu",
    ) -> Frames:
        """The frames of a corpus. `embeddings_TCD` may be mapped from disk; it is read once."""
        return cls(
            embeddings_TCD=np.array(embeddings_TCD),
            state_TS=state_TS,
            progress_T=corpus.progress_T,
            primitive_T=corpus.primitive_T,
            task_T=np.repeat(corpus.task_N, corpus.length_N),
            first_T=np.repeat(corpus.first_N, corpus.length_N),
            last_T=np.repeat(corpus.first_N + corpus.length_N - 1, corpus.length_N),
            weight_T=balanced_weights(corpus),
            gap=window.gap_frames(corpus.fps),
            length=window.length,
            device=device,
        )

    def only(self, chosen_N: BoolArray, length_N: IntArray) -> Frames:
        """The frames of some of the episodes, whose lengths are given."""
        chosen_T, kept_N = np.repeat(chosen_N, length_N), length_N[chosen_N]
        rows: dict[str, Any] = {n: getattr(self, n)[chosen_T] for n in by_axis(Frames, "_T", "_TS", "_TCD")}
        rows["first_T"] = np.repeat(starts(kept_N), kept_N)
        rows["last_T"] = rows["first_T"] + np.repeat(kept_N, kept_N) - 1
        return replace(self, **rows)

    @staticmethod
    def joined(parts: Sequence[Frames]) -> Frames:
        """Several, one after the other."""
        names = by_axis(Frames, "_T", "_TS", "_TCD")
        rows: dict[str, Any] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
        begins = starts(np.array([len(part) for part in parts]))
        for name in ("first_T", "last_T"):
            moved = [getattr(part, name) + begin for part, begin in zip(parts, begins, strict=True)]
            rows[name] = np.concatenate(moved)
        return replace(parts[0], **rows)

    def deviation_CD(self) -> torch.Tensor:
        """Standard deviation of each embedding dimension, float32 (C, D)."""
        return torch.from_numpy(self.embeddings_TCD.std(axis=0, dtype=np.float32))

    def draw(self, rng: np.random.Generator, count: int) -> IntArray:
        """`count` frames, with repetition."""
        cumulative = np.cumsum(self.weight_T)
        drawn_B: IntArray = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
        return drawn_B.clip(max=len(self) - 1)

    def slots(self, frames_B: IntArray, rewind_B: IntArray | None = None) -> tuple[IntArray, BoolArray]:
        """Indices (B, W) and mask (B, W) of the windows that end on `frames_B`.

        Args:
            rewind_B: how many of the newest slots are played backwards, 0 to `MAX_REWIND`.
        """
        first_B = self.first_T[frames_B]
        if rewind_B is None:
            indices, mask = window_slots(frames_B, first_B, self.gap, self.length)
        else:
            indices, mask = rewound_slots(frames_B, first_B, rewind_B, self.gap, self.length)
        mask[:, 0] &= self.anchor
        return indices, mask

    def draw_pairs(
        self, rng: np.random.Generator, count: int, rewind: float
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Pairs of neighbouring frames: indices (2 x count) and rewinds (2 x count) of all firsts, then all
        seconds, and the firsts (count). A share `rewind` of the pairs is played backwards.
        """
        half_B = self.draw(rng, count)
        rewind_B = self.draw_rewinds(rng, half_B, rewind)
        next_B = np.minimum(half_B + 1, self.last_T[half_B] - rewind_B * self.gap)
        return np.concatenate([half_B, np.maximum(next_B, half_B)]), np.tile(rewind_B, 2), half_B

    def draw_rewinds(self, rng: np.random.Generator, frames_B: IntArray, share: float) -> IntArray:
        """For each window how many slots are rewound: 0, or 1 to `MAX_REWIND` where the episode allows it."""
        rewind_B = rng.integers(1, MAX_REWIND + 1, len(frames_B)) * (rng.random(len(frames_B)) < share)
        room_B = (self.last_T[frames_B] - frames_B) // self.gap
        capped_B: IntArray = np.minimum(rewind_B, room_B)
        return capped_B


def rewound_slots(
    frames_B: IntArray, first_B: IntArray, rewind_B: IntArray, gap: int, length: int
) -> tuple[IntArray, BoolArray]:
    """Windows that ran past their last frame and came back to it.

    With k rewound slots the window goes up to frame t + k gap and then back, slot by slot, to t. For k = 0
    this is `window_slots`.
    """
    peak_B = frames_B + rewind_B * gap
    # Slot j of the last `length` lies |length - 1 - k - j| gaps before the peak.
    back_Bl = np.abs((length - 1 - rewind_B)[:, None] - np.arange(length)[None, :])
    recent = peak_B[:, None] - back_Bl * gap
    first = first_B[:, None]
    indices = np.concatenate([first, np.maximum(recent, first)], axis=1)
    mask = np.concatenate([np.ones_like(first, dtype=bool), recent >= first], axis=1)
    return indices, mask


def hints_of(corpus: Corpus) -> Float32Array:
    """What primitives are named by, as numbers: what is left of every stage, and the change of progress over
    the `STALL_FRAMES` that decide about idling, times `CHANGE_SCALE`; float32 (T, H). Privileged: for the
    training of the stage estimator alone.
    """
    first_T = np.repeat(corpus.first_N, corpus.length_N)
    before_T = np.maximum(np.arange(len(corpus)) - STALL_FRAMES, first_T)
    change_T = corpus.progress_T - corpus.progress_T[before_T]
    return np.concatenate([stage_rests(corpus), CHANGE_SCALE * change_T[:, None]], axis=1)


def balanced_weights(corpus: Corpus) -> npt.NDArray[np.float64]:
    """Half the weight on demonstrations and half on rollouts, within each task; tasks weigh the same."""
    task_T = np.repeat(corpus.task_N, corpus.length_N)
    demos_T = np.repeat(corpus.is_demo_N, corpus.length_N)
    weight_T = np.zeros(len(corpus))
    for task in range(len(corpus.task_names)):
        for demos in (True, False):
            chosen_T = (task_T == task) & (demos_T == demos)
            weight_T[chosen_T] = 1.0 / max(1, int(chosen_T.sum()))
    return np.asarray(weight_T / weight_T.sum())
