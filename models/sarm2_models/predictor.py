"""Episodes in, scores out: numpy only, and each frame is encoded once.

`Predictor.step` scores a live episode frame by frame; `Predictor.score_episode` scores a recorded one in
batches. Both make the same windows and give the same numbers.

Shapes: T frames, C cameras, D embedding, S state, W window slots, P primitives, E experts; pictures are uint8
RGB (H, W3, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.checks import MAX_STATE_MAGNITUDE
from sarm2_client.errors import InvalidImage, InvalidInput, InvalidSequence, InvalidState
from sarm2_client.images import resize_with_pad
from sarm2_models.encoder import Float16Array
from sarm2_models.reward_model import RewardModel, ScoreBatch
from sarm2_models.window import (
    EpisodeMemory,
    Float32Array,
    Instruction,
    IntArray,
    WindowBatch,
    source_index,
    window_slots,
)

Image: TypeAlias = npt.NDArray[np.uint8]
Pictures: TypeAlias = Sequence[Image] | npt.NDArray[np.uint8]
"""T pictures of one camera: a list, or one array (T, H, W3, 3)."""

BATCH_WINDOWS = 64


@dataclass(frozen=True)
class StepScore:
    """The score of one frame.

    Attributes:
        seq: the frame's number.
        progress: raw, in [0, 1]; it may fall.
        primitive, group: names; `group` is the gate that was used (`other` when uncertain).
        probs_P: float32, calibrated probability of each primitive, summing to 1.
        confidence: of `primitive`.
        uncertain: low confidence, or `null`, or an unknown task.
        task_known: whether the model was trained on the instruction.
        interval: (low, high) around progress.
        weights_E: float32, each expert's weight, zero where unused.
        filled: how many frames were missing before this one.
    """

    seq: int
    progress: float
    primitive: str
    group: str
    probs_P: Float32Array
    confidence: float
    uncertain: bool
    task_known: bool
    interval: tuple[float, float]
    weights_E: Float32Array
    filled: int = 0

    @property
    def value(self) -> float:
        """progress - 1: negative normalised steps to go."""
        return self.progress - 1


class Predictor:
    """Scores one episode at a time. Call `reset`, then `step` for every frame in order.

    Args:
        model: shared between predictors is fine, from one thread at a time.
    """

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self._memory: EpisodeMemory | None = None
        self._instruction: Instruction | None = None
        self._source: wire.EpisodeSource | None = None

    def reset(self, task: str, fps: float, source: wire.EpisodeSource | None = None) -> None:
        """Start an episode.

        Args:
            task: the instruction, in words.
            fps: frames a second.
            source: `demonstration` or `rollout`, for the interval that was calibrated on such episodes; by
                default the wider one, which holds for both.

        Raises:
            InvalidInput: a frame rate that is not finite and positive, or another source.
        """
        source_index(source)
        self._memory = self.model.new_memory(fps)
        self._instruction = self.model.instruction(task)
        self._source = source

    def step(self, images: Mapping[str, Image], state_S: npt.ArrayLike, seq: int | None = None) -> StepScore:
        """Score the next frame.

        Args:
            images: every camera of the model, uint8 RGB (H, W3, 3) of any size.
            state_S: S finite numbers in the robot's units.
            seq: its number; by default one more than the last. A gap is filled with the last frame.

        Raises:
            InvalidSequence: no `reset` before, or a `seq` that does not rise.
            InvalidImage: a missing or unknown camera, or a picture of a wrong shape or dtype.
            InvalidState: a wrong length, or a number that is not finite or above MAX_STATE_MAGNITUDE.
        """
        if self._memory is None or self._instruction is None:
            raise InvalidSequence("expected reset(task, fps) before the first step")
        state = check_state(state_S, self.model.config.state_dim)
        pictures = self.prepare(images)
        last = self._memory.last
        number = seq if seq is not None else 0 if last is None else last + 1
        if last is not None and number <= last:
            raise InvalidSequence(f"expected a seq above {last}, got {number}", field="seq")
        filled = self._memory.push(number, self.model.encoder.encode_images(pictures), state)
        batch = WindowBatch.stack([self._memory.window()], [self._instruction], [self._source])
        return step_score(self.model, self.model.score(batch), 0, number, self._instruction.known, filled)

    def score_episode(
        self,
        task: str,
        fps: float,
        images: Mapping[str, Pictures],
        state_TS: npt.ArrayLike,
        seqs: Sequence[int] | None = None,
        source: wire.EpisodeSource | None = None,
    ) -> ScoreBatch:
        """Score a whole episode, row t for frame t. Does not touch the live episode.

        Args:
            task, fps, source: as in `reset`.
            images: per camera, T pictures.
            state_TS: (T, S).
            seqs: the frames' numbers, rising, where some are missing; by default 0 to T - 1.

        Raises:
            As `step`, and InvalidInput where the lengths differ or there is no frame.
        """
        states = np.stack([check_state(row, self.model.config.state_dim) for row in _rows(state_TS)])
        embeddings = self.embed_episode(images, len(states))
        return self.score_embeddings(task, fps, embeddings, states, seqs, source)

    def embed_episode(self, images: Mapping[str, Pictures], frames: int) -> Float16Array:
        """Embeddings (T, C, D) of an episode's pictures, a few frames at a time. Raises InvalidImage."""
        lengths = {camera: len(pictures) for camera, pictures in images.items()}
        if any(length != frames for length in lengths.values()):
            raise InvalidInput(
                f"expected {frames} pictures a camera, one a state, got {lengths}", field="images"
            )
        parts = []
        for start in range(0, frames, BATCH_WINDOWS):
            chunk = range(start, min(start + BATCH_WINDOWS, frames))
            steps = [self.prepare({camera: images[camera][t] for camera in images}) for t in chunk]
            encoded = self.model.encoder.encode_images(np.concatenate(steps))
            parts.append(encoded.reshape(len(chunk), len(self.model.config.cameras), -1))
        return np.concatenate(parts)

    def score_embeddings(
        self,
        task: str,
        fps: float,
        embeddings_TCD: Float16Array,
        state_TS: Float32Array,
        seqs: Sequence[int] | None = None,
        source: wire.EpisodeSource | None = None,
    ) -> ScoreBatch:
        """Score an episode whose frames are embedded already (float16, from this model's encoder)."""
        instruction = self.model.instruction(task)
        window = self.model.config.window
        numbers = np.arange(len(state_TS)) if seqs is None else np.asarray(seqs, dtype=np.int64)
        if len(numbers) != len(state_TS) or (np.diff(numbers) <= 0).any():
            raise InvalidSequence(f"expected {len(state_TS)} rising seqs, got {len(numbers)}", field="seqs")
        slots, masks = window_slots(numbers, int(numbers[0]), window.gap_frames(fps), window.length)
        rows = frame_rows(numbers, slots)
        parts = []
        for start in range(0, len(rows), BATCH_WINDOWS):
            chosen = rows[start : start + BATCH_WINDOWS]
            batch = WindowBatch(
                embeddings_BWCD=embeddings_TCD[chosen],
                state_BWS=state_TS[chosen],
                mask_BW=masks[start : start + BATCH_WINDOWS],
                instruction_BD=np.repeat(instruction.embedding_D[None], len(chosen), axis=0),
                task_known_B=np.full(len(chosen), instruction.known),
                quantile_B=np.full(len(chosen), instruction.quantile_S[source_index(source)]),
            )
            parts.append(self.model.score(batch))
        return ScoreBatch.concatenate(parts)

    def prepare(self, images: Mapping[str, Image]) -> Image:
        """One step's pictures as the encoder wants them, uint8 (C, side, side, 3), cameras in order."""
        cameras = self.model.config.cameras
        if set(images) != set(cameras):
            raise InvalidImage(
                f"expected the cameras {', '.join(cameras)}, got {', '.join(images) or 'none'}",
                field="images",
            )
        return np.stack(
            [resize_with_pad(images[camera], self.model.encoder.image_size) for camera in cameras]
        )


