"""What is written is what was given, in LeRobot's layout, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollouts.small_episodes import STATE_NAMES, assert_same, picture, small_episode
from sarm2_client.errors import Conflict, InvalidInput
from sarm2_client.images import decode_jpeg, encode_jpeg
from sarm2_rollouts.episode import Episode, LabelledSegment
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.lerobot_shards import FileSizes
from sarm2_rollouts.lerobot_writer import Storage, write_dataset

SAMPLE = Path(__file__).parent / "lerobot_v3_sample"
OURS = {"annotation.progress", "annotation.primitive", "simulator.state"}
STORAGES: tuple[Storage, ...] = ("image", "video")


def some_episodes() -> list[Episode]:
    return [
        small_episode(0),
        small_episode(1, 9, task="drop it"),
        small_episode(2, 15, labelled=False),
        small_episode(3, 1, labelled=False),
    ]


def read_table(root: Path, name: str) -> pa.Table:
    return pq.read_table(root / name / "chunk-000/file-000.parquet", partitioning=None)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- there and back ----------------------------------------------------------------------------------


def test_images_come_back_byte_for_byte_with_every_label(tmp_path: Path) -> None:
    summary = write_dataset(
        some_episodes(), tmp_path / "d", storage="image", state_names=STATE_NAMES, robot_type="puck"
    )
    dataset = open_dataset(tmp_path / "d")
    assert dataset.state_names == STATE_NAMES
    assert (summary.episodes, summary.frames, summary.tasks) == (4, 37, ("pick up the puck", "drop it"))
    assert summary.root == tmp_path / "d"
    assert summary.size_bytes == sum(
        path.stat().st_size for path in summary.root.rglob("*") if path.is_file()
    )
    for episode, original in zip(dataset, some_episodes(), strict=True):
        assert_same(episode, original)


def test_videos_come_back_in_order_and_nearly_equal(tmp_path: Path) -> None:
    write_dataset(some_episodes(), tmp_path / "d", storage="video")
    for episode, original in zip(open_dataset(tmp_path / "d"), some_episodes(), strict=True):
        assert_same(episode, original, pictures=False)
        for camera, files in original.images.items():
            for written, given in zip(episode.images[camera], files, strict=True):
                difference = decode_jpeg(written).astype(int) - decode_jpeg(given)
                assert np.abs(difference).mean() < 2.0  # neighbouring frames differ by 4


@pytest.mark.parametrize("fps", [10.0, 30.0, 29.97, 12.5])
def test_frame_i_of_a_video_stands_at_its_start_plus_i_over_fps(tmp_path: Path, fps: float) -> None:
    write_dataset([small_episode(s, 12, fps=fps) for s in range(3)], tmp_path / "d", storage="video")
    rows = read_table(tmp_path / "d", "meta/episodes").to_pylist()
    key = "videos/observation.images.corner"
    wanted = [row[f"{key}/from_timestamp"] + i / fps for row in rows for i in range(12)]
    with av.open(str(tmp_path / "d" / key / "chunk-000/file-000.mp4")) as container:
        frames = list(container.decode(video=0))
    # LeRobot tolerates a tenth of a millisecond.
    np.testing.assert_allclose([float(frame.time) for frame in frames], wanted, atol=1e-4)
    assert len(open_dataset(tmp_path / "d").episode(2)) == 12


def test_an_episode_begins_with_a_key_frame_and_key_frames_are_near(tmp_path: Path) -> None:
    write_dataset([small_episode(s, 12) for s in range(3)], tmp_path / "d", storage="video")
    path = tmp_path / "d/videos/observation.images.wrist/chunk-000/file-000.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert {0, 12, 24} <= set(keys)
    assert max(np.diff(keys)) <= 5


@pytest.mark.parametrize("storage", STORAGES)
def test_an_episode_without_labels_cameras_of_its_own_or_a_simulator(
    tmp_path: Path, storage: Storage
) -> None:
    episode = small_episode(5, labelled=False, simulator=False, cameras=("top",), state_dim=1)
    episode = dataclasses.replace(episode, action_TA=None, action_names=())
    write_dataset([episode], tmp_path / "d", storage=storage)
    assert_same(open_dataset(tmp_path / "d").episode(0), episode, pictures=storage == "image")
    assert "annotation.progress" not in read_json(tmp_path / "d/meta/stats.json")


# --- LeRobot's layout --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def like_the_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the sample's cameras, sizes and rates."""
    cameras = ("top", "left_wrist", "right_wrist")
    jpeg = encode_jpeg(np.full((240, 320, 3), 90, dtype=np.uint8))
    joints = tuple(f"j{i}" for i in range(14))
    episodes = [
        dataclasses.replace(
            small_episode(seed, fps=30.0, state_dim=14, cameras=(), task=f"task {seed}"),
            images={camera: [jpeg] * 12 for camera in cameras},
            action_TA=np.zeros((12, 14), dtype=np.float32),
            action_names=joints,
        )
        for seed in range(3)
    ]
    root = tmp_path_factory.mktemp("like") / "d"
    write_dataset(episodes, root, robot_type="arm", state_names=joints)
    return root


