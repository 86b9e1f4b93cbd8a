"""What a long run has done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sarm2_client.errors import Conflict
from sarm2_rollouts.run_record import (
    RunRecord,
    finished_stages,
    other_settings,
    settings_of,
    tries_of_stages,
)

QUIET = Console(quiet=True)


def test_a_finished_stage_is_never_done_twice(tmp_path: Path) -> None:
    record, done = RunRecord(tmp_path / "run", {"seed": 1}), []
    record.open(resume=False)
    for _ in range(2):
        record.do("first", lambda: done.append("first"), QUIET)
    assert done == ["first"]
    assert list(finished_stages(tmp_path / "run")) == ["first"]
    assert settings_of(tmp_path / "run") == {"seed": 1}


def test_a_stage_that_broke_off_is_begun_again_and_that_is_told(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, {"seed": 1})
    record.open(resume=False)
    with pytest.raises(FileNotFoundError):
        record.do("first", (tmp_path / "missing").read_text, QUIET)
    assert finished_stages(tmp_path) == {}
    record.do("first", lambda: None, QUIET)
    assert tries_of_stages(tmp_path) == {"first": 2}


def test_a_folder_belongs_to_one_set_of_settings(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, {"seed": 1, "tasks": ("a", "b")}, "training run")
    before = record.whole
    record.open(resume=False)
    assert (before, record.whole) == (False, True)
    record.open(resume=True)
    with pytest.raises(Conflict, match="already holds a training run"):
        record.open(resume=False)
    other = RunRecord(tmp_path, {"seed": 2, "tasks": ("a", "b")}, "training run")
    assert not other.whole
    with pytest.raises(Conflict, match=r"other settings \(seed: 1, now 2\)"):
        other.open(resume=True)


def test_the_settings_that_differ_are_told_with_both_values_however_deep_they_lie() -> None:
    kept = {"recipe": 2, "loop": {"demos": 12, "rounds": 3}, "given": None}
    now = {"recipe": 3, "loop": {"demos": 25, "rounds": 3}, "map": ("a",), "given": None}
    assert other_settings(now, kept) == ["loop.demos: 12, now 25", "map: none, now ['a']", "recipe: 2, now 3"]
    assert other_settings(kept, kept) == []


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    assert finished_stages(tmp_path) == {}
    with pytest.raises(Conflict, match="holds no run yet"):
        settings_of(tmp_path)


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, {"seed": 1})
    record.open(resume=False)
    record.open(resume=True)
    other = (
        "import pathlib, sys; from sarm2_rollouts.run_record import RunRecord;"
        "RunRecord(pathlib.Path(sys.argv[1]), {'seed': 1}).open(resume=True)"
    )
    second = subprocess.run(
        [sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1
    assert "another process works in" in second.stderr
    (tmp_path / ".lock").unlink()  # with its folder, say, which is made anew
    record.open(resume=True)
    third = subprocess.run(
        [sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "another process works in" in third.stderr
    elsewhere = subprocess.run(
        [sys.executable, "-c", other, str(tmp_path / "other")], capture_output=True, text=True, timeout=60
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    RunRecord(tmp_path / "other", {"seed": 1}).open(resume=True)  # it has ended, and left no lock behind
