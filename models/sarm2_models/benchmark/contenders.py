"""Who takes part: how each contender is trained and what it says of the test frames.

A contender that names no primitives leaves them null; the tables then leave the metrics of primitives out.

Shapes: T frames, C cameras, D embedding.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional

from sarm2_models.benchmark.exams import Exam, exam_frames, exam_split
from sarm2_models.benchmark.goal_frame import goal_frames, goal_progress
from sarm2_models.benchmark.language_progress import REWIND, LanguageProgress, mismatch
from sarm2_models.benchmark.layout import BenchmarkFolder
from sarm2_models.benchmark.single_task import StageProgress, stage_progress_loss, stage_targets
from sarm2_models.calibration import Calibration
from sarm2_models.config import RewardModelConfig
from sarm2_models.stage import StageEstimator
from sarm2_models.train.calibrate import Predictions, calibrate, predict
from sarm2_models.train.heads import (
    Texts,
    Windows,
    chunks,
    predict_logits,
    scoring,
    train_stage,
    train_value,
)
from sarm2_models.train.ladder import CONSTANT, clock, mean_demo_frames
from sarm2_models.train.loop import Rate, Steps, Tick, fit, mixed_precision
from sarm2_models.train.plan import HeadPlan, Split
from sarm2_models.train.variants import Heads, Variant, load_module, save_module, variant_config
from sarm2_models.train.windows import Frames, hints_of
from sarm2_models.value import ValueDecoder, ValueOutput
from sarm2_models.window import Float32Array, IntArray
from sarm2_rollouts.tasks import task_spec
from sarm2_rollouts.whole_file import whole_file

Baseline = TypeVar("Baseline", StageProgress, LanguageProgress)


@dataclass(frozen=True)
class Contender(ABC):
    """One of those who are compared.

    Attributes:
        name: in files and tables. summary: what it is, in words.
        learns: whether it is trained, and so differs from seed to seed.
        names_primitives: whether its primitives and confidence mean anything.
        like: the contender whose tuning it takes over; its own by default.
    """

    name: str
    summary: str
    learns: bool = True
    names_primitives: bool = False
    like: str = ""

    @property
    def tuned_as(self) -> str:
        """The contender whose setting it is trained with."""
        return self.like or self.name

    @abstractmethod
    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """Train from `seed` what is not trained yet, and say something of every frame of an exam."""


class OneGate(ValueDecoder):
    """The value decoder without the multi-gate: one gate for every primitive."""

    def forward(
        self,
        embeddings_BWCD: Tensor,
        state_BWS: Tensor,
        mask_BW: Tensor,
        primitive_text_BD: Tensor,
        instruction_BD: Tensor,
        group_B: Tensor,
    ) -> ValueOutput:
        """As the decoder's, whatever the group."""
        one_B = torch.zeros_like(group_B)
        return super().forward(embeddings_BWCD, state_BWS, mask_BW, primitive_text_BD, instruction_BD, one_B)


