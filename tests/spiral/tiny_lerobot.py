"""Policies of LeRobot's own classes, untrained and tiny, saved as LeRobot's trainer saves them."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

STATE = "observation.state"
SIZE = 64
"""Side of the pictures that the policies expect."""

SIZES: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 6,
        "n_action_steps": 6,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
        "pretrained_backbone_weights": None,
    },
    "diffusion": {
        "horizon": 16,
        "n_action_steps": 8,
        "n_obs_steps": 2,
        "down_dims": (32, 64),
        "diffusion_step_embed_dim": 16,
        "crop_shape": (56, 56),
        "num_train_timesteps": 5,
        "spatial_softmax_num_keypoints": 4,
        "pretrained_backbone_weights": None,
    },
    "smolvla": {
        "chunk_size": 6,
        "n_action_steps": 6,
        "num_vlm_layers": 2,
        "resize_imgs_with_padding": (SIZE, SIZE),
        "num_steps": 3,
        "expert_width_multiplier": 0.5,
        "max_state_dim": 8,
        "max_action_dim": 8,
    },
}


def available() -> bool:
    """Whether LeRobot is installed here."""
    return importlib.util.find_spec("lerobot") is not None


@cache
def prepare_imports() -> object:
    """Make LeRobot importable beside a torch without CUDA.

    The published torchvision wheel is compiled for CUDA, and its import ends where two of its operators are
    missing. Nothing here calls them. Their library lives as long as what is returned.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would fetch weights fails at once
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library, importlib.import_module("torchvision")


def save_policy(
    root: Path,
    kind: str,
    *,
    cameras: tuple[str, ...] = ("corner", "top"),
    size: int = SIZE,
    state: int = 4,
    actions: int = 4,
    **changes: Any,
) -> Path:
    """A policy of a kind, with its processors, in `root`/`kind`."""
    prepare_imports()
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    seen = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, size, size)) for name in cameras
    }
    seen |= {STATE: PolicyFeature(FeatureType.STATE, (state,))} if state else {}
    sizes = SIZES[kind] | changes
    if kind == "smolvla":
        sizes |= {"vlm_model_name": str(save_smolvlm(root / "smolvlm"))}
    config = make_policy_config(
        kind,
        input_features=seen,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (actions,))},
        device="cpu",
        push_to_hub=False,
        **sizes,
    )
    torch.manual_seed(0)
    policy = get_policy_class(kind)(config)
    statistics = {name: _statistics((3, 1, 1)) for name in seen if name != STATE}
    statistics |= {STATE: _statistics((state,)), "action": _statistics((actions,))}
    for part in (policy, *make_pre_post_processors(config, dataset_stats=statistics)):
        part.save_pretrained(root / kind)
    return root / kind


def _statistics(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    values = {"mean": 0.1, "std": 0.5, "min": -0.8, "max": 0.9}
    return {name: torch.full(shape, value) for name, value in values.items()}


def save_smolvlm(folder: Path) -> Path:
    """The vision-language model that SmolVLA is built on: its sizes, tokenizer and processors, no weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    words = ["<unk>", "<pad>", *special.values(), "open", "the", "drawer", "hammer", "nail"]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    texts = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=special
    )
    SmolVLMProcessor(SmolVLMImageProcessor(), texts, SmolVLMVideoProcessor()).save_pretrained(folder)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 16,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 16,
        "pad_token_id": 1,
    }
    config = SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=2, image_token_id=2, pad_token_id=1
    )
    config.save_pretrained(folder)
    return folder
