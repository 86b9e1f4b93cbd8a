"""Where rewards come from, and what they weigh in cloning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rollouts.small_episodes import STATE_NAMES, small_episode
from sarm2_client.errors import InvalidInput
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import EpisodeScores
from sarm2_rollouts.lerobot_reader import Dataset, open_dataset
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.rabc import rabc_weights, suggested_kappa
from sarm2_rollouts.relabel import relabel
from sarm2_spiral.config import METAWORLD
from sarm2_spiral.folder import SpiralFolder
from sarm2_spiral.progress import Reward, progress_curves
from sarm2_spiral.rewards import frame_weights, rewards, with_demo_share
from sarm2_spiral.targets import Float32Array

LENGTHS = (12, 9)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    episodes = [small_episode(seed, length) for seed, length in enumerate(LENGTHS)]
    write_dataset(episodes, tmp_path / "d", storage="image", state_names=STATE_NAMES)
    return open_dataset(tmp_path / "d")


def a_run(reward: Reward) -> SpiralFolder:
    return SpiralFolder(Path("run"), "hammer", "state", 0, METAWORLD, reward)


def curves(dataset: Dataset, reward: Reward) -> list[Float32Array]:
    """All of them are known."""
    found = progress_curves(dataset, reward, 10.0)
    return [curve_T for curve_T in found if curve_T is not None]


def test_each_source_has_a_curve_of_its_own(dataset: Dataset) -> None:
    true = curves(dataset, "true")
    episodes = list(dataset)
    for curve_T, episode in zip(true, episodes, strict=True):
        assert episode.progress_T is not None
        np.testing.assert_array_equal(curve_T, episode.progress_T)
    long, short = curves(dataset, "linear")
    np.testing.assert_allclose(long, [*np.arange(10) / 10, 1.0, 1.0], rtol=1e-6)
    assert short[-1] == pytest.approx(0.8)
    for curve_T, episode in zip(curves(dataset, "success"), episodes, strict=True):
        assert curve_T[:-1].max() == 0.0
        assert curve_T[-1] == float(bool(episode.success))
    assert all(curve_T.max() == 0.0 for curve_T in curves(dataset, "uniform"))


class HalfBlind:
    """Says what true progress is, but for a frame of the second episode."""

    model = "m@1#aa"

    def score(self, episode: Episode) -> EpisodeScores:
        assert episode.progress_T is not None
        progress_T, count = episode.progress_T.copy(), len(episode)
        failures = ((4, "no picture"),) if episode.seed == 1 else ()
        progress_T[[frame for frame, _ in failures]] = np.nan
        return EpisodeScores(progress_T, ("reach",) * count, np.zeros(count, dtype=bool), failures)


class Blind(HalfBlind):
    """Another model, which cannot score anything."""

    model = "m@2#bb"

    def score(self, episode: Episode) -> EpisodeScores:
        found = super().score(episode)
        return replace(found, failures=((0, "no picture"),))


def test_an_episode_that_could_not_be_scored_teaches_nothing(dataset: Dataset, tmp_path: Path) -> None:
    relabel(dataset, HalfBlind(), chunk=4, skip_failed=True)
    first, second = progress_curves(dataset, "service", 10.0)
    true_T = dataset.episode(0).progress_T
    assert first is not None
    assert true_T is not None
    np.testing.assert_allclose(first, true_T, atol=1e-4)
    assert second is None
    run = SpiralFolder(
        dataset.root, "hammer", "state", 0, METAWORLD
    )  # whose demonstrations are the dataset's
    (dataset.root / "demos").symlink_to(dataset.root)
    assert list(rewards(run, dataset.root)) == [0]
    relabel(dataset, Blind(), chunk=4, skip_failed=True)
    with pytest.raises(InvalidInput, match="no episode could be scored"):
        rewards(run, dataset.root)


def test_a_gain_weighs_its_square_up_to_kappa() -> None:
    run = a_run("true")
    frames, kappa = run.config.loop.gain_frames, run.config.loop.kappa
    curve_T = np.concatenate([np.full(frames, 0.1), np.full(frames, 0.1 + kappa / 2), [0.9]])
    (weight_T,) = frame_weights(run, [curve_T.astype(np.float32)], "gain")
    assert weight_T[0] == pytest.approx(0.25, abs=1e-5)
    assert weight_T[frames + 1] == 1.0
    assert weight_T[-1] == 0.0


def test_lerobots_rule_is_lerobots_with_the_suggested_kappa() -> None:
    run = a_run("service")
    rng = np.random.default_rng(0)
    curves = [rng.random(length).astype(np.float32) for length in (30, 20)]
    found = frame_weights(run, curves, "lerobot")
    ahead = [np.minimum(np.arange(len(one)) + run.config.loop.gain_frames, len(one) - 1) for one in curves]
    gain_N = np.concatenate([one[later] - one for one, later in zip(curves, ahead, strict=True)]).astype(
        float
    )
    np.testing.assert_allclose(np.concatenate(found), rabc_weights(gain_N, suggested_kappa(gain_N)))
    assert [len(one) for one in found] == [30, 20]


def test_without_rewards_all_frames_weigh_the_same_and_a_verdict_weighs_whole_episodes() -> None:
    done, failed = np.zeros(5, np.float32), np.zeros(4, np.float32)
    done[-1] = 1.0
    no_reward = frame_weights(a_run("uniform"), [done, failed], "lerobot")
    assert all(
        (one == 1).all() for one in [*no_reward, *frame_weights(a_run("true"), [done, failed], "alike")]
    )
    first, second = frame_weights(a_run("success"), [done, failed], "gain")
    assert (first == 1).all()
    assert (second == 0).all()


def test_demonstrations_keep_their_share_however_many_rollouts_there_are() -> None:
    weights = [np.ones(10, np.float32), np.full(40, 0.5, np.float32), np.ones(60, np.float32)]
    shared = with_demo_share(weights, np.array([True, False, False]), 0.25)
    assert shared[0].sum() == pytest.approx(0.25)
    assert shared[1].sum() + shared[2].sum() == pytest.approx(0.75)
    assert shared[2].sum() == pytest.approx(3 * shared[1].sum())


def test_a_kind_that_weighs_nothing_takes_nothing_from_the_other() -> None:
    weights = [np.ones(10, np.float32), np.zeros(40, np.float32)]
    shared = with_demo_share(weights, np.array([True, False]), 0.5)
    np.testing.assert_array_equal(shared[0], weights[0])
