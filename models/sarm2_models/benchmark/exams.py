"""What every contender is asked: fresh episodes, rollouts of learned policies, and two trick questions.

Shapes: T frames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from sarm2_models.benchmark.layout import BenchmarkFolder
from sarm2_models.train.plan import Split
from sarm2_models.train.variants import Variant
from sarm2_models.train.windows import Frames
from sarm2_models.window import IntArray

Exam: TypeAlias = Literal["test", "policy", "reversed", "other_task", "calibration"]
"""`test`: fresh episodes. `policy`: rollouts of cloned policies. `reversed`: the test episodes played
backwards. `other_task`: the test episodes under the next task's instruction. `calibration`: the calibration
episodes, by which tuning chooses; nobody's numbers."""

EXAMS: tuple[Exam, ...] = ("test", "policy", "reversed", "other_task")
"""Those that everybody is measured by."""


def exam_split(exam: Exam) -> Split:
    """The split that an exam is made of."""
    return exam if exam == "policy" or exam == "calibration" else "test"


def exam_frames(bench: BenchmarkFolder, variant: Variant, exam: Exam) -> Frames:
    """The frames of an exam as a variant sees them."""
    frames = bench.run.frames(variant, exam_split(exam))
    if exam == "reversed":
        return backwards(frames)
    if exam == "other_task":
        return replace(frames, task_T=(frames.task_T + 1) % len(bench.run.tasks))
    return frames


def backwards(frames: Frames) -> Frames:
    """Every episode from its last frame to its first; what is true of a frame stays with it."""
    order_T: IntArray = frames.first_T + frames.last_T - np.arange(len(frames))
    return replace(
        frames,
        embeddings_TCD=frames.embeddings_TCD[order_T],
        state_TS=frames.state_TS[order_T],
        progress_T=frames.progress_T[order_T],
        primitive_T=frames.primitive_T[order_T],
    )
