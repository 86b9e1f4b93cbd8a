"""The report over several policies, on curves whose mean is worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.adaptation import BARS, COLUMNS, LABELS, Measured, report, tables

ERRORS = {"hammer": (0.2, 0.1), "drawer-open": (0.4, 0.05)}
"""Before and after 100 rollouts."""


@pytest.fixture
def curves(tmp_path: Path) -> dict[str, list[Measured]]:
    for policy, (before, after) in ERRORS.items():
        for labels in LABELS:
            write_curve(tmp_path / policy / labels, before, after)
    return {labels: [Measured.read(tmp_path, policy, labels) for policy in ERRORS] for labels in LABELS}


def write_curve(folder: Path, before: float, after: float) -> None:
    folder.mkdir(parents=True)
    curve, draws = {}, {}
    for count, error in (("0", before), ("100", after)):
        curve[count] = {
            metric: {"value": error, "low": 0.9 * error, "high": 1.1 * error, "n": 5} for metric in COLUMNS
        }
        for metric in BARS:
            draws[f"{count}/{metric}"] = error * np.linspace(0.9, 1.1, 1000)
    change = {metric: {"value": after / before, "low": 0.1, "high": 0.9, "n": 5} for metric in COLUMNS}
    content = {"adapted_from": "rm1", "curve": curve, "change": {"100": change}}
    (folder / "curve.json").write_text(json.dumps(content))
    np.savez(folder / "draws.npz", allow_pickle=False, **draws)


def test_a_bar_is_the_mean_error_after_over_the_mean_before(curves: dict[str, list[Measured]]) -> None:
    bars = report(curves)["bars"]
    assert set(bars) == {f"{metric}_after_100_{labels}" for metric in BARS for labels in LABELS}
    found = bars["rollout_mse_after_100_marks"]
    assert found["value"] == pytest.approx((0.1 + 0.05) / (0.2 + 0.4))
    assert (found["bar"], found["met"], found["n"]) == (0.6, True, 10)
    assert found["low"] < found["value"] < found["high"], "one policy's draws say nothing about the other's"


def test_every_policy_has_its_own_table(curves: dict[str, list[Measured]]) -> None:
    text = "\n".join(tables(curves))
    for policy in ERRORS:
        for labels in LABELS:
            assert f"## {policy}, {labels}" in text
    assert "| rollout_mse, exact | 0.3000 | 0.0750 | 0.25 (" in text
    assert "0.50 (0.10 to 0.90)" in text
