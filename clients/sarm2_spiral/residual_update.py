"""The residual update: critics and actor on a replay, the base policy frozen.

Each step draws a batch, moves the critics to the hybrid target and, once they have had `critic_only` steps,
the actor to what their minimum prefers. The step number alone decides what a step draws, and a checkpoint
holds weights, slow copies and optimisers: a killed update that goes on ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sarm2_spiral.checkpoint import load_checkpoint, save_checkpoint
from sarm2_spiral.config import UpdateConfig
from sarm2_spiral.replay import Batch, Replay
from sarm2_spiral.residual import Learner
from sarm2_spiral.rows import growing
from sarm2_spiral.targets import actor_loss, critic_loss, hybrid_target

CHECKPOINT_EVERY = 250

FIGURES = {
    "critic_loss": "squared error of the critics",
    "value": "value that they give to what was done",
    "actor_loss": "the actor's loss",
    "residual": "size of its correction, root mean square",
}
"""What is written down of an update, as means over the steps since the last line."""

Tick = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


class ResidualUpdate:
    """Trains a learner.

    Args:
        learner: changed in place.
        seed: with the step number, of every draw.
        path: where the learner is kept with its optimisers between rounds, and inside one.
        losses: a file that gets a line of means (`FIGURES`) whenever the learner is kept.
    """

    def __init__(
        self,
        learner: Learner,
        config: UpdateConfig,
        seed: int,
        path: Path | None = None,
        losses: Path | None = None,
    ) -> None:
        self.learner, self.config, self._seed, self._path, self._losses = learner, config, seed, path, losses
        self._figures: dict[str, list[float]] = {}
        rate = config.learning_rate
        self._optimisers = {
            "critic": torch.optim.Adam(learner.critics.parameters(), lr=rate, fused=True),
            "actor": torch.optim.Adam(learner.actor.parameters(), lr=rate, fused=True),
        }
        self.step = load_checkpoint(path, learner, self._optimisers) if path is not None else 0

    def run(self, replay: Replay, until: int, critic_only_until: int, tick: Tick | None = None) -> None:
        """Go on to step `until`; up to `critic_only_until` the critics learn alone."""
        begun = self.step
        while self.step < until:
            rng = np.random.default_rng([self._seed, 7, self.step])
            torch.manual_seed(self._seed * 1_000_003 + self.step)
            batch = replay.draw(rng)
            self._critics(batch)
            if self.step >= critic_only_until:
                self._actor(batch)
            self.learner.follow()
            self.step += 1
            if self.step % CHECKPOINT_EVERY == 0 or self.step == until:
                self._keep()
            if tick is not None:
                tick(self.step - begun, until - begun)

    def _keep(self) -> None:
        if self._path is not None:
            save_checkpoint(self._path, self.learner, self._optimisers, self.step)
        if self._losses is not None:
            means = {name: float(np.mean(values)) for name, values in self._figures.items()}
            with growing(self._losses) as add:
                add({"step": self.step} | means)
        self._figures.clear()

    def _note(self, **figures: Tensor) -> None:
        for name, value in figures.items():
            self._figures.setdefault(name, []).append(float(value.detach()))

    def _critics(self, batch: Batch) -> None:
        value_NB = self.learner.critics(batch.features_BF, batch.chunk_BK)
        loss = critic_loss(value_NB, self.target(batch))
        self._descend("critic", loss)
        self._note(critic_loss=loss, value=value_NB.mean())

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """The hybrid target (B,), with the slow networks and TD3's noise on the later chunk."""
        config, learner = self.config, self.learner
        rows = torch.arange(len(batch.later_BF))
        latent_B = torch.randint(batch.later_base_BMK.shape[1], (len(rows),))
        base_BK = batch.later_base_BMK[rows, latent_B]
        noise_BK = config.smoothing * config.scale * torch.randn_like(base_BK)
        limit = config.smoothing_clip * config.scale
        chunk_BK = base_BK + learner.slow_actor(batch.later_BF, base_BK) + noise_BK.clamp(-limit, limit)
        later_NB = learner.slow_critics(batch.later_BF, chunk_BK.clamp(-1.0, 1.0))
        return hybrid_target(batch.monte_carlo_B, batch.partial_B, batch.discount_B, later_NB, config.alpha)

    def _actor(self, batch: Batch) -> None:
        base_RK = batch.base_BMK.flatten(0, 1)  # R = B x M rows
        residual_RK = self.learner.actor(batch.features_BF, base_RK)
        value_NR = self.learner.critics(batch.features_BF, (base_RK + residual_RK).clamp(-1.0, 1.0))
        loss = actor_loss(value_NR, residual_RK, self.config.beta)
        self._descend("actor", loss)
        self._note(actor_loss=loss, residual=residual_RK.square().mean().sqrt())

    def _descend(self, name: str, loss: Tensor) -> None:
        optimiser = self._optimisers[name]
        optimiser.zero_grad()
        # No gradients of the critics' weights where the actor moves: half of the work.
        loss.backward(inputs=optimiser.param_groups[0]["params"])  # type: ignore[no-untyped-call]
        optimiser.step()