def step_score(
    model: RewardModel, scores: ScoreBatch, row: int, seq: int, task_known: bool, filled: int = 0
) -> StepScore:
    """One row of a batch, with names instead of indices."""
    return StepScore(
        seq=seq,
        progress=float(scores.progress_B[row]),
        primitive=model.vocabulary.primitives[scores.primitive_index_B[row]],
        group=model.vocabulary.groups[scores.group_index_B[row]],
        probs_P=scores.probs_BP[row],
        confidence=float(scores.confidence_B[row]),
        uncertain=bool(scores.uncertain_B[row]),
        task_known=task_known,
        interval=(float(scores.low_B[row]), float(scores.high_B[row])),
        weights_E=scores.weights_BE[row],
        filled=filled,
    )


def frame_rows(numbers_T: IntArray, slots: IntArray) -> IntArray:
    """Which recorded frame stands for each `seq` in `slots`: itself, or the last one before it.

    Args:
        numbers_T: the recorded frames' numbers, rising.
        slots: any shape, numbers of at least `numbers_T[0]`.
    """
    return np.searchsorted(numbers_T, slots, side="right") - 1


def check_state(state_S: npt.ArrayLike, length: int) -> Float32Array:
    """The state as float32 (S,), checked as on the wire: what a service refuses is refused in process too.

    Raises InvalidState for a wrong length or type, a NaN, or a value above MAX_STATE_MAGNITUDE.
    """
    try:
        state = np.asarray(state_S, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidState(f"expected {length} numbers, got {error}", field="state") from error
    if state.shape != (length,):
        raise InvalidState(f"expected {length} numbers, got shape {state.shape}", field="state")
    if not (np.abs(state) <= MAX_STATE_MAGNITUDE).all():
        raise InvalidState(
            f"expected finite numbers up to {MAX_STATE_MAGNITUDE:g}, got NaN, infinity or more", field="state"
        )
    return state.astype(np.float32)


def _rows(state_TS: npt.ArrayLike) -> list[npt.ArrayLike]:
    rows = list(np.asarray(state_TS))
    if not rows:
        raise InvalidInput("expected at least one frame, got none", field="state")
    return rows
