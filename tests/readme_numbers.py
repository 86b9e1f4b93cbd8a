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
    "demo_mse": ("progress error on uneven demonstrations (MSE)", "at most .004"),
    "clock_mse": ("the same by the clock, t / mean duration", ""),
    "constant_mse": ("the same by a constant", ""),
    "rollout_mse": ("progress error on rollouts with failures and drops (MSE)", "at most .010"),
    "state_only_mse": ("the same by heads that see proprioception alone", ""),
    "images_only_mse": ("the same by heads that see images alone", "below proprioception"),
    "drop_recall": ("drops noticed within 1.2 s", "at least .8"),
    "false_drop_rate": ("clean demonstrations with a false drop", "at most .02"),
    "jitter": ("jitter of the curve (sd)", "at most .02"),
    "primitive_accuracy": ("primitive accuracy on demonstrations", "at least .94"),
    "success_auc": ("success from the final progress (ROC-AUC)", "at least .96"),
    "ece": ("calibration error of the confidence (ECE)", ""),
    "interval_coverage": ("coverage of the 90 % interval", ".90"),
    "interval_width": ("mean width of that interval", ""),
}


def number(value: float) -> str:
    """Three significant digits, without a leading zero."""
    text = f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
    return text.removeprefix("0")


def render() -> str:
    """The block between the markers."""
    overall = json.loads(EVALUATION.read_text())["overall"]
    lines = ["| | value | 95 % interval | episodes | aim |", "|---|---|---|---|---|"]
    for key, (label, aim) in ROWS.items():
        cell = overall[key]
        between = f"{number(cell['low'])} to {number(cell['high'])}"
        lines.append(f"| {label} (`{key}`) | **{number(cell['value'])}** | {between} | {cell['n']} | {aim} |")
    return BEGIN + "\n".join(lines) + "\n" + END


def block_of(readme: str) -> str:
    """The block as the README has it. Raises ValueError without the markers."""
    return readme[readme.index(BEGIN) : readme.index(END) + len(END)]


if __name__ == "__main__":
    target = ROOT / "README.md"
    text = target.read_text()
    target.write_text(text.replace(block_of(text), render()))
