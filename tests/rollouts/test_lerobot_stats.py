"""Statistics merged from parts are those of the whole."""

from __future__ import annotations

import numpy as np

from sarm2_rollouts.lerobot_stats import NumberStats, PictureStats, sampled


def test_merged_numbers_equal_those_of_all_frames() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(1000, 2, size=(n, 3)) for n in (1, 7, 50)]
    stats = [NumberStats.of(part) for part in parts]
    assert stats[0] is not None
    whole = stats[0]
    for stat in stats[1:]:
        assert stat is not None
        whole = whole.merged(stat)
    frames = np.concatenate(parts)
    assert whole.count == 58
    np.testing.assert_allclose(whole.mean, frames.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.std, frames.std(0), rtol=1e-9)
    np.testing.assert_array_equal(whole.minimum, frames.min(0))
    np.testing.assert_array_equal(whole.maximum, frames.max(0))


def test_frames_that_are_not_finite_do_not_count() -> None:
    stats = NumberStats.of([1.0, np.nan, 3.0, np.inf])
    assert stats is not None
    assert (stats.count, stats.mean.tolist()) == (2, [2.0])
    assert NumberStats.of([np.nan, np.nan]) is None


def test_pictures_count_every_pixel_exactly() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, size=(5, 20, 30, 3), dtype=np.uint8)
    stats = PictureStats.of(pictures[:2]).merged(PictureStats.of(pictures[2:])).to_json()
    scaled = pictures / 255.0
    for name in ("min", "max", "mean", "std"):
        expected = getattr(scaled, name)(axis=(0, 1, 2)).reshape(3, 1, 1)
        np.testing.assert_allclose(stats[name], expected, rtol=1e-9)
    for name, q in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        expected = np.quantile(scaled, q, axis=(0, 1, 2), method="inverted_cdf").reshape(3, 1, 1)
        np.testing.assert_allclose(stats[name], expected)
    assert stats["count"] == [5]


def test_large_pictures_are_thinned_not_refused() -> None:
    flat = np.full((480, 640, 3), 51, dtype=np.uint8)
    assert PictureStats.of([flat]).to_json()["mean"] == [[[0.2]], [[0.2]], [[0.2]]]


def test_short_episodes_count_every_picture_and_long_ones_ever_fewer() -> None:
    assert sampled(1).tolist() == [0]
    assert sampled(100).tolist() == list(range(100))
    assert [len(sampled(n)) for n in (101, 150, 10_000)] == [100, 100, 1000]
    assert (sampled(500)[0], sampled(500)[-1]) == (0, 499)
