"""The rungs of the ladder as inputs for the same heads: what each variant sees.

- `ceiling`: the true simulator state in place of the pictures. What the heads and labels allow at best: if
  this rung is bad, the labels are wrong.
- `full`: the tower's embeddings and the proprioceptive state. The model.
- `state_only`: the proprioceptive state alone. `images_only`: the pictures alone.

`ceiling` and `state_only` need no tower and read texts as fixed random codes of the tower's width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.config import RewardModelConfig
from sarm2_models.reward_model import Statistics
from sarm2_models.stage import StageEstimator
from sarm2_models.train.corpus import Corpus
from sarm2_models.train.heads import Texts, predict_logits, predict_progress
from sarm2_models.train.windows import Frames
from sarm2_models.value import ValueDecoder
from sarm2_models.vocabulary import Vocabulary
from sarm2_models.window import Float16Array, Float32Array, IntArray
from sarm2_rollouts.whole_file import whole_file

Variant: TypeAlias = Literal["ceiling", "full", "state_only", "images_only"]
VARIANTS: tuple[Variant, ...] = ("ceiling", "full", "state_only", "images_only")
ABLATIONS: tuple[Variant, ...] = ("state_only", "images_only")
ABLATION_FOLDER = "ablations"
BASELINES = "baselines.json"
CODE_SEED = 20260
SIMULATOR_VIEW = "simulator"

_Module = TypeVar("_Module", bound=nn.Module)


def variant_config(config: RewardModelConfig, variant: Variant) -> RewardModelConfig:
    """The sizes of a variant: those of the model, with what it may not see left out."""
    if variant == "ceiling":
        return replace(config, cameras=(SIMULATOR_VIEW,))
    if variant == "full":
        return config
    inputs: Literal["state", "images"] = "state" if variant == "state_only" else "images"
    return replace(
        config, stage=replace(config.stage, inputs=inputs), value=replace(config.value, inputs=inputs)
    )


def needs_tower(variant: Variant) -> bool:
    """Whether a variant can only be trained once the tower is."""
    return variant in ("full", "images_only")


def text_codes(texts: Sequence[str], dim: int) -> Float16Array:
    """A fixed random code (N, dim) for each text: which text it is, and nothing of what it means."""
    rows = []
    for text in texts:
        digest = hashlib.sha256(text.lower().encode()).digest()
        rows.append(np.random.default_rng([CODE_SEED, *digest[:8]]).normal(size=dim))
    return np.array(rows, dtype=np.float16).reshape(len(texts), dim)


def coded_texts(vocabulary: Vocabulary, instructions: Sequence[str], dim: int) -> Texts:
    """Codes of all texts."""
    return Texts(text_codes(vocabulary.texts, dim), text_codes(instructions, dim))


def simulator_embeddings(corpus: Corpus, dim: int, statistics: Statistics) -> Float16Array:
    """The physical simulator state as if it were one camera's embedding: standardised and zero-padded."""
    physical = corpus.simulator_TK[:, : physical_count(corpus)]
    scaled_TK = statistics.standardise(physical)
    padded = np.zeros((len(corpus), 1, dim), dtype=np.float16)
    padded[:, 0, : scaled_TK.shape[1]] = scaled_TK
    return padded


def physical_count(corpus: Corpus) -> int:
    """How many of the K quantities are physical; the others say where points fall in pictures."""
    prefixes = tuple(f"{camera}_" for camera in corpus.cameras)
    return sum(not name.startswith(prefixes) for name in corpus.simulator_names)


# --- trained heads on disk -------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Trained heads of one variant."""

    config: RewardModelConfig
    stage: StageEstimator
    value: ValueDecoder

    def logits(self, frames: Frames) -> Float32Array:
        """Raw stage logits, (T, P)."""
        return predict_logits(self.stage, frames)

    def progress(
        self, frames: Frames, texts: Texts, primitive_T: IntArray, vocabulary: Vocabulary
    ) -> Float32Array:
        """Progress, (T,)."""
        return predict_progress(self.value, frames, texts, primitive_T, vocabulary)


def save_module(path: Path, module: nn.Module, *, half: bool = False) -> None:
    """Weights as safetensors, in float16 with `half`; the file appears when it is whole."""
    values = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    with whole_file(path) as fresh:
        save_file({name: value.half() if half else value for name, value in values.items()}, fresh)


def load_heads(folder: Path, config: RewardModelConfig) -> Heads:
    """Heads that `save_module` wrote as `stage.safetensors` and `value.safetensors`, in float32.

    Raises NotFound where a file is missing, InvalidInput where it does not fit `config`.
    """
    stage = load_module(folder / "stage.safetensors", StageEstimator(config))
    return Heads(config, stage, load_module(folder / "value.safetensors", ValueDecoder(config)))


def load_module(path: Path, module: _Module) -> _Module:
    """Fill `module` with what `save_module` wrote, in float32. Raises as `load_heads`."""
    if not path.exists():
        raise NotFound(f"expected {path}; train the bundle again or copy its whole folder")
    tensors = {key: tensor.to(torch.float32) for key, tensor in load_file(path).items()}
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InvalidInput(f"{path} does not fit the bundle's config: {error}") from error
    return module.eval()


def save_ablations(bundle: Path, heads: dict[Variant, Heads], mean_frames: dict[str, float]) -> None:
    """Keep the blind variants and the clock beside a bundle, for `evaluation`."""
    folder = bundle / ABLATION_FOLDER
    for variant, trained in heads.items():
        save_module(folder / variant / "stage.safetensors", trained.stage, half=True)
        save_module(folder / variant / "value.safetensors", trained.value, half=True)
    (folder / BASELINES).write_text(json.dumps({"mean_frames": mean_frames}, indent=1) + "\n")


def load_ablations(bundle: Path, config: RewardModelConfig) -> tuple[dict[Variant, Heads], dict[str, float]]:
    """The blind variants of a bundle, and the mean frames of a demonstration by instruction."""
    folder = bundle / ABLATION_FOLDER
    if not (folder / BASELINES).exists():
        raise NotFound(f"expected {folder / BASELINES}: this bundle was saved without its baselines")
    heads = {name: load_heads(folder / name, variant_config(config, name)) for name in ABLATIONS}
    return heads, json.loads((folder / BASELINES).read_text())["mean_frames"]