@dataclass(frozen=True)
class Sarm2(Contender):
    """SARM2, whole or without one of its parts. All share one stage estimator a seed.

    Attributes:
        variant: what it sees.
        stage: without, the value decoder is told nothing of the primitive: null text, and the `other` gate
            for every frame, so that the multi-gate goes too.
        multigate: without, one gate serves every primitive, whose text the decoder still reads.
        anchor: without, the episode's first frame is masked.
    """

    variant: Variant = "full"
    stage: bool = True
    multigate: bool = True
    anchor: bool = True

    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """Stage estimator, value decoder, calibration, answers."""
        frames = replace(exam_frames(bench, self.variant, exam), anchor=self.anchor)
        heads, texts = self.heads(bench, seed, tick), bench.run.texts(self.variant)
        words = bench.run.vocabulary
        if not self.stage:
            null_T = np.full(len(frames), words.null_index)
            return only_progress(heads.progress(frames, texts, null_T, words), words.null_index)
        corpus = bench.run.corpus(exam_split(exam))
        return predict(heads, frames, texts, words, self.calibration(bench, seed, heads), corpus)

    def calibration(self, bench: BenchmarkFolder, seed: int, heads: Heads) -> Calibration:
        """Fitted on the calibration episodes, from its file where it is there."""
        path, run = bench.contender(self.name, seed) / "calibration.json", bench.run
        if not path.exists():
            frames, corpus = self.frames(bench, "calibration"), run.corpus("calibration")
            fitted = calibrate(heads, frames, corpus, run.texts(self.variant), run.vocabulary)
            with whole_file(path) as fresh:
                fresh.write_text(json.dumps(fitted.to_dict(), indent=1))
        return Calibration.from_dict(json.loads(path.read_text()))

    def heads(self, bench: BenchmarkFolder, seed: int, tick: Tick) -> Heads:
        """The trained heads, from their files where they are there."""
        run, plan = bench.run, bench.run.plan.heads
        config = variant_config(run.config, self.variant)
        stage = stage_estimator(bench, self.variant, config, seed, tick)
        decoder = ValueDecoder if self.multigate else OneGate
        folder = bench.contender(self.name, seed)
        if not (folder / "value.safetensors").exists():
            frames = self.frames(bench, "train")
            value = train_value(
                config,
                frames,
                run.texts(self.variant),
                predict_logits(stage, frames).argmax(-1),
                plan if self.stage else replace(plan, fallback=1.0),
                folder,
                seed=seed,
                tick=tick,
                decoder=decoder,
            )
            save_module(folder / "value.safetensors", value)
        return Heads(config, stage, load_module(folder / "value.safetensors", decoder(config)))

    def frames(self, bench: BenchmarkFolder, split: Split) -> Frames:
        """A split as this one sees it."""
        return replace(bench.run.frames(self.variant, split), anchor=self.anchor)


def stage_estimator(
    bench: BenchmarkFolder, variant: Variant, config: RewardModelConfig, seed: int, tick: Tick
) -> StageEstimator:
    """The stage estimator of a seed, trained once for all who see the same."""
    folder = bench.contender(f"stage_{variant}", seed)
    path = folder / "stage.safetensors"
    if not path.exists():
        frames, plan = bench.run.frames(variant, "train"), bench.run.plan.heads
        hints_TH = hints_of(bench.run.corpus("train"))
        stage = train_stage(config, frames, plan, folder, seed=seed, hints_TH=hints_TH, tick=tick)
        save_module(path, stage)
    return load_module(path, StageEstimator(config))


@dataclass(frozen=True)
class SingleTask(Contender):
    """SARM's first form: a model for each task, which sees as many of its windows as SARM2's two heads do.

    Attributes:
        cameras: names; None for all.
    """

    cameras: tuple[str, ...] | None = None

    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """One model a task, then the answers of each on its own task."""
        run = bench.run
        config, frames = self._seen(bench, exam_frames(bench, "full", exam))
        progress_T = np.zeros(len(frames), dtype=np.float32)
        for task, name in enumerate(run.tasks):
            model = self._model(bench, config, task, seed, tick)
            mine_T = np.flatnonzero(frames.task_T == task)
            with scoring(model, frames.device):
                for chosen in chunks(len(mine_T)):
                    batch = Windows.gather(frames, *frames.slots(mine_T[chosen]))
                    said = model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW)
                    progress_T[mine_T[chosen]] = model.progress(*said).cpu().numpy()
            tick(task + 1, len(run.tasks), name)
        return only_progress(progress_T, run.vocabulary.null_index)

    def _seen(self, bench: BenchmarkFolder, frames: Frames) -> tuple[RewardModelConfig, Frames]:
        config = bench.run.config
        if self.cameras is None:
            return config, frames
        places = [config.cameras.index(camera) for camera in self.cameras]
        one = replace(frames, embeddings_TCD=np.ascontiguousarray(frames.embeddings_TCD[:, places]))
        return replace(config, cameras=self.cameras), one

    def _model(
        self, bench: BenchmarkFolder, config: RewardModelConfig, task: int, seed: int, tick: Tick
    ) -> StageProgress:
        run, plan = bench.run, bench.run.plan.heads
        shares = tuple(task_spec(run.tasks[task]).stages.values())
        folder = bench.contender(self.name, seed) / run.tasks[task]
        path = folder / "model.safetensors"
        if not path.exists():
            _, frames = self._seen(bench, run.frames("full", "train"))
            corpus = run.corpus("train")
            mine = frames.only(corpus.task_N == task, corpus.length_N)
            torch.manual_seed(seed + 2)
            stage_T, within_T = (
                torch.from_numpy(row).to(mine.device) for row in stage_targets(mine.progress_T, shares)
            )
            total = max(1, (plan.stage_steps + plan.value_steps) // len(run.tasks))

            def loss_of(model: StageProgress, rng: Generator, pair_B: IntArray, batch: Windows) -> Tensor:
                with mixed_precision():
                    logits_BK, within_BK = model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW)
                return stage_progress_loss(logits_BK, within_BK, stage_T[pair_B], within_T[pair_B])

            steps = value_steps(plan, total, folder, seed, mine.device)
            model = StageProgress(config, shares)
            save_module(path, fit_windows(model, mine, plan.rewind, plan, loss_of, steps, (4, task), tick))
        return load_module(path, StageProgress(config, shares))


