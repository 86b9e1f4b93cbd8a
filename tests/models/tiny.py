"""A whole reward model of toy size, with the real code: for tests of this and other rooms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from sarm2_models.calibration import Calibration
from sarm2_models.config import RewardModelConfig, StageConfig, ValueConfig, preset
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.reward_model import RewardModel, Statistics

DIM, SIDE = 16, 32
TEXT = "pick up the ball and place it hammer nail open drawer object move gripper to no progress"
WORDS = tuple(TEXT.split())
INSTRUCTIONS = ("pick up the ball", "open the drawer")


def tiny_config(**changes: Any) -> RewardModelConfig:
    """The `small` preset, thinner."""
    thin = replace(
        preset("small"),
        embedding_dim=DIM,
        stage=StageConfig(dim=16, heads=2, layers=2),
        value=ValueConfig(dim=16, heads=2, layers=2, gate_hidden=8, expert_hidden=8),
    )
    return replace(thin, **changes)


def tiny_tokenizer() -> Any:
    """Whole words."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {word: 3 + index for index, word in enumerate(WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_siglip(seed: int = 0, *, dim: int = DIM, side: int = SIDE) -> Any:
    """A SiglipModel of transformers with random weights."""
    common: dict[str, Any] = {
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text: dict[str, Any] = {"vocab_size": 3 + len(WORDS), "max_position_embeddings": 12, "pad_token_id": 0}
    text |= {"bos_token_id": None, "eos_token_id": 1}
    config = SiglipConfig(
        text_config=common | text, vision_config=common | {"image_size": side, "patch_size": 8}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SiglipModel(config).eval()


def save_siglip(folder: Path, seed: int = 0, *, dim: int = DIM, side: int = SIDE) -> Path:
    """A folder as transformers itself writes it."""
    tiny_siglip(seed, dim=dim, side=side).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_encoder(seed: int = 0) -> ImageTextEncoder:
    """An encoder without a folder."""
    return ImageTextEncoder(tiny_siglip(seed), tiny_tokenizer())


def tiny_model(
    seed: int = 0, *, calibration: Calibration | None = None, config: RewardModelConfig | None = None
) -> RewardModel:
    """An untrained reward model that knows two instructions."""
    sizes = config or tiny_config()
    statistics = Statistics((0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.5, 0.5), episodes=1, frames=1)
    return RewardModel.build(
        sizes, tiny_encoder(seed), statistics, instructions=INSTRUCTIONS, seed=seed, calibration=calibration
    )


def random_images(frames: int, seed: int = 0) -> dict[str, npt.NDArray[np.uint8]]:
    """Per camera of the small preset, uint8 (frames, SIDE, SIDE, 3)."""
    generator = np.random.default_rng(seed)
    shape = (frames, SIDE, SIDE, 3)
    return {camera: generator.integers(0, 256, shape, dtype=np.uint8) for camera in preset("small").cameras}


def random_states(frames: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """float32 (frames, 4)."""
    return np.random.default_rng(seed + 1000).normal(size=(frames, 4)).astype(np.float32)
