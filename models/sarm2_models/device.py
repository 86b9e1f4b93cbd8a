"""Where a model runs or learns."""

from __future__ import annotations

import torch

from sarm2_client.errors import InvalidInput


def check_device(device: str) -> None:
    """Whether there is such a device. Raises InvalidInput for another word than `cpu` or `cuda`, and for a
    CUDA device where torch finds none."""
    if device not in ("cpu", "cuda"):
        raise InvalidInput(f"device = {device!r}; expected cpu or cuda", field="device")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device = 'cuda', but no CUDA device is usable here; take cpu", field="device")
