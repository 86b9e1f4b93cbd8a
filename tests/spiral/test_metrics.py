"""What Prometheus is told of a loop."""

from __future__ import annotations

import numpy as np
from prometheus_client import generate_latest

from sarm2_spiral.metrics import LoopMetrics
from sarm2_spiral.report import Collected
from sarm2_spiral.wilson import Rate


def rollouts(finals: list[float], successes: list[bool]) -> Collected:
    return Collected("round 2", [np.array([0.0, final], np.float32) for final in finals], successes)


def told(metrics: LoopMetrics) -> list[str]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_failures_that_end_as_if_done_are_told() -> None:
    metrics = LoopMetrics("hammer")
    metrics.collected(2, rollouts([1.0, 0.95, 0.4, 0.2], [True, False, False, False]))
    labels = '{round="2",task="hammer"}'
    assert set(told(metrics)) == {
        f"sarm2_spiral_rollout_success_ratio{labels} 0.25",
        f"sarm2_spiral_final_progress{labels} {np.mean(np.array([1.0, 0.95, 0.4, 0.2], np.float32))}",
        f"sarm2_spiral_success_auc{labels} 1.0",
        f"sarm2_spiral_believed_failures_ratio{labels} {1 / 3}",
        f"sarm2_spiral_failures{labels} 3.0",
    }


def test_what_a_round_without_failures_cannot_tell_is_left_out() -> None:
    metrics = LoopMetrics("hammer")
    metrics.collected(1, rollouts([1.0, 1.0], [True, True]))
    assert not [line for line in told(metrics) if "auc" in line or "believed" in line]


def test_an_evaluation_is_told_by_policy() -> None:
    metrics = LoopMetrics("hammer")
    metrics.judged("offline", Rate(3, 4))
    assert told(metrics) == ['sarm2_spiral_success_ratio{policy="offline",task="hammer"} 0.75']


def test_warnings_are_of_the_latest_round_alone_and_decisions_of_all() -> None:
    metrics = LoopMetrics("hammer")
    for number, deployed in ((1, True), (2, False)):
        metrics.collected(number, rollouts([1.0, 0.2], [True, False]))
        metrics.decided(number, deployed=deployed)
    lines = told(metrics)
    for name in ("success_auc", "believed_failures_ratio", "failures"):
        (line,) = (line for line in lines if line.startswith(f"sarm2_spiral_{name}{{"))
        assert 'round="2"' in line
    assert 'sarm2_spiral_deployed{round="1",task="hammer"} 1.0' in lines
    assert 'sarm2_spiral_deployed{round="2",task="hammer"} 0.0' in lines
