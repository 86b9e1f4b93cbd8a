"""Who ends a rollout, and what comes of a broken file of verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sarm2_rollouts.collection import MakeEpisode
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import EpisodePlan, Observation
from sarm2_rollouts.policy_rollout import run_policy
from sarm2_spiral.evaluation import evaluate
from sarm2_spiral.pilot import DONE, DONE_FRAMES, Verdict


class Still:
    """A policy that does nothing."""

    looks = False

    def reset(self, instruction: str) -> None:
        pass

    def act(self, now: Observation) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.zeros(4, dtype=np.float32)


class Said:
    """An episode of a service that says one progress after the other."""

    def __init__(self, progress: list[float]) -> None:
        self._progress = iter(progress)

    def step(self, images: object, state: object) -> SimpleNamespace:
        return SimpleNamespace(progress=next(self._progress))


def frames_until_done(progress: list[float]) -> int:
    verdict = Verdict(cast(Any, Said(progress)))
    now = cast(Any, SimpleNamespace(images={}, state_S=None))
    for frame in range(len(progress)):
        verdict.watch(now)
        if verdict.done():
            return frame + 1
    return -1


def test_a_rollout_is_done_when_progress_has_stayed_high() -> None:
    assert frames_until_done([0.1, *[DONE] * DONE_FRAMES]) == 1 + DONE_FRAMES
    assert frames_until_done([*[DONE] * (DONE_FRAMES - 1), 0.5, *[1.0] * DONE_FRAMES]) == 2 * DONE_FRAMES
    assert frames_until_done([0.94] * 50) == -1


@pytest.mark.sim
def test_whoever_may_end_a_rollout_ends_it() -> None:
    seen: list[Observation] = []
    short = run_policy(
        "drawer-open", Still(), 1, longest=20, pictures="none", watch=seen.append, done=lambda: len(seen) == 5
    )
    assert len(short) == len(seen) == 5
    assert len(run_policy("drawer-open", Still(), 1, longest=9, pictures="none", done=lambda: False)) == 9


def test_a_torn_line_costs_nothing_but_its_own_episode(tmp_path: Path) -> None:
    plan = [EpisodePlan("hammer", "policy", seed) for seed in range(3)]
    path = tmp_path / "bc.jsonl"
    path.write_text(json.dumps({"seed": 0, "success": True, "frames": 9}) + "\n" + '{"seed": 1, "succ')
    flown: list[int] = []

    def collector(plan: Iterable[EpisodePlan], *, make: MakeEpisode) -> Iterator[Episode]:
        for entry in plan:
            flown.append(entry.seed)
            yield cast(Episode, _Finished())

    pilot = cast(Any, SimpleNamespace(fly=None))
    rate = evaluate(pilot, plan, path, collector)
    assert flown == [1, 2]
    assert (rate.successes, rate.trials) == (3, 3)


class _Finished:
    success = True

    def __len__(self) -> int:
        return 7
