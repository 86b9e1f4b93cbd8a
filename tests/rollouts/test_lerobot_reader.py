"""Datasets of other writers, whole and broken."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage

from rollouts.small_episodes import STATE_NAMES, picture, small_episode
from sarm2_client.errors import InvalidImage, InvalidInput, NotFound, Sarm2Error
from sarm2_client.images import decode_jpeg
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.video import VideoWriter, read_frames

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.corner/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / "video"
    episodes = [small_episode(0), small_episode(1, 9, task="drop it")]
    write_dataset(episodes, root, storage="video", state_names=STATE_NAMES)
    return root


@pytest.fixture(scope="module")
def written_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets") / "image"
    write_dataset([small_episode(0), small_episode(1, 9)], root, storage="image", state_names=STATE_NAMES)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "dataset"))


@pytest.fixture
def image_root(written_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written_images, tmp_path / "dataset"))


def change(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(path, partitioning=None)), path)


def set_info(root: Path, **fields: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


# --- other writers' ways -----------------------------------------------------------------------------


def test_the_instruction_may_stand_in_a_column_called_task(root: Path) -> None:
    change(root / "meta/tasks.parquet", lambda table: table.rename_columns(["task_index", "task"]))
    assert open_dataset(root).tasks == ("pick up the puck", "drop it")


def test_without_a_tasks_column_the_frames_tell_the_task(root: Path) -> None:
    change(root / EPISODES, lambda table: table.drop_columns(["tasks"]))
    assert [episode.task for episode in open_dataset(root)] == ["pick up the puck", "drop it"]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64())], ids=str)
def test_vectors_may_be_lists_of_any_float(root: Path, kind: Any) -> None:
    def as_lists(table: pa.Table) -> pa.Table:
        return replaced(table, "observation.state", pa.array(table["observation.state"].to_pylist(), kind))

    expected = open_dataset(root).episode(1).state_TS
    change(root / DATA, as_lists)
    np.testing.assert_array_equal(open_dataset(root).episode(1).state_TS, expected)


def test_names_may_be_a_mapping(root: Path) -> None:
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["observation.state"]["names"] = {"motors": ["a", "b", "c", "d"]}
    set_info(root, features=features)
    assert open_dataset(root).state_names == ("a", "b", "c", "d")


def test_pictures_in_rows_may_be_png(image_root: Path) -> None:
    def png(table: pa.Table) -> pa.Table:
        buffer = io.BytesIO()
        PillowImage.fromarray(picture(3)).save(buffer, "PNG")
        cells = [{"bytes": buffer.getvalue(), "path": "frame.png"}] * table.num_rows
        return replaced(table, "observation.images.corner", cells)

    change(image_root / DATA, png)
    dataset = open_dataset(image_root)
    np.testing.assert_array_equal(next(dataset.images(0, "corner")), picture(3))
    assert np.abs(decode_jpeg(dataset.episode(0).images["corner"][0]).astype(int) - picture(3)).max() <= 3


def test_rows_may_stand_in_any_order_in_one_row_group(root: Path) -> None:
    expected = open_dataset(root).episode(1).state_TS
    change(root / DATA, lambda table: table.take(np.random.default_rng(0).permutation(table.num_rows)))
    np.testing.assert_array_equal(open_dataset(root).episode(1).state_TS, expected)


def test_episodes_may_stand_in_other_chunks(root: Path) -> None:
    for old in (DATA, VIDEO, VIDEO.replace("corner", "wrist")):
        new = root / old.replace("chunk-000/file-000", "chunk-002/file-007")
        new.parent.mkdir()
        shutil.move(root / old, new)

    def moved(table: pa.Table) -> pa.Table:
        for name in table.column_names:
            if name.endswith(("chunk_index", "file_index")):
                value = 2 if name.endswith("chunk_index") else 7
                table = replaced(table, name, [value] * table.num_rows)
        return table

    change(root / EPISODES, moved)
    assert [len(episode) for episode in open_dataset(root)] == [12, 9]


@pytest.mark.parametrize("inclusive", [False, True])
def test_segments_come_from_the_columns_of_sarm_whatever_their_ends_mean(root: Path, inclusive: bool) -> None:
    def annotated(table: pa.Table) -> pa.Table:
        last = 1 if inclusive else 0
        names = [["fold", "press"], ["fold", "press"]]
        table = replaced(table, "dense_subtask_names", names)
        table = replaced(table, "dense_subtask_start_frames", [[0, 5], [0, 4]])
        return replaced(table, "dense_subtask_end_frames", [[5 - last, 12 - last], [4 - last, 9 - last]])

    change(root / EPISODES, annotated)
    segments = open_dataset(root).episode(1).segments
    assert segments is not None
    assert [(s.primitive, s.start, s.end) for s in segments] == [("fold", 0, 4), ("press", 4, 9)]


def test_without_segments_the_primitives_of_the_frames_count(root: Path) -> None:
    drop = [name for name in pq.read_schema(root / EPISODES).names if name.startswith("dense_")]
    change(root / EPISODES, lambda table: table.drop_columns(drop))
    episode = open_dataset(root).episode(0)
    assert episode.segments is not None
    assert [(s.primitive, s.start, s.end) for s in episode.segments] == [("reach", 0, 6), ("grasp", 6, 12)]


# --- videos ------------------------------------------------------------------------------------------


def make_video(path: Path, codec: str, fps: int, frames: int) -> None:
    """Frame i is grey of level 16 + 4 i; key frames far apart, frames out of order where the codec can."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.options = {"libsvtav1": {"preset": "12"}, "libx265": {"x265-params": "log-level=none"}}.get(
            codec, {"g": "25", "bf": "2"}
        )
        for index in range(frames):
            grey = np.full((64, 64, 3), 16 + 4 * index, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def levels(path: Path, start_s: float, count: int, fps: float) -> list[int]:
    return [round((float(frame.mean()) - 16) / 4) for frame in read_frames(path, start_s, count, fps)]


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_an_episode_is_found_in_the_middle_of_a_video_of_any_codec(tmp_path: Path, codec: str) -> None:
    make_video(tmp_path / "v.mp4", codec, 30, 50)
    for start, count in ((0, 50), (17, 20), (49, 1)):
        assert levels(tmp_path / "v.mp4", start / 30, count, 30.0) == list(range(start, start + count))


def test_decoding_does_not_darken_the_pictures(tmp_path: Path) -> None:
    """FFmpeg's default conversion is a level or two too dark, which a model would see as a shift."""
    ramp = np.repeat(np.add.outer(np.arange(64), np.arange(64))[..., None] + 60, 3, axis=2).astype(np.uint8)
    with VideoWriter(tmp_path / "v.mp4", 10.0, 64, 64) as video:
        video.write(ramp)
    (decoded,) = read_frames(tmp_path / "v.mp4", 0.0, 1, 10.0)
    assert abs(decoded.mean() - ramp.mean()) < 0.5


def test_a_video_of_a_higher_rate_is_thinned(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", "libx264", 30, 40)
    assert levels(tmp_path / "v.mp4", 0.5, 8, 10.0) == [15, 18, 21, 24, 27, 30, 33, 36]


def test_a_start_that_is_a_little_off_finds_the_nearest_frame(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", "libx264", 10, 20)
    for off_s in (-0.04, 0.04):
        assert levels(tmp_path / "v.mp4", 0.5 + off_s, 4, 10.0) == [5, 6, 7, 8]


def test_a_video_that_ends_too_early_is_said_to_be_cut(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", "libx264", 10, 20)
    with pytest.raises(InvalidInput, match=r"no frame at 2\.000 s"):
        levels(tmp_path / "v.mp4", 1.5, 8, 10.0)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9])
def test_a_damaged_video_is_a_typed_error(root: Path, keep: float) -> None:
    path = root / VIDEO
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        open_dataset(root).episode(0)


# --- what is refused ---------------------------------------------------------------------------------


def test_a_folder_without_a_dataset_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"meta/info\.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("missing", ["meta/tasks.parquet", EPISODES, DATA, VIDEO])
def test_a_missing_file_is_named(root: Path, missing: str) -> None:
    (root / missing).unlink()
    with pytest.raises(NotFound):
        open_dataset(root).episode(0)


@pytest.mark.parametrize("damaged", ["meta/info.json", "meta/tasks.parquet", EPISODES, DATA])
@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95cposix\nsystem", b"PAR1" + bytes(200) + b"PAR1"])
def test_a_damaged_file_is_named(root: Path, damaged: str, content: bytes) -> None:
    (root / damaged).write_bytes(content)
    with pytest.raises(InvalidInput, match=damaged):
        open_dataset(root).episode(0)


@pytest.mark.parametrize(
    "fields",
    [
        {"codebase_version": "v2.1"},
        {"codebase_version": None},
        {"fps": 0},
        {"fps": "30"},
        {"fps": True},
        {"features": []},
        {"features": {"observation.state": {"shape": [4]}}},
        {"total_episodes": -1},
        {"total_episodes": 3},
        {"data_path": 5},
    ],
    ids=str,
)
def test_wrong_metadata_are_refused_when_the_dataset_is_opened(root: Path, fields: dict[str, Any]) -> None:
    set_info(root, **fields)
    with pytest.raises(InvalidInput):
        open_dataset(root)


@pytest.mark.parametrize(
    "template", ["/etc/{chunk_index}", "../{file_index}", "data/{other}", "{chunk_index.x}", "data/{"]
)
def test_a_path_never_leads_out_of_the_dataset(root: Path, template: str) -> None:
    set_info(root, data_path=template)
    with pytest.raises(InvalidInput, match="path"):
        open_dataset(root).episode(0)


@pytest.mark.parametrize("column", ["episode_index", "length", "data/chunk_index", "data/file_index"])
def test_a_missing_column_of_the_episodes_is_named(root: Path, column: str) -> None:
    change(root / EPISODES, lambda table: table.drop_columns([column]))
    with pytest.raises(InvalidInput, match=column):
        open_dataset(root)


def test_a_missing_place_of_a_video_is_named(root: Path) -> None:
    column = "videos/observation.images.corner/from_timestamp"
    change(root / EPISODES, lambda table: table.drop_columns([column]))
    with pytest.raises(InvalidInput, match="from_timestamp"):
        open_dataset(root).episode(0)


@pytest.mark.parametrize(
    "values",
    [
        ["text"] * 21,
        [["a", "b"]] * 21,
        [[1.0, 2.0]] * 20 + [[1.0]],
        [[1.0, 2.0]] * 20 + [None],
        [b"bytes"] * 21,
    ],
    ids=["text", "lists of text", "different lengths", "an empty cell", "bytes"],
)
def test_a_state_that_is_no_vector_of_numbers_is_refused(root: Path, values: list[Any]) -> None:
    change(root / DATA, lambda table: replaced(table, "observation.state", values))
    with pytest.raises(InvalidInput, match=r"observation\.state"):
        open_dataset(root).episode(1)


def test_an_episode_with_missing_rows_is_cut_short(root: Path) -> None:
    change(root / DATA, lambda table: table.slice(0, 20))
    with pytest.raises(InvalidInput, match="cut short"):
        open_dataset(root).episode(1)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "x.png"}])
