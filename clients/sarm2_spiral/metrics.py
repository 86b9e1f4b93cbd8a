"""What a running loop tells Prometheus: is the policy getting better, and is it fooling the reward model?

A policy that fools the reward model ends high and fails: final progress then no longer tells success from
failure (`sarm2_spiral_success_auc` falls towards .5), and more of the failures look done
(`sarm2_spiral_believed_failures_ratio` rises). The simulator's verdict is for people; the loop never sees it.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from sarm2_client.errors import InvalidInput
from sarm2_spiral.report import Collected
from sarm2_spiral.wilson import Rate


class LoopMetrics:
    """The gauges of one run, in a registry of their own.

    Args:
        task: the label of all of them. Rounds are labelled "1", "2", ...; policies as in the report.
    """

    def __init__(self, task: str) -> None:
        self.registry, self._task = CollectorRegistry(), task
        by_round = ["task", "round"]
        self.success = self._gauge(
            "success_ratio", "Share of the evaluation episodes that succeed", ["task", "policy"]
        )
        self.rollout_success = self._gauge(
            "rollout_success_ratio", "Share of a round's rollouts that succeed", by_round
        )
        self.final_progress = self._gauge(
            "final_progress", "Mean progress at the end of a round's rollouts", by_round
        )
        self.success_auc = self._gauge(
            "success_auc", "ROC-AUC of final progress against success, of a round's rollouts", by_round
        )
        self.believed_failures = self._gauge(
            "believed_failures_ratio", "Share of a round's failures that end as if they were done", by_round
        )
        self.failures = self._gauge("failures", "Failures among a round's rollouts", by_round)
        self.deployed = self._gauge(
            "deployed", "Whether a round's candidate was deployed: 1, or 0 where it did worse", by_round
        )

    def serve(self, port: int, host: str) -> None:
        """Answer scrapes of `/metrics` on a port until the process ends.

        Raises InvalidInput for an address that cannot be had.
        """
        try:
            start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise InvalidInput(
                f"--metrics-port {port}: cannot listen on {host}:{port}: {error.strerror}; choose another "
                "port, or another --metrics-host",
                field="metrics_port",
            ) from None

    def judged(self, policy: str, rate: Rate) -> None:
        """A policy was evaluated."""
        self.success.labels(self._task, policy).set(rate.value)

    def collected(self, number: int, rollouts: Collected) -> None:
        """A round's rollouts were scored. What cannot be said of them (no failure, say) is not exported.

        What warns of reward hacking is told of the latest round alone: an earlier one is past mending.
        """
        labels = (self._task, str(number))
        self.success_auc.clear()
        self.believed_failures.clear()
        self.failures.clear()
        self.rollout_success.labels(*labels).set(rollouts.success)
        self.final_progress.labels(*labels).set(rollouts.final_progress)
        self.failures.labels(*labels).set(rollouts.successes.count(False))
        if rollouts.auc is not None:
            self.success_auc.labels(*labels).set(rollouts.auc)
        if rollouts.believed_failures is not None:
            self.believed_failures.labels(*labels).set(rollouts.believed_failures)

    def decided(self, number: int, *, deployed: bool) -> None:
        """A round's candidate was tried."""
        self.deployed.labels(self._task, str(number)).set(deployed)

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(f"sarm2_spiral_{name}", text, labels, registry=self.registry)
