"""Adaptation: a trained model goes on learning from labelled rollouts of the policy that it will judge.

RM1 becomes RM2: both heads are trained on from where they are, half of the windows from the rollouts and
half from episodes of the kind that RM1 was trained on, so that nothing is forgotten. The encoder stays
frozen. Every `HELD_OUT`-th episode of both is kept back: half of those calibrate RM2 anew, the other half
measure both.

Shapes: T frames, N episodes.
"""

from __future__ import annotations

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
from sarm2_models.checkpoint import default_bundle, load_bundle, save_bundle
from sarm2_models.estimate import Estimate
from sarm2_models.metrics import evaluate
from sarm2_models.reward_model import RewardModel
from sarm2_models.train.calibrate import calibrate, predict
from sarm2_models.train.corpus import Corpus, index_dataset, load_corpus
from sarm2_models.train.embed import embed_shard, load_embeddings
from sarm2_models.train.heads import Texts, predict_logits, train_stage, train_value
from sarm2_models.train.jobs import Ticker
from sarm2_models.train.ladder import mean_demo_frames, scored_episodes
from sarm2_models.train.loop import Tick, silent
from sarm2_models.train.plan import HeadPlan
from sarm2_models.train.report import draw_adaptation
from sarm2_models.train.variants import Heads
from sarm2_models.train.windows import Frames, hints_of
from sarm2_models.window import BoolArray, Float16Array, Float32Array, IntArray
from sarm2_rollouts.episode_scorer import model_name
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.rollout_marks import as_marked
from sarm2_rollouts.run_record import RunRecord

Labels: TypeAlias = Literal["exact", "marks"]

HELD_OUT = 4
PARTS = ("rollouts", "training")
"""The two datasets, in the order in which they are read."""
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

PLAN = HeadPlan(
    stage_steps=300,
    value_steps=400,
    stage_learning_rate=2e-4,
    value_learning_rate=3e-4,
    wrong_instruction=0.0,
)
"""Short, and slower than from nothing: both heads are good already."""


@dataclass(frozen=True)
class Part:
    """A dataset as arrays: episodes to learn from, to calibrate on and to measure on."""

    corpus: Corpus
    frames: Frames

    def only(self, chosen_N: BoolArray) -> Part:
        """Some of the episodes."""
        return Part(self.corpus.only(chosen_N), self.frames.only(chosen_N, self.corpus.length_N))

    def as_marked(self) -> Part:
        """The same with the progress that a person's marks would give every episode."""
        corpus = self.corpus
        curves = [
            as_marked(corpus.progress_T[corpus.frames(number)], corpus.fps)
            for number in range(corpus.episodes)
        ]
        progress_T = np.concatenate(curves) if curves else corpus.progress_T
        return Part(replace(corpus, progress_T=progress_T), replace(self.frames, progress_T=progress_T))

    @staticmethod
    def joined(parts: Sequence[Part]) -> Part:
        """Several, one after the other."""
        return Part(
            Corpus.joined([part.corpus for part in parts]), Frames.joined([part.frames for part in parts])
        )


