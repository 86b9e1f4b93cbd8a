"""What makes episodes in the tests of Ray: small ones, and workers that die, dawdle or fail."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rollouts.small_episodes import small_episode
from sarm2_client.errors import NotFound
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.metaworld_robot import EpisodePlan


@dataclass(frozen=True)
class Maker:
    """Makes small episodes, and leaves a file `SEED-PROCESS` for every one that it begins.

    Attributes:
        log: where those files go.
        deadly: a seed whose worker dies. deaths: how often it does.
        slow: a seed that takes `pause_s` seconds longer, or only until so many episodes are begun.
        unknown: a seed that there is no task for.
    """

    log: Path
    deadly: int | None = None
    deaths: int = 1
    slow: int | None = None
    pause_s: float = 60.0
    until: int = sys.maxsize
    unknown: int | None = None

    def make(self, entry: EpisodePlan) -> Episode:
        begun = len(self.begun(entry.seed))
        (self.log / f"{entry.seed}-{os.getpid()}").touch()
        if entry.seed == self.deadly and begun < self.deaths:
            os._exit(1)
        if entry.seed == self.slow:
            self._dawdle()
        if entry.seed == self.unknown:
            raise NotFound(f"no task for {entry.seed}", field="task_name")
        info = {"worker": os.getpid(), "renderer_threads": os.environ.get("LP_NUM_THREADS")}
        return replace(small_episode(entry.seed), info=info)

    def begun(self, seed: int) -> list[int]:
        """The processes that began an episode."""
        return [int(file.name.split("-")[1]) for file in self.log.glob(f"{seed}-*")]

    def processes(self) -> set[int]:
        """The processes that began any."""
        return {int(file.name.split("-")[1]) for file in self.log.iterdir()}

    def _dawdle(self) -> None:
        end = time.monotonic() + self.pause_s
        while time.monotonic() < end and len(list(self.log.iterdir())) < self.until:
            time.sleep(0.05)
