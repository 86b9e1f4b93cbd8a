"""The training loop of every head: AdamW, checkpoints, and the running mean of the weights.

The step number alone decides what a step does, and a checkpoint holds weights, optimiser and running mean. So
a training that was stopped and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sarm2_models.train.checkpoints import TrainState, load_state, save_state

CHECKPOINT_EVERY = 200

Tick = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and a note for the bar."""

Model = TypeVar("Model", bound=nn.Module)


def mixed_precision() -> torch.autocast:
    """bfloat16 where the CPU multiplies it in tiles (AMX), float32 elsewhere.

    Without tiles bfloat16 takes 1.6 times as long as float32.
    """
    # A release of torch that does not tell goes without.
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(known.get("amx_bf16")))


def silent(done: int, total: int, note: str) -> None:
    """A `Tick` that tells nobody."""


@dataclass(frozen=True)
class Rate:
    """How fast: the highest learning rate, the share of the steps in which it rises, and the weight decay."""

    learning_rate: float
    warm_up: float
    weight_decay: float


@dataclass(frozen=True)
class Steps:
    """How long, and where checkpoints go.

    Attributes:
        name: of what is trained, for files and bars.
        total: steps.
        ema: decay of the running mean of the weights.
        folder: where checkpoints go; one that is there is gone on from.
        seed: of dropout and noise.
        device: where it learns.
        stop_after: give up after this many steps in all, keeping a checkpoint (for tests of resuming).
    """

    name: str
    total: int
    rate: Rate
    ema: float
    folder: Path
    seed: int
    device: str = "cpu"
    stop_after: int | None = None


def fit(model: Model, loss_of: Callable[[int], Tensor], steps: Steps, tick: Tick) -> Model:
    """AdamW with warm-up and a cosine to zero, gradients clipped to norm 1; gives back the running mean, on
    the CPU."""
    rate = steps.rate
    model.to(steps.device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=rate.learning_rate, weight_decay=rate.weight_decay, betas=(0.9, 0.95)
    )
    state = TrainState(model, optimiser)
    path = steps.folder / f"{steps.name}.checkpoint.safetensors"
    done = load_state(path, state)
    model.train()
    for step in range(done, steps.total):
        if steps.stop_after is not None and step >= steps.stop_after:
            save_state(path, state, step)
            return model.cpu()
        torch.manual_seed(steps.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = rate.learning_rate * learning_rate_factor(step, steps.total, rate.warm_up)
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        state.average(steps.ema)
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < steps.total:
            save_state(path, state, step + 1)
        tick(step + 1, steps.total, f"{steps.name} loss {loss.item():.4f}")
    state.use_average()
    path.unlink(missing_ok=True)
    return model.eval().cpu()


def learning_rate_factor(step: int, total: int, warm_up: float = 0.05) -> float:
    """Linear warm-up over a share of the steps, then a cosine to zero."""
    rising = max(1, round(warm_up * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
