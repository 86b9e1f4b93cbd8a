"""`sarm_progress.parquet`: what LeRobot's trainers read, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollouts.small_episodes import STATE_NAMES, small_episode
from sarm2_client.errors import Conflict, InvalidInput
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import EpisodeScores
from sarm2_rollouts.lerobot_reader import Dataset, open_dataset
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.relabel import PARTS, PROGRESS_FILE, WEIGHTS_FILE, curves, relabel

LENGTHS = (12, 9, 15)


class Scorer:
    """Says what true progress is; some frames it cannot score, and it can be killed."""

    def __init__(self, model: str = "m@1#aa") -> None:
        self.model = model
        self.bad: dict[int, list[int]] = {}
        self.scored: list[int] = []
        self.dies_at: int | None = None

    def score(self, episode: Episode) -> EpisodeScores:
        assert episode.seed is not None
        assert episode.progress_T is not None
        if episode.seed == self.dies_at:
            raise KeyboardInterrupt
        self.scored.append(episode.seed)
        progress_T = episode.progress_T.copy()
        bad = self.bad.get(episode.seed, [])
        progress_T[bad] = np.nan
        names = ("reach",) * len(episode)
        uncertain_T = np.zeros(len(episode), dtype=bool)
        return EpisodeScores(progress_T, names, uncertain_T, tuple((frame, "no picture") for frame in bad))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    episodes = [small_episode(seed, length) for seed, length in enumerate(LENGTHS)]
    write_dataset(episodes, tmp_path / "d", storage="image", state_names=STATE_NAMES)
    return open_dataset(tmp_path / "d")


def lerobot_weights(path: Path, chunk: int, kappa: float) -> Callable[[int], float]:
    """How LeRobot 0.4.3 to 0.6 reads the file and weighs a frame, in our words.

    Progress is looked up by `index`; NaN counts as missing. The gain of a frame is looked for `chunk` frames
    ahead, or at its episode's last frame. Mean and deviation are over all frames whose gain is known. A frame
    whose gain is not known gets the fallback: full weight.
    """
    rows = pq.read_table(path).to_pylist()
    known = {row["index"]: row["progress_sparse"] for row in rows if not np.isnan(row["progress_sparse"])}
    last: dict[int, int] = {}
    for row in rows:
        last[row["episode_index"]] = max(row["index"], last.get(row["episode_index"], 0))
    episode = {row["index"]: row["episode_index"] for row in rows}

    def gain(index: int) -> float:
        if index not in known:
            return float("nan")
        later = known.get(min(index + chunk, last[episode[index]]))
        return float("nan") if later is None else later - known[index]

    found = np.array([g for g in map(gain, known) if not np.isnan(g)])
    mean, deviation = max(float(found.mean()), 0.0), max(float(found.std()), 1e-6)

    def weight(index: int) -> float:
        r = gain(index)
        if np.isnan(r):
            return 1.0
        if r > kappa:
            return 1.0
        ramp = min(max((r - (mean - 2 * deviation)) / (4 * deviation + 1e-6), 0.0), 1.0)
        return ramp if r >= 0 else 0.0

    return weight


def weights_in(dataset: Dataset) -> npt.NDArray[np.float32]:
    table = pq.read_table(dataset.root / WEIGHTS_FILE)
    assert table["index"].to_pylist() == list(range(sum(LENGTHS)))
    return np.asarray(table["weight"].to_numpy())


def test_every_frame_has_a_row_in_order_with_the_types_that_readers_expect(dataset: Dataset) -> None:
    done = relabel(dataset, Scorer(), chunk=4)
    table = pq.read_table(done.path)
    assert done.path == dataset.root / PROGRESS_FILE
    assert [str(table.schema.field(name).type) for name in table.column_names[:4]] == [
        "int64",
        "int64",
        "int64",
        "float",
    ]
    assert table.column_names[:4] == ["index", "episode_index", "frame_index", "progress_sparse"]
    assert table.schema.metadata[b"reward_model_path"] == b"m@1#aa"
    assert table["index"].to_pylist() == list(range(36))
    assert table["episode_index"].to_pylist() == [0] * 12 + [1] * 9 + [2] * 15
    assert table["frame_index"].to_pylist() == [*range(12), *range(9), *range(15)]
    for index, curve_T in enumerate(curves(done.path)):
        np.testing.assert_array_equal(curve_T, dataset.episode(index).progress_T)
    assert not (dataset.root / PARTS).exists()
    assert (done.episodes, done.frames, done.failures) == (3, 36, ())


@pytest.mark.parametrize("kappa", [None, 0.01, 0.3])
def test_our_weights_are_those_that_lerobot_works_out(dataset: Dataset, kappa: float | None) -> None:
    done = relabel(dataset, Scorer(), chunk=4, kappa=kappa)
    theirs = lerobot_weights(done.path, 4, done.kappa)
    np.testing.assert_allclose(weights_in(dataset), [theirs(i) for i in range(36)], atol=1e-5)
    assert done.kappa == (done.suggested_kappa if kappa is None else kappa)
    metadata = pq.read_schema(dataset.root / WEIGHTS_FILE).metadata
    assert float(metadata[b"kappa"]) == done.kappa


def test_after_a_kill_only_what_is_missing_is_scored(dataset: Dataset) -> None:
    killed = Scorer()
    killed.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        relabel(dataset, killed, chunk=4)
    assert not (dataset.root / PROGRESS_FILE).exists()
    second = Scorer()
    relabel(dataset, second, chunk=4)
    assert (killed.scored, second.scored) == ([0, 1], [2])


def test_a_frame_that_cannot_be_scored_is_named_and_nothing_is_written(dataset: Dataset) -> None:
    broken = Scorer()
    broken.bad = {1: [3, 4]}
    with pytest.raises(InvalidInput, match="episode 1 frame 3: no picture; episode 1 frame 4"):
        relabel(dataset, broken, chunk=4)
    assert not (dataset.root / PROGRESS_FILE).exists()
    mended = Scorer()
    relabel(dataset, mended, chunk=4)
    assert mended.scored == [1]


def test_a_skipped_episode_never_gets_full_weight(dataset: Dataset) -> None:
    broken = Scorer()
    broken.bad = {1: [3]}
    done = relabel(dataset, broken, chunk=4, skip_failed=True)
    assert done.failures == ((1, 3, "no picture"),)
    theirs = lerobot_weights(done.path, 4, done.kappa)
    skipped = [theirs(index) for index in range(12, 21)]
    assert skipped[:-1] == [0.0] * 8
    assert skipped[-1] < 1  # the last frame gains nothing, which is half a weight
    np.testing.assert_allclose(weights_in(dataset)[12:21], skipped, atol=1e-5)


@pytest.fixture
def broken_off(dataset: Dataset) -> Dataset:
    """Episode 1 has a frame that cannot be scored; `skip_failed` was killed after it."""
    killed = Scorer()
    killed.bad, killed.dies_at = {1: [3]}, 2
    with pytest.raises(KeyboardInterrupt):
        relabel(dataset, killed, chunk=4, skip_failed=True)
    return dataset


def test_what_failed_before_a_kill_is_still_reported(broken_off: Dataset) -> None:
    second = Scorer()
    second.bad = {2: [5]}
    done = relabel(broken_off, second, chunk=4, skip_failed=True)
    assert second.scored == [2]
    assert done.failures == ((1, 3, "no picture"), (2, 5, "no picture"))
    assert pq.read_schema(done.path).metadata[b"reward_model_path"] == b"m@1#aa"


def test_what_was_skipped_before_a_kill_is_scored_again_where_nothing_may_be_skipped(
    broken_off: Dataset,
) -> None:
    still_broken = Scorer()
    still_broken.bad = {1: [3]}
    with pytest.raises(InvalidInput, match="episode 1 frame 3: no picture"):
        relabel(broken_off, still_broken, chunk=4)
    assert not (broken_off.root / PROGRESS_FILE).exists()
    mended = Scorer()
    done = relabel(broken_off, mended, chunk=4)
    assert (still_broken.scored, mended.scored, done.failures) == ([1, 2], [1], ())
    for index, curve_T in enumerate(curves(done.path)):
        np.testing.assert_array_equal(curve_T, broken_off.episode(index).progress_T)


def test_a_part_that_does_not_say_whether_it_failed_is_scored_again(broken_off: Dataset) -> None:
    for part in (broken_off.root / PARTS).glob("*.parquet"):
        pq.write_table(pq.read_table(part).replace_schema_metadata({"reward_model_path": "m@1#aa"}), part)
    scorer = Scorer()
    relabel(broken_off, scorer, chunk=4)
    assert scorer.scored == [0, 1, 2]


def test_scores_of_two_models_are_never_mixed(dataset: Dataset) -> None:
    first = Scorer("m@1#aa")
    first.dies_at = 1
    with pytest.raises(KeyboardInterrupt):
        relabel(dataset, first, chunk=4)
    with pytest.raises(Conflict, match="m@1#aa"):
        relabel(dataset, Scorer("m@2#bb"), chunk=4)
    second = Scorer("m@2#bb")
    relabel(dataset, second, chunk=4, restart=True)
    assert second.scored == [0, 1, 2]


def test_scores_for_other_words_are_never_gone_on_with(dataset: Dataset) -> None:
    first = Scorer()
    first.dies_at = 1
    with pytest.raises(KeyboardInterrupt):
        relabel(dataset, first, chunk=4, asked={"task": "open the drawer"})
    with pytest.raises(Conflict, match="task open the drawer, and now it is close it"):
        relabel(dataset, Scorer(), chunk=4, asked={"task": "close it"})


def test_a_model_that_changes_meanwhile_ends_it(dataset: Dataset) -> None:
    class Changing(Scorer):
        def score(self, episode: Episode) -> EpisodeScores:
            found = super().score(episode)
            self.model = "m@2#bb" if len(self.scored) == 2 else self.model
            return found

    with pytest.raises(Conflict, match=r"m@1#aa scored 1 episodes, and now m@2#bb"):
        relabel(dataset, Changing(), chunk=4)


def test_a_dataset_can_be_relabelled_again_by_another_model(dataset: Dataset) -> None:
    relabel(dataset, Scorer("m@1#aa"), chunk=4)
    done = relabel(dataset, Scorer("m@2#bb"), chunk=4)
    assert pq.read_schema(done.path).metadata[b"reward_model_path"] == b"m@2#bb"


def test_a_kill_between_both_files_leaves_no_weights_of_other_scores(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = relabel(dataset, Scorer("m@1#aa"), chunk=4)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sarm2_rollouts.relabel._weigh", killed)
        with pytest.raises(KeyboardInterrupt):
            relabel(dataset, Scorer("m@2#bb"), chunk=4)
    assert done.path.exists()
    assert not done.weights.exists()
    again = Scorer("m@2#bb")
    assert relabel(dataset, again, chunk=4).weights.exists()
    assert again.scored == []


def test_other_weights_need_no_new_scores(dataset: Dataset) -> None:
    first, second = Scorer(), Scorer()
    told = {"task": None, "cameras": ["wrist=hand"]}
    relabel(dataset, first, chunk=4, asked=told)
    before = (dataset.root / PROGRESS_FILE).stat().st_mtime_ns
    done = relabel(dataset, second, chunk=2, kappa=0.5, asked=told)
    assert (first.scored, second.scored) == ([0, 1, 2], [])
    assert (dataset.root / PROGRESS_FILE).stat().st_mtime_ns == before
    weight = lerobot_weights(done.path, 2, 0.5)
    np.testing.assert_allclose(weights_in(dataset), [weight(i) for i in range(sum(LENGTHS))], atol=1e-6)
    for options in (
        {"asked": {"task": "open it", "cameras": ["wrist=hand"]}},
        {"asked": told, "restart": True},
    ):
        again = Scorer()
        relabel(dataset, again, chunk=4, **options)
        assert again.scored == [0, 1, 2]


def test_what_was_skipped_stays_skipped_and_reported_until_nothing_may_be(dataset: Dataset) -> None:
    first, again, mended = Scorer(), Scorer(), Scorer()
    first.bad = {1: [3]}
    done = relabel(dataset, first, chunk=4, skip_failed=True)
    assert relabel(dataset, again, chunk=4, skip_failed=True) == done
    assert again.scored == []
    assert relabel(dataset, mended, chunk=4).failures == ()
    assert mended.scored == [0, 1, 2]


def test_a_torn_part_is_never_taken_for_whole(dataset: Dataset) -> None:
    parts = dataset.root / PARTS
    parts.mkdir()
    (parts / "asked.json").write_text(json.dumps({"model": "m@1#aa", "frames": dataset.frames}))
    (parts / "000000.parquet.new").write_bytes(b"half a file")
    scorer = Scorer()
    relabel(dataset, scorer, chunk=4)
    assert scorer.scored == [0, 1, 2]


def test_parts_that_were_half_deleted_are_nobodys(dataset: Dataset) -> None:
    other = Scorer("m@1#aa")
    other.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        relabel(dataset, other, chunk=4)
    (dataset.root / PARTS / "asked.json").unlink()  # a kill in the middle of throwing them away
    scorer = Scorer("m@2#bb")
    relabel(dataset, scorer, chunk=4)
    assert scorer.scored == [0, 1, 2]


def test_a_dataset_is_scored_by_one_process_at_a_time(dataset: Dataset) -> None:
    program = (
        "import pathlib, sys; from sarm2_rollouts.run_record import hold; hold(pathlib.Path(sys.argv[1]))"
    )
    program += "; print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(dataset.root / PARTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match="another process works in"):
            relabel(dataset, Scorer(), chunk=4)
        other.communicate("", timeout=30)
    relabel(dataset, Scorer(), chunk=4)
    relabel(dataset, Scorer(), chunk=4)
    assert not (dataset.root / PARTS).exists()


def test_an_episode_whose_files_cannot_be_read_is_told_or_weighs_nothing(tmp_path: Path) -> None:
    episodes = [small_episode(seed, length) for seed, length in enumerate(LENGTHS)]
    write_dataset(episodes, tmp_path / "d", storage="image", state_names=STATE_NAMES)
    data = tmp_path / "d" / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(data)
    mine = [
        {"bytes": None, "path": ""} if row["episode_index"] == 1 else row["observation.images.wrist"]
        for row in table.to_pylist()
    ]
    place = table.column_names.index("observation.images.wrist")
    kind = table.schema.field(place).type
    pq.write_table(table.set_column(place, "observation.images.wrist", pa.array(mine, kind)), data)
    dataset = open_dataset(tmp_path / "d")
    with pytest.raises(InvalidInput, match=r"episode 1 frame 0: the episode cannot be read: .*wrist"):
        relabel(dataset, Scorer(), chunk=4)
    scorer = Scorer()
    done = relabel(dataset, scorer, chunk=4, skip_failed=True)
    assert scorer.scored == []  # the others were kept
    assert [(episode, frame) for episode, frame, _ in done.failures] == [(1, 0)]
    weight_N = pq.read_table(done.weights)["weight"].to_numpy()
    assert weight_N[LENGTHS[0] : LENGTHS[0] + LENGTHS[1] - 1].max() == 0


def test_a_dataset_that_cannot_be_labelled_is_told_before_anything_is_scored(dataset: Dataset) -> None:
    place = dataset.root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    whole, scorer = pq.read_table(place), Scorer()
    pq.write_table(whole.drop_columns(["dataset_from_index"]), place)
    with pytest.raises(InvalidInput, match="dataset_from_index"):
        relabel(open_dataset(dataset.root), scorer, chunk=4)
    pq.write_table(whole.slice(0, 0), place)
    info = dataset.root / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"total_episodes": 0}))
    with pytest.raises(InvalidInput, match="no episode"):
        relabel(open_dataset(dataset.root), scorer, chunk=4)
    assert scorer.scored == []
