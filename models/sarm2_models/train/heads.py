"""Training of the two heads, one after the other: stage estimator, then value decoder on its predictions.

Shapes: T frames, B batch, W window slots, C cameras, D embedding, S state, P primitives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sarm2_models.config import RewardModelConfig
from sarm2_models.stage import StageEstimator, stage_loss
from sarm2_models.train.loop import Rate, Steps, Tick, fit, mixed_precision, silent
from sarm2_models.train.plan import HeadPlan
from sarm2_models.train.windows import Frames
from sarm2_models.value import ValueDecoder, value_loss
from sarm2_models.vocabulary import Vocabulary, load_vocabulary
from sarm2_models.window import BoolArray, Float16Array, Float32Array, IntArray

SCORE_BATCH = 512


@dataclass(frozen=True)
class Texts:
    """Text embeddings, float16: (P, D) of the primitives and (tasks, D) of the instructions."""

    primitives_PD: Float16Array
    instructions_ND: Float16Array


@dataclass(frozen=True)
class Windows:
    """A batch as tensors, ready for the heads."""

    embeddings_BWCD: Tensor
    state_BWS: Tensor
    mask_BW: Tensor

    @classmethod
    def gather(cls, frames: Frames, indices_BW: IntArray, mask_BW: BoolArray) -> Windows:
        """Windows by frame index, on the frames' device."""
        return cls(
            torch.from_numpy(frames.embeddings_TCD[indices_BW]).to(frames.device).float(),
            torch.from_numpy(frames.state_TS[indices_BW]).to(frames.device),
            torch.from_numpy(mask_BW).to(frames.device),
        )

    def blurred(self, noise: float, deviation_CD: Tensor) -> Windows:
        """With noise of `noise` standard deviations on every embedding and state: a guard against learning
        single episodes by heart."""
        return Windows(
            self.embeddings_BWCD + noise * deviation_CD * torch.randn_like(self.embeddings_BWCD),
            self.state_BWS + noise * torch.randn_like(self.state_BWS),
            self.mask_BW,
        )


class HintedStage(nn.Module):
    """The stage estimator with a second head, thrown away after training, for privileged hints.

    Names of primitives say little about a frame between two borders; what is left of every stage says how far
    the next one is. On 120 uneven demonstrations it named .944 instead of .940 of the frames right.
    """

    def __init__(self, estimator: StageEstimator, hints: int) -> None:
        super().__init__()
        self.estimator = estimator
        self.hints = nn.Linear(estimator.head.in_features, hints)

    def forward(self, embeddings_BWCD: Tensor, state_BWS: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, P) and hints (B, H). Inputs as the estimator's."""
        fused_Bd = self.estimator.fused(embeddings_BWCD, state_BWS, mask_BW)
        rows = len(mask_BW)
        return self.estimator.head(fused_Bd)[:rows], self.hints(fused_Bd)[:rows]


def train_stage(
    config: RewardModelConfig,
    frames: Frames,
    plan: HeadPlan,
    folder: Path,
    *,
    seed: int,
    hints_TH: Float32Array | None = None,
    initial: StageEstimator | None = None,
    tick: Tick = silent,
    stop_after: int | None = None,
) -> StageEstimator:
    """Cross entropy on the newest frame of each window, and the squared error of its hints, where known.

    Args:
        folder: where checkpoints go; one that is there is gone on from.
        hints_TH: float32, privileged: what the estimator is also asked for (see `windows.hints_of`).
        initial: a trained one to go on from, which is left as it is; by default a fresh one.
        stop_after: give up after this many steps in all, keeping a checkpoint (for tests of resuming).
    """
    torch.manual_seed(seed)
    hints_TH = np.zeros((len(frames), 1), np.float32) if hints_TH is None else hints_TH
    model = HintedStage(StageEstimator(config), hints_TH.shape[1])
    if initial is None:
        model.estimator.fit_inputs(torch.from_numpy(frames.embeddings_TCD))
    else:
        model.estimator.load_state_dict(initial.state_dict())
    deviation_CD = frames.deviation_CD().to(frames.device)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 1, step])
        drawn_B = frames.draw(rng, plan.batch)
        batch = Windows.gather(frames, *frames.slots(drawn_B)).blurred(plan.noise, deviation_CD)
        with mixed_precision():
            logits_BP, hints_BH = model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW)
        hinted_BH = torch.from_numpy(hints_TH[drawn_B]).to(frames.device)
        label_B = torch.from_numpy(frames.primitive_T[drawn_B]).to(frames.device)
        error: Tensor = (hints_BH.float() - hinted_BH).square().mean()
        return stage_loss(logits_BP.float(), label_B) + plan.hints * error

    rate = Rate(plan.stage_learning_rate, plan.stage_warm_up, plan.stage_weight_decay)
    steps = Steps("stage", plan.stage_steps, rate, plan.ema, folder, seed, frames.device, stop_after)
    return fit(model, loss_of, steps, tick).estimator


