"""Adaptation: a trained model goes on learning from labelled rollouts of the policy that it will judge.

RM1 becomes RM2: both heads are trained on from where they are, half of the windows from the rollouts and
half from episodes of the kind that RM1 was trained on, so that nothing is forgotten. The encoder stays
frozen. Episodes of both that are kept back calibrate RM2 anew and measure both (`adaptation_parts`).

Shapes: T frames, N episodes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from sarm2_client.errors import InvalidInput
from sarm2_models.calibration import Calibration
from sarm2_models.checkpoint import default_bundle, load_bundle, may_replace, save_bundle
from sarm2_models.device import check_device
from sarm2_models.estimate import Estimate, Floats
from sarm2_models.metrics import evaluate
from sarm2_models.reward_model import RewardModel
from sarm2_models.train.adaptation_parts import PARTS, Part, load_parts, mixed, split
from sarm2_models.train.calibrate import calibrate, predict
from sarm2_models.train.heads import Texts, predict_logits, train_stage, train_value
from sarm2_models.train.jobs import Ticker
from sarm2_models.train.ladder import mean_demo_frames, scored_episodes
from sarm2_models.train.loop import Tick, silent
from sarm2_models.train.plan import HeadPlan
from sarm2_models.train.report import draw_adaptation
from sarm2_models.train.variants import Heads
from sarm2_models.window import Float16Array
from sarm2_rollouts.episode_scorer import model_name
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.run_record import RunRecord, hold

Labels: TypeAlias = Literal["exact", "marks"]

METRICS = (
    "demo_mse",
    "rollout_mse",
    "policy_mse",
    "primitive_accuracy",
    "success_auc",
    "ece",
    "interval_coverage",
    "interval_width",
)

ERRORS = ("demo_mse", "rollout_mse", "policy_mse")
"""Metrics of which the adapted model's is also told over the first one's, paired by episode."""

PLAN = HeadPlan(
    stage_steps=300,
    value_steps=800,
    stage_learning_rate=2e-4,
    value_learning_rate=5e-4,
    error="cross_entropy",
    wrong_instruction=0.0,
)
"""Short, and slower than from nothing: both heads are good already. The cross entropy, since policies that
learn from their rewards end ever more rollouts nearly done."""


def plan_of(steps: int | None) -> HeadPlan:
    """`PLAN` with so many steps of the value decoder, and the stage estimator's in proportion."""
    if steps is None:
        return PLAN
    share = steps / PLAN.value_steps
    return replace(PLAN, value_steps=steps, stage_steps=max(1, round(share * PLAN.stage_steps)))


def adapt(
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    *,
    rollout_count: int | None = None,
    labels: Labels = "exact",
    marks: Path | None = None,
    plan: HeadPlan = PLAN,
    seed: int = 0,
    device: str = "cpu",
    tick: Tick = silent,
) -> dict[str, Any]:
    """Make RM2 from RM1.

    Args:
        bundle: RM1; it is left as it is.
        rollouts, training: labelled LeRobot datasets: of the policy's rollouts, and of the kind of episodes
            that RM1 was trained on.
        out: RM2's bundle; a report lies in its `report/adaptation.json`.
        rollout_count: learn from the first so many rollouts alone, for curves; by default from all that are
            not held out.
        labels: how rollouts are labelled for RM2: by their own true progress, or as a person would mark them
            (`simulated_marks`), which is coarser and names no primitives: the stage estimator, its
            temperature and its rule then stay as they are, and its own primitives go with the marks. What
            measures is the truth either way.
        marks: a person's own, of every rollout (`marks_file`); by default they are worked out from the truth.
        plan: of both heads.
        device: where pictures are embedded and the heads learn; one that was killed may go on with another.

    Returns the report: both models on held-out rollouts and training episodes.

    Raises InvalidInput for datasets without labels or with too few episodes, and as `check_out` and
    `check_replaced` do.
    """
    check_out(out, bundle)
    check_replaced(out)
    model = _loaded(bundle, device)
    options = Options(rollout_count, labels, plan, seed, _digest(marks, labels))
    work = _work(out, model, [rollouts, training], options)
    counts = [] if rollout_count is None else [rollout_count]
    parts = load_parts(model, rollouts, training, work, counts, "count", device, tick, marks)
    adapted = _learn(model, parts, work, options, tick)
    _save(out, model, adapted, parts[0].corpus.instructions)
    shutil.rmtree(work)
    return adapted.report()


