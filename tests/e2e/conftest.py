"""One tiny model for all tests of the whole."""

from __future__ import annotations

import pytest

import fakes
from sarm2_models.reward_model import RewardModel


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """Untrained, tiny, real."""
    return fakes.make_model(tmp_path_factory.mktemp("encoder"))
