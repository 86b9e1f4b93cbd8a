"""Devices are refused by name."""

from __future__ import annotations

import pytest
import torch

from sarm2_client.errors import InvalidInput
from sarm2_models.device import check_device


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    check_device("cpu")
    with pytest.raises(InvalidInput, match="'tpu'; expected cpu or cuda"):
        check_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInput, match="no CUDA device is usable here; take cpu"):
            check_device("cuda")