def adapt_curve(
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    counts: Sequence[int],
    *,
    labels: Labels = "exact",
    marks: Path | None = None,
    plan: HeadPlan = PLAN,
    seed: int = 0,
    device: str = "cpu",
    tick: Tick = silent,
) -> dict[str, Any]:
    """How the errors fall with the number of rollouts that are learned from; no bundle is written.

    Arguments and errors as `adapt` has them. `out` gets `curve.json` (`curve.COUNT.METRIC.{value, low, high,
    n}`, with RM1 under 0, and `change.COUNT.METRIC`, over RM1's), `curve.png`, and `draws.npz`, which makes a
    mean over several policies possible: `COUNT/METRIC` of `ERRORS`, the metric on each of the bootstrap's
    draws of episodes. Calibration always has all rollouts that are held out for it.

    Raises InvalidInput for a count that the dataset does not hold.
    """
    check_out(out, bundle)
    model = _loaded(bundle, device)
    options = Options(None, labels, plan, seed, _digest(marks, labels))
    work = _work(out, model, [rollouts, training], options)
    parts = load_parts(model, rollouts, training, work, counts, "curve", device, tick, marks)
    by_count = {
        count: _learn(model, parts, work / str(count), replace(options, rollout_count=count), tick)
        for count in sorted(counts)
    }
    content = _write_curve(by_count, labels, out)
    shutil.rmtree(work)
    return content


def _write_curve(by_count: dict[int, Adapted], labels: Labels, out: Path) -> dict[str, Any]:
    """`adapt_curve`'s files, and what `curve.json` says."""
    curve: dict[str, Any] = {}
    change: dict[str, Any] = {}
    draws: dict[str, Floats | None] = {}
    for count, adapted in by_count.items():
        report = adapted.report()
        curve |= {"0": report["before"], str(count): report["after"]}
        change[str(count)] = report["after_over_before"]
        for name, measured in (("0", adapted.before), (str(count), adapted.after)):
            draws |= {f"{name}/{metric}": measured[metric].samples for metric in ERRORS}
    content = {"adapted_from": report["adapted_from"], "labels": labels, "curve": curve, "change": change}
    out.mkdir(parents=True, exist_ok=True)
    (out / "curve.json").write_text(json.dumps(content, indent=1) + "\n")
    kept = {key: drawn for key, drawn in draws.items() if drawn is not None}
    np.savez(out / "draws.npz", allow_pickle=False, **kept)
    draw_adaptation(curve, out / "curve.png")
    return content


def check_out(out: Path, bundle: Path) -> None:
    """Raise InvalidInput where `out` is the folder of RM1 or of the shipped bundle: both are kept."""
    for kept, whose in ((bundle, "the model that is adapted"), (default_bundle(), "the shipped model")):
        if out.resolve() == kept.resolve():
            raise InvalidInput(
                f"--out {out}: {whose} lies there and is kept; choose another folder (a service that is to "
                "take the new model serves a copy: see `sarm2 adapt --help`)",
                field="out",
            )


def check_replaced(out: Path) -> None:
    """Raise InvalidInput where something else than a bundle lies at `out`, which would be replaced."""
    if not may_replace(out):
        raise InvalidInput(f"--out {out} exists and is no bundle; choose another folder", field="out")


@dataclass(frozen=True)
class Options:
    """How RM1 learns on; see `adapt`."""

    rollout_count: int | None
    labels: Labels
    plan: HeadPlan
    seed: int
    marks_sha256: str | None


@dataclass(frozen=True)
class Adapted:
    """RM2 beside RM1.

    Attributes:
        adapted_from: RM1's name.
        labels: as in `adapt`. marks_sha256: of the file of a person's own, if they were read from one.
        heads, calibration: RM2's.
        learned, measured: the episodes of each, those of rollouts first.
        before, after: RM1's and RM2's metrics on `measured`.
    """

    adapted_from: str
    labels: Labels
    marks_sha256: str | None
    heads: Heads
    calibration: Calibration
    learned: Sequence[int]
    measured: Sequence[int]
    before: dict[str, Estimate]
    after: dict[str, Estimate]

    def report(self) -> dict[str, Any]:
        """What RM2's bundle says of how it came about."""
        episodes = zip(PARTS, self.learned, self.measured, strict=True)
        return {
            "adapted_from": self.adapted_from,
            "labels": self.labels,
            "marks_sha256": self.marks_sha256,
            **{name: {"learned": learned, "measured": measured} for name, learned, measured in episodes},
            "before": {metric: self.before[metric].as_json() for metric in METRICS},
            "after": {metric: self.after[metric].as_json() for metric in METRICS},
            "after_over_before": {
                metric: self.after[metric].over(self.before[metric]).as_json() for metric in ERRORS
            },
        }


def _digest(marks: Path | None, labels: Labels) -> str | None:
    """The hash of a person's marks; None for a missing file, which `load_parts` tells of. Raises InvalidInput
    for marks that nothing would read."""
    if marks is None:
        return None
    if labels != "marks":
        raise InvalidInput(f"--marks {marks}: they go with --labels marks, got {labels}", field="marks")
    return hashlib.sha256(marks.read_bytes()).hexdigest() if marks.exists() else None


def _loaded(bundle: Path, device: str) -> RewardModel:
    """A model whose encoder is on a device; its heads come there with the frames that they learn from."""
    check_device(device)
    model = load_bundle(bundle, device)
    model.stage.cpu()
    model.value.cpu()
    return model


