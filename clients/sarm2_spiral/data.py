"""A dataset of a run as the learner reads it.

Shapes: T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.kept_array import kept_array
from sarm2_spiral.patience import Say, patiently
from sarm2_spiral.pilot import Pilot
from sarm2_spiral.replay import executed_chunks
from sarm2_spiral.rewards import rewards, smoothing
from sarm2_spiral.targets import Float32Array, smoothed


@dataclass(frozen=True)
class Data:
    """A dataset as the learner reads it: instruction, features, actions and progress of every episode that
    could be scored, and which one of the dataset it is."""

    name: str
    root: Path
    numbers: list[int]
    tasks: list[str]
    features: list[Float32Array]
    actions: list[Float32Array]
    progress: list[Float32Array]
    demo: bool


def load(run: SpiralFolder, name: str, root: Path, pilot: Pilot, say: Say) -> Data:
    """A dataset's features (those that are kept are not asked for again), actions and smoothed progress."""
    source, seen = pilot.features(), open_dataset(root, pictures=run.kind == "image")

    def features(number: int) -> Float32Array:
        episode = seen.episode(number)
        return patiently(lambda: source.recorded(episode), tell=say)

    episodes, curves, smooth = list(open_dataset(root, pictures=False)), rewards(run, root), smoothing(run)
    return Data(
        name=name,
        root=root,
        numbers=list(curves),
        tasks=[episodes[number].task for number in curves],
        features=[
            kept_array(run.features(name) / f"{number:06d}.npy", partial(features, number))
            for number in curves
        ],
        actions=[_actions(episodes[number]) for number in curves],
        progress=[smoothed(curve_T, smooth) for curve_T in curves.values()],
        demo=root == run.demos,
    )


def _actions(episode: Episode) -> Float32Array:
    if episode.action_TA is None:
        raise InvalidInput("the episodes carry no actions; record them again")
    return executed_chunks(episode.action_TA, 1)
