"""Tasks that nothing was trained on: what SARM2 still knows there, and whether it says that it does not.

An instruction that no training episode had is answered `uncertain` by the service whatever the model says,
and its progress goes through the `other` gate: so it is measured here. Primitives and rates are the model's.

Shapes: T frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sarm2_models.benchmark.contenders import SARM2
from sarm2_models.benchmark.layout import BenchmarkFolder
from sarm2_models.estimate import Estimate, ratio
from sarm2_models.metrics import Scored, evaluate
from sarm2_models.train.calibrate import Predictions, predict
from sarm2_models.train.embed import load_embeddings
from sarm2_models.train.heads import Texts
from sarm2_models.train.ladder import mean_demo_frames, scored_episodes
from sarm2_models.train.loop import silent
from sarm2_models.train.windows import Frames

TAKEN_OVER = ("primitive_accuracy", "rollout_primitive_accuracy", "group_accuracy", "ranking", "success_auc")
"""Metrics that mean the same on unseen tasks."""


def unseen_frames(bench: BenchmarkFolder) -> tuple[Frames, Texts]:
    """The frames of the unseen tasks, with the training episodes' statistics, and their texts."""
    run, unseen = bench.run, bench.unseen
    corpus, encoder = unseen.corpus("test"), run.load_encoder()
    embeddings_TCD = load_embeddings(unseen.shards("test"))
    state_TS = run.statistics().standardise(corpus.state_TS)
    texts = replace(run.texts("full"), instructions_ND=encoder.encode_texts(corpus.instructions))
    return Frames.of(corpus, embeddings_TCD, state_TS, run.config.window), texts


def measure_unseen(bench: BenchmarkFolder) -> dict[str, dict[str, Estimate]]:
    """SARM2's metrics on the unseen tasks, over all of them (`all`) and by task; means over the seeds."""
    if not bench.extras.unseen_tasks:
        return {}
    frames, texts = unseen_frames(bench)
    found: list[tuple[list[Scored], Predictions]] = []
    corpus, words = bench.unseen.corpus("test"), bench.run.vocabulary
    for seed in bench.seeds:
        heads = SARM2.heads(bench, seed, silent)
        rules = SARM2.calibration(bench, seed, heads)
        said = predict(heads, frames, texts, words, rules, corpus)
        null_T = np.full(len(frames), words.null_index)
        said = replace(said, progress_T=heads.progress(frames, texts, null_T, words))
        found.append((scored_episodes(corpus, said, mean_demo_frames(corpus)), said))
    every = np.arange(corpus.episodes)
    table = {"all": _mean(bench, found, every)}
    for task, name in enumerate(bench.extras.unseen_tasks):
        table[name] = _mean(bench, found, every[corpus.task_N == task])
    return table


def _mean(
    bench: BenchmarkFolder, found: list[tuple[list[Scored], Predictions]], chosen_N: np.ndarray
) -> dict[str, Estimate]:
    corpus, words = bench.unseen.corpus("test"), bench.run.vocabulary
    rows = []
    for scored, said in found:
        measured = evaluate([scored[n] for n in chosen_N], words.group_of_primitive, words.null_index)
        row = {metric: measured[metric] for metric in TAKEN_OVER}
        cut = [corpus.frames(int(n)) for n in chosen_N]
        rates = {"null_rate": said.primitive_T == words.null_index, "uncertain_rate": said.uncertain_T}
        for name, flag_T in rates.items():
            row[name] = ratio([(float(flag_T[c].sum()), float(c.stop - c.start)) for c in cut], 0)
        rows.append(row)
    return {metric: Estimate.mean([row[metric] for row in rows]) for metric in rows[0]}
