"""Stages of the loop by themselves: what an update goes on from, and which encoder a run keeps to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from sarm2_client.errors import Conflict, WaitTimeout
from sarm2_rollouts.whole_file import whole_file
from sarm2_spiral import stages
from spiral.small_run import in_round_1


@pytest.mark.parametrize(("deployed", "goes_on_from"), [([1], b"1"), ([2], b"2"), ([1, 2], b"2")])
def test_an_update_goes_on_from_the_last_candidate_that_was_deployed(
    tmp_path: Path, deployed: list[int], goes_on_from: bytes
) -> None:
    run = in_round_1(tmp_path / "run")
    for number in (1, 2):
        with whole_file(run.round(number) / stages.CHECKPOINT) as fresh:
            fresh.write_bytes(str(number).encode())
    checkpoint = stages.begin_checkpoint(run, 3, deployed)
    assert checkpoint.read_bytes() == goes_on_from
    checkpoint.write_bytes(b"3, half learned")
    assert stages.begin_checkpoint(run, 3, deployed).read_bytes() == b"3, half learned"


def test_an_update_begins_afresh_where_none_was_deployed(tmp_path: Path) -> None:
    run = in_round_1(tmp_path / "run")
    (run.round(1) / stages.CHECKPOINT).write_bytes(b"1")
    assert not stages.begin_checkpoint(run, 2, []).exists()


def by_colour(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
    """An encoder: the mean colour of a picture's quarters."""
    quarters = [[p[:h, :w].mean((0, 1)) for h in (48, 96) for w in (48, 96)] for p in pictures]
    return np.array(quarters, dtype=np.float16).reshape(len(pictures), -1)


def by_edges(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
    """Another one, of the same width: how much every colour changes along its sides."""
    rows = [np.abs(np.diff(p.astype(float), axis=a)).mean((0, 1)) for p in pictures for a in (0, 1, 0, 1)]
    return np.array(rows, dtype=np.float16).reshape(len(pictures), -1)


def on_another_device(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float16]:
    return by_colour(pictures) + np.float16(0.05)


def test_a_run_keeps_to_the_encoder_that_it_was_begun_with(tmp_path: Path) -> None:
    run = in_round_1(tmp_path / "run")
    for _ in range(2):
        stages.check_encoder(run, by_colour, print)
    stages.check_encoder(run, on_another_device, print)
    for other in (by_edges, lambda pictures: by_colour(pictures)[:, :6]):
        with pytest.raises(Conflict, match="another image encoder"):
            stages.check_encoder(run, other, print)


def test_an_adaptation_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ADAPT_TIMEOUT_S", 0.05)  # its process has not even imported anything by then
    with pytest.raises(WaitTimeout, match="--resume goes on with it"):
        stages.adapt_reward_model(in_round_1(tmp_path / "run"), Console(quiet=True))
