"""One tiny model for all tests of the service, and servers around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import fakes
from running_server import RunningServer, Serve
from sarm2_models.reward_model import RewardModel


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    """Untrained, tiny, real."""
    return fakes.make_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def serve(model: RewardModel) -> Iterator[Serve]:
    """Starts servers with the settings a test needs; all are stopped, in order, at its end."""
    with ExitStack() as stack:

        def start(served: RewardModel | None = None, **settings: Any) -> RunningServer:
            return stack.enter_context(RunningServer(served or model, **settings))

        yield start


@pytest.fixture(scope="module")
def server(model: RewardModel) -> Iterator[RunningServer]:
    """One server with default settings for the tests of a file that do not change it."""
    with RunningServer(model, takeover_after_s=0.3) as running:
        yield running
