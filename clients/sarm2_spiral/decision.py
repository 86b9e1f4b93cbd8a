"""The decision after a round: whether its candidate is deployed.

Shapes: T frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_rollouts.metaworld_robot import EpisodePlan
from sarm2_rollouts.whole_file import whole_file
from sarm2_spiral.data import Data
from sarm2_spiral.folder import SpiralFolder


@dataclass(frozen=True)
class Decision:
    """Whether a candidate was deployed.

    Attributes:
        before, after: mean final progress of the deployed policy and of the candidate, on the same scenes.
        deployed: whether the candidate holds its own.
    """

    before: float
    after: float
    deployed: bool


def load_decision(run: SpiralFolder, number: int) -> Decision:
    """What was decided after a round. Raises NotFound where its trial is not through yet."""
    path = run.decision(number)
    if not path.exists():
        raise NotFound(f"round {number} has not been decided yet; do its trial first", field="policy")
    return Decision(**json.loads(path.read_text()))


def decide(run: SpiralFolder, number: int, rollouts: Data, trial: Data) -> Decision:
    """Compare a candidate with the deployed policy on the same scenes, by the loop's own rewards.

    Raises InvalidInput where there is no scene in which both could be scored.
    """
    path = run.decision(number)
    if path.exists():  # a kill came between this and the stage's end
        return load_decision(run, number)
    stood = final_progress(rollouts, run.rollout_plan(number))
    tried = final_progress(trial, run.trial_plan(number))
    both = [seed for seed in tried if seed in stood]
    if not both:
        raise InvalidInput(f"trial {number}: in no scene could both policies be scored", field="frames")
    before, after = (float(np.mean([found[seed] for seed in both])) for found in (stood, tried))
    decision = Decision(before, after, after >= before - run.config.loop.margin)
    with whole_file(path) as fresh:
        fresh.write_text(json.dumps(vars(decision)))
    return decision


def final_progress(data: Data, plan: Sequence[EpisodePlan]) -> dict[int, float]:
    """By the seed of its scene, how far each episode came that could be scored."""
    return {
        plan[number].seed: float(curve_T[-1])
        for number, curve_T in zip(data.numbers, data.progress, strict=True)
    }
