"""Everything that a worker process needs to drive robots with a policy: a few paths and numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import torch

from sarm2_client.client import RewardClient
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import ACTION_NAMES, CAMERAS, FPS, EpisodePlan, Observation
from sarm2_rollouts.policy_rollout import Pictures, run_policy
from sarm2_rollouts.tasks import TASKS
from sarm2_spiral.base_policy import BasePolicy
from sarm2_spiral.checkpoint import load_weights
from sarm2_spiral.config import PolicyKind, SpiralConfig
from sarm2_spiral.driver import Driver
from sarm2_spiral.features import Features, ImageFeatures, StateFeatures
from sarm2_spiral.flow_policy import FlowPolicy
from sarm2_spiral.given_policy import GivenPolicy
from sarm2_spiral.patience import patiently
from sarm2_spiral.residual import Learner

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
    """

    kind: PolicyKind
    base: Base
    learner: Path | None
    config: SpiralConfig
    host: str
    port: int
    explore: bool = False
    stream: bool = False

    def fly(self, entry: EpisodePlan) -> Episode:
        """One rollout; for worker processes. A rollout that the service's absence broke is done again."""
        torch.set_num_threads(1)  # the other cores have workers of their own
        return patiently(lambda: self._fly(entry))

    def _fly(self, entry: EpisodePlan) -> Episode:
        driver = self._driver(entry.seed)
        longest = self.config.loop.longest
        if not self.stream:
            pictures: Pictures = "looked_at" if self.kind == "image" else "none"
            return run_policy(entry.task_name, driver, entry.seed, longest=longest, pictures=pictures)
        with ExitStack() as stack:
            watch = self._streaming(entry, stack)
            return run_policy(entry.task_name, driver, entry.seed, longest=longest, watch=watch)

    def _streaming(self, entry: EpisodePlan, stack: ExitStack) -> Callable[[Observation], None]:
        live = stack.enter_context(
            client_of(self.host, self.port).episode(
                TASKS[entry.task_name].instruction, FPS, CAMERAS, qos="batch", source="rollout"
            )
        )

        def watch(now: Observation) -> None:
            live.push(now.images, now.state_S)

        return watch

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


@lru_cache(maxsize=4)
def client_of(host: str, port: int) -> RewardClient:
    """This process's client of a service."""
    return RewardClient(host=host, port=port)


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
