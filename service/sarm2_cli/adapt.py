"""`sarm2 adapt`: a reward model goes on learning from labelled rollouts of the policy it will judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sarm2_cli.train import DeviceOption
from sarm2_client.errors import InvalidInput


def adapt(
    rollouts: Annotated[
        Path,
        typer.Argument(
            help="Labelled rollouts of the simulated robot: a LeRobotDataset v3.0 by `sarm2 spiral` or "
            "`sarm2 record`."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The new bundle; an earlier one there is replaced, never --bundle."),
    ],
    training: Annotated[
        Path,
        typer.Option(
            help="Labelled episodes of the kind that the model was trained on, mixed in half and half so "
            "that nothing is forgotten: another LeRobotDataset."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="The model to adapt; the shipped one by default. It is kept.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Learn from the first so many rollouts; all by default.")
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            help="How the errors fall with the number of rollouts, such as 25,50,100,200: --out then holds "
            "curve.json and curve.png, and no bundle."
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="`exact`: the dataset's progress. `marks`: as a person labels rollouts, by marking what is "
            "fast, slow, an adjustment or a mistake, and saying in tenths how far it had come where it turned"
            " and in the end; worked out from the dataset's true progress, or read from --marks."
        ),
    ] = "exact",
    marks: Annotated[
        Path | None,
        typer.Option(
            help="A person's own marks, instead of worked out ones: a line of JSON for every rollout, "
            '`{"episode": 0, "final": 0.4, "segments": [{"mark": "fast", "start": 0, "end": 44}]}`; frames '
            "count from 0, `end` is the first no longer meant; `turns` and `catastrophe` may be added."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps that the value decoder goes on learning, 800 by default; the stage estimator, which "
            "learns by exact labels alone, has three eighths of them. A step takes .2 to .5 s on one core.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of batches.")] = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Adapt a reward model to a policy's rollouts: its heads go on learning, the encoder stays frozen.

    Example: `sarm2 adapt runs/hammer/rounds/0/rollouts --training runs/hammer/remember --out runs/rm2`

    Every fourth episode is held out: half of those calibrate the new model, the others measure both.

    A running service takes the new model without losing a session if it serves the folder --out, which begins
    as a copy of the first model:

        cp -r RM1 SERVED && sarm2 serve --bundle SERVED --allow-reload

        sarm2 adapt ROLLOUTS --training EPISODES --bundle RM1 --out SERVED

        curl -X POST http://127.0.0.1:8765/v1/model:reload
    """
    from sarm2_cli.benchmark import whole_numbers
    from sarm2_cli.record import one_choice
    from sarm2_models.checkpoint import default_bundle
    from sarm2_models.device import check_device
    from sarm2_models.train.adapt import adapt_job, check_out, check_replaced, curve_job
    from sarm2_models.train.jobs import Job, run_jobs

    kind = "marks" if marks is not None else one_choice("labels", labels, ["exact", "marks"])
    if count is not None and curve is not None:
        raise InvalidInput(
            f"--count {count} and --curve {curve} exclude each other: a curve names its counts itself",
            field="count",
        )
    check_device(device)
    first = bundle or default_bundle()
    check_out(out, first)
    if curve is None:
        check_replaced(out)
    given: tuple[Any, ...] = (first, rollouts, training, out)
    logs = out.with_name(f".{out.name}.adapting")
    if curve is not None:
        counts = whole_numbers("curve", curve)
        job = Job("adapting", curve_job, (*given, counts, kind, marks, steps, seed, device), logs)
        run_jobs([job], at_once=1, console=Console(stderr=True))
        found = json.loads((out / "curve.json").read_text())
        Console().print(falling(found))
        typer.echo(f"picture: {out / 'curve.png'}")
        return
    job = Job("adapting", adapt_job, (*given, count, kind, marks, steps, seed, device), logs)
    run_jobs([job], at_once=1, console=Console(stderr=True))
    report = json.loads((out / "report" / "adaptation.json").read_text())
    Console().print(comparison(report))
    if is_worse(report):
        typer.echo("the new model is worse on the held-out rollouts: keep the first, or mark more rollouts")
    typer.echo(f"serve it: sarm2 serve --bundle {out} --allow-reload")
    typer.echo("a service that was started so takes what lies there now by POST /v1/model:reload")


def comparison(report: dict[str, Any]) -> Table:
    """Both models on the same held-out episodes."""
    title = f"adapted from {report['adapted_from']}"
    table = Table("metric", "before", "after", "after / before", "n", title=title)
    for metric, before in report["before"].items():
        after, change = report["after"][metric], report["after_over_before"].get(metric)
        told = "" if change is None else _number(change, 2)
        table.add_row(metric, _number(before), _number(after), told, str(after["n"]))
    return table


def is_worse(report: dict[str, Any]) -> bool:
    """Whether the new model surely errs more on the held-out rollouts: by the whole interval."""
    low = report["after_over_before"]["rollout_mse"]["low"]
    return low is not None and float(low) > 1


def falling(report: dict[str, Any]) -> Table:
    """The same model adapted to more and more rollouts."""
    curve = report["curve"]
    table = Table("metric", *(f"{count} rollouts" for count in curve), title="on the same held-out episodes")
    for metric in next(iter(curve.values())):
        table.add_row(metric, *(_number(measured[metric]) for measured in curve.values()))
    return table


def _number(estimate: dict[str, Any], digits: int = 4) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    if low is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