def test_info_has_the_fields_of_lerobots_own(like_the_sample: Path) -> None:
    ours, theirs = (read_json(root / "meta/info.json") for root in (like_the_sample, SAMPLE))
    assert list(ours) == list(theirs)
    same = ("codebase_version", "chunks_size", "data_files_size_in_mb", "video_files_size_in_mb", "fps")
    for key in (*same, "data_path", "video_path", "splits"):
        assert ours[key] == theirs[key], key
        assert type(ours[key]) is type(theirs[key]), key
    assert (ours["total_episodes"], ours["total_frames"], ours["total_tasks"]) == (3, 36, 3)


def test_features_are_described_as_lerobot_does(like_the_sample: Path) -> None:
    ours, theirs = (read_json(root / "meta/info.json")["features"] for root in (like_the_sample, SAMPLE))
    assert set(ours) - OURS == set(theirs)
    for key in set(ours) - OURS:
        expected = theirs[key]
        if expected["dtype"] == "video":
            expected = expected | {"info": expected["info"] | {"video.codec": "h264"}}
        assert ours[key] == expected, key


@pytest.mark.parametrize("name", ["data", "meta/episodes"])
def test_columns_have_lerobots_names_and_types(like_the_sample: Path, name: str) -> None:
    ours, theirs = (read_table(root, name).schema for root in (like_the_sample, SAMPLE))
    for field in theirs:
        assert ours.field(field.name).type == field.type, field.name
        assert ours.field(field.name).nullable == field.nullable, field.name
    extra = {field.name for field in ours} - {field.name for field in theirs}
    allowed = ("dense_subtask_", "sarm2/", *OURS, *(f"stats/{key}/" for key in OURS))
    assert all(column.startswith(allowed) for column in extra)


def test_tasks_are_a_nameless_pandas_index(like_the_sample: Path) -> None:
    ours, theirs = (pq.read_table(root / "meta/tasks.parquet") for root in (like_the_sample, SAMPLE))
    assert ours.schema.equals(theirs.schema)
    described, expected = (json.loads(table.schema.metadata[b"pandas"]) for table in (ours, theirs))
    assert described["index_columns"] == expected["index_columns"]
    assert [c["field_name"] for c in described["columns"]] == [c["field_name"] for c in expected["columns"]]


def test_rows_describe_themselves_to_hugging_face_datasets(like_the_sample: Path) -> None:
    ours, theirs = (
        json.loads(read_table(root, "data").schema.metadata[b"huggingface"])["info"]["features"]
        for root in (like_the_sample, SAMPLE)
    )
    assert {key: ours[key] for key in ours if key not in OURS} == {key: theirs[key] for key in theirs}


def test_statistics_have_lerobots_names_and_shapes(like_the_sample: Path) -> None:
    ours, theirs = (read_json(root / "meta/stats.json") for root in (like_the_sample, SAMPLE))
    assert set(ours) - OURS == set(theirs)
    for key in set(ours) - OURS:
        assert list(ours[key]) == list(theirs[key])
        for name, value in ours[key].items():
            assert np.shape(value) == np.shape(theirs[key][name]), (key, name)


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    episodes = some_episodes()
    write_dataset(episodes, tmp_path / "d", storage="image")
    stats = read_json(tmp_path / "d/meta/stats.json")
    states = np.concatenate([episode.state_TS for episode in episodes]).astype(np.float64)
    for name in ("min", "max", "mean", "std"):
        expected = getattr(states, name)(axis=0)
        np.testing.assert_allclose(stats["observation.state"][name], expected, rtol=1e-9)
    assert stats["observation.state"]["count"] == [37]
    assert stats["annotation.progress"]["count"] == [21]  # the labelled frames
    assert stats["index"]["max"] == [36]
    pixels = np.stack([decode_jpeg(data) for e in episodes for data in e.images["wrist"]]) / 255.0
    for name in ("min", "max", "mean", "std"):
        expected = getattr(pixels, name)(axis=(0, 1, 2)).reshape(3, 1, 1)
        np.testing.assert_allclose(stats["observation.images.wrist"][name], expected, rtol=1e-9)
    row = read_table(tmp_path / "d", "meta/episodes").to_pylist()[1]
    np.testing.assert_allclose(row["stats/observation.state/mean"], episodes[1].state_TS.mean(0), rtol=1e-5)
    np.testing.assert_allclose(row["stats/frame_index/q50"], [4.0])


def test_indices_run_through_the_dataset(tmp_path: Path) -> None:
    write_dataset(some_episodes(), tmp_path / "d", storage="image")
    rows = read_table(tmp_path / "d", "data")
    assert rows["index"].to_pylist() == list(range(37))
    assert rows["task_index"].to_pylist() == [0] * 12 + [1] * 9 + [0] * 16
    episodes = read_table(tmp_path / "d", "meta/episodes")
    assert episodes["dataset_from_index"].to_pylist() == [0, 12, 21, 36]
    assert episodes["dataset_to_index"].to_pylist() == [12, 21, 36, 37]


