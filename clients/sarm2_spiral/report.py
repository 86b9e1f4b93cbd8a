"""What a run came to: report.json, report.html, pictures, and films of the first and the last policy.

The report knows what the loop never did, the simulator's verdict. Where progress at the end rises from round
to round and success does not, the policy has learned to please the reward model: that is reward hacking.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.rabc import gains
from sarm2_spiral.decision import load_decision
from sarm2_spiral.evaluation import success_rate
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.replay import DONE_ABOVE
from sarm2_spiral.residual_update import FIGURES
from sarm2_spiral.rewards import rewards, smoothing
from sarm2_spiral.rows import rows_of
from sarm2_spiral.targets import Float32Array, smoothed
from sarm2_spiral.wilson import Rate

HONEST = (
    "The loop itself sees final progress alone. Success stands beside it to watch for reward hacking: final "
    "progress that rises while success does not, and failures that end as if they were done."
)
CONTROL = "A control: progress, and what is deployed, come from the reward above and not from the service."

BLUE, GREEN, RED, GREY, INK = "#2563eb", "#16a34a", "#dc2626", "#9aa5b4", "#1c2430"


@dataclass(frozen=True)
class Collected:
    """Rollouts of a round: those that could be scored, with their progress by the run's reward, and the
    simulator's verdict."""

    name: str
    curves: list[Float32Array]
    successes: list[bool]

    @property
    def finals(self) -> list[float]:
        """Progress of each at the end."""
        return [float(curve_T[-1]) for curve_T in self.curves]

    @property
    def auc(self) -> float | None:
        """ROC-AUC of final progress against success; None without both kinds."""
        return rank_auc(self.finals, self.successes)

    @property
    def final_progress(self) -> float:
        """Mean progress at the end."""
        return float(np.mean([curve_T[-1] for curve_T in self.curves]))

    @property
    def success(self) -> float:
        """Share of successes."""
        return float(np.mean(self.successes))

    @property
    def believed_failures(self) -> float | None:
        """Share of the failures that end as if they were done (above `DONE_ABOVE`); None without failures."""
        ends = believed(self.finals, self.successes)
        return float(np.mean(ends)) if ends else None

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "rollouts": len(self.curves),
            "finals": [round(final, 4) for final in self.finals],
            "successes": self.successes,
            "final_progress": self.final_progress,
            "success": self.success,
            "success_auc": self.auc,
            "believed_failures": self.believed_failures,
        }


def believed(finals: Sequence[float], successes: Sequence[bool]) -> list[bool]:
    """Of every failure, whether it ends as if it were done."""
    return [final > DONE_ABOVE for final, success in zip(finals, successes, strict=True) if not success]


