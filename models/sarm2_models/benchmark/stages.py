"""The work of a benchmark's stages, as functions that child processes call."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sarm2_models.benchmark import pictures
from sarm2_models.benchmark.bars import bars
from sarm2_models.benchmark.cloned_policy import clone
from sarm2_models.benchmark.contenders import CONTENDERS, SARM2, stage_estimator
from sarm2_models.benchmark.exams import EXAMS
from sarm2_models.benchmark.layout import BenchmarkFolder, load_predictions, save_predictions
from sarm2_models.benchmark.measure import against, measure_contenders, plain, scored_by
from sarm2_models.benchmark.probe import probe_tasks
from sarm2_models.benchmark.setting import Setting
from sarm2_models.benchmark.table import Tables, markdown
from sarm2_models.benchmark.tuning import TUNED, chosen, errors, trial, tuned
from sarm2_models.benchmark.unseen import measure_unseen
from sarm2_models.estimate import Estimate
from sarm2_models.train.heads import Windows, chunks, scoring, text_inputs
from sarm2_models.train.jobs import Ticker
from sarm2_models.train.loop import silent
from sarm2_models.train.plan import Split
from sarm2_models.train.stages import split_size
from sarm2_models.train.variants import Variant, variant_config
from sarm2_rollouts.whole_file import whole_file

TRAIN_AND_TEST: tuple[Split, Split] = ("train", "test")

SHARED: MappingProxyType[Variant, str] = MappingProxyType({"full": "sarm2", "state_only": "state_only"})
"""What stage estimators see, each trained once a seed, and whose tuning those share who see the same."""


def try_setting(ticker: Ticker, bench: BenchmarkFolder, name: str, setting: Setting) -> None:
    """Train one contender with one setting, and judge it."""
    trial(bench, name, setting, ticker.tick)
    ticker.tick(1, 1)


def stage(ticker: Ticker, bench: BenchmarkFolder, variant: Variant, seed: int) -> None:
    """Train the stage estimator that several contenders share, who are tuned alike."""
    owner = SHARED[variant]
    config = variant_config(bench.run.config, variant)
    stage_estimator(tuned(bench, owner), variant, config, seed, ticker.tick)
    ticker.tick(1, 1)


def clone_policies(ticker: Ticker, bench: BenchmarkFolder, tasks: Sequence[str]) -> None:
    """Fit some of the cloned policies."""
    for number, task in enumerate(tasks):
        clone(bench, task, silent)
        ticker.tick(number + 1, len(tasks), task)


def contend(ticker: Ticker, bench: BenchmarkFolder, name: str, seed: int) -> None:
    """Train one contender from one seed and keep what it says in every exam."""
    if CONTENDERS[name].learns:
        bench.note_training(name, seed)
    for exam in EXAMS:
        path = bench.answers(name, seed, exam)
        if not path.exists():
            save_predictions(path, CONTENDERS[name].answer(tuned(bench, name), seed, exam, ticker.tick))
    ticker.tick(1, 1)


def report(ticker: Ticker, bench: BenchmarkFolder) -> None:
    """benchmark.json, benchmark.md and the pictures of SARM2 from the first seed."""
    measured, by_task = measure_contenders(bench)
    over, less = against(measured)
    probes, unseen = probe(bench), measure_unseen(bench)
    held = bars(measured, by_task, over, less, probes["all"])
    tuning = {
        name: {"progress_mse": errors(bench, name), "chosen": chosen(bench, name).name} for name in TUNED
    }
    content = {
        "settings": bench.settings(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": bench.run.device,
            "trained_on": {name: found for name in CONTENDERS if (found := bench.trained_on(name))},
        },
        "data": {split: split_size(bench.run, split) for split in (*bench.run.splits, "policy")},
        "tuning": tuning,
        "summaries": {name: one.summary for name, one in CONTENDERS.items()},
        "models": plain(measured),
        "tasks": {task: plain(table) for task, table in by_task.items()},
        "sarm2_over": plain(over),
        "sarm2_minus": plain(less),
        "bars": {name: bar.as_json() for name, bar in held.items()},
        "unseen": plain(unseen),
        "probe_r2": plain(probes),
    }
    with whole_file(bench.report / "benchmark.json") as fresh:
        fresh.write_text(json.dumps(content, indent=1) + "\n")
    tables = Tables(measured, by_task, over, less, held, unseen, probes, tuning)
    with whole_file(bench.report / "benchmark.md") as fresh:
        fresh.write_text(markdown(tables, about(content)))
    ticker.tick(1, 2, "pictures")
    words, episodes = bench.run.vocabulary, scored_by(bench, SARM2.name)[0]
    confused = pictures.confusion(episodes, len(words.primitives))
    pictures.draw_confusion(confused, words, bench.report / "confusion.png")
    used = expert_use(bench)
    pictures.draw_experts(used, words, bench.report / "experts.png")
    pictures.draw_expert_correlation(used, words, bench.report / "expert_correlation.png")
    pictures.draw_best_to_worst(episodes, words, bench.report / "curves.png")
    ticker.tick(2, 2)


def probe(bench: BenchmarkFolder) -> dict[str, dict[str, Estimate]]:
    """How exactly the embeddings tell where things are, by task."""
    run = bench.run
    train, test = ((run.corpus(split), run.frames("full", split)) for split in TRAIN_AND_TEST)
    return probe_tasks(train, test)


def expert_use(bench: BenchmarkFolder) -> pictures.Floats:
    """Mean weight of each expert on the test frames of each primitive that the decoder was given, (P, E),
    first seed: null where the prediction was uncertain."""
    run, seed = bench.run, bench.seeds[0]
    heads = SARM2.heads(bench, seed, silent)
    frames, texts = run.frames("full", "test"), run.texts("full")
    said = load_predictions(bench.answers(SARM2.name, seed, "test"))
    primitive_T = np.where(said.uncertain_T, run.vocabulary.null_index, said.primitive_T)
    total = np.zeros((len(run.vocabulary.primitives), heads.config.value.experts))
    with scoring(heads.value, frames.device):
        for chosen in chunks(len(frames)):
            batch, task_B = Windows.gather(frames, *frames.slots(chosen)), frames.task_T[chosen]
            inputs = text_inputs(texts, primitive_T[chosen], task_B, run.vocabulary, frames.device)
            output = heads.value(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW, *inputs)
            np.add.at(total, primitive_T[chosen], output.weights_BE.double().cpu().numpy())
    return np.asarray(total / np.maximum(total.sum(axis=1, keepdims=True), 1e-9))


def about(content: dict[str, Any]) -> str:
    """What was trained and measured, in a paragraph."""
    settings, data = content["settings"], content["data"]
    plan = settings["plan"]["heads"]
    parts = [
        f"Tasks: {', '.join(settings['tasks'])}. Training seeds: "
        f"{', '.join(map(str, settings['training_seeds']))}.",
        f"Every contender learns from the same {data['train']['episodes']} episodes "
        f"({data['train']['frames']} frames) through the same frozen encoder, with the same optimiser and "
        f"batches of {plan['batch']} windows. Every contender had the same budget of tuning: one training "
        f"with each of {len(settings['extras']['settings'])} settings, the best of them by the calibration "
        "episodes, and SARM2's own for SARM2 without a part. All else is as SARM2 was developed with.",
        f"SARM2 sees {plan['stage_steps']} + {plan['value_steps']} batches (stage estimator, value decoder), "
        "the language model as many as both, and so do all single-task models together. Two terms of the "
        "loss are SARM2's alone: privileged hints for the stage estimator, and the change between "
        "neighbouring frames for the value decoder. It learns named primitives; the stages of single-task "
        "models are stretches of true progress.",
        f"Measured on {data['test']['episodes']} fresh episodes ({data['test']['frames']} frames, "
        f"{data['test']['successes']} successes) and {data['policy']['episodes']} rollouts of policies that "
        f"were cloned from a few uneven demonstrations ({data['policy']['frames']} frames, "
        f"{data['policy']['successes']} successes). Nothing was trained or calibrated on any of them; their "
        "seeds are always the same, so that whoever changes a model after a benchmark has looked at them.",
    ]
    places: dict[str, list[str]] = {}
    for name, found in content["machine"]["trained_on"].items():
        places.setdefault(" and ".join(found), []).append(f"`{name}`")
    told = "; ".join(f"{place}: {', '.join(names)}" for place, names in places.items())
    return " ".join([*parts, *([f"Trained on {told}."] if told else [])])
