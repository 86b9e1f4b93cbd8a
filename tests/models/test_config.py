"""Sizes: presets, bounds, and a round trip through plain data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.config import PRESETS, RewardModelConfig, StageConfig, ValueConfig, WindowConfig, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name: str) -> None:
    config = preset(name)
    assert RewardModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_has_the_sampling_of_the_publication() -> None:
    config = preset("published")
    assert config.window.gap_frames(config.fps) == 30
    assert (config.window.length, config.state_dim, config.embedding_dim) == (6, 14, 768)


def test_small_fits_the_simulated_robot() -> None:
    config = preset("small")
    assert config.cameras == ("corner", "side", "wrist")
    assert config.window.gap_frames(10.0) == 4


@pytest.mark.parametrize(
    ("gap_s", "fps", "frames"), [(0.4, 10, 4), (0.5, 5, 3), (0.5, 1, 1), (0.1, 1, 1), (1, 29.97, 30)]
)
def test_gaps_round_half_up_and_never_to_nothing(gap_s: float, fps: float, frames: int) -> None:
    assert WindowConfig(6, gap_s).gap_frames(fps) == frames


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_an_impossible_frame_rate_is_refused(fps: float) -> None:
    with pytest.raises(InvalidInput, match="fps"):
        WindowConfig().gap_frames(fps)


@pytest.mark.parametrize(
    ("part", "values", "field"),
    [
        (WindowConfig, {"length": 0}, "window.length"),
        (WindowConfig, {"gap_s": float("nan")}, "window.gap_s"),
        (StageConfig, {"dim": 10, "heads": 3}, "stage.heads"),
        (StageConfig, {"inputs": "sound"}, "stage.inputs"),
        (StageConfig, {"dropout": 1.0}, "stage.dropout"),
        (ValueConfig, {"top_k": 11}, "value.top_k"),
        (ValueConfig, {"experts": 0}, "value.experts"),
        (ValueConfig, {"entropy": -1.0}, "value.entropy"),
        (RewardModelConfig, {"cameras": ("top", "top")}, "cameras"),
        (RewardModelConfig, {"state_dim": 0}, "state_dim"),
        (RewardModelConfig, {"fps": 0.0}, "fps"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(part: type[Any], values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        part(**values)
    assert caught.value.field == field


def test_unknown_and_missing_fields_are_named() -> None:
    data = preset("small").to_dict()
    data["fsp"] = data.pop("fps")
    with pytest.raises(InvalidInput, match=r"unknown fields \['fsp'\], missing fields \['fps'\]"):
        RewardModelConfig.from_dict(data)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'small'"):
        preset("smal")
