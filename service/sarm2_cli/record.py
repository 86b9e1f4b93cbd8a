"""`sarm2 record`: simulated episodes into a LeRobot v3.0 dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.episode import EpisodeKind
from sarm2_rollouts.lerobot_writer import Storage

RECORDED = tuple(kind for kind in get_args(EpisodeKind) if kind not in ("policy", "unknown"))
"""Kinds that a task and a seed are enough to make; a learned policy's rollout needs the policy too."""


def record(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new dataset; must not exist yet.")],
    tasks: Annotated[
        str, typer.Option(help="Task names, separated by commas.")
    ] = "pick-place,hammer,drawer-open",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of every task and kind.")] = 10,
    kinds: Annotated[
        str,
        typer.Option(
            help="Which kinds, separated by commas: `clean_demo` (expert alone), `demo` (uneven, "
            "successful), `perturbed` (drops, freezes, failures), `random`."
        ),
    ] = "demo,perturbed",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode; the others count up.")] = 0,
    storage: Annotated[
        str,
        typer.Option(help="`video` (H.264, small) or `image` (JPEG in parquet, exactly what is streamed)."),
    ] = "video",
    workers: Annotated[int, typer.Option(min=1, help="Simulator processes.")] = 2,
) -> None:
    """Record simulated episodes with three cameras, state and true progress.

    Example: `sarm2 record --tasks hammer --kinds demo,perturbed --episodes 5 --out ./hammer`

    The folder is a LeRobotDataset v3.0 that LeRobot reads as it is; true progress, primitives and the
    simulator's state ride along in extra columns.
    """
    from sarm2_rollouts.metaworld_robot import TASKS, EpisodePlan
    from sarm2_rollouts.recorder import record as record_dataset

    names = one_of("tasks", tasks, sorted(TASKS))
    chosen = one_of("kinds", kinds, RECORDED)
    layout = cast(Storage, one_choice("storage", storage, get_args(Storage)))
    plan = [
        EpisodePlan(name, cast(EpisodeKind, kind), seed + index)
        for index in range(episodes)
        for name in names
        for kind in chosen
    ]
    summary = record_dataset(plan, out, storage=layout, workers=workers)
    typer.echo(f"{summary.episodes} episodes, {summary.frames} frames in {out}")


def one_choice(option: str, value: str, allowed: Sequence[str]) -> str:
    """Check an option that takes a single value, as `one_of` does."""
    found = one_of(option, value, allowed)
    if len(found) > 1:
        raise InvalidInput(f"--{option}: expected one of {', '.join(allowed)}, got {value!r}", field=option)
    return found[0]


def one_of(option: str, value: str, allowed: Sequence[str]) -> list[str]:
    """Split a comma-separated option and check every part; names the nearest allowed one in the error."""
    import difflib

    parts = [part.strip() for part in value.split(",") if part.strip()]
    for part in parts:
        if part not in allowed:
            near = difflib.get_close_matches(part, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidInput(f"--{option}: {part!r} is not one of {', '.join(allowed)}{hint}", field=option)
    if not parts:
        raise InvalidInput(f"--{option} is empty; choose from {', '.join(allowed)}", field=option)
    return parts