@dataclass(frozen=True)
class Language(Contender):
    """ReWiND's form: no stages; rewound windows and mismatched instructions. As many as SARM2's two heads."""

    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """Train and answer."""
        run, texts = bench.run, bench.run.texts("full")
        model, frames = self.model(bench, texts, seed, tick), exam_frames(bench, "full", exam)
        parts = []
        with scoring(model, frames.device):
            for chosen in chunks(len(frames)):
                batch = Windows.gather(frames, *frames.slots(chosen))
                instruction = torch.from_numpy(texts.instructions_ND[frames.task_T[chosen]]).to(frames.device)
                said = model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW, instruction.float())
                parts.append(said.cpu())
        return only_progress(torch.cat(parts).numpy(), run.vocabulary.null_index)

    def model(self, bench: BenchmarkFolder, texts: Texts, seed: int, tick: Tick) -> LanguageProgress:
        """The trained model, from its file where it is there."""
        run, plan = bench.run, bench.run.plan.heads
        folder = bench.contender(self.name, seed)
        path = folder / "model.safetensors"
        if not path.exists():
            frames = run.frames("full", "train")
            torch.manual_seed(seed + 3)

            def loss_of(model: LanguageProgress, rng: Generator, pair_B: IntArray, batch: Windows) -> Tensor:
                task_B, progress_B = frames.task_T[pair_B], frames.progress_T[pair_B]
                asked_B, target_B = mismatch(rng, task_B, progress_B, len(run.tasks))
                instruction_BD = torch.from_numpy(texts.instructions_ND[asked_B]).to(frames.device).float()
                with mixed_precision():
                    said_B = model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW, instruction_BD)
                return functional.mse_loss(said_B, torch.from_numpy(target_B).to(frames.device))

            steps = value_steps(plan, plan.stage_steps + plan.value_steps, folder, seed, frames.device)
            model = LanguageProgress(run.config)
            save_module(path, fit_windows(model, frames, REWIND, plan, loss_of, steps, (5,), tick))
        return load_module(path, LanguageProgress(run.config))


@dataclass(frozen=True)
class GoalFrame(Contender):
    """How near the picture is to the goal frame."""

    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """Nothing is learned but the mean goal."""
        train = bench.run.frames("full", "train")
        goals = goal_frames(bench.run.corpus("train"), train)
        progress_T = goal_progress(exam_frames(bench, "full", exam), goals, train.deviation_CD().numpy())
        return only_progress(progress_T, bench.run.vocabulary.null_index)


@dataclass(frozen=True)
class Blind(Contender):
    """What sees nothing: the clock, or a constant."""

    ticks: bool = True

    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """Time over the mean time of a training demonstration, or 0.5."""
        frames, corpus = exam_frames(bench, "state_only", exam), bench.run.corpus("train")
        means = mean_demo_frames(corpus)
        curves = [
            clock(int(last - first + 1), means[corpus.instructions[int(frames.task_T[first])]])
            if self.ticks
            else np.full(int(last - first + 1), CONSTANT, dtype=np.float32)
            for first, last in np.unique(np.stack([frames.first_T, frames.last_T], axis=1), axis=0)
        ]
        return only_progress(np.concatenate(curves), bench.run.vocabulary.null_index)


