"""Simulated robots that stream while they move, for `sarm2 demo --robot`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sarm2_cli.demo_stream import DemoStream
from sarm2_client.client import Episode as LiveEpisode
from sarm2_client.client import RewardClient
from sarm2_rollouts.episode import EpisodeKind
from sarm2_rollouts.metaworld_robot import CAMERAS, FPS, TASKS, MetaWorldRobot, run_episode

PLANS: tuple[tuple[str, EpisodeKind], ...] = (("hammer", "demo"), ("pick-place", "perturbed"))
"""A demonstration of uneven pace, and a rollout in which something goes wrong."""


@dataclass
class RobotStream(DemoStream):
    """A robot that acts, looks and streams at its own pace; the simulator's truth is kept beside it."""

    task_name: str = ""
    kind: EpisodeKind = "demo"
    seed: int = 0

    def stream(self) -> None:
        """Run the robot in this thread, for a simulator belongs to the thread that made it."""
        live: LiveEpisode | None = None
        robot_now: MetaWorldRobot | None = None
        due = time.monotonic()

        def look(robot: MetaWorldRobot) -> None:
            nonlocal live, robot_now, due
            if robot is not robot_now:
                # A demonstration that failed is tried again with another robot: that is another episode.
                if live is not None:
                    live.abort()
                live, robot_now = self.open(), robot
                due = time.monotonic()
            assert live is not None
            seen = robot.observe()
            time.sleep(max(0.0, due - time.monotonic()))
            live.push(seen.images, seen.state_S)
            due += 1 / self.fps

        self.truth = run_episode(self.task_name, self.kind, self.seed, watch=look)
        assert live is not None
        self.finish(live)


def robot_streams(port: int, seed: int) -> list[DemoStream]:
    """The robots of `PLANS`, each with a client of its own."""
    return [
        RobotStream(
            name=f"{task_name}-{kind}",
            task=TASKS[task_name].instruction,
            client=RewardClient(port=port),
            fps=FPS,
            cameras=list(CAMERAS),
            task_name=task_name,
            kind=kind,
            seed=seed + index,
        )
        for index, (task_name, kind) in enumerate(PLANS)
    ]
