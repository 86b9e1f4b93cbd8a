"""Settings of a run: a few of a preset's may be told, and none that could not be."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sarm2_client.errors import InvalidInput
from sarm2_spiral.config import METAWORLD, PRESETS, UpdateConfig, with_settings


def test_told_settings_take_the_place_of_the_presets_in_their_own_types() -> None:
    told = [
        "update.beta=3",
        "update.monte_carlo=final_progress",
        "loop.exploration=[0, 0.1]",
        "policy.steps=7",
    ]
    assert with_settings(METAWORLD, told) == replace(
        METAWORLD,
        policy=replace(METAWORLD.policy, steps=7),
        update=replace(METAWORLD.update, beta=3.0, monte_carlo="final_progress"),
        loop=replace(METAWORLD.loop, exploration=(0.0, 0.1)),
    )
    assert with_settings(METAWORLD, []) == METAWORLD


def test_settings_that_hold_only_together_are_told_together() -> None:
    assert with_settings(METAWORLD, ["update.critic_only=7000", "update.updates=8000"]).update == replace(
        METAWORLD.update, critic_only=7000, updates=8000
    )


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("update.bta=1", "there is no setting 'update.bta', expected SECTION.NAME=VALUE .*mean update.beta?"),
        ("beta=1", "there is no setting 'beta'"),
        ("update=1", "there is no setting 'update'"),
        ("update.beta", "Expected `float`, got `str`"),
        ("update.beta=", "Expected `float`, got `str`"),
        ("update.beta=a lot", "Expected `float`, got `str`"),
        ("update.beta=NaN", "Expected `float`, got `str`"),
        ("update.batch=1.5", "Expected `int`, got `float`"),
        ("update.batch=true", "Expected `int`, got `bool`"),
        ("loop.labels=mine", "loop.labels=mine: expected marks, exact"),
        ("loop.exploration=0.1", "Expected `array`, got `float`"),
    ],
)
def test_what_is_no_setting_or_no_value_of_it_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected) as refused:
        with_settings(METAWORLD, [setting])
    assert setting in refused.value.message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("policy.layers=0", "layers: expected at least 1, got 0"),
        ("policy.noise=-0.1", "noise: expected at least 0, got -0.1"),
        ("policy.learning_rate=0", "learning_rate: expected a finite number above 0, got 0.0"),
        ("update.critics=0", "critics: expected at least 1, got 0"),
        ("update.gamma=1.1", "gamma: expected 0 to 1, got 1.1"),
        ("update.scale=0", "scale: expected a finite number above 0, got 0.0"),
        ("update.beta=-1", "beta: expected at least 0, got -1.0"),
        ("update.critic_only=6000", "critic_only: expected 0 to 5999, got 6000"),
        ("loop.gain_frames=0", "gain_frames: expected at least 1, got 0"),
        ("loop.kappa=0", "kappa: expected a finite number above 0, got 0.0"),
        ("loop.demo_bad_rate=2", "demo_bad_rate: expected 0 to 1, got 2.0"),
        ("loop.exploration=[0, -1]", "finite noises of 0 and more, got (0.0, -1.0)"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(expected)):
        with_settings(METAWORLD, [setting])


def test_what_is_not_a_finite_number_is_refused_in_python_too() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="beta: expected"):
            UpdateConfig(beta=value)


def test_presets_hold_what_they_ask_of_others() -> None:
    for config in PRESETS.values():
        assert config.update.executed <= config.policy.horizon