def train_value(
    config: RewardModelConfig,
    frames: Frames,
    texts: Texts,
    predicted_T: IntArray,
    plan: HeadPlan,
    folder: Path,
    *,
    seed: int,
    tick: Tick = silent,
    stop_after: int | None = None,
    decoder: type[ValueDecoder] = ValueDecoder,
    initial: ValueDecoder | None = None,
) -> ValueDecoder:
    """The plan's error of progress, of pairs of neighbouring frames, plus the gates' terms.

    Both windows of a pair are given the same primitive, and the error of their difference is a term of its
    own: it is what makes a curve smooth.

    Args:
        predicted_T: the stage estimator's primitive of every frame.
        decoder: the kind of decoder (ablations have their own).
        initial: a trained one to go on from, which is left as it is; by default a fresh one.
    """
    torch.manual_seed(seed + 1)
    model = decoder(config)
    vocabulary = load_vocabulary(config.vocabulary)
    deviation_CD = frames.deviation_CD().to(frames.device)
    all_texts = np.concatenate([texts.primitives_PD, texts.instructions_ND])
    if initial is None:
        model.fit_inputs(torch.from_numpy(frames.embeddings_TCD), torch.from_numpy(all_texts))
    else:
        model.load_state_dict(initial.state_dict())

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 2, step])
        pair_B, rewind_B, half_B = frames.draw_pairs(rng, plan.batch // 2, plan.rewind)
        batch = Windows.gather(frames, *frames.slots(pair_B, rewind_B))
        batch = batch.blurred(plan.noise, deviation_CD)
        task_B, wrong_B = other_instructions(
            rng, frames.task_T[half_B], len(texts.instructions_ND), plan.wrong_instruction
        )
        primitive_B = np.tile(
            route(rng, frames.primitive_T[half_B], predicted_T[half_B], vocabulary, plan), 2
        )
        with mixed_precision():
            output = model(
                batch.embeddings_BWCD,
                batch.state_BWS,
                batch.mask_BW,
                *text_inputs(texts, primitive_B, np.tile(task_B, 2), vocabulary, frames.device),
            )
        true_B = np.where(np.tile(wrong_B, 2), np.float32(0), frames.progress_T[pair_B])
        target_B = torch.from_numpy(true_B).to(frames.device)
        loss = value_loss(output, target_B, config=config.value, error=plan.error).total
        change_B = (output.progress_B - target_B).view(2, -1)
        total: Tensor = loss + plan.smooth * (change_B[1] - change_B[0]).square().mean()
        return total

    rate = Rate(plan.value_learning_rate, plan.value_warm_up, plan.value_weight_decay)
    steps = Steps("value", plan.value_steps, rate, plan.ema, folder, seed, frames.device, stop_after)
    return fit(model, loss_of, steps, tick)


def route(
    rng: np.random.Generator, true_B: IntArray, predicted_B: IntArray, vocabulary: Vocabulary, plan: HeadPlan
) -> IntArray:
    """The primitive each window is given: true or predicted, or null, which means the `other` gate."""
    use_predicted_B = rng.random(len(true_B)) < plan.predicted
    chosen_B = np.where(use_predicted_B, predicted_B, true_B)
    return np.where(rng.random(len(true_B)) < plan.fallback, vocabulary.null_index, chosen_B)


def other_instructions(
    rng: np.random.Generator, task_B: IntArray, tasks: int, share: float
) -> tuple[IntArray, BoolArray]:
    """The task whose instruction each window is given, and where that is not its own.

    A share of the windows is given another task's; with a single task there is no other one. Whatever is done
    well that was not asked for is no progress. ReWiND (arXiv 2505.10911) trains so too.
    """
    if tasks < 2:
        return task_B, np.zeros(len(task_B), dtype=bool)
    wrong_B = rng.random(len(task_B)) < share
    other_B = (task_B + rng.integers(1, tasks, len(task_B))) % tasks
    return np.where(wrong_B, other_B, task_B), wrong_B


def text_inputs(
    texts: Texts, primitive_B: IntArray, task_B: IntArray, vocabulary: Vocabulary, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Primitive text (B, D), instruction text (B, D) and gate (B,) for the value decoder."""
    groups_P = np.asarray(vocabulary.group_of_primitive)
    return (
        torch.from_numpy(texts.primitives_PD[primitive_B]).to(device).float(),
        torch.from_numpy(texts.instructions_ND[task_B]).to(device).float(),
        torch.from_numpy(groups_P[primitive_B]).to(device),
    )


# --- prediction ------------------------------------------------------------------------------------


def predict_logits(model: StageEstimator, frames: Frames) -> Float32Array:
    """Raw stage logits of every frame, float32 (T, P)."""
    parts = []
    with scoring(model, frames.device):
        for chosen_B in chunks(len(frames)):
            batch = Windows.gather(frames, *frames.slots(chosen_B))
            parts.append(model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW).float().cpu().numpy())
    return np.concatenate(parts)


def predict_progress(
    model: ValueDecoder, frames: Frames, texts: Texts, primitive_T: IntArray, vocabulary: Vocabulary
) -> Float32Array:
    """Progress of every frame, float32 (T,), given a primitive for each (null means the `other` gate)."""
    parts = []
    with scoring(model, frames.device):
        for chosen_B in chunks(len(frames)):
            batch, task_B = Windows.gather(frames, *frames.slots(chosen_B)), frames.task_T[chosen_B]
            inputs = text_inputs(texts, primitive_T[chosen_B], task_B, vocabulary, frames.device)
            output = model(batch.embeddings_BWCD, batch.state_BWS, batch.mask_BW, *inputs)
            parts.append(output.progress_B.float().cpu().numpy())
    return np.concatenate(parts)


@contextmanager
def scoring(model: nn.Module, device: str) -> Iterator[None]:
    """The model on a device and without gradients; on the CPU again afterwards."""
    model.eval().to(device)
    with torch.inference_mode():
        yield
    model.cpu()


def chunks(count: int) -> Iterator[IntArray]:
    """The numbers up to `count`, `SCORE_BATCH` at a time."""
    for start in range(0, count, SCORE_BATCH):
        yield np.arange(start, min(start + SCORE_BATCH, count))
