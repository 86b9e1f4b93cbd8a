"""The reward model: encoder, heads, texts, statistics and calibration as one thing that scores windows.

`build` makes one from a config (sizes) and an encoder; `checkpoint` makes one from a folder. Shapes: B batch,
W window slots, C cameras, D embedding, S state, P primitives, G groups, E experts, N rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarm2_client.errors import InvalidInput
from sarm2_client.wire import ModelInfo, Preprocess
from sarm2_models.calibration import Calibration
from sarm2_models.config import RewardModelConfig
from sarm2_models.encoder import Float16Array, ImageTextEncoder
from sarm2_models.layers import CLIP, STD_FLOOR
from sarm2_models.stage import StageEstimator
from sarm2_models.value import ValueDecoder
from sarm2_models.vocabulary import Vocabulary, load_vocabulary
from sarm2_models.window import BoolArray, EpisodeMemory, Float32Array, Instruction, IntArray, WindowBatch

SMALLEST_BUCKET = 4
"""On a GPU a batch is padded to 4, 8, 16, ... rows: few shapes, so few kernels and one rounding for all."""
LARGEST_BUCKET = 256
"""More rows are scored in turns."""
CACHED_INSTRUCTIONS = 1024


@dataclass(frozen=True)
class Statistics:
    """What the training data look like; scoring uses exactly these.

    Attributes:
        state_mean, state_std: S numbers each, in the robot's units.
        episodes, frames: how much data they were taken from.
    """

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    episodes: int = 0
    frames: int = 0

    @classmethod
    def fit(cls, states: Sequence[Float32Array]) -> Statistics:
        """Statistics of training episodes, each (T, S) in the robot's units."""
        rows = np.concatenate(list(states)).astype(np.float64)
        return cls(
            tuple(map(float, rows.mean(0))),
            tuple(map(float, rows.std(0))),
            episodes=len(states),
            frames=len(rows),
        )

    def standardise(self, state: npt.NDArray[np.floating[Any]]) -> Float32Array:
        """(state - mean) / std over the last axis, clipped to +-10, float32."""
        std = np.maximum(np.asarray(self.state_std, np.float64), STD_FLOOR)
        scaled = (np.asarray(state, np.float64) - np.asarray(self.state_mean)) / std
        result: Float32Array = np.clip(scaled, -CLIP, CLIP).astype(np.float32)
        return result


@dataclass(frozen=True)
class ScoreBatch:
    """Scores of B windows, as numpy arrays.

    Attributes:
        progress_B: float32 in [0, 1], raw.
        primitive_index_B: int64, the most probable primitive.
        probs_BP: float32, calibrated, rows sum to 1.
        confidence_B: float32, the probability of that primitive.
        uncertain_B: bool: low confidence, or `null`, or an unknown task. Then the `other` gate was used.
        group_index_B: int64, the gate that was used.
        weights_BE: float32, each expert's weight; `top_k` of them positive and summing to 1.
        low_B, high_B: float32, the interval on progress at the calibrated coverage.
    """

    progress_B: Float32Array
    primitive_index_B: IntArray
    probs_BP: Float32Array
    confidence_B: Float32Array
    uncertain_B: BoolArray
    group_index_B: IntArray
    weights_BE: Float32Array
    low_B: Float32Array
    high_B: Float32Array

    def __len__(self) -> int:
        return len(self.progress_B)

    @classmethod
    def concatenate(cls, parts: Sequence[ScoreBatch]) -> ScoreBatch:
        """Several batches as one, in order."""
        return cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))


