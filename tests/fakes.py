"""Small but real: a SigLIP model saved by transformers, heads on top, a bundle on disk, pictures and states.

Nothing here is trained; everything runs the product's own code in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from sarm2_client import wire
from sarm2_client.images import encode_jpeg
from sarm2_models.calibration import Calibration, ConformalInterval
from sarm2_models.checkpoint import save_bundle
from sarm2_models.config import RewardModelConfig, StageConfig, ValueConfig, preset
from sarm2_models.encoder import ImageTextEncoder
from sarm2_models.reward_model import RewardModel, Statistics

TASKS = ("put the puck on the goal", "hammer the nail", "open the drawer")
CAMERAS = ("corner", "side", "wrist")
STATE_DIM = 4
FPS = 10.0
WORDS = sorted({word for task in TASKS for word in task.split()})


@dataclass(frozen=True)
class TowerSize:
    """Sizes of an image tower; the text tower has one layer of the same width."""

    dim: int = 32
    image_size: int = 32
    patch: int = 8
    layers: int = 1
    heads: int = 2


TINY = TowerSize()
SMALL = TowerSize(dim=192, image_size=96, patch=16, layers=4, heads=4)
"""The size of the tower that is shipped: for measurements."""


FULL = TowerSize(dim=768, image_size=224, patch=16, layers=12, heads=12)
"""SigLIP-2 base: for a GPU."""


def save_encoder(folder: Path, size: TowerSize = TINY, seed: int = 0) -> Path:
    """A SigLIP folder as transformers writes it: random weights, a word-level tokenizer."""
    vision = {
        "hidden_size": size.dim,
        "intermediate_size": 4 * size.dim,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "image_size": size.image_size,
        "patch_size": size.patch,
    }
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "</s>", *WORDS])}
    text = {
        "hidden_size": size.dim,
        "intermediate_size": 2 * size.dim,
        "num_hidden_layers": 1,
        "num_attention_heads": size.heads,
        "max_position_embeddings": 16,
        "vocab_size": len(vocabulary),
        "projection_size": size.dim,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_config(size: TowerSize = TINY) -> RewardModelConfig:
    """The `small` preset with heads of a size that fits the tower."""
    small = replace(preset("small"), embedding_dim=size.dim)
    if size in (SMALL, FULL):
        return small
    return replace(
        small,
        stage=StageConfig(dim=16, heads=2, layers=1),
        value=ValueConfig(dim=16, heads=2, layers=1, gate_hidden=16, expert_hidden=16),
    )


def make_model(folder: Path, size: TowerSize = TINY, seed: int = 0) -> RewardModel:
    """An untrained reward model; its encoder's files are written to `folder`."""
    encoder = ImageTextEncoder.load(save_encoder(folder, size, seed))
    statistics = Statistics(state_mean=(0.0,) * STATE_DIM, state_std=(1.0,) * STATE_DIM)
    interval = ConformalInterval(0.9, (1.0, 2.0), ((0.05,), (0.2,)), frames=10)
    return RewardModel.build(
        make_config(size),
        encoder,
        statistics,
        instructions=TASKS,
        seed=seed,
        calibration=Calibration(interval=interval),
    )


def make_bundle(folder: Path, size: TowerSize = TINY, seed: int = 0) -> Path:
    """A whole bundle in `folder`/bundle."""
    save_bundle(
        folder / "bundle", make_model(folder / "encoder", size, seed), model_id="tiny", version="0.0.1"
    )
    return folder / "bundle"


def picture(seed: int, size: int = 32) -> npt.NDArray[np.uint8]:
    """A smooth random uint8 RGB picture (size, size, 3); equal seeds give equal pictures."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((size // 4, size // 4, 1), np.uint8)))


def jpeg(seed: int, size: int = 32) -> wire.Image:
    """That picture as it goes over the wire."""
    return wire.Image(enc="jpeg", data=encode_jpeg(picture(seed, size)))


def images(seed: int, size: int = 32) -> dict[str, wire.Image]:
    """One picture a camera."""
    return {camera: jpeg(1000 * seed + index, size) for index, camera in enumerate(CAMERAS)}


def frame(seq: int, *, seed: int = 0, size: int = 32, deadline_ms: float | None = None) -> wire.Frame:
    """Frame `seq` of episode `seed`."""
    state = np.random.default_rng(seed * 7919 + seq).normal(size=STATE_DIM).tolist()
    pictures = images(seed * 7919 + seq, size)
    return wire.Frame(seq=seq, t_ns=seq, images=pictures, state=state, deadline_ms=deadline_ms)


def start(
    session_id: str,
    *,
    task: str = TASKS[0],
    fps: float = FPS,
    cameras: Sequence[str] = CAMERAS,
    qos: wire.Qos = "realtime",
    resume_from: int | None = None,
    reward: wire.RewardFormula = "delta.v1",
    source: wire.EpisodeSource | None = None,
) -> wire.Start:
    """The message that opens an episode of the simulated robot."""
    return wire.Start(
        session_id=session_id,
        task=task,
        fps=fps,
        cameras=list(cameras),
        qos=qos,
        resume_from=resume_from,
        reward=reward,
        source=source,
    )