def adapt(
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    *,
    rollout_count: int | None = None,
    labels: Labels = "exact",
    plan: HeadPlan = PLAN,
    seed: int = 0,
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
            (`rollout_marks`), which is coarser and names no primitives: the stage estimator then stays as it
            is. What measures is the truth either way.
        plan: of both heads.

    Returns the report: both models on held-out rollouts and training episodes.

    Raises InvalidInput for datasets without labels or with too few episodes, and as `check_out` does.
    """
    check_out(out, bundle)
    model = load_bundle(bundle)
    options = Options(rollout_count, labels, plan, seed)
    work = _work(out, model, [rollouts, training], options)
    counts = [] if rollout_count is None else [rollout_count]
    parts = _parts(model, rollouts, training, work, counts, "count", tick)
    report, after, fitted = _learn(model, parts, work, options, tick)
    _save(out, model, after, fitted, report)
    shutil.rmtree(work)
    return report


def adapt_curve(
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    counts: Sequence[int],
    *,
    labels: Labels = "exact",
    plan: HeadPlan = PLAN,
    seed: int = 0,
    tick: Tick = silent,
) -> dict[str, Any]:
    """How the errors fall with the number of rollouts that are learned from; no bundle is written.

    Arguments and errors as `adapt` has them. `out` gets `curve.json` (`curve.COUNT.METRIC.{value, low, high,
    n}`, with RM1 under 0) and `curve.png`. Calibration always has all rollouts that are held out for it.

    Raises InvalidInput for a count that the dataset does not hold.
    """
    check_out(out, bundle)
    model = load_bundle(bundle)
    work = _work(out, model, [rollouts, training], Options(None, labels, plan, seed))
    parts = _parts(model, rollouts, training, work, counts, "curve", tick)
    curve: dict[str, Any] = {}
    for count in sorted(counts):
        options = Options(count, labels, plan, seed)
        report, _, _ = _learn(model, parts, work / str(count), options, tick)
        curve |= {"0": report["before"], str(count): report["after"]}
    content = {"adapted_from": report["adapted_from"], "labels": labels, "curve": curve}
    out.mkdir(parents=True, exist_ok=True)
    (out / "curve.json").write_text(json.dumps(content, indent=1) + "\n")
    draw_adaptation(curve, out / "curve.png")
    shutil.rmtree(work)
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


@dataclass(frozen=True)
class Options:
    """How RM1 learns on; see `adapt`."""

    rollout_count: int | None
    labels: Labels
    plan: HeadPlan
    seed: int


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
    if not record.whole:
        shutil.rmtree(work, ignore_errors=True)
        record.open(resume=False)
    return work


def _parts(
    model: RewardModel,
    rollouts: Path,
    training: Path,
    work: Path,
    counts: Sequence[int],
    field: str,
    tick: Tick,
) -> list[Part]:
    """Both datasets; whether they hold what is asked for is checked before anything is embedded."""
    roots = dict(zip(PARTS, (rollouts, training), strict=True))
    tasks = _tasks(list(roots.values()))
    corpora = {name: _indexed(model, root, work / name, tasks) for name, root in roots.items()}
    for name, corpus in corpora.items():
        _check_episodes(name, corpus)
    _check_counts(counts, corpora[PARTS[0]], field)
    return [_embedded(model, corpus, work / name, tick) for name, corpus in corpora.items()]


def _learn(
    model: RewardModel, parts: Sequence[Part], work: Path, options: Options, tick: Tick
) -> tuple[dict[str, Any], Heads, Calibration]:
    """The report, RM2's heads, and their calibration."""
    learned, calibrated, measured = _split(parts, options.rollout_count)
    if options.labels == "marks":
        learned[0], calibrated[0] = learned[0].as_marked(), calibrated[0].as_marked()
    texts, plan, seed = (
        Texts(model.primitive_texts_PD, _instructions(model, parts)),
        options.plan,
        options.seed,
    )
    before = Heads(model.config, model.stage, model.value)
    mixed, hints_TH = _mixed(learned)
    stage = model.stage  # whoever marks progress names no primitives
    if options.labels == "exact":
        stage = train_stage(
            model.config, mixed, plan, work, seed=seed, hints_TH=hints_TH, initial=model.stage, tick=tick
        )
    predicted_T = predict_logits(stage, mixed).argmax(-1)
    value = train_value(
        model.config, mixed, texts, predicted_T, plan, work, seed=seed, initial=model.value, tick=tick
    )
    after = Heads(model.config, stage, value)
    held = Part.joined(calibrated)
    fitted = calibrate(after, held.frames, held.corpus, texts, model.vocabulary)
    report = {
        "adapted_from": model_name(model.model_id, model.version, model.weights_sha256),
        "labels": options.labels,
        "rollouts": {"learned": learned[0].corpus.episodes, "measured": measured[0].corpus.episodes},
        "training": {"learned": learned[1].corpus.episodes, "measured": measured[1].corpus.episodes},
        "before": _measure(before, measured, texts, model, model.calibration),
        "after": _measure(after, measured, texts, model, fitted),
    }
    return report, after, fitted


def adapt_job(
    ticker: Ticker,
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    count: int | None,
    labels: Labels,
    seed: int,
) -> None:
    """`adapt` in a child process, which has the right memory and thread settings."""
    adapt(bundle, rollouts, training, out, rollout_count=count, labels=labels, seed=seed, tick=ticker.tick)


def curve_job(
    ticker: Ticker,
    bundle: Path,
    rollouts: Path,
    training: Path,
    out: Path,
    counts: Sequence[int],
    labels: Labels,
    seed: int,
) -> None:
    """`adapt_curve` in a child process."""
    adapt_curve(bundle, rollouts, training, out, counts, labels=labels, seed=seed, tick=ticker.tick)


def _tasks(roots: Sequence[Path]) -> list[str]:
    names = {str(episode.task_name) for root in roots for episode in open_dataset(root, pictures=False)}
    return sorted(names)


def _indexed(model: RewardModel, root: Path, folder: Path, tasks: Sequence[str]) -> Corpus:
    """A dataset without its pictures' embeddings; kept for a second start."""
    if not (folder / "meta.json").exists():
        index_dataset(root, folder, model.vocabulary, tasks)
    return load_corpus(folder)


def _embedded(model: RewardModel, corpus: Corpus, folder: Path, tick: Tick) -> Part:
    """The same with them; kept as well."""
    path, done = folder / "embeddings.npy", 0

    def told(frames: int) -> None:
        nonlocal done
        done += frames
        tick(done, len(corpus), f"embedding {folder.name}")

    embed_shard(corpus, model.encoder, path, (0, len(corpus)), tick=told)
    state_TS = model.statistics.standardise(corpus.state_TS)
    return Part(corpus, Frames.of(corpus, load_embeddings([path]), state_TS, model.config.window))


def _split(parts: Sequence[Part], rollout_count: int | None) -> tuple[list[Part], list[Part], list[Part]]:
    learned, calibrated, measured = [], [], []
    for place, part in enumerate(parts):
        held_N, turn_N = _held_out(part.corpus.kind_N)
        learn_N = ~held_N
        if place == 0 and rollout_count is not None:
            learn_N &= np.cumsum(learn_N) <= rollout_count
        learned.append(part.only(learn_N))
        calibrated.append(part.only(held_N & turn_N))
        measured.append(part.only(held_N & ~turn_N))
    return learned, calibrated, measured


def _check_episodes(name: str, corpus: Corpus) -> None:
    if _held_out(corpus.kind_N)[0].sum() < 2:
        raise InvalidInput(
            f"{name}: adaptation needs at least {2 * HELD_OUT} rollouts and as many episodes of the training "
            f"kind, got {corpus.episodes} here; record more",
            field=name,
        )


def _check_counts(counts: Sequence[int], rollouts: Corpus, field: str) -> None:
    most = int((~_held_out(rollouts.kind_N)[0]).sum())
    if max(counts, default=0) > most:
        raise InvalidInput(
            f"{field}: {max(counts)} rollouts to learn from, and {most} are there besides those held out; "
            f"ask for {most} at most, or record more",
            field=field,
        )


def _held_out(kind_N: IntArray) -> tuple[BoolArray, BoolArray]:
    """Every `HELD_OUT`-th episode of each kind, and those of them (every other one) that calibrate."""
    by_kind_N = np.argsort(kind_N, kind="stable")
    ranks = [np.arange(count) for count in np.unique(kind_N, return_counts=True)[1]]
    held_N, turn_N = np.zeros(len(kind_N), dtype=bool), np.zeros(len(kind_N), dtype=bool)
    held_N[by_kind_N] = np.concatenate(ranks) % HELD_OUT == HELD_OUT - 1
    turn_N[by_kind_N] = np.cumsum(held_N[by_kind_N]) % 2 == 1
    return held_N, turn_N


def _instructions(model: RewardModel, parts: Sequence[Part]) -> Float16Array:
    """The embedding of every task's instruction, from the part that has the task."""
    found = list(parts[0].corpus.instructions)
    for part in parts:
        for task in np.unique(part.corpus.task_N):
            found[task] = part.corpus.instructions[task]
    return np.stack([model.instruction(text)[0] for text in found])


def _mixed(parts: Sequence[Part]) -> tuple[Frames, Float32Array]:
    """All frames, half of the weight on each part that has any, and the stage estimator's hints."""
    joined = Part.joined(parts)
    shares = [np.full(len(part.frames), 1 / max(1, len(part.frames))) for part in parts]
    weight_T = np.concatenate(shares)
    frames = replace(joined.frames, weight_T=weight_T / weight_T.sum())
    return frames, hints_of(joined.corpus)


def _measure(
    heads: Heads, parts: Sequence[Part], texts: Texts, model: RewardModel, rules: Calibration
) -> dict[str, dict[str, float | int | None]]:
    """Both kinds together: demonstrations and rollouts of whichever dataset."""
    joined, words = Part.joined(parts), model.vocabulary
    corpus = joined.corpus
    said = predict(heads, joined.frames, texts, words, rules, corpus.source_T)
    means = mean_demo_frames(corpus)
    found: dict[str, Estimate] = evaluate(
        scored_episodes(corpus, said, means), words.group_of_primitive, words.null_index
    )
    return {metric: found[metric].as_json() for metric in METRICS}


def _save(out: Path, model: RewardModel, heads: Heads, fitted: Calibration, report: dict[str, Any]) -> None:
    adapted = RewardModel(
        model.config,
        model.encoder,
        heads.stage,
        heads.value,
        model.statistics,
        vocabulary=model.vocabulary,
        calibration=fitted,
        primitive_texts_PD=model.primitive_texts_PD,
        instructions=model.instructions,
        instruction_texts_ND=model.instruction_texts_ND,
        model_id=model.model_id,
        version=f"{model.version}+{report['rollouts']['learned']}rollouts",
    )
    with torch.no_grad():
        reports = {"adaptation.json": report}
        save_bundle(out, adapted, adapted_from=report["adapted_from"], reports=reports)
