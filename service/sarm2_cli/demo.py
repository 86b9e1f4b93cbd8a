"""`sarm2 demo`: the whole product on one machine, in a minute.

Starts the service with the shipped bundle, streams two held-out episodes at the robot's pace (or the live
simulator), prints what came back, draws it, and leaves the page up.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from sarm2_cli.server_process import ServerProcess
from sarm2_client.client import RewardClient
from sarm2_client.errors import Sarm2Error
from sarm2_client.wire import Score, Summary
from sarm2_rollouts.episode import Episode

EPISODES = Path(__file__).parent / "episodes"
"""A LeRobot v3.0 dataset of two episodes that neither training nor calibration saw."""

FALL = 0.2
"""A fall of true progress from which on a regress counts (the bar of `drop_recall`)."""

console = Console()


@dataclass
class Stream:
    """One episode on its way through the service."""

    name: str
    task: str
    length: int
    client: RewardClient
    frames: Iterator[tuple[dict[str, Any], Sequence[float]]]
    fps: float
    cameras: list[str]
    scores: list[Score] = field(default_factory=list)
    summary: Summary | None = None
    failure: str | None = None

    def run(self) -> None:
        """Push every frame at the robot's pace; keep what came back."""
        try:
            with self.client.episode(self.task, fps=self.fps, cameras=self.cameras) as episode:
                self.scores = episode.scores
                due = time.monotonic()
                for images, state in self.frames:
                    time.sleep(max(0.0, due - time.monotonic()))
                    episode.push(images, state)
                    due += 1 / self.fps
            self.scores, self.summary = episode.scores, episode.summary
        except Sarm2Error as error:
            self.failure = f"{error.code}: {error.message}"
        except Exception as error:  # a thread must not die silently: the table and the exit code tell
            self.failure = f"{type(error).__name__}: {error}"


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End when the episodes have ended; else the page stays up.")
    ] = False,
    robot: Annotated[
        bool, typer.Option("--robot", help="Run the live simulator instead of the two recorded episodes.")
    ] = False,
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
    with ServerProcess(port=port, bundle=bundle) as server:
        console.print(f"live page: [bold]{server.url}[/bold]")
        if robot:
            from sarm2_cli.live_robot import live_episodes

            streams, recorded = live_episodes(server.port)
        else:
            recorded = recorded_episodes()
            streams = [replay(episode, server.port) for episode in recorded]
        play(streams)
        report = write_results(out, streams, recorded)
        print_results(report)
        failed = [stream for stream in streams if stream.failure]
        if failed:
            raise typer.Exit(1)
        if not once:
            console.print(f"the page stays up at {server.url}; Ctrl-C ends it")
            server.wait()


def recorded_episodes() -> list[Episode]:
    """The two shipped episodes."""
    from sarm2_rollouts.lerobot_reader import open_dataset

    dataset = open_dataset(EPISODES)
    return [dataset.episode(index) for index in range(len(dataset))]


def replay(episode: Episode, port: int) -> Stream:
    """A stream that plays a recorded episode, its JPEG files untouched."""

    def frames() -> Iterator[tuple[dict[str, Any], Sequence[float]]]:
        for index in range(len(episode)):
            yield {camera: files[index] for camera, files in episode.images.items()}, episode.state_TS[index]

    return Stream(
        name=f"{episode.task_name or 'episode'}-{'success' if episode.success else 'drop'}",
        task=episode.task,
        length=len(episode),
        client=RewardClient(port=port),
        frames=frames(),
        fps=episode.fps,
        cameras=list(episode.images),
    )


def play(streams: Sequence[Stream]) -> None:
    """Run all streams at once, with a live table."""
    threads = [threading.Thread(target=stream.run, name=stream.name, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    with Live(live_table(streams), console=console, refresh_per_second=8) as live:
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.12)
            live.update(live_table(streams))
    for stream in streams:
        stream.client.close()


def live_table(streams: Sequence[Stream]) -> Table:
    """One row an episode: where it stands now."""
    table = Table("episode", "frame", "progress", "", "interval", "primitive", "confidence", "reward")
    for stream in streams:
        if stream.failure:
            table.add_row(stream.name, "", f"[red]{stream.failure}[/red]", "", "", "", "", "")
            continue
        if not stream.scores:
            table.add_row(stream.name, f"0/{stream.length}", "", "", "", "", "", "")
            continue
        last = stream.scores[-1]
        sure = "[yellow]uncertain[/yellow]" if last.uncertain else f"{last.confidence:.2f}"
        table.add_row(
            stream.name,
            f"{last.seq + 1}/{stream.length}",
            f"{last.progress:.2f}",
            ProgressBar(total=1.0, completed=last.progress, width=24),
            f"{last.interval[0]:.2f} to {last.interval[1]:.2f}",
            last.primitive,
            sure,
            "" if last.reward is None else f"{last.reward:+.3f}",
        )
    return table


def write_results(
    out: Path, streams: Sequence[Stream], recorded: Sequence[Episode]
) -> list[dict[str, Any]]:
    """Draw every episode and write the report; returns the report's rows."""
    from sarm2_rollouts.plots import draw_episode

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for stream, episode in zip(streams, recorded, strict=True):
        row = measure(stream, episode)
        if stream.scores:
            row["picture"] = f"{stream.name}.png"
            draw_episode(out / row["picture"], episode, scores=stream.scores, title=episode.task)
        rows.append(row)
    (out / "report.json").write_text(json.dumps({"episodes": rows}, indent=2) + "\n")
    return rows


def measure(stream: Stream, episode: Episode) -> dict[str, Any]:
    """What the service said against what the simulator knows."""
    scores = stream.scores
    row: dict[str, Any] = {
        "name": stream.name,
        "task": stream.task,
        "frames": len(episode),
        "scored": len(scores),
        "failure": stream.failure,
        "success": episode.success,
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
    if episode.progress_T is not None:
        true_T = episode.progress_T[[score.seq for score in scores]]
        row |= {
            "true_final_progress": round(float(true_T[-1]), 4),
            "true_largest_fall": round(largest_fall(true_T), 4),
            "mse": round(float(np.mean((progress_T - true_T) ** 2)), 5),
        }
    if episode.segments is not None:
        primitives_T = episode.primitives_T
        row["primitive_accuracy"] = round(
            float(np.mean([score.primitive == primitives_T[score.seq] for score in scores])), 4
        )
    return row


def largest_fall(progress_T: np.ndarray[Any, Any]) -> float:
    """The largest drop of progress below an earlier maximum."""
    return float(np.max(np.maximum.accumulate(progress_T) - progress_T))


def print_results(rows: Sequence[dict[str, Any]]) -> None:
    """The table that the demo ends with."""
    table = Table(title="scored live, against the simulator's truth")
    columns = {
        "name": "episode",
        "scored": "frames",
        "final_progress": "final progress",
        "true_final_progress": "true",
        "largest_fall": "largest fall",
        "true_largest_fall": "true",
        "mse": "MSE",
        "primitive_accuracy": "primitive accuracy",
        "uncertain_share": "uncertain",
        "server_ms_p50": "ms p50",
        "server_ms_p95": "ms p95",
    }
    for heading in columns.values():
        table.add_column(heading)
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in columns))
    console.print(table)
    for row in rows:
        if row["failure"]:
            console.print(f"[red]{row['name']}: {row['failure']}[/red]", highlight=False)
