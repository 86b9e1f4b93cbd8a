"""Fixtures of the model room: one thread (bits do not depend on the machine then) and toy models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.tiny import tiny_model
from sarm2_models.reward_model import RewardModel


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return tiny_model()
