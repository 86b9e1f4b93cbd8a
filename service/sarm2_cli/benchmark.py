"""`sarm2 benchmark`: SARM2 beside what it could be replaced by, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from sarm2_cli.record import one_of
from sarm2_cli.train import DeviceOption
from sarm2_client.errors import InvalidInput


def benchmark(
    tasks: Annotated[
        str | None, typer.Option(help="Task names, separated by commas; by default the ten of the benchmark.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, separated by commas.")] = "0,1,2",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/benchmark"),
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|HUB_NAME",
            help="The frozen encoder of every contender; by default the shipped bundle's.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few minutes, to see that it works; its numbers mean nothing.")
    ] = False,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes; one a core is best.")] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out where it stopped.")
    ] = False,
) -> None:
    """Train SARM2, its ablations and the baselines on the same episodes, and measure all on fresh ones.

    Example: `sarm2 benchmark --quick --tasks hammer,drawer-open --out runs/quick`

    The contenders: SARM2; without its stage estimator, its multi-gate, its first frame; on proprioception
    alone; SARM v1's form (a model a task, one camera and all); ReWiND's form (language, rewound, no stages);
    the distance to the goal frame; the clock; a constant. All see the same frozen embeddings and,
    where they learn, as many training windows, from several seeds, after as many trials of tuning.

    `OUT/report/` holds benchmark.json (`models.NAME.METRIC.{value, low, high, n}`), benchmark.md and
    pictures: confusion of primitives, use of the experts, best, median and worst curve of each task.
    """
    from sarm2_models.benchmark.plan import TASKS as TEN
    from sarm2_models.benchmark.plan import make_benchmark
    from sarm2_models.benchmark.run import BenchmarkRun
    from sarm2_rollouts.tasks import TASKS

    names = TEN if tasks is None else tuple(one_of("tasks", tasks, sorted(TASKS)))
    bench = make_benchmark(
        out,
        quick=quick,
        tasks=names,
        seeds=whole_numbers("seeds", seeds),
        encoder=encoder,
        device=device,
    )
    console = Console()
    report = BenchmarkRun(bench, workers, console).start(resume=resume)
    console.print(Markdown((report / "benchmark.md").read_text()))
    typer.echo(f"numbers, tables and pictures in {report}")


def whole_numbers(option: str, value: str) -> tuple[int, ...]:
    """A comma-separated list of different whole numbers from 0 up; InvalidInput names what is none."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    wrong = [part for part in parts if not (part.isascii() and part.isdigit())]
    if wrong or not parts or len(set(map(int, parts))) < len(parts):
        raise InvalidInput(
            f"--{option} is {value!r}; expected different whole numbers from 0 up, separated by commas, "
            "such as 0,1,2",
            field=option,
        )
    return tuple(map(int, parts))
