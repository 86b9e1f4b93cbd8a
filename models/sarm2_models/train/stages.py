"""The work of each stage, as functions that child processes call. See `run` for the order."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from sarm2_models.calibration import Calibration
from sarm2_models.checkpoint import save_bundle
from sarm2_models.metrics import evaluate_by_task
from sarm2_models.reward_model import RewardModel
from sarm2_models.stage import StageEstimator
from sarm2_models.train.calibrate import Predictions, calibrate, predict
from sarm2_models.train.corpus import index_dataset
from sarm2_models.train.embed import embed_shard, shard_bounds
from sarm2_models.train.heads import predict_logits, train_stage, train_value
from sarm2_models.train.jobs import Ticker
from sarm2_models.train.label_check import (
    CheckedEpisode,
    Checker,
    agreement,
    load_checks,
    planned_checks,
    save_checks,
)
from sarm2_models.train.ladder import climb, mean_demo_frames, scored_episodes
from sarm2_models.train.layout import SHARDS, RunFolder
from sarm2_models.train.plan import SEED_BLOCKS, Split
from sarm2_models.train.report import draw_curves, draw_labels, draw_ladder
from sarm2_models.train.tower import train_tower
from sarm2_models.train.variants import (
    ABLATIONS,
    VARIANTS,
    Variant,
    load_module,
    save_ablations,
    save_module,
    variant_config,
)
from sarm2_models.train.windows import hints_of
from sarm2_rollouts.run_record import finished_stages

MODEL_ID = "sarm2-metaworld"


def labels(ticker: Ticker, run: RunFolder, tasks: Sequence[str], checker: Checker) -> None:
    """Label a few episodes of some tasks both ways; a task whose file is there is left as it is."""
    missing = [task for task in tasks if not run.labels(task).exists()]
    planned = [one for one in planned_checks(run.plan, run.tasks, run.seed) if one.task_name in missing]
    done = 0
    for task in missing:
        checked = []
        for one in (one for one in planned if one.task_name == task):
            checked.append(CheckedEpisode(one.kind, one.seed, checker(task, one.kind, one.seed)))
            done += 1
            ticker.tick(done, len(planned), task)
        save_checks(run.labels(task), checked)


def index(ticker: Ticker, run: RunFolder) -> None:
    """All datasets into flat arrays."""
    for number, split in enumerate(run.splits):

        def tick(done: int, total: int, split: Split = split, number: int = number) -> None:
            ticker.tick(number * total + done, len(run.splits) * total, split)

        if not (run.index(split) / "meta.json").exists():
            index_dataset(run.dataset(split), run.index(split), run.vocabulary, run.tasks, tick=tick)


def tower(ticker: Ticker, run: RunFolder) -> None:
    """Train and save the image tower."""
    if not (run.tower / "config.json").exists():
        encoder = train_tower(
            run.corpus("train"),
            run.vocabulary,
            run.plan.tower,
            run.root / "tower",
            seed=run.seed,
            tick=ticker.tick,
            device=run.device,
        )
        encoder.save(run.tower)


def embed(ticker: Ticker, run: RunFolder, shards: Sequence[int]) -> None:
    """Embed some of each split's shards."""
    encoder = run.load_encoder()
    corpora = {split: run.corpus(split) for split in run.splits}
    work = [
        (split, shard, shard_bounds(len(corpora[split]), SHARDS)[shard])
        for split in run.splits
        for shard in shards
    ]
    total, done = sum(stop - start for _, _, (start, stop) in work), 0

    def tick(frames: int) -> None:
        nonlocal done
        done += frames
        ticker.tick(done, total, "frames")

    for split, shard, bounds in work:
        embed_shard(corpora[split], encoder, run.shards(split)[shard], bounds, tick=tick)


