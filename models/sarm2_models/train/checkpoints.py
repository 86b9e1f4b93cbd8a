"""Checkpoints inside a stage: weights, optimiser and running mean in one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sarm2_rollouts.whole_file import whole_file

STEP = "step"


class TrainState:
    """A model in training, its optimiser (Adam or AdamW) and the running mean of its weights."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.model, self.optimiser = model, optimiser
        self.mean = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._averaged = 0

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """One step of the running mean; a young mean forgets faster, so the random start leaves no trace."""
        self._averaged += 1
        keep = min(decay, self._averaged / (self._averaged + 10))
        for name, value in self.model.named_parameters():
            self.mean[name].lerp_(value, 1 - keep)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the running mean in place of the weights."""
        for name, value in self.model.named_parameters():
            value.copy_(self.mean[name])

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name."""
        found = {f"weight/{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"mean/{name}": value for name, value in self.mean.items()}
        for index, state in enumerate(self._adam()):
            found |= {f"adam/{index}/{key}": value for key, value in state.items()}
        return {name: value.detach().clone().contiguous() for name, value in found.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """The inverse of `tensors`. Raises KeyError or RuntimeError for another model's."""
        weights = {name: tensors[f"weight/{name}"] for name in self.model.state_dict()}
        self.model.load_state_dict(weights)
        self.mean = {name: tensors[f"mean/{name}"].to(mean.device) for name, mean in self.mean.items()}
        for index, parameter in enumerate(self._parameters()):
            prefix = f"adam/{index}/"
            state = {
                # The optimiser counts its steps on the CPU, wherever the weights are.
                (key := name.removeprefix(prefix)): value if key == "step" else value.to(parameter.device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            self.optimiser.state[parameter] = state
        self._averaged = step

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def _adam(self) -> list[dict[str, Tensor]]:
        return [self.optimiser.state.get(parameter, {}) for parameter in self._parameters()]


def save_state(path: Path, state: TrainState, step: int) -> None:
    """Write a checkpoint after `step` steps; the old one stands until the new one is whole."""
    with whole_file(path) as fresh:
        save_file(state.tensors() | {STEP: torch.tensor(step)}, fresh)


def load_state(path: Path, state: TrainState) -> int:
    """Go on from a checkpoint if there is one: the number of steps done, else 0."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    step = int(tensors.pop(STEP))
    state.restore(tensors, step)
    return step
