"""Behaviour cloning of the flow policy, plain or weighted by what the frames gained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sarm2_client.errors import InvalidInput
from sarm2_spiral.checkpoint import load_checkpoint, save_checkpoint
from sarm2_spiral.config import PolicyConfig
from sarm2_spiral.flow_policy import FlowPolicy
from sarm2_spiral.replay import executed_chunks
from sarm2_spiral.residual_update import CHECKPOINT_EVERY, Tick

Float32Array = npt.NDArray[np.float32]

WARM_UP = 0.05
WEIGHT_DECAY = 0.01
AVERAGED = 0.995
"""Decay of the running mean of the weights, which is the policy."""


def clone(
    episodes: Sequence[tuple[Float32Array, Float32Array]],
    weights: Sequence[Float32Array],
    config: PolicyConfig,
    seed: int,
    path: Path | None = None,
    tick: Tick | None = None,
) -> FlowPolicy:
    """A policy fitted to episodes.

    Args:
        episodes: features (T, F) and actions (T, A) of each.
        weights: (T,) of each; a frame is drawn as often as its weight says.
        path: where checkpoints go; one that is there is gone on from.

    Raises InvalidInput where no frame has any weight.
    """
    features_NF = np.concatenate([features for features, _ in episodes])
    chunk_NL = np.concatenate([executed_chunks(actions, config.horizon) for _, actions in episodes])
    weight_N = np.concatenate(weights).astype(np.float64)
    if not weight_N.sum() > 0:
        raise InvalidInput("no frame has any weight, so there is nothing to imitate: is every reward 0?")
    torch.manual_seed(seed)
    actions = episodes[0][1].shape[1]
    policy = FlowPolicy(features_NF.shape[1], actions, config)
    policy.standardise.fit(torch.from_numpy(features_NF))
    mean = torch.optim.swa_utils.AveragedModel(
        policy,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGED),  # type: ignore[no-untyped-call]
    )
    optimiser = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.95)
    )
    both = nn.ModuleDict({"policy": policy, "mean": mean})
    done = load_checkpoint(path, both, {"adam": optimiser}) if path is not None else 0
    chance_N = weight_N / weight_N.sum()
    for step in range(done, config.steps):
        rng = np.random.default_rng([seed, 5, step])
        torch.manual_seed(seed * 1_000_003 + step)
        drawn_B = rng.choice(len(chance_N), config.batch, p=chance_N)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config.steps)
        chunk_BHA = torch.from_numpy(chunk_NL[drawn_B]).view(len(drawn_B), config.horizon, actions)
        loss = policy.loss(torch.from_numpy(features_NF[drawn_B]), chunk_BHA)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        mean.update_parameters(policy)
        if path is not None and (step + 1) % CHECKPOINT_EVERY == 0:
            save_checkpoint(path, both, {"adam": optimiser}, step + 1)
        if tick is not None:
            tick(step + 1, config.steps)
    policy.load_state_dict(mean.module.state_dict())
    return policy.eval().requires_grad_(False)


def _rate(step: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    rising = max(1, round(WARM_UP * total))
    if step < rising:
        return (step + 1) / rising
    return float(0.5 * (1 + np.cos(np.pi * (step - rising) / max(1, total - rising))))
