"""The loop waits for a service that went away, and not for ever."""

from __future__ import annotations

import pytest

from sarm2_client.errors import ConnectionLost, Draining, InvalidInput
from sarm2_spiral.patience import patiently


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes by sleeping alone."""
    slept: list[float] = []
    monkeypatch.setattr("sarm2_spiral.patience.time.sleep", slept.append)
    monkeypatch.setattr("sarm2_spiral.patience.time.monotonic", lambda: sum(slept))
    return slept


def test_work_is_done_again_once_the_service_is_back(naps: list[float]) -> None:
    answers: list[object] = [ConnectionLost("gone"), Draining("going away"), 7]
    told: list[str] = []

    def work() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(work, tell=told.append) == 7
    assert naps == [2.0, 4.0]
    assert len(told) == 1


def test_a_service_that_stays_away_ends_the_waiting(
    naps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise ConnectionLost("gone")

    with pytest.raises(ConnectionLost, match="gone"):
        patiently(work, outage_s=100.0)
    assert 100 <= sum(naps) <= 160
    assert capsys.readouterr().err == "the service is away (gone); waiting for it, at most 100 s\n"


def test_other_errors_are_not_waited_for(naps: list[float]) -> None:
    def work() -> None:
        raise InvalidInput("wrong")

    with pytest.raises(InvalidInput):
        patiently(work)
    assert naps == []