@pytest.mark.parametrize("storage", STORAGES)
def test_full_files_are_followed_by_new_ones_and_chunks(tmp_path: Path, storage: Storage) -> None:
    sizes = FileSizes(data_mb=0, video_mb=0, files_per_chunk=2)
    originals = [small_episode(seed) for seed in range(5)]
    write_dataset(originals, tmp_path / "d", storage=storage, sizes=sizes)
    places = ["chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000", "chunk-001/file-001"]
    places.append("chunk-002/file-000")
    folder, ending = ("data", "parquet") if storage == "image" else ("videos/observation.images.wrist", "mp4")
    files = sorted((tmp_path / "d" / folder).rglob(f"*.{ending}"))
    assert [str(f.relative_to(tmp_path / "d" / folder).with_suffix("")) for f in files] == places
    for episode, original in zip(open_dataset(tmp_path / "d"), originals, strict=True):
        assert_same(episode, original, pictures=storage == "image")


# --- whole or not at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, storage: Storage, failure: type[BaseException]
) -> None:
    def interrupted() -> Iterator[Episode]:
        yield small_episode(0)
        raise failure("pulled the plug")

    with pytest.raises(failure, match="pulled the plug"):
        write_dataset(interrupted(), tmp_path / "d", storage=storage)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path: Path) -> None:
    seen: list[bool] = []

    def watched() -> Iterator[Episode]:
        for seed in range(3):
            yield small_episode(seed)
            seen.append((tmp_path / "d").exists())

    write_dataset(watched(), tmp_path / "d")
    assert seen == [False] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_existing_dataset_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write_dataset([small_episode(0)], tmp_path / "d", storage="image")
    with pytest.raises(Conflict, match="exists already"):
        write_dataset([small_episode(1)], tmp_path / "d")
    assert_same(open_dataset(tmp_path / "d").episode(0), small_episode(0))


def test_memory_holds_one_episode_at_a_time(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Episode] = weakref.WeakSet()
    counts: list[int] = []

    class Tracked(Episode):
        __hash__ = object.__hash__

    def episodes() -> Iterator[Episode]:
        for seed in range(4):
            counts.append(len(alive))
            given = small_episode(seed)
            episode = Tracked(**{f.name: getattr(given, f.name) for f in dataclasses.fields(given)})
            alive.add(episode)
            yield episode
            del episode

    write_dataset(episodes(), tmp_path / "d", storage="image")
    assert max(counts) <= 1


# --- what is refused ---------------------------------------------------------------------------------


def test_no_episodes_make_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least one episode"):
        write_dataset([], tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (small_episode(1, fps=20.0), "fps"),
        (small_episode(1, cameras=("corner",)), "cameras"),
        (small_episode(1, state_dim=5), "state dimensions 4, got 5"),
        (small_episode(1, simulator=False), "simulator quantities 3, got 0"),
        (dataclasses.replace(small_episode(1), action_TA=None), "action dimensions 2, got 0"),
        (small_episode(1, size=64), "64 x 64"),
        (small_episode(1, 0, labelled=False), "at least one frame"),
        (dataclasses.replace(small_episode(1), progress_T=np.zeros(5, np.float32)), "5 rows of progress"),
        (dataclasses.replace(small_episode(1), action_TA=np.zeros((5, 2), np.float32)), "5 rows of action"),
        (dataclasses.replace(small_episode(1), segments=(LabelledSegment("a", 0, 5),)), "do not cover"),
        (dataclasses.replace(small_episode(1), info={"x": object()}), "JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path: Path, other: Episode, what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        write_dataset([small_episode(0), other], tmp_path / "d", storage="image")


def test_state_names_must_be_as_many_as_the_state(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="4 state_names, got 2"):
        write_dataset([small_episode(0)], tmp_path / "d", state_names=["x", "y"])


def test_a_video_needs_even_sides(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="even sides"):
        write_dataset([small_episode(0, size=31)], tmp_path / "d", storage="video")
    write_dataset([small_episode(0, size=31)], tmp_path / "d", storage="image")


def test_numpy_numbers_in_the_info_are_kept(tmp_path: Path) -> None:
    info = {"falls": np.array([3, 5]), "depth": np.float32(0.5)}
    write_dataset([dataclasses.replace(small_episode(0), info=info)], tmp_path / "d", storage="image")
    assert open_dataset(tmp_path / "d").episode(0).info == {"falls": [3, 5], "depth": 0.5}


def test_the_small_pictures_tell_their_frames() -> None:
    """The tests above could not see a wrong frame otherwise."""
    assert np.abs(picture(3).astype(int) - picture(4)).mean() > 3


def test_what_a_kill_left_of_the_same_dataset_goes(tmp_path: Path) -> None:
    left, others = tmp_path / ".d.abcd_123.partial", tmp_path / ".d.more.abcd_123.partial"
    for folder in (left, others):
        (folder / "data").mkdir(parents=True)
    write_dataset([small_episode(0)], tmp_path / "d", storage="image", state_names=STATE_NAMES)
    assert not left.exists()
    assert others.exists()