def rank_auc(scores: Sequence[float], positives: Sequence[bool]) -> float | None:
    """The chance that a positive has the higher score than a negative, ties half; None without both kinds."""
    score, positive = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    if positive.all() or not positive.any():
        return None
    difference = score[positive][:, None] - score[~positive][None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def collected(run: SpiralFolder, number: int) -> Collected:
    """The rollouts of a round."""
    root = run.round(number) / "rollouts"
    verdicts = [bool(episode.success) for episode in open_dataset(root, pictures=False)]
    curves = rewards(run, root)
    return Collected(f"round {number}", list(curves.values()), [verdicts[place] for place in curves])


def success_by_step(run: SpiralFolder) -> dict[str, Rate]:
    """Success of every policy that was evaluated, in order."""
    names = ["given", "bc", "offline", *(f"round{number}" for number in range(1, run.config.loop.rounds + 1))]
    plan = run.evaluation_plan(run.config.loop.evaluation)
    found = {name: success_rate(run.evaluation(name), plan) for name in names}
    return {name: rate for name, rate in found.items() if rate.trials}


def rounds_through(run: SpiralFolder) -> int:
    """How many rounds are decided."""
    return sum(run.decision(number).exists() for number in range(1, run.config.loop.rounds + 1))


def write_report(run: SpiralFolder, seconds: dict[str, float], films: dict[str, Path]) -> Path:
    """Make every file of the report, of what is through so far.

    Args:
        seconds: what each stage took.
        films: by caption, inside the report's folder.
    """
    run.report.mkdir(parents=True, exist_ok=True)
    steps = success_by_step(run)
    rounds = range(1, rounds_through(run) + 1)
    parts = [collected(run, number) for number in rounds]
    decisions = [vars(load_decision(run, number)) for number in rounds]
    draw_success(steps, run.report / "success.png")
    if parts:
        draw_curves(parts, run.report / "curves.png")
    draw_gains(
        run,
        {"demonstrations": [*rewards(run, run.demos).values()], **{p.name: p.curves for p in parts}},
        run.report / "gains.png",
    )
    draw_updates(run, rounds, run.report / "updates.png")
    draw_advantages(run, dict(zip(rounds, parts, strict=True)), run.report / "advantages.png")
    content = {
        "settings": run.settings(),
        "seconds": seconds,
        "success": {name: rate.as_json() for name, rate in steps.items()},
        "rounds": [part.as_json() | decision for part, decision in zip(parts, decisions, strict=True)],
    }
    if run.first_model.exists() and run.adapted:
        content["adaptation"] = json.loads(run.adaptation.read_text())
    (run.report / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (run.report / "report.html").write_text(page(run, content, films))
    return run.report


def draw_success(steps: dict[str, Rate], path: Path) -> None:
    """A bar a policy, with Wilson's interval."""
    figure, (axes,) = blank_axes(6.5, 3.4)
    places = np.arange(len(steps))
    values = [rate.value for rate in steps.values()]
    axes.bar(places, values, color=BLUE, width=0.6, alpha=0.85)
    axes.errorbar(places, values, yerr=whiskers(list(steps.values())), fmt="none", ecolor=INK, capsize=4)
    for place, rate in zip(places, steps.values(), strict=True):
        axes.text(place, min(rate.high + 0.02, 1.02), f"{rate.value:.0%}", ha="center", color=INK)
    axes.set_xticks(places, [f"{name}\nn={rate.trials}" for name, rate in steps.items()])
    axes.set_ylim(0, 1.1)
    axes.set_ylabel("success")
    figure.savefig(path, dpi=130)


def draw_curves(parts: Sequence[Collected], path: Path) -> None:
    """Progress over time of every rollout of a round: green where the simulator says success."""
    figure, axes = blank_axes(3.2 * len(parts) + 0.8, 3.0, len(parts))
    for place, part in zip(axes, parts, strict=True):
        for curve_T, success in zip(part.curves, part.successes, strict=True):
            place.plot(curve_T, color=GREEN if success else RED, alpha=0.35, lw=1)
        place.set_title(f"{part.name}: {np.mean(part.successes):.0%} with exploration", fontsize=10)
        place.set_ylim(-0.02, 1.02)
        place.set_xlabel("frame")
    axes[0].set_ylabel("progress")
    figure.savefig(path, dpi=130)


def draw_gains(run: SpiralFolder, by_name: dict[str, list[Float32Array]], path: Path) -> None:
    """Histograms of what frames gain: the advantages by which frames are cloned."""
    loop, deviation = run.config.loop, smoothing(run)
    figure, (axes,) = blank_axes(6.5, 3.2)
    bins = np.linspace(-0.5, 0.6, 56)
    for name, found in by_name.items():
        smooth = [smoothed(curve_T, deviation) for curve_T in found]
        gain_N = np.concatenate([gains(curve_T, loop.gain_frames) for curve_T in smooth])
        axes.hist(np.clip(gain_N, -0.5, 0.6), bins=bins, histtype="step", density=True, label=name, lw=1.6)
    axes.axvline(loop.kappa, color=GREY, ls="--", lw=1, label="full weight")
    axes.set_xlabel(f"gain of progress over {loop.gain_frames} frames")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def draw_updates(run: SpiralFolder, rounds: Iterable[int], path: Path) -> None:
    """How the updates went, step by step; nothing where no critics learned."""
    by_round = {number: rows for number in rounds if (rows := list(rows_of(run.losses(number))))}
    if not by_round:
        return
    shown = ("critic_loss", "value", "residual")
    figure, axes = blank_axes(10.4, 2.8, len(shown), sharey=False)
    for place, name in zip(axes, shown, strict=True):
        lowest = 0.0
        for number, rows in by_round.items():  # one that made up for another's updates begins where that did
            told = sorted((row["step"], row[name]) for row in rows if name in row)
            place.plot(*zip(*told, strict=True), lw=1.4, marker=".", label=f"round {number}")
            lowest = min([lowest, *(value for _, value in told)])
        place.set_title(FIGURES[name], fontsize=9)
        place.set_xlabel("update")
        place.set_ylim(bottom=1.05 * lowest)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def draw_advantages(run: SpiralFolder, parts: dict[int, Collected], path: Path) -> None:
    """Histograms of what the critics think of every round's rollouts, green and red as the simulator says;
    nothing where no critics learned, or where another model has scored other rollouts since."""
    kept = {number: np.load(place) for number in parts if (place := run.advantages(number)).exists()}
    found = {n: one_T for n, one_T in kept.items() if len(one_T) == sum(map(len, parts[n].curves))}
    if not found:
        return
    figure, axes = blank_axes(3.2 * len(found) + 0.8, 2.8, len(found))
    reach = max(
        float(np.abs(np.quantile(advantage_T, (0.005, 0.995))).max()) for advantage_T in found.values()
    )
    bins = np.linspace(-reach, reach, 61) if reach > 0 else 1
    for place, (number, advantage_T) in zip(axes, found.items(), strict=True):
        part = parts[number]
        success_T = np.repeat(part.successes, [len(curve_T) for curve_T in part.curves])
        for colour, chosen_T in ((GREEN, success_T), (RED, ~success_T)):
            clipped = np.clip(advantage_T[chosen_T], -reach, reach)
            place.hist(clipped, bins=bins, histtype="step", color=colour, lw=1.6)
        place.axvline(0, color=GREY, ls="--", lw=1)
        place.set_title(part.name, fontsize=10)
        place.set_xlabel("advantage")
        place.locator_params(axis="x", nbins=5)
    axes[0].set_ylabel("frames")
    figure.savefig(path, dpi=130)


def whiskers(rates: Sequence[Rate]) -> list[list[float]]:
    """How far the intervals reach below and above their rates, (2, rates), as matplotlib takes it."""
    return [[rate.value - rate.low for rate in rates], [rate.high - rate.value for rate in rates]]


def blank_axes(
    width: float, height: float, columns: int = 1, rows: int = 1, *, sharey: bool = True
) -> tuple[Any, Any]:
    """A figure of so many inches, and its panels row by row, (rows * columns,), by default with a common y
    axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for place in axes:
        place.spines[["top", "right"]].set_visible(False)
    return figure, axes


def page(run: SpiralFolder, content: dict[str, Any], films: dict[str, Path]) -> str:
    """The report as a page that needs nothing but the files beside it."""
    success = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{rate['value']:.1%}</td>"
        f"<td>{rate['low']:.1%} to {rate['high']:.1%}</td><td>{rate['n']}</td></tr>"
        for name, rate in content["success"].items()
    )
    rounds = "".join(
        f"<tr><td>{number}</td><td>{row['final_progress']:.3f}</td><td>{row['success']:.0%}</td>"
        f"<td>{'' if row['success_auc'] is None else format(row['success_auc'], '.3f')}</td>"
        f"<td>{'' if row['believed_failures'] is None else format(row['believed_failures'], '.0%')}</td>"
        f"<td>{row['before']:.3f} &rarr; {row['after']:.3f}</td>"
        f"<td>{'deployed' if row['deployed'] else 'not deployed'}</td></tr>"
        for number, row in enumerate(content["rounds"], 1)
    )
    shown = "".join(
        f"<figure><video src='{html.escape(path.name)}' controls loop muted></video>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, path in films.items()
    )
    gains_caption = f"What frames gain; reward: {run.reward}"
    if run.reward not in ("uniform", "success"):  # these weigh all frames of an episode alike
        gains_caption += ". Frames that stay done weigh fully, too"
    pictures = "".join(
        f"<figure><img src='{name}.png' alt='{caption}'><figcaption>{caption}</figcaption></figure>"
        for name, caption in (
            ("success", "Success on the same fresh scenes, 95 % Wilson intervals"),
            ("curves", "Rollouts that the loop learned from; green: the simulator says success"),
            ("gains", gains_caption),
            ("updates", "How the updates of the rounds went"),
            (
                "advantages",
                "By how much what was done beats the updated policy's chunks in the mean, in units of "
                "progress, as its critics judge; frames of successes green, of failures red",
            ),
        )
        if (run.report / f"{name}.png").exists()
    )
    adapted = _adaptation(content["adaptation"]) if "adaptation" in content else ""
    minutes = {name: seconds / 60 for name, seconds in content["seconds"].items()}
    took = ", ".join(f"{html.escape(name)} {value:.1f}" for name, value in minutes.items())
    policy = run.given or f"{run.kind} policy"
    through, whole = len(content["rounds"]), run.config.loop.rounds
    so_far = f"<p>So far: round {through} of {whole} is through.</p>" if through < whole else ""
    title = f"SPIRAL: {run.task}, {policy}, {run.updater}, reward {run.reward}, seed {run.seed}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; max-width: 60rem; margin: 2rem auto }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #e4e8ee; text-align: left }}
figure {{ margin: 1.5rem 0 }} img, video {{ max-width: 100% }} figcaption {{ color: #6b7686 }}
</style></head><body>
<h1>{html.escape(title)}</h1>
{so_far}
<h2>Success</h2>
<table><tr><th>policy</th><th>success</th><th>95 % interval</th><th>episodes</th></tr>{success}</table>
{pictures}
<h2>Rounds</h2>
<p>{HONEST if run.reward == "service" else CONTROL}</p>
<table><tr><th>round</th><th>final progress</th><th>success</th><th>ROC-AUC</th>
<th>failures taken for done</th><th>deployed &rarr; candidate</th><th></th></tr>{rounds}</table>
{adapted}
{f"<h2>Films</h2>{shown}" if shown else ""}
<h2>Time</h2>
<p>{sum(minutes.values()):.1f} minutes: {took}.</p>
</body></html>
"""


def _adaptation(report: dict[str, Any]) -> str:
    """The reward model before and after, on the same held-out episodes."""
    rows = "".join(
        f"<tr><td>{html.escape(metric)}</td><td>{_estimate(before)}</td>"
        f"<td>{_estimate(report['after'][metric])}</td><td>{before['n']}</td></tr>"
        for metric, before in report["before"].items()
    )
    return f"""<h2>Adaptation</h2>
<p>The reward model, adapted to {report["rollouts"]["learned"]} rollouts of the first policy, on episodes that
were held out.</p>
<table><tr><th></th><th>before</th><th>after</th><th>n</th></tr>{rows}</table>"""


def _estimate(found: dict[str, Any]) -> str:
    value, low, high = (found[name] for name in ("value", "low", "high"))
    if value is None:
        return ""
    return f"{value:.4f}" if low is None else f"{value:.4f} ({low:.4f} to {high:.4f})"