def only_progress(progress_T: Float32Array, null_index: int) -> Predictions:
    """Answers of who names no primitives and gives no interval."""
    count = len(progress_T)
    return Predictions(
        primitive_T=np.full(count, null_index),
        confidence_T=np.zeros(count, dtype=np.float32),
        uncertain_T=np.ones(count, dtype=bool),
        progress_T=progress_T,
        low_T=np.zeros(count, dtype=np.float32),
        high_T=np.ones(count, dtype=np.float32),
    )


def fit_windows(
    model: Baseline,
    frames: Frames,
    rewind: float,
    plan: HeadPlan,
    loss_of: Callable[[Baseline, Generator, IntArray, Windows], Tensor],
    steps: Steps,
    key: tuple[int, ...],
    tick: Tick,
) -> Baseline:
    """Train a baseline on pairs of windows, drawn and blurred as SARM2's are.

    Args:
        rewind: share of the windows that end in frames played backwards.
        loss_of: of the model, a random generator, the frames that the windows end on, and the windows.
        key: of the random numbers, beside the seed and the step.
    """
    model.window.embedding_statistics.fit(torch.from_numpy(frames.embeddings_TCD))
    deviation_CD = frames.deviation_CD().to(frames.device)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([steps.seed, *key, step])
        pair_B, rewind_B, _ = frames.draw_pairs(rng, plan.batch // 2, rewind)
        batch = Windows.gather(frames, *frames.slots(pair_B, rewind_B)).blurred(plan.noise, deviation_CD)
        return loss_of(model, rng, pair_B, batch)

    return fit(model, loss_at, steps, tick)


def value_steps(plan: HeadPlan, total: int, folder: Path, seed: int, device: str) -> Steps:
    """A baseline's training: the value decoder's optimiser, for `total` steps."""
    rate = Rate(plan.value_learning_rate, plan.value_warm_up, plan.value_weight_decay)
    return Steps("model", total, rate, plan.ema, folder, seed, device)


@dataclass(frozen=True)
class Told(Contender):
    """SARM2's own heads, told the true primitive: an oracle, which says what a right one would be worth."""

    def answer(self, bench: BenchmarkFolder, seed: int, exam: Exam, tick: Tick) -> Predictions:
        """The value decoder's answer to the true primitives."""
        frames, words = exam_frames(bench, SARM2.variant, exam), bench.run.vocabulary
        heads, texts = SARM2.heads(bench, seed, tick), bench.run.texts(SARM2.variant)
        return only_progress(heads.progress(frames, texts, frames.primitive_T, words), words.null_index)


SARM2 = Sarm2("sarm2", "SARM2", names_primitives=True)
_ALL: tuple[Contender, ...] = (
    SARM2,
    Sarm2(
        "sarm2_no_stage", "without the stage estimator and the gates it chooses", like="sarm2", stage=False
    ),
    Sarm2(
        "sarm2_no_multigate",
        "one gate for all primitives",
        names_primitives=True,
        like="sarm2",
        multigate=False,
    ),
    Sarm2("sarm2_no_anchor", "without the first frame", names_primitives=True, like="sarm2", anchor=False),
    Sarm2("state_only", "SARM2 on proprioception alone", names_primitives=True, variant="state_only"),
    SingleTask("single_task_one", "SARM v1's form, a model a task, one camera", cameras=("corner",)),
    SingleTask("single_task_all", "SARM v1's form, a model a task, all cameras"),
    Language("language", "ReWiND's form: frames and instruction, rewound, no stages"),
    GoalFrame("goal_frame", "distance to the goal frame", learns=False),
    Told("oracle_primitive", "SARM2 told the true primitive (an oracle)", like="sarm2"),
    Blind("clock", "time over the mean time", learns=False),
    Blind("constant", "0.5", learns=False, ticks=False),
)
CONTENDERS: MappingProxyType[str, Contender] = MappingProxyType({one.name: one for one in _ALL})
"""Every contender by name, in the order of the tables."""
