"""The ladder: the same heads with more or less to see, beside predictors that see nothing.

Rungs, each measured on the validation episodes: `ceiling` (true simulator state), `full` (tower features and
state), `images_only`, `state_only`, `clock` (frames so far over the mean frames of a demonstration) and
`constant` (0.5).
"""

from __future__ import annotations

import numpy as np

from sarm2_models.estimate import Estimate
from sarm2_models.metrics import Scored, evaluate
from sarm2_models.train.calibrate import Predictions
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.plan import KINDS
from sarm2_models.vocabulary import Vocabulary
from sarm2_models.window import Float32Array

CONSTANT = 0.5
RUNG_METRICS = (
    "demo_mse",
    "rollout_mse",
    "drop_recall",
    "false_drop_rate",
    "jitter",
    "primitive_accuracy",
    "rollout_primitive_accuracy",
    "success_auc",
    "ece",
    "interval_coverage",
    "interval_width",
)
CEILING_BAR = 0.004
"""A ceiling whose demo_mse is above this says that the labels do not follow from the simulator's state."""


def mean_demo_frames(corpus: Corpus) -> dict[str, float]:
    """Mean frames of an uneven demonstration by instruction: what the clock goes by."""
    demos_N = corpus.kind_N == KINDS.index("demo")
    means = {}
    for task, instruction in enumerate(corpus.instructions):
        lengths = corpus.length_N[demos_N & (corpus.task_N == task)]
        means[instruction] = float(lengths.mean()) if len(lengths) else float(corpus.length_N.mean())
    return means


def clock(frames: int, mean_frames: float) -> Float32Array:
    """Progress by time alone: t over the mean last frame of a demonstration, at most 1."""
    return np.minimum(np.arange(frames) / max(1.0, mean_frames - 1.0), 1.0).astype(np.float32)


def scored_episodes(
    corpus: Corpus,
    predictions: Predictions,
    mean_frames: dict[str, float],
    others: dict[str, Float32Array] | None = None,
) -> list[Scored]:
    """Predictions cut into episodes, beside their truth and the other predictors' progress (T each)."""
    found = []
    for number in range(corpus.episodes):
        frames = corpus.frames(number)
        count = frames.stop - frames.start
        task = int(corpus.task_N[number])
        blind = {
            "clock": clock(count, mean_frames[corpus.instructions[task]]),
            "constant": np.full(count, CONSTANT, dtype=np.float32),
        }
        found.append(
            Scored(
                task=corpus.task_names[task],
                kind=corpus.kind(number),
                fps=corpus.fps,
                truth_T=corpus.progress_T[frames],
                progress_T=predictions.progress_T[frames],
                low_T=predictions.low_T[frames],
                high_T=predictions.high_T[frames],
                primitive_T=predictions.primitive_T[frames],
                true_primitive_T=corpus.primitive_T[frames],
                confidence_T=predictions.confidence_T[frames],
                uncertain_T=predictions.uncertain_T[frames],
                success=bool(corpus.success_N[number]),
                others=blind | {name: values_T[frames] for name, values_T in (others or {}).items()},
            )
        )
    return found


def climb(
    corpus: Corpus,
    rungs: dict[str, Predictions],
    mean_frames: dict[str, float],
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Every rung's metrics: `{rung: {metric: {value, low, high, n}}}`; blind ones have only their errors."""
    groups, null = vocabulary.group_of_primitive, vocabulary.null_index
    table: dict[str, dict[str, Estimate]] = {}
    for name, predictions in rungs.items():
        measured = evaluate(scored_episodes(corpus, predictions, mean_frames), groups, null, seed=seed)
        table[name] = {metric: measured[metric] for metric in RUNG_METRICS}
    for blind in ("clock", "constant"):
        table[blind] = _blind(corpus, next(iter(rungs.values())), mean_frames, vocabulary, blind, seed)
    return {name: {key: one.as_json() for key, one in rung.items()} for name, rung in table.items()}


def _blind(
    corpus: Corpus,
    any_rung: Predictions,
    mean_frames: dict[str, float],
    vocabulary: Vocabulary,
    name: str,
    seed: int,
) -> dict[str, Estimate]:
    episodes = scored_episodes(corpus, any_rung, mean_frames)
    progress_T = np.concatenate([scored.others[name] for scored in episodes]).astype(np.float32)
    blind = Predictions(
        any_rung.primitive_T,
        any_rung.confidence_T,
        any_rung.uncertain_T,
        progress_T,
        progress_T,
        progress_T,
    )
    measured = evaluate(
        scored_episodes(corpus, blind, mean_frames),
        vocabulary.group_of_primitive,
        vocabulary.null_index,
        seed=seed,
    )
    return {metric: measured[metric] for metric in ("demo_mse", "rollout_mse", "success_auc")}
