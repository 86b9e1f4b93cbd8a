"""One episode of the demo on its way through the service, and what came back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from sarm2_client.client import Episode as LiveEpisode
from sarm2_client.client import RewardClient
from sarm2_client.errors import Sarm2Error
from sarm2_client.wire import Score, Summary
from sarm2_rollouts.episode import Episode


@dataclass
class DemoStream(ABC):
    """A robot's side of one episode. Subclasses say where the frames come from.

    Attributes:
        name: short, for tables and file names.
        truth: the episode with what the simulator knows, once it is known.
        scores: what came back so far; grows while frames are scored.
        failure: why it ended early, if it did.
    """

    name: str
    task: str
    client: RewardClient
    fps: float
    cameras: list[str]
    truth: Episode | None = None
    scores: list[Score] = field(default_factory=list)
    summary: Summary | None = None
    failure: str | None = None

    def run(self) -> None:
        """Stream to the end; a failure is kept, for this runs in a thread of its own."""
        try:
            self.stream()
        except Sarm2Error as error:
            self.failure = f"{error.code}: {error.message}"
        except Exception as error:  # a thread must not die silently: the table and the exit code tell
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self.client.close()

    @abstractmethod
    def stream(self) -> None:
        """Push every frame at the robot's pace."""

    def open(self) -> LiveEpisode:
        """A fresh episode on the service."""
        live = self.client.episode(self.task, fps=self.fps, cameras=self.cameras)
        live.__enter__()
        self.scores = live.scores
        return live

    def finish(self, live: LiveEpisode) -> None:
        """End the episode and keep its answers."""
        self.summary = live.close()
        self.scores = live.scores


@dataclass
class RecordedStream(DemoStream):
    """Plays `truth` back at its own frame rate, its JPEG files untouched."""

    def stream(self) -> None:
        """Push every frame at the robot's pace."""
        assert self.truth is not None
        live = self.open()
        due = time.monotonic()
        for index in range(len(self.truth)):
            time.sleep(max(0.0, due - time.monotonic()))
            live.push(
                {camera: files[index] for camera, files in self.truth.images.items()},
                self.truth.state_TS[index],
            )
            due += 1 / self.fps
        self.finish(live)


def recorded_stream(episode: Episode, port: int) -> DemoStream:
    """A stream of a recorded episode."""
    ending = "success" if episode.success else "drop"
    return RecordedStream(
        name=f"{episode.task_name or 'episode'}-{ending}",
        task=episode.task,
        client=RewardClient(port=port),
        fps=episode.fps,
        cameras=list(episode.images),
        truth=episode,
    )
