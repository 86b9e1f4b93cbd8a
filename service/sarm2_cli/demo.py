"""`sarm2 demo`: the whole product on one machine, in a minute.

Starts the service with the shipped bundle, streams two held-out episodes at the robot's pace (or the live
simulator), prints what came back, draws it, and leaves the page up.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from sarm2_cli.demo_stream import DemoStream, recorded_stream
from sarm2_cli.interrupts import remembered_interrupts
from sarm2_cli.server_process import ServerProcess
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.lerobot_reader import open_dataset

EPISODES = Path(__file__).parent / "episodes"
"""A LeRobot v3.0 dataset of two episodes that neither training nor calibration saw."""

console = Console()


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End when the episodes have ended; else the page stays up.")
    ] = False,
    robot: Annotated[
        bool, typer.Option("--robot", help="Run the live simulator instead of the two recorded episodes.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="With --robot: places the objects and chooses the mishaps.")
    ] = 100_000,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port; 8765, or a free one where that is taken."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for pictures and report.")] = Path(
        "demo_out"
    ),
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to score with; the shipped one by default.")
    ] = None,
) -> None:
    """Score two robot episodes live: a success, and one where the object is dropped.

    Open the printed address while it runs. Writes `demo_out/*.png` and `demo_out/report.json`.
    """
    with remembered_interrupts() as interrupted, ServerProcess(port=port, bundle=bundle) as server:
        console.print(f"live page: [bold]{server.url}[/bold]")
        if robot:
            from sarm2_cli.live_robot import robot_streams

            streams = robot_streams(server.port, seed=seed)
        else:
            streams = recorded_streams(server.port)
        play(streams)
        report = write_results(out, streams)
        print_results(report)
        failed = [stream for stream in streams if stream.failure]
        if failed:
            raise typer.Exit(1)
        if not once:
            console.print(f"the page stays up at {server.url}; Ctrl-C ends it")
            server.wait(interrupted)


def recorded_streams(port: int) -> list[DemoStream]:
    """The two shipped episodes."""
    dataset = open_dataset(EPISODES)
    return [recorded_stream(dataset.episode(index), port) for index in range(len(dataset))]


def play(streams: Sequence[DemoStream]) -> None:
    """Run all streams at once, with a live table."""
    threads = [threading.Thread(target=stream.run, name=stream.name, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    with Live(live_table(streams), console=console, refresh_per_second=8) as live:
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.12)
            live.update(live_table(streams))


def live_table(streams: Sequence[DemoStream]) -> Table:
    """One row an episode: where it stands now. Fits a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("episode", "frame", "progress", "", "interval", "primitive", "sure"):
        table.add_column(heading, no_wrap=True)
    for stream in streams:
        length = len(stream.truth) if stream.truth is not None else "?"
        if stream.failure:
            table.add_row(stream.name, "", f"[red]{stream.failure}[/red]")
            continue
        if not stream.scores:
            table.add_row(stream.name, f"0/{length}")
            continue
        last = stream.scores[-1]
        table.add_row(
            stream.name,
            f"{last.seq + 1}/{length}",
            f"{last.progress:.2f}",
            ProgressBar(total=1.0, completed=last.progress, width=8),
            f"{last.interval[0]:.2f}-{last.interval[1]:.2f}",
            last.primitive,
            "[yellow]no[/yellow]" if last.uncertain else f"{last.confidence:.2f}",
        )
    return table


def write_results(out: Path, streams: Sequence[DemoStream]) -> list[dict[str, Any]]:
    """Draw every episode and write the report; returns the report's rows."""
    from sarm2_rollouts.plots import draw_episode

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for stream in streams:
        row = measure(stream)
        if stream.scores and stream.truth is not None:
            row["picture"] = f"{stream.name}.png"
            draw_episode(out / row["picture"], stream.truth, scores=stream.scores, title=stream.task)
        rows.append(row)
    (out / "report.json").write_text(json.dumps({"episodes": rows}, indent=2) + "\n")
    return rows


def measure(stream: DemoStream) -> dict[str, Any]:
    """What the service said, and how it compares with what the simulator knows."""
    scores = stream.scores
    row: dict[str, Any] = {
        "name": stream.name,
        "task": stream.task,
        "scored": len(scores),
        "failure": stream.failure,
    }
    if not scores:
        return row
    progress_T = np.array([score.progress for score in scores])
    total_ms = np.array([score.timing.total_ms for score in scores])
    row |= {
        "model": scores[-1].model_version,
        "final_progress": round(float(progress_T[-1]), 4),
        "largest_fall": round(largest_fall(progress_T), 4),
        "uncertain_share": round(float(np.mean([score.uncertain for score in scores])), 4),
        "server_ms_p50": round(float(np.median(total_ms)), 2),
        "server_ms_p95": round(float(np.quantile(total_ms, 0.95)), 2),
    }
    return row if stream.truth is None else row | against_truth(stream, stream.truth)


def against_truth(stream: DemoStream, episode: Episode) -> dict[str, Any]:
    """The service's curve and primitives against the simulator's."""
    progress_T = np.array([score.progress for score in stream.scores])
    row: dict[str, Any] = {"frames": len(episode), "success": episode.success}
    if episode.progress_T is not None:
        true_T = episode.progress_T[[score.seq for score in stream.scores]]
        row |= {
            "true_final_progress": round(float(true_T[-1]), 4),
            "true_largest_fall": round(largest_fall(true_T), 4),
            "mse": round(float(np.mean((progress_T - true_T) ** 2)), 5),
        }
    if episode.segments is not None:
        named = episode.primitives_T
        right = [score.primitive == named[score.seq] for score in stream.scores]
        row["primitive_accuracy"] = round(float(np.mean(right)), 4)
    return row


def largest_fall(progress_T: np.ndarray[Any, Any]) -> float:
    """The largest drop of progress below an earlier maximum."""
    return float(np.max(np.maximum.accumulate(progress_T) - progress_T))


RESULTS = {
    "scored": "frames scored",
    "final_progress": "final progress",
    "true_final_progress": "  true",
    "largest_fall": "largest fall",
    "true_largest_fall": "  true",
    "mse": "mean squared error",
    "primitive_accuracy": "primitive accuracy",
    "uncertain_share": "share of uncertain steps",
    "server_ms_p50": "server, median ms a step",
    "server_ms_p95": "server, 95 % of steps under ms",
    "picture": "picture",
}
"""What the closing table shows of a report row."""


def print_results(rows: Sequence[dict[str, Any]]) -> None:
    """The table that the demo ends with: one column an episode."""
    table = Table("", *(row["name"] for row in rows), title="scored live, against the simulator's truth")
    for key, label in RESULTS.items():
        table.add_row(label, *(str(row.get(key, "")) for row in rows))
    console.print(table)
    for row in rows:
        if row["failure"]:
            console.print(f"[red]{row['name']}: {row['failure']}[/red]", highlight=False)
