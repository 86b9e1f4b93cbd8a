"""Record a dataset from a robot: a plan of episodes in, a LeRobot dataset out, with a progress bar.

Each finished episode is kept at once, as a dataset of its own in a hidden folder beside the final place
(`.NAME.recording`). A recording that was stopped or killed goes on from there when it is started again with
the same plan; the folder goes when the dataset is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sarm2_client.errors import InvalidInput, Sarm2Error
from sarm2_rollouts.episode import Episode, EpisodeKind
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.lerobot_writer import DatasetSummary, Storage, check_free, write_dataset


class PlannedEpisode(Protocol):
    """An entry of a plan: what `metaworld_robot.EpisodePlan` is, without needing the simulator."""

    @property
    def task_name(self) -> str:
        """Short machine name of the task."""

    @property
    def kind(self) -> EpisodeKind:
        """How the episode is to come about."""

    @property
    def seed(self) -> int:
        """What it is determined by."""


Source = Callable[[Sequence[PlannedEpisode]], Iterable[Episode]]
"""Makes the episodes of a plan, one for each entry, in its order."""


def record(
    plan: Sequence[PlannedEpisode],
    root: Path | str,
    storage: Storage = "video",
    workers: int = 2,
    *,
    source: Source | None = None,
    robot_type: str = "metaworld",
    state_names: Sequence[str] | None = None,
    console: Console | None = None,
) -> DatasetSummary:
    """Make every episode of a plan and write them, in the plan's order, as one dataset.

    Args:
        plan: what to record.
        root: the dataset's folder; it must not exist, or be empty.
        storage: as in `write_dataset`.
        workers: processes that make episodes (used by the default source alone).
        source: what makes the episodes; the Meta-World robot if left out.
        robot_type: written to the dataset. state_names: likewise.
        console: where the progress bar goes; standard error if left out.

    Raises:
        Conflict: `root` exists. InvalidInput: the plan is empty, or the source made too few episodes.
    """
    root = Path(root)
    if not plan:
        raise InvalidInput("expected at least one episode in the plan, got none", field="plan")
    check_free(root)
    if source is None:
        source, state_names = _metaworld(workers)
    kept = kept_episodes(root)
    kept.mkdir(parents=True, exist_ok=True)
    places = [kept / _folder_name(number, entry) for number, entry in enumerate(plan)]
    with _bar(console or Console(stderr=True)) as bar:
        _make_missing(plan, places, source, state_names, bar)
        writing = bar.add_task("Writing", total=len(plan))
        summary = write_dataset(
            (_read_one(place) for place in places),
            root,
            storage=storage,
            robot_type=robot_type,
            state_names=state_names,
            progress=lambda _: bar.advance(writing),
        )
    shutil.rmtree(kept)
    return summary


def kept_episodes(root: Path) -> Path:
    """The folder of the episodes that are finished while a dataset is recorded."""
    return root.parent / f".{root.name}.recording"


def _make_missing(
    plan: Sequence[PlannedEpisode],
    places: Sequence[Path],
    source: Source,
    state_names: Sequence[str] | None,
    bar: Progress,
) -> None:
    missing = [number for number, place in enumerate(places) if not _is_whole(place)]
    made = len(plan) - len(missing)
    task = bar.add_task("Recording", total=len(plan), completed=made)
    if made:
        bar.console.print(f"Going on after {made} finished episodes.")
    episodes = iter(source([plan[number] for number in missing]) if missing else ())
    with ExitStack() as stack:
        if isinstance(episodes, Generator):
            stack.enter_context(closing(episodes))  # a source with processes of its own ends them here
        for number in missing:
            episode = next(episodes, None)
            if episode is None:
                raise InvalidInput(
                    f"the source ended before episode {number}; it must make one for each entry of the plan"
                )
            write_dataset([episode], places[number], storage="image", state_names=state_names)
            entry = plan[number]
            bar.update(task, advance=1, description=f"Recording {entry.task_name} ({entry.kind})")


def _is_whole(place: Path) -> bool:
    """Whether an earlier run finished this episode. What cannot be read is made again."""
    if not place.exists():
        return False
    try:
        return len(open_dataset(place)) == 1
    except Sarm2Error:
        shutil.rmtree(place)
        return False


def _read_one(place: Path) -> Episode:
    return open_dataset(place).episode(0)


def _folder_name(number: int, entry: PlannedEpisode) -> str:
    """Unique in the plan, and different when the plan changes."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", entry.task_name)
    return f"{number:06d}-{name}-{entry.kind}-{entry.seed}"


def _metaworld(workers: int) -> tuple[Source, tuple[str, ...]]:
    # The simulator is 370 MB: whoever records from a robot of their own need not have it.
    from sarm2_rollouts.collection import iterate_episodes
    from sarm2_rollouts.metaworld_robot import STATE_NAMES, EpisodePlan

    def source(plan: Sequence[PlannedEpisode]) -> Iterable[Episode]:
        entries = [EpisodePlan(entry.task_name, entry.kind, entry.seed) for entry in plan]
        return iterate_episodes(entries, workers)

    return source, STATE_NAMES


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )
