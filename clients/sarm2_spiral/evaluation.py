"""How often a policy succeeds, judged by the simulator: for people, never for the loop to learn from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sarm2_rollouts.collection import Collector
from sarm2_rollouts.metaworld_robot import EpisodePlan
from sarm2_spiral.pilot import Pilot
from sarm2_spiral.residual_update import Tick
from sarm2_spiral.wilson import Rate


def evaluate(
    pilot: Pilot,
    plan: Sequence[EpisodePlan],
    path: Path,
    collector: Collector,
    tick: Tick = lambda done, total: None,
) -> Rate:
    """Let a policy try every scene of a plan. Episodes in the file are not done again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["seed"] for row in rows_of(path)}
    missing = [entry for entry in plan if entry.seed not in done]
    if not missing:
        return success_rate(path, plan)
    with path.open("a+") as file:
        if file.tell() and not path.read_text().endswith("\n"):
            file.write("\n")  # after a torn line, which would take the next one with it
        for entry, episode in zip(missing, collector(missing, make=pilot.fly), strict=True):
            row = {"seed": entry.seed, "success": bool(episode.success), "frames": len(episode)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            done.add(entry.seed)
            tick(len(done), len(plan))
    return success_rate(path, plan)


def success_rate(path: Path, plan: Sequence[EpisodePlan]) -> Rate:
    """The successes in a file, of the scenes of a plan."""
    found = verdicts(path, plan)
    return Rate(sum(found), len(found))


def verdicts(path: Path, plan: Sequence[EpisodePlan]) -> list[bool]:
    """Whether each scene of a plan was a success, in the plan's order; scenes that are not there left out."""
    rows = {row["seed"]: bool(row["success"]) for row in rows_of(path)}
    return [rows[entry.seed] for entry in plan if entry.seed in rows]


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that grows line by line; none where there is no file."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # a kill tore the last line
