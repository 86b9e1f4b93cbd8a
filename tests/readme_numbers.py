"""The README's table of numbers, made from the evaluation that is shipped with the bundle.

`python tests/readme_numbers.py` writes it between the markers in README.md; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = ROOT / "models/sarm2_models/bundles/metaworld/report/evaluation.json"
BEGIN, END = "<!-- numbers: begin -->\n", "<!-- numbers: end -->"

ROWS = {
    "demo_mse": ("progress error on uneven demonstrations (MSE)", "at most .003"),
    "clock_mse": ("the same by the clock, t / mean duration", ""),
    "constant_mse": ("the same by a constant", ""),
    "rollout_mse": ("progress error on rollouts with failures and drops (MSE)", "at most .006"),
    "state_only_mse": ("the same by heads that see proprioception alone", ""),
    "images_only_mse": ("the same by heads that see images alone", ""),
    "success_auc": ("success from the final progress (ROC-AUC)", "at least .975"),
    "ranking": ("ranking of failure, partial success, success (tau)", "at least .85"),
    "drop_recall": ("drops noticed within 1.2 s", "at least .85"),
    "false_drop_rate": ("clean demonstrations with a false drop", "at most .02"),
    "jitter": ("jitter of the curve (sd)", "at most .015"),
    "primitive_accuracy_demo": ("primitive accuracy on demonstrations", "at least .96"),
    "primitive_accuracy": ("the same on uneven ones alone", ""),
    "rollout_primitive_accuracy_without_null": ("the same on rollouts, without null frames", "at least .85"),
    "segment_f1": ("segments of demonstrations (F1@.5)", "at least .88"),
    "ece": ("calibration error of the confidence (ECE)", "at most .04"),
    "interval_coverage_demo": ("coverage of the 90 % interval, demonstrations", "contains .9"),
    "interval_coverage_rollout": ("the same, rollouts", "contains .9"),
    "interval_width_demo": ("mean width of that interval, demonstrations", "at most .2"),
    "interval_width_rollout": ("the same, rollouts", "at most .2"),
}
"""What is shown of each metric, and what the benchmark asks of it."""


def number(value: float) -> str:
    """Three significant digits, without a leading zero."""
    text = f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
    return text.removeprefix("0")


def reached(cell: dict[str, float], aim: str) -> bool:
    """Whether a metric is what is asked of it."""
    kind, bar = aim.rsplit(" ", 1)
    if kind == "contains":
        return cell["low"] <= float(bar) <= cell["high"]
    return cell["value"] <= float(bar) if kind == "at most" else cell["value"] >= float(bar)


def render() -> str:
    """The block between the markers."""
    numbers = json.loads(EVALUATION.read_text())
    lines = ["| | ten tasks | 95 % interval | n | asked | all fifteen |", "|---|---|---|---|---|---|"]
    for key, (label, aim) in ROWS.items():
        cell, all_tasks = numbers["benchmark"][key], numbers["overall"][key]
        between = f"{number(cell['low'])} to {number(cell['high'])}"
        asked = aim if not aim or reached(cell, aim) else f"{aim}: **missed**"
        lines.append(
            f"| {label} (`{key}`) | **{number(cell['value'])}** | {between} | {cell['n']} | {asked} "
            f"| {number(all_tasks['value'])} |"
        )
    return BEGIN + "\n".join(lines) + "\n" + END


def block_of(readme: str) -> str:
    """The block as the README has it. Raises ValueError without the markers."""
    return readme[readme.index(BEGIN) : readme.index(END) + len(END)]


if __name__ == "__main__":
    target = ROOT / "README.md"
    text = target.read_text()
    target.write_text(text.replace(block_of(text), render()))
