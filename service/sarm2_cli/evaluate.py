"""`sarm2 evaluate`: how good a bundle is, on episodes that nobody has seen."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sarm2_cli.record import one_of
from sarm2_client.errors import InvalidInput
from sarm2_rollouts.whole_file import whole_file

BY_TASK = ("demo_mse", "rollout_mse", "primitive_accuracy", "success_auc", "drop_recall", "interval_coverage")
"""What the terminal shows for each task; the file holds every metric."""


def evaluate(
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")],
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle's folder; by default the one that is shipped.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Task names, separated by commas; by default all that the bundle was trained on."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first episode, 100000 or more: lower ones belong to training.")
    ] = 100_000,
    episodes: Annotated[
        int, typer.Option(min=1, help="Episodes of every task and kind (of random motion a quarter).")
    ] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Simulator processes.")] = 2,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the bundle scores.")] = "cpu",
) -> None:
    """Make fresh simulated episodes, score them frame by frame, and measure.

    Example: `sarm2 evaluate --episodes 20 --seed 123456 --json evaluation.json`

    About a minute and a half for each task with 20 episodes, on two cores.

    Uneven demonstrations, clean ones, perturbed rollouts (drops, freezes, failures) and random motion. The
    file holds `{"overall": {metric: {value, low, high, n}}, "tasks": {...}}`; `low` to `high` is a 95 %
    bootstrap interval over episodes. `"benchmark"` is the same over those tasks alone that `sarm2 benchmark`
    has, where there are any. Every metric is defined in `sarm2_models.metrics`.
    """
    import torch

    from sarm2_models.benchmark.plan import TASKS as BENCHMARK_TASKS
    from sarm2_models.checkpoint import default_bundle
    from sarm2_models.device import check_device
    from sarm2_models.train.evaluation import Evaluator, evaluation_plan, measure, score_all
    from sarm2_rollouts.collection import iterate_episodes
    from sarm2_rollouts.metaworld_robot import TASKS, EpisodePlan

    asked = [] if tasks is None else one_of("tasks", tasks, sorted(TASKS))
    check_writable(json_file)
    torch.set_num_threads(1)  # the simulator's processes need the other cores
    check_device(device)
    evaluator = Evaluator(bundle or default_bundle(), device)
    names = asked or known_tasks(evaluator.model.instructions)
    plan = [EpisodePlan(one.task_name, one.kind, one.seed) for one in evaluation_plan(names, seed, episodes)]
    console = Console()
    made = iterate_episodes(plan, workers)
    scored = list(track(score_all(evaluator, made), description="Scoring", total=len(plan), console=console))
    numbers = measure(evaluator, scored, seed=seed, apart={"benchmark": BENCHMARK_TASKS})
    with whole_file(json_file) as fresh:
        fresh.write_text(json.dumps(numbers, indent=1) + "\n")
    for table in (_overall(numbers), _by_task(numbers)):
        console.print(table)
    typer.echo(f"{len(scored)} episodes, numbers in {json_file}")


def check_writable(path: Path) -> None:
    """Raise InvalidInput now, not after an hour, where a file could not be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InvalidInput(
            f"--json {path}: cannot be written ({error.strerror}); name another file", field="json"
        ) from error


def known_tasks(instructions: Sequence[str]) -> list[str]:
    """The simulated robot's tasks that a bundle was trained on. Raises InvalidInput where there is none."""
    from sarm2_rollouts.metaworld_robot import TASKS

    known = [name for name, spec in TASKS.items() if spec.instruction in instructions]
    if not known:
        raise InvalidInput(
            "the bundle was trained on no task of the simulated robot; name some with --tasks to see how it "
            "does on them",
            field="tasks",
        )
    return known


def _overall(numbers: dict[str, Any]) -> Table:
    table = Table("metric", "value", "95 % interval", "n")
    for metric, estimate in numbers["overall"].items():
        interval = "" if estimate["low"] is None else f"{estimate['low']:.4f} to {estimate['high']:.4f}"
        table.add_row(metric, _number(estimate["value"]), interval, str(estimate["n"]))
    return table


def _by_task(numbers: dict[str, Any]) -> Table:
    table = Table("task", *BY_TASK)
    for task, row in numbers["tasks"].items():
        table.add_row(task, *(_number(row[metric]["value"]) for metric in BY_TASK))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
