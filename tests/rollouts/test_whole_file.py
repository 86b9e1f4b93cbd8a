"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarm2_rollouts.whole_file import whole_file


def broken_off(path: Path, error: BaseException) -> None:
    with whole_file(path) as fresh:
        fresh.write_text("half a file")
        raise error


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.json"
    with whole_file(path) as fresh:
        fresh.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stands_until_then(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with whole_file(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        broken_off(path, OSError("the disk is full"))
    assert path.read_text() == "old"


def test_what_a_kill_left_half_written_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with pytest.raises(KeyboardInterrupt):
        broken_off(path, KeyboardInterrupt())
    with whole_file(path) as fresh:
        fresh.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "whole"


def test_files_that_differ_in_their_endings_alone_do_not_meet(tmp_path: Path) -> None:
    with whole_file(tmp_path / "state.json") as first, whole_file(tmp_path / "state.png") as second:
        first.write_text("words")
        second.write_text("picture")
    assert (tmp_path / "state.json").read_text() == "words"