def _work(out: Path, model: RewardModel, roots: Sequence[Path], options: Options) -> Path:
    """The folder of what a killed adaptation left, if it was this one; emptied where it was another."""
    work = out.with_name(f".{out.name}.adapting")
    sizes = [(str(root.resolve()), open_dataset(root).frames) for root in roots]
    settings = {
        "model": model_name(model.model_id, model.version, model.weights_sha256),
        "datasets": [list(one) for one in sizes],
        "options": asdict(options),
    }
    record = RunRecord(work, settings)
    hold(work)
    if not record.whole:
        shutil.rmtree(work)
    record.open(resume=True)
    return work


def _learn(model: RewardModel, parts: Sequence[Part], work: Path, options: Options, tick: Tick) -> Adapted:
    """RM2: learned on, calibrated, and measured beside RM1."""
    learned, calibrated, measured = split(parts, options.rollout_count)
    marked = options.labels == "marks"
    if marked:
        learned[0], calibrated[0] = (
            part.as_marked(predict_logits(model.stage, part.frames).argmax(-1))
            for part in (learned[0], calibrated[0])
        )
    texts, plan, seed = (
        Texts(model.primitive_texts_PD, _embedded(model, parts[0].corpus.instructions)),
        options.plan,
        options.seed,
    )
    before = Heads(model.config, model.stage, model.value)
    frames, hints_TH = mixed(learned)
    stage = model.stage  # whoever marks progress names no primitives
    if not marked:
        stage = train_stage(
            model.config, frames, plan, work, seed=seed, hints_TH=hints_TH, initial=model.stage, tick=tick
        )
    predicted_T = predict_logits(stage, frames).argmax(-1)
    value = train_value(
        model.config, frames, texts, predicted_T, plan, work, seed=seed, initial=model.value, tick=tick
    )
    after = Heads(model.config, stage, value)
    held = Part.joined(calibrated)
    kept = model.calibration if marked else None
    fitted = calibrate(after, held.frames, held.corpus, texts, model.vocabulary, kept)
    return Adapted(
        model_name(model.model_id, model.version, model.weights_sha256),
        options.labels,
        options.marks_sha256,
        after,
        fitted,
        [part.corpus.episodes for part in learned],
        [part.corpus.episodes for part in measured],
        _measure(before, measured, texts, model, model.calibration),
        _measure(after, measured, texts, model, fitted),
    )


def adapt_job(
    ticker: Ticker,
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    count: int | None,
    labels: Labels,
    marks: Path | None,
    steps: int | None,
    seed: int,
    device: str,
) -> None:
    """`adapt` in a child process, which has the right memory and thread settings."""
    adapt(
        bundle,
        rollouts,
        training,
        out,
        rollout_count=count,
        labels=labels,
        marks=marks,
        plan=plan_of(steps),
        seed=seed,
        device=device,
        tick=ticker.tick,
    )


def curve_job(
    ticker: Ticker,
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    counts: Sequence[int],
    labels: Labels,
    marks: Path | None,
    steps: int | None,
    seed: int,
    device: str,
) -> None:
    """`adapt_curve` in a child process."""
    adapt_curve(
        bundle,
        rollouts,
        training,
        out,
        counts,
        labels=labels,
        marks=marks,
        plan=plan_of(steps),
        seed=seed,
        device=device,
        tick=ticker.tick,
    )


def _embedded(model: RewardModel, texts: Sequence[str]) -> Float16Array:
    return np.stack([model.instruction(text).embedding_D for text in texts])


def _measure(
    heads: Heads, parts: Sequence[Part], texts: Texts, model: RewardModel, rules: Calibration
) -> dict[str, Estimate]:
    """Both kinds together: demonstrations and rollouts of whichever dataset."""
    joined, words = Part.joined(parts), model.vocabulary
    corpus = joined.corpus
    said = predict(heads, joined.frames, texts, words, rules, corpus)
    means = mean_demo_frames(corpus)
    return evaluate(scored_episodes(corpus, said, means), words.group_of_primitive, words.null_index)


def _save(out: Path, model: RewardModel, adapted: Adapted, learned: Sequence[str]) -> None:
    """RM2's bundle: it knows the instructions that RM1 knew, and those that were learned."""
    instructions = [*model.instructions, *(text for text in learned if not model.instruction(text).known)]
    second = RewardModel(
        model.config,
        model.encoder,
        adapted.heads.stage,
        adapted.heads.value,
        model.statistics,
        vocabulary=model.vocabulary,
        calibration=adapted.calibration,
        primitive_texts_PD=model.primitive_texts_PD,
        instructions=instructions,
        instruction_texts_ND=_embedded(model, instructions),
        model_id=model.model_id,
        version=f"{model.version}+{adapted.learned[0]}rollouts",
    )
    with torch.no_grad():
        reports = {"adaptation.json": adapted.report()}
        save_bundle(out, second, adapted_from=adapted.adapted_from, reports=reports)