class RewardModel:
    """Scores windows. One thread at a time may call `score`, `encoder` and `instruction`, which may encode.

    Args:
        config: sizes.
        encoder: frozen, of the width that the config says.
        stage, value: the heads, moved to the encoder's device and put in evaluation mode.
        statistics: of the training data.
        vocabulary: by default the one that the config names.
        calibration: by default one that promises nothing.
        primitive_texts_PD: float16 text embeddings of the primitives; by default made by the encoder.
        instructions: the training instructions, with their embeddings (N, D), which are made if missing.
        model_id, version, weights_sha256: what `hello` and every score say.
    """

    def __init__(
        self,
        config: RewardModelConfig,
        encoder: ImageTextEncoder,
        stage: StageEstimator,
        value: ValueDecoder,
        statistics: Statistics,
        *,
        vocabulary: Vocabulary | None = None,
        calibration: Calibration | None = None,
        primitive_texts_PD: Float16Array | None = None,
        instructions: Sequence[str] = (),
        instruction_texts_ND: Float16Array | None = None,
        model_id: str = "sarm2",
        version: str = "0",
        weights_sha256: str = "",
    ) -> None:
        self.config, self.encoder, self.statistics = config, encoder, statistics
        self.vocabulary = vocabulary or load_vocabulary(config.vocabulary)
        self.calibration: Final = calibration or Calibration()  # what `instruction` gives is made of it
        self.device = encoder.device
        self.stage = stage.eval().requires_grad_(False).to(self.device)
        self.value = value.eval().requires_grad_(False).to(self.device)
        self.primitive_texts_PD = (
            encoder.encode_texts(self.vocabulary.texts) if primitive_texts_PD is None else primitive_texts_PD
        )
        self.instructions = tuple(instructions)
        self.instruction_texts_ND = (
            encoder.encode_texts(self.instructions) if instruction_texts_ND is None else instruction_texts_ND
        )
        self.model_id, self.version, self.weights_sha256 = model_id, version, weights_sha256
        self._check()
        self._primitive_texts = torch.from_numpy(self.primitive_texts_PD).to(self.device)
        self._groups = torch.tensor(self.vocabulary.group_of_primitive, device=self.device)
        self._known = {
            _normalise(text): Instruction(row, True, self.calibration.interval.quantiles_of(text))
            for text, row in zip(self.instructions, self.instruction_texts_ND, strict=True)
        }
        self._unknown: OrderedDict[str, Instruction] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def build(
        cls,
        config: RewardModelConfig,
        encoder: ImageTextEncoder,
        statistics: Statistics,
        *,
        instructions: Sequence[str] = (),
        seed: int = 0,
        calibration: Calibration | None = None,
    ) -> RewardModel:
        """A model with untrained heads, drawn from `seed`; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stage, value = StageEstimator(config), ValueDecoder(config)
        return cls(
            config, encoder, stage, value, statistics, instructions=instructions, calibration=calibration
        )

    @property
    def info(self) -> ModelInfo:
        """What `hello` says of the model."""
        return ModelInfo(
            id=self.model_id,
            version=self.version,
            weights_sha256=self.weights_sha256,
            window=self.config.window.length,
            gap_s=self.config.window.gap_s,
            causal=True,
            cameras=list(self.config.cameras),
            state_dim=self.config.state_dim,
            primitives=list(self.vocabulary.primitives),
            groups=list(self.vocabulary.groups),
            primitive_groups=list(self.vocabulary.group_of_primitive),
            experts=self.config.value.experts,
            tasks=list(self.instructions),
        )

    @property
    def preprocess(self) -> Preprocess:
        """What `hello` says of the pictures."""
        return self.encoder.preprocess

    def new_memory(self, fps: float) -> EpisodeMemory:
        """An empty memory for an episode of this frame rate. Raises InvalidInput for an impossible one."""
        return EpisodeMemory(
            cameras=len(self.config.cameras),
            dim=self.config.embedding_dim,
            state_dim=self.config.state_dim,
            gap=self.config.window.gap_frames(fps),
            length=self.config.window.length,
        )

    def instruction(self, text: str) -> Instruction:
        """What the model makes of an instruction; case and spaces do not count.

        The newest unknown ones are kept; each goes through the text tower once.
        """
        key = _normalise(text)
        known = self._known.get(key)
        if known is not None:
            return known
        with self._lock:
            if key not in self._unknown:
                embedding_D = self.encoder.encode_texts([key])[0]
                quantile_S = self.calibration.interval.quantiles_of(key)
                self._unknown[key] = Instruction(embedding_D, False, quantile_S)
                if len(self._unknown) > CACHED_INSTRUCTIONS:
                    self._unknown.popitem(last=False)
            self._unknown.move_to_end(key)
            return self._unknown[key]

    @torch.inference_mode()
    def score(self, batch: WindowBatch) -> ScoreBatch:
        """Score windows of any episodes together.

        A row's answer does not depend on the others: same primitive, gate and flag, numbers within 1e-6.

        Raises:
            InvalidInput: a shape that is not this model's.
        """
        self._check_batch(batch)
        parts = [
            self._score(_rows(batch, start, start + LARGEST_BUCKET))
            for start in range(0, len(batch), LARGEST_BUCKET)
        ]
        return parts[0] if len(parts) == 1 else ScoreBatch.concatenate(parts)

    def _score(self, batch: WindowBatch) -> ScoreBatch:
        count = len(batch)
        # On a CPU the heads pad by themselves, where one row would get other bits than many.
        rows = bucket(count) if self.device.type == "cuda" else count
        embeddings, state, mask, instruction = self._padded(batch, rows)
        logits = self.stage(embeddings, state, mask)[:count].float().cpu().numpy()
        probs_BP = softmax(logits / self.calibration.temperature)
        index_B = probs_BP.argmax(-1)
        confidence_B = probs_BP[np.arange(count), index_B]
        uncertain_B = self.is_uncertain(confidence_B, index_B, batch.task_known_B)
        route_B = np.where(uncertain_B, self.vocabulary.null_index, index_B)
        # The null text through the `other` gate: `null` is the only primitive of that group.
        route = torch.from_numpy(_pad(route_B, rows)).to(self.device)
        output = self.value(
            embeddings, state, mask, self._primitive_texts[route], instruction, self._groups[route]
        )
        progress_B = output.progress_B[:count].float().cpu().numpy()
        low_B, high_B = self.calibration.interval.apply(progress_B, uncertain_B, batch.quantile_B)
        return ScoreBatch(
            progress_B=progress_B,
            primitive_index_B=index_B,
            probs_BP=probs_BP,
            confidence_B=confidence_B,
            uncertain_B=uncertain_B,
            group_index_B=np.asarray(self.vocabulary.group_of_primitive)[route_B],
            weights_BE=output.weights_BE[:count].float().cpu().numpy(),
            low_B=low_B,
            high_B=high_B,
        )

    def is_uncertain(
        self, confidence_B: Float32Array, index_B: IntArray, task_known_B: BoolArray
    ) -> BoolArray:
        """The rule: confidence under the calibrated threshold, or `null`, or an unknown task."""
        low = confidence_B < self.calibration.rule.threshold
        result: BoolArray = low | (index_B == self.vocabulary.null_index) | ~task_known_B
        return result

    def _padded(self, batch: WindowBatch, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        arrays = (
            batch.embeddings_BWCD,
            self.statistics.standardise(batch.state_BWS),
            batch.mask_BW,
            batch.instruction_BD,
        )
        first, *rest = (torch.from_numpy(_pad(array, rows)).to(self.device) for array in arrays)
        return first, rest[0], rest[1], rest[2]

    def _check(self) -> None:
        config, dim = self.config, self.config.embedding_dim
        expected = {
            "encoder width": (self.encoder.dim, dim),
            "statistics": (
                (len(self.statistics.state_mean), len(self.statistics.state_std)),
                (config.state_dim,) * 2,
            ),
            "primitive texts": (self.primitive_texts_PD.shape, (len(self.vocabulary.primitives), dim)),
            "instruction texts": (self.instruction_texts_ND.shape, (len(self.instructions), dim)),
        }
        for what, (got, wanted) in expected.items():
            if got != wanted:
                raise InvalidInput(f"reward model: expected {what} {wanted}, got {got}", field=what)

    def _check_batch(self, batch: WindowBatch) -> None:
        config, rows = self.config, len(batch)
        slots, dim = config.window.slots, config.embedding_dim
        expected = {
            "embeddings_BWCD": (rows, slots, len(config.cameras), dim),
            "state_BWS": (rows, slots, config.state_dim),
            "mask_BW": (rows, slots),
            "instruction_BD": (rows, dim),
            "task_known_B": (rows,),
            "quantile_B": (rows,),
        }
        for name, shape in expected.items():
            got = getattr(batch, name).shape
            if got != shape or rows == 0:
                raise InvalidInput(f"{name}: expected {shape} with at least one row, got {got}", field=name)


def bucket(rows: int) -> int:
    """The padded batch size for a number of rows: 4, 8, 16, 32, ..."""
    return max(SMALLEST_BUCKET, 1 << (rows - 1).bit_length())


def softmax(logits_BP: npt.NDArray[np.floating[Any]]) -> Float32Array:
    """Row-wise softmax in float64, given back as float32."""
    shifted = logits_BP.astype(np.float64) - logits_BP.max(-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: Float32Array = (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float32)
    return result


def _pad(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Repeat the last row up to `rows`."""
    missing = rows - len(array)
    return array if missing == 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _rows(batch: WindowBatch, start: int, stop: int) -> WindowBatch:
    arrays: Mapping[str, Any] = {one.name: getattr(batch, one.name)[start:stop] for one in fields(batch)}
    return WindowBatch(**arrays)


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
