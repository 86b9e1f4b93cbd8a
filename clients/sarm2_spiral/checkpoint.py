"""Weights and optimisers in one safetensors file, so that a killed training goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_rollouts.whole_file import whole_file

STEP = "step"

Optimisers = Mapping[str, torch.optim.Optimizer]


def save_checkpoint(path: Path, module: nn.Module, optimisers: Optimisers, step: int) -> None:
    """Write what `load_checkpoint` reads; the old file stands until the new one is whole."""
    found = {f"weight/{name}": value for name, value in module.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, parameter in enumerate(_parameters(optimiser)):
            for key, value in optimiser.state.get(parameter, {}).items():
                found[f"{name}/{index}/{key}"] = value
    tensors = {name: value.detach().clone().contiguous() for name, value in found.items()}
    with whole_file(path) as fresh:
        save_file(tensors | {STEP: torch.tensor(step)}, fresh)


def load_checkpoint(path: Path, module: nn.Module, optimisers: Optimisers) -> int:
    """Put a checkpoint into module and optimisers and return its step; 0 where there is no file.

    Raises InvalidInput for a file that belongs to another module.
    """
    if not path.exists():
        return 0
    tensors = load_file(path)
    step = int(tensors.pop(STEP))
    weights = _under(tensors, "weight/")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise InvalidInput(f"{path} was saved with other sizes; delete it, or use its settings") from error
    for name, optimiser in optimisers.items():
        for index, parameter in enumerate(_parameters(optimiser)):
            state = _under(tensors, f"{name}/{index}/")
            if state:
                optimiser.state[parameter] = state
    return step


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def save_weights(path: Path, module: nn.Module) -> None:
    """A finished module; the file appears when it is whole."""
    with whole_file(path) as fresh:
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, fresh)


def load_weights(path: Path) -> dict[str, Tensor]:
    """What `save_weights` wrote. Raises NotFound where there is none."""
    if not path.exists():
        raise NotFound(f"there are no weights at {path}; train them first")
    return load_file(path)
