"""Adaptation over several policies: the report of what `sarm2 adapt --curve` measured on each.

    python tests/bench/adaptation.py CURVES STEM < PREFACE

`CURVES/POLICY/LABELS` is what `sarm2 adapt --curve COUNTS --labels LABELS --out CURVES/POLICY/LABELS` wrote;
STEM.json, .md and .png are written. The bars are held against the mean error over policies after 100
rollouts, over the same mean before: how wrong RM1 is differs so much from policy to policy that a single one
decides by chance. For its interval every policy's episodes are drawn apart from the others'.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from sarm2_models.estimate import Estimate
from sarm2_models.train.report import draw_errors

LABELS = ("marks", "exact")
BARS = {"rollout_mse": 0.6, "demo_mse": 1.1}
COUNT = "100"
COLUMNS = ("rollout_mse", "demo_mse", "success_auc", "ece", "interval_coverage")
COLOURS = {"marks": "tab:orange", "exact": "tab:blue"}


@dataclass(frozen=True)
class Measured:
    """One policy's curve with one kind of labels, as `adapt_curve` wrote it."""

    policy: str
    content: dict[str, Any]
    draws: dict[str, Any]

    @classmethod
    def read(cls, root: Path, policy: str, labels: str) -> Measured:
        folder = root / policy / labels
        with np.load(folder / "draws.npz") as kept:
            draws = dict(kept)
        return cls(policy, json.loads((folder / "curve.json").read_text()), draws)

    def error(self, count: str, metric: str) -> Estimate:
        """With the bootstrap's draws."""
        value = self.content["curve"][count][metric]
        return Estimate.of(value["value"], self.draws[f"{count}/{metric}"], value["n"])


def pooled(policies: Sequence[Measured], count: str, metric: str) -> Estimate:
    """The mean error over policies; paired by draw with that of another count, as every policy's are."""
    random = np.random.default_rng(0)
    values, samples_MR, episodes = [], [], 0
    for policy in policies:
        one = policy.error(count, metric)
        assert one.value is not None
        assert one.samples is not None
        values.append(one.value)
        samples_MR.append(random.permutation(one.samples))
        episodes += one.n
    return Estimate.of(float(np.mean(values)), np.mean(samples_MR, axis=0), episodes)


def bar(policies: Sequence[Measured], metric: str) -> dict[str, Any]:
    """A bar's entry."""
    change = pooled(policies, COUNT, metric).over(pooled(policies, "0", metric))
    assert change.value is not None
    return {**change.as_json(), "bar": BARS[metric], "met": change.value <= BARS[metric]}


def report(curves: dict[str, list[Measured]]) -> dict[str, Any]:
    """Everything as plain numbers."""
    return {
        "bundle": curves["exact"][0].content["adapted_from"],
        "bars": {
            f"{metric}_after_{COUNT}_{labels}": bar(policies, metric)
            for labels, policies in curves.items()
            for metric in BARS
        },
        "policies": {
            labels: {one.policy: {key: one.content[key] for key in ("curve", "change")} for one in policies}
            for labels, policies in curves.items()
        },
    }


def draw(curves: dict[str, list[Measured]], path: Path) -> None:
    """A panel a policy: the error on its held-out rollouts over how many were learned from."""
    policies = [one.policy for one in curves["exact"]]
    figure, axes = plt.subplots(1, len(policies), figsize=(3.6 * len(policies), 2.9), squeeze=False)
    for axis, place in zip(axes.flat, range(len(policies)), strict=True):
        for labels, measured in curves.items():
            draw_errors(axis, measured[place].content["curve"], "rollout_mse", labels, COLOURS[labels])
        axis.set_title(policies[place], fontsize=10)
        axis.set_ylim(bottom=0)
    axes.flat[0].set_ylabel("rollout_mse")
    axes.flat[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def cell(value: dict[str, Any], metric: str) -> str:
    if value["value"] is None:
        return "-"
    if not metric.endswith("mse"):
        return f"{value['value']:.3f}"
    return f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"


def tables(curves: dict[str, list[Measured]]) -> list[str]:
    """The bars, then every policy's curves."""
    lines = bars_table(curves)
    for measured in zip(*curves.values(), strict=True):
        for labels, one in zip(curves, measured, strict=True):
            lines += ["", f"## {one.policy}, {labels}", "", *curve_table(one.content)]
    return lines


def bars_table(curves: dict[str, list[Measured]]) -> list[str]:
    lines = [f"## Bars: mean error over policies after {COUNT} rollouts, over the mean before", ""]
    lines += ["| | before | after | after / before | bar | met |", "|---" * 6 + "|"]
    for labels, policies in curves.items():
        for metric, most in BARS.items():
            found = bar(policies, metric)
            before, after = (pooled(policies, count, metric).value for count in ("0", COUNT))
            met = "yes" if found["met"] else "**no**"
            errors = f"{before:.4f} | {after:.4f} | {ratio(found)}"
            lines.append(f"| {metric}, {labels} | {errors} | at most {most} | {met} |")
    return lines


def curve_table(content: dict[str, Any]) -> list[str]:
    lines = ["| rollouts | " + " | ".join(COLUMNS) + " | after / before |", "|---" * (len(COLUMNS) + 2) + "|"]
    for count, measured in content["curve"].items():
        cells = [cell(measured[metric], metric) for metric in COLUMNS]
        change = content["change"].get(count)
        lines.append(f"| {count} | {' | '.join(cells)} | {ratio(change['rollout_mse']) if change else ''} |")
    return lines


def ratio(found: dict[str, Any]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("curves", type=Path, help="folder with POLICY/LABELS/curve.json and draws.npz")
    parser.add_argument("stem", type=Path, help="path of the report, without its ending")
    given = parser.parse_args()
    names = sorted(path.name for path in given.curves.iterdir() if path.is_dir())
    curves = {labels: [Measured.read(given.curves, name, labels) for name in names] for labels in LABELS}
    content = report(curves)
    given.stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    draw(curves, given.stem.with_suffix(".png"))
    text = [sys.stdin.read().strip(), "", f"![Error by rollouts]({given.stem.name}.png)", "", *tables(curves)]
    given.stem.with_suffix(".md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
