"""How often a policy succeeds, judged by the simulator: for people, never for the loop to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sarm2_rollouts.collection import Collector
from sarm2_rollouts.metaworld_robot import EpisodePlan
from sarm2_spiral.pilot import Pilot
from sarm2_spiral.residual_update import Tick
from sarm2_spiral.rows import growing, rows_of
from sarm2_spiral.wilson import Rate


def evaluate(
    pilot: Pilot,
    plan: Sequence[EpisodePlan],
    path: Path,
    collector: Collector,
    tick: Tick = lambda done, total: None,
) -> Rate:
    """Let a policy try every scene of a plan. Episodes in the file are not done again."""
    done = {row["seed"] for row in rows_of(path)}
    missing = [entry for entry in plan if entry.seed not in done]
    if not missing:
        return success_rate(path, plan)
    with growing(path) as add:
        for entry, episode in zip(missing, collector(missing, make=pilot.fly), strict=True):
            add({"seed": entry.seed, "success": bool(episode.success), "frames": len(episode)})
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
