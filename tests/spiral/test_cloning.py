"""The flow policy: deterministic in its latent, weighted by what frames gained, the same after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sarm2_client.errors import InvalidInput
from sarm2_spiral import cloning
from sarm2_spiral.cloning import clone
from sarm2_spiral.flow_policy import FlowPolicy
from sarm2_spiral.targets import Float32Array
from spiral.small_data import SMALL

CONFIG = replace(SMALL.policy, steps=300, learning_rate=5e-3)


def episode(seed: int, action: float) -> tuple[Float32Array, Float32Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(12, 3)).astype(np.float32), np.full((12, 2), action, np.float32)


def mean_action(policy: FlowPolicy) -> float:
    torch.manual_seed(0)
    chunk = policy.sample_chunk(torch.randn(64, 3), torch.randn(64, policy.latent_size))
    return float(chunk.mean())


def test_the_same_latent_gives_the_same_chunk_and_another_gives_another() -> None:
    torch.manual_seed(0)
    policy = FlowPolicy(3, 2, CONFIG)
    features_BF, latent_BL = torch.randn(4, 3), torch.randn(4, policy.latent_size)
    chunk_BHA = policy.sample_chunk(features_BF, latent_BL)
    assert chunk_BHA.shape == (4, CONFIG.horizon, 2)
    assert chunk_BHA.abs().max() <= 1
    torch.testing.assert_close(policy.sample_chunk(features_BF, latent_BL), chunk_BHA)
    assert (policy.sample_chunk(features_BF, -latent_BL) != chunk_BHA).any()


def test_a_clone_does_what_it_was_shown() -> None:
    shown = [episode(seed, 0.5) for seed in range(3)]
    policy = clone(shown, [np.ones(12, np.float32)] * 3, CONFIG, seed=0)
    assert mean_action(policy) == pytest.approx(0.5, abs=0.1)


def test_weights_decide_which_frames_are_imitated() -> None:
    shown = [episode(0, 0.6), episode(1, -0.6)]
    good = clone(shown, [np.ones(12, np.float32), np.zeros(12, np.float32)], CONFIG, seed=0)
    bad = clone(shown, [np.zeros(12, np.float32), np.ones(12, np.float32)], CONFIG, seed=0)
    assert mean_action(good) > 0.4
    assert mean_action(bad) < -0.4


def test_a_killed_cloning_that_goes_on_ends_with_the_same_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloning, "CHECKPOINT_EVERY", 20)
    shown, weights = [episode(0, 0.3)], [np.ones(12, np.float32)]
    config = replace(CONFIG, steps=60)
    whole = clone(shown, weights, config, seed=1)
    path = tmp_path / "policy.checkpoint"

    class KilledError(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 47:
            raise KilledError

    with pytest.raises(KilledError):
        clone(shown, weights, config, seed=1, path=path, tick=kill)
    resumed = clone(shown, weights, config, seed=1, path=path)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_nothing_to_imitate_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nothing to imitate"):
        clone([episode(0, 0.1)], [np.zeros(12, np.float32)], CONFIG, seed=0)