def heads(ticker: Ticker, run: RunFolder, variant: Variant) -> None:
    """Train one variant: the stage estimator, then the value decoder on its predictions."""
    folder, plan = run.heads(variant), run.plan.heads
    if (folder / "value.safetensors").exists():
        return
    config, frames = variant_config(run.config, variant), run.frames(variant, "train")
    total = plan.stage_steps + plan.value_steps
    if not (folder / "stage.safetensors").exists():
        stage = train_stage(
            config,
            frames,
            plan,
            folder,
            seed=run.seed,
            hints_TH=hints_of(run.corpus("train")),
            tick=lambda done, _, note: ticker.tick(done, total, note),
        )
        save_module(folder / "stage.safetensors", stage)
    else:
        stage = load_module(folder / "stage.safetensors", StageEstimator(config))
    value = train_value(
        config,
        frames,
        run.texts(variant),
        predict_logits(stage, frames).argmax(-1),
        plan,
        folder,
        seed=run.seed,
        tick=lambda done, _, note: ticker.tick(plan.stage_steps + done, total, note),
    )
    save_module(folder / "value.safetensors", value)


def calibration(ticker: Ticker, run: RunFolder) -> None:
    """Fit and keep the model's calibration."""
    fitted = calibrate(
        run.load_heads("full"),
        run.frames("full", "calibration"),
        run.corpus("calibration"),
        run.texts("full"),
        run.vocabulary,
    )
    (run.root / "calibration.json").write_text(json.dumps(fitted.to_dict(), indent=1))
    ticker.tick(1, 1)


def bundle(ticker: Ticker, run: RunFolder) -> None:
    """Put the bundle together: model, calibration, and the blind heads beside it."""
    trained, texts = run.load_heads("full"), run.texts("full")
    model = RewardModel(
        run.config,
        run.load_encoder(),
        trained.stage,
        trained.value,
        run.statistics(),
        calibration=run.load_calibration(),
        primitive_texts_PD=texts.primitives_PD,
        instructions=run.corpus("train").instructions,
        instruction_texts_ND=texts.instructions_ND,
        model_id=MODEL_ID,
        version=f"{run.plan.name}-seed{run.seed}",
    )
    save_bundle(run.bundle, model, encoder_source=run.given.hub_name if run.given else None)
    blind = {variant: run.load_heads(variant) for variant in ABLATIONS}
    save_ablations(run.bundle, blind, mean_demo_frames(run.corpus("train")))
    ticker.tick(1, 1)


def report(ticker: Ticker, run: RunFolder) -> None:
    """Measure every rung on the validation episodes; write report.json and the pictures."""
    corpus, vocabulary = run.corpus("validation"), run.vocabulary
    fitted, means = run.load_calibration(), mean_demo_frames(run.corpus("train"))
    checks = {task: load_checks(run.labels(task)) for task in run.tasks}
    rungs: dict[str, Predictions] = {}
    for number, variant in enumerate(VARIANTS):
        rules = fitted if variant == "full" else Calibration()
        frames = run.frames(variant, "validation")
        rungs[variant] = predict(
            run.load_heads(variant), frames, run.texts(variant), vocabulary, rules, corpus
        )
        ticker.tick(number + 1, len(VARIANTS) + 2, variant)
    ladder = climb(corpus, rungs, means, vocabulary)
    blind = {str(name): rungs[name].progress_T for name in ABLATIONS}
    scored = scored_episodes(corpus, rungs["full"], means, blind)
    measured = evaluate_by_task(scored, vocabulary.group_of_primitive, vocabulary.null_index)
    run.report.mkdir(parents=True, exist_ok=True)
    draw_ladder(ladder, run.report / "ladder.png")
    draw_curves(scored, vocabulary, run.report / "curves.png")
    draw_labels(checks, run.report / "labels.png")
    content = {
        "settings": run.settings(),
        "seconds": finished_stages(run.root),
        "seed_blocks": {split: list(SEED_BLOCKS[split]) for split in run.splits},
        "data": {split: split_size(run, split) for split in run.splits},
        "labels": {task: agreement(checked) for task, checked in checks.items()},
        "calibration": fitted.to_dict(),
        "ladder": ladder,
        "validation": measured,
    }
    (run.report / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    ticker.tick(1, 1, "")


def split_size(run: RunFolder, split: Split) -> dict[str, int]:
    """Episodes, frames and successes of a split."""
    corpus = run.corpus(split)
    return {
        "episodes": corpus.episodes,
        "frames": len(corpus),
        "successes": int(np.sum(corpus.success_N)),
    }
