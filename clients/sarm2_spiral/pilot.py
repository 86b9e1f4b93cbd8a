"""Everything that a worker process needs to drive robots with a policy: a few paths and numbers."""

from __future__ import annotations

import atexit
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

import torch

from sarm2_client.client import Episode as LiveEpisode
from sarm2_client.client import RewardClient
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import ACTION_NAMES, CAMERAS, FPS, EpisodePlan, Observation
from sarm2_rollouts.policy_rollout import run_policy
from sarm2_rollouts.tasks import TASKS
from sarm2_spiral.base_policy import BasePolicy
from sarm2_spiral.checkpoint import load_weights
from sarm2_spiral.config import Ends, PolicyKind, SpiralConfig
from sarm2_spiral.driver import Driver
from sarm2_spiral.features import Features, ImageFeatures, StateFeatures
from sarm2_spiral.flow_policy import FlowPolicy
from sarm2_spiral.given_policy import GivenPolicy
from sarm2_spiral.patience import patiently
from sarm2_spiral.residual import Learner

DONE, DONE_FRAMES = 0.95, 12
"""A rollout is done when the service has said this progress or more for so many frames in a row: a little
longer than demonstrations go on when they are done. 60 rollouts of a half-learned hammer policy that nothing
ended, cut afterwards: 8 frames took many a nail that was nearly in for done (ROC-AUC of the final progress
.88), 12 only a few (.98); after 16 the policy is where no demonstration ever was, and scores fall (.89)."""

Base: TypeAlias = Path | GivenPolicy
"""A base policy: the weights of a built-in one, or one that other people trained."""


@dataclass(frozen=True)
class Pilot:
    """A policy by its files, and where the service is.

    Attributes:
        kind: what it sees.
        base: the base policy. learner: of the correction, or None for the base alone.
        host, port: of the service; a state policy that streams nothing needs none.
        explore: whether actions are noisy, as the loop's exploration has it.
        stream: whether every frame goes to the service as it happens.
        ends: who ends its rollouts; the service only where they are streamed.
    """

    kind: PolicyKind
    base: Base
    learner: Path | None
    config: SpiralConfig
    host: str
    port: int
    explore: bool = False
    stream: bool = False
    ends: Ends = "success"

    def fly(self, entry: EpisodePlan) -> Episode:
        """One rollout; for worker processes. A rollout that the service's absence broke is done again."""
        torch.set_num_threads(1)  # the other cores have workers of their own
        return patiently(lambda: self._fly(entry))

    def _fly(self, entry: EpisodePlan) -> Episode:
        driver = self._driver(entry.seed)
        run = partial(run_policy, entry.task_name, driver, entry.seed, longest=self.config.loop.longest)
        if not self.stream:
            return run(pictures="looked_at" if self.kind == "image" else "none")
        instruction = TASKS[entry.task_name].instruction
        client = client_of(self.host, self.port)
        with client.episode(instruction, FPS, CAMERAS, qos="batch", source="rollout") as live:
            verdict = Verdict(live)
            return run(watch=verdict.watch, done=verdict.done if self.ends == "service" else None)

    def _driver(self, seed: int) -> Driver:
        loop, update = self.config.loop, self.config.update
        features = self.features()
        return Driver(
            load_base(self.base, self.config),
            features,
            None if self.learner is None else load_learner(self.learner, self.config),
            executed=update.executed,
            latents=update.latents,
            seed=seed,
            exploration=loop.exploration[seed % len(loop.exploration)] if self.explore else 0.0,
        )

    def features(self) -> Features:
        """What its policy sees."""
        if self.kind == "state":
            return StateFeatures()
        return ImageFeatures(client_of(self.host, self.port), CAMERAS)


class Verdict:
    """The service's word on whether a rollout is done.

    Every frame waits for its score: a rollout then ends at the same frame however busy the service is.
    """

    def __init__(self, live: LiveEpisode) -> None:
        self._live, self._high = live, 0

    def watch(self, now: Observation) -> None:
        """Score a frame."""
        progress = self._live.step(now.images, now.state_S).progress
        self._high = self._high + 1 if progress >= DONE else 0

    def done(self) -> bool:
        """Whether progress has stayed high."""
        return self._high >= DONE_FRAMES


@lru_cache(maxsize=4)
def client_of(host: str, port: int) -> RewardClient:
    """This process's client of a service, closed when the process ends."""
    client = RewardClient(host=host, port=port)
    atexit.register(client.close)
    return client


@lru_cache(maxsize=8)
def load_base(base: Base, config: SpiralConfig) -> BasePolicy:
    """A base policy, once a process."""
    if isinstance(base, GivenPolicy):
        return base.load()
    weights = load_weights(base)
    policy = FlowPolicy(len(weights["standardise.mean_F"]), len(ACTION_NAMES), config.policy)
    policy.load_state_dict(weights)
    return policy.eval().requires_grad_(False)


@lru_cache(maxsize=8)
def load_learner(path: Path, config: SpiralConfig) -> Learner:
    """A saved learner."""
    weights = load_weights(path)
    learner = Learner(len(weights["standardise.mean_F"]), len(ACTION_NAMES), config.update)
    learner.load_state_dict(weights)
    return learner.eval().requires_grad_(False)
