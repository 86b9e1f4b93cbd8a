"""Both truths of a few episodes of every task, and how far they agree.

The labels that everything is trained on and measured against are the state potential's. The expert's steps to
go know nothing of stages; where the two differ, one of them is wrong, and a report says so.

Shapes: N frames of an episode that are labelled both ways.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_models.ranking import spearman
from sarm2_models.train.plan import Episodes, PlannedEpisode, TrainPlan, planned_episodes
from sarm2_rollouts.episode import EpisodeKind
from sarm2_rollouts.expert_label import CrossCheck
from sarm2_rollouts.whole_file import whole_file

Floats: TypeAlias = npt.NDArray[np.floating]

Checker: TypeAlias = Callable[[str, EpisodeKind, int], CrossCheck]
"""Labels the episode of a task, kind and seed both ways; a module-level function, for child processes."""

DEMO: EpisodeKind = "demo"
ROLLOUT: EpisodeKind = "perturbed"


@dataclass(frozen=True)
class CheckedEpisode:
    """An episode and both its labels.

    Attributes:
        kind: `DEMO` or `ROLLOUT`. seed: what it is determined by, with its task and kind.
        check: the labels.
    """

    kind: EpisodeKind
    seed: int
    check: CrossCheck


def planned_checks(plan: TrainPlan, tasks: Sequence[str], seed: int) -> list[PlannedEpisode]:
    """`plan.label_checks` uneven demonstrations and as many perturbed rollouts of each task, from the
    validation block of seeds."""
    few = Episodes(demo=plan.label_checks, clean_demo=0, perturbed=plan.label_checks, random=0)
    return planned_episodes(replace(plan, episodes={"validation": few}), tasks, "validation", seed)


def agreement(checked: Sequence[CheckedEpisode]) -> dict[str, float | int | None]:
    """How far the two labels of a task's episodes agree.

    - `demo_mse`, `rollout_mse`: their mean squared difference over all frames where the expert gets there.
    - `demo_rank`, `rollout_rank`: their rank correlation in [-1, 1] on those frames, averaged over episodes;
      those where one of the labels never changes have none.
    - `episodes`: how many there were. `unknown_share`: share of all frames where the expert never gets there,
      or not from a neighbour (labels are medians of three).

    What rests on no frame is None.
    """
    demos = [_known(one.check) for one in checked if one.kind == DEMO]
    rollouts = [_known(one.check) for one in checked if one.kind == ROLLOUT]
    frames = sum(len(one.check.frames_N) for one in checked)
    known = sum(len(potential_N) for potential_N, _ in (*demos, *rollouts))
    return {
        "demo_mse": _mse(demos),
        "rollout_mse": _mse(rollouts),
        "demo_rank": _rank(demos),
        "rollout_rank": _rank(rollouts),
        "episodes": len(checked),
        "unknown_share": 1.0 - known / frames if frames else None,
    }


def _known(check: CrossCheck) -> tuple[Floats, Floats]:
    """Both labels, float64, of the frames where both are known."""
    known_N = ~np.isnan(check.steps_to_go_N)
    return check.potential_N[known_N].astype(np.float64), check.steps_to_go_N[known_N].astype(np.float64)


def _mse(pairs: Sequence[tuple[Floats, Floats]]) -> float | None:
    squared = [(potential_N - steps_N) ** 2 for potential_N, steps_N in pairs]
    frames = sum(len(one_N) for one_N in squared)
    return float(sum(one_N.sum() for one_N in squared) / frames) if frames else None


def _rank(pairs: Sequence[tuple[Floats, Floats]]) -> float | None:
    found = [spearman(potential_N, steps_N) for potential_N, steps_N in pairs if len(potential_N)]
    known = [rank for rank in found if rank is not None]
    return float(np.mean(known)) if known else None


# --- on disk ---------------------------------------------------------------------------------------


def save_checks(path: Path, checked: Sequence[CheckedEpisode]) -> None:
    """A task's episodes as JSON, unknown labels as null; the file appears when it is whole."""
    with whole_file(path) as fresh:
        fresh.write_text(json.dumps([_row(one) for one in checked], indent=1, allow_nan=False) + "\n")


def load_checks(path: Path) -> list[CheckedEpisode]:
    """What `save_checks` wrote."""
    return [
        CheckedEpisode(
            row["kind"],
            row["seed"],
            CrossCheck(
                np.array(row["frames"], dtype=np.int64),
                np.array(row["potential"], dtype=np.float32),
                np.array(row["steps_to_go"], dtype=np.float32),
            ),
        )
        for row in json.loads(path.read_text())
    ]


def _row(one: CheckedEpisode) -> dict[str, str | int | list[int] | list[float | None]]:
    return {
        "kind": one.kind,
        "seed": one.seed,
        "frames": one.check.frames_N.tolist(),
        "potential": one.check.potential_N.tolist(),
        "steps_to_go": [None if np.isnan(value) else float(value) for value in one.check.steps_to_go_N],
    }