def test_a_picture_that_is_not_there_is_refused(image_root: Path, cell: Any) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    change(
        image_root / DATA,
        lambda table: replaced(table, "observation.images.corner", pa.array([cell] * table.num_rows, kind)),
    )
    with pytest.raises(InvalidInput, match="picture's bytes"):
        open_dataset(image_root).episode(0)


def test_a_picture_that_cannot_be_decoded_is_handed_on_and_refused_where_it_is_looked_at(
    image_root: Path,
) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cell = {"bytes": b"GIF89a", "path": ""}

    def damaged(table: pa.Table) -> pa.Table:
        cells = table["observation.images.corner"].to_pylist()
        return replaced(table, "observation.images.corner", pa.array([cell, *cells[1:]], kind))

    change(image_root / DATA, damaged)
    dataset = open_dataset(image_root)
    files = dataset.episode(0).images["corner"]
    assert files[0] == b"GIF89a"
    assert decode_jpeg(files[1]).shape == picture(1).shape
    with pytest.raises(InvalidImage):
        next(dataset.images(0, "corner"))


def test_a_dataset_that_does_not_count_its_frames_says_so_when_it_is_asked(root: Path) -> None:
    change(root / EPISODES, lambda table: table.drop_columns(["dataset_from_index"]))
    dataset = open_dataset(root)
    assert len(dataset.episode(1)) == dataset.episode_length(1)
    with pytest.raises(InvalidInput, match="dataset_from_index"):
        dataset.episode_frames(1)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_episode_that_is_not_there_is_not_found(root: Path, index: int) -> None:
    with pytest.raises(NotFound, match="2, counted from 0"):
        open_dataset(root).episode(index)


def test_a_camera_that_is_not_there_is_not_found(root: Path) -> None:
    with pytest.raises(Sarm2Error, match="corner, wrist"):
        open_dataset(root).images(0, "top")
