"""What a long run has done: its settings and its finished stages, in one small file of its folder.

A stage that is finished is never done twice; one that was killed is started again, and finds what it had
kept itself. A folder belongs to one set of settings (with others, nothing that lies there fits), and to one
process at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sarm2_client.errors import Conflict
from sarm2_rollouts.whole_file import whole_file

FILE = "run.json"
LOCK = ".lock"

_HELD: dict[Path, int] = {}
"""Descriptors of the locks of the folders that this process works in. They go with it, however it ends."""


@dataclass(frozen=True)
class RunRecord:
    """The record of the run in a folder.

    Attributes:
        root: the run's folder.
        settings: JSON-able; what must be equal for a run to be gone on with.
        what: what kind of run it is, for messages: "training run".
    """

    root: Path
    settings: Mapping[str, Any]
    what: str = "run"

    def open(self, *, resume: bool) -> None:
        """Begin a run, or go on with the one that is there.

        Raises Conflict as `check` does, and where another process works in the folder.
        """
        self.check(resume=resume)
        hold(self.root)
        if not (self.root / FILE).exists():
            self._write({}, {})

    def check(self, *, resume: bool) -> None:
        """Raise Conflict where there is a run and `resume` is false, or where its settings are others."""
        path = self.root / FILE
        if not path.exists():
            return
        if not resume:
            raise Conflict(
                f"{self.root} already holds a {self.what}; add --resume to go on with it, or choose another "
                "folder with --out"
            )
        other = other_settings(self.settings, json.loads(path.read_text())["settings"])
        if other:
            raise Conflict(
                f"the {self.what} in {self.root} was begun with other settings ({'; '.join(other)}); go on "
                "with those, or choose another folder with --out"
            )

    @property
    def whole(self) -> bool:
        """Whether there is such a run, with these very settings."""
        path = self.root / FILE
        return path.exists() and not other_settings(self.settings, json.loads(path.read_text())["settings"])

    def do(self, stage: str, work: Callable[[], object], console: Console) -> bool:
        """Do a stage unless it is finished, and note the seconds it took. Returns whether it was done now.

        Raises Conflict where another process works in the folder.
        """
        hold(self.root)
        finished = finished_stages(self.root)
        if stage in finished:
            console.print(f"[dim]{stage}: done before[/dim]", highlight=False)
            return False
        console.rule(stage, align="left")
        started, tries = time.monotonic(), tries_of_stages(self.root)
        tries[stage] = tries.get(stage, 0) + 1
        self._write(finished, tries)
        work()
        self._write(finished | {stage: round(time.monotonic() - started, 1)}, tries)
        return True

    def _write(self, finished: Mapping[str, float], tries: Mapping[str, int]) -> None:
        content = {"settings": self.settings, "finished": finished, "tries": tries}
        with whole_file(self.root / FILE) as fresh:
            fresh.write_text(json.dumps(content, indent=1) + "\n")


def other_settings(now: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """In what a run differs from one whose settings were read from JSON: "loop.demos: 12, now 25", say."""
    before, after = (dict(_leaves(json.loads(json.dumps(one)))) for one in (kept, now))
    return [
        f"{name}: {_told(before.get(name))}, now {_told(after.get(name))}"
        for name in sorted({*before, *after})
        if (name in before, before.get(name)) != (name in after, after.get(name))
    ]


def _told(value: object) -> str:
    return "none" if value is None else str(value)


def _leaves(settings: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def hold(root: Path) -> None:
    """Keep a folder to this process until it ends. Raises Conflict where another process has it."""
    path = root.resolve() / LOCK
    if path in _HELD:
        if path.exists():
            return
        os.close(_HELD.pop(path))  # it was deleted with its folder, and keeps nobody away
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Conflict(
            f"another process works in {root}, and two would write over each other's files; wait for it, or "
            "work in another folder"
        ) from None
    _HELD[path] = lock


def tries_of_stages(root: Path) -> dict[str, int]:
    """How often each stage was begun. One that was begun twice took longer than its seconds, which are those
    of the last try."""
    path = root / FILE
    return dict(json.loads(path.read_text()).get("tries", {})) if path.exists() else {}


def finished_stages(root: Path) -> dict[str, float]:
    """The stages that a run has finished, with their seconds; none where there is no run."""
    path = root / FILE
    return dict(json.loads(path.read_text())["finished"]) if path.exists() else {}


def settings_of(root: Path) -> dict[str, Any]:
    """The settings of the run in a folder. Raises Conflict where there is none."""
    path = root / FILE
    if not path.exists():
        raise Conflict(f"{root} holds no run yet; begin one there first, or name its folder with --out")
    found: dict[str, Any] = json.loads(path.read_text())["settings"]
    return found
