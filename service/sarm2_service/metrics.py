"""Every metric of the service, defined in one place; incremented where the event happens."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

UNKNOWN_TASK = "unknown"
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics of one service, registered in `registry`.

    Labels are bounded: `task` is one of the models' tasks or "unknown"; the others come from code or from the
    bundle.
    """

    def __init__(self, registry: CollectorRegistry, tasks: Iterable[str] = ()) -> None:
        self.registry = registry
        self._tasks: dict[str, str] = {}
        r = registry
        self.encoder_images = Counter(
            "sarm2_encoder_images_total", "Pictures the encoder embedded", registry=r
        )
        self.scored_steps = Counter("sarm2_scored_steps_total", "Frames answered with a score", registry=r)
        self.step_latency = Histogram(
            "sarm2_step_latency_seconds",
            "From a frame's arrival to its score",
            buckets=_SECONDS,
            registry=r,
        )
        self.model_seconds = Histogram(
            "sarm2_model_seconds", "Time of one batch on the device", ["part"], buckets=_SECONDS, registry=r
        )
        self.queue_depth = Gauge("sarm2_queue_depth", "Waiting for the device", ["queue"], registry=r)
        self.queue_wait = Histogram(
            "sarm2_queue_wait_seconds", "Wait for the device", ["queue"], buckets=_SECONDS, registry=r
        )
        self.batch_size = Histogram(
            "sarm2_batch_size", "Pictures or windows in one batch", ["queue"], buckets=_SIZES, registry=r
        )
        self.cache_requests = Counter(
            "sarm2_cache_requests_total", "Embeddings looked up", ["tier", "result"], registry=r
        )
        self.cache_bytes = Gauge("sarm2_cache_bytes", "Size of the memory cache", registry=r)
        self.cache_lost_writes = Counter(
            "sarm2_cache_lost_writes_total", "Embeddings not written to Redis", registry=r
        )
        self.sessions = Gauge("sarm2_sessions", "Episodes open", registry=r)
        self.connections = Gauge("sarm2_connections", "Websocket connections", registry=r)
        self.progress = Histogram(
            "sarm2_progress", "Progress of scored frames", ["task"], buckets=_TENTHS, registry=r
        )
        self.final_progress = Histogram(
            "sarm2_final_progress", "Progress at the end of episodes", ["task"], buckets=_TENTHS, registry=r
        )
        self.primitive = Counter(
            "sarm2_primitive_total", "Scored frames by primitive", ["primitive"], registry=r
        )
        self.uncertain_steps = Counter(
            "sarm2_uncertain_steps_total", "Scored frames marked uncertain", registry=r
        )
        self.dropped_frames = Counter(
            "sarm2_dropped_frames_total", "Realtime frames not scored", ["reason"], registry=r
        )
        self.errors = Counter("sarm2_errors_total", "Errors told to callers", ["code"], registry=r)
        self.event_loop_lag = Histogram(
            "sarm2_event_loop_lag_seconds",
            "How late the event loop runs a timer",
            buckets=_SECONDS,
            registry=r,
        )
        self.build_info = Gauge(
            "sarm2_build_info", "Always 1; says what runs", ["version", "model"], registry=r
        )
        for queue in ("frames", "windows"):
            self.queue_depth.labels(queue)
        self.progress_of = {UNKNOWN_TASK: self.progress.labels(UNKNOWN_TASK)}
        self.add_tasks(tasks)

    def add_tasks(self, tasks: Iterable[str]) -> None:
        """Count these instructions by name too; those of a model before stay, for episodes that are open."""
        for task in tasks:
            label = self._tasks.setdefault(_plain(task), task)
            self.progress_of[label] = self.progress.labels(label)

    def task(self, text: str) -> str:
        """The label of an instruction: the bundle's own spelling if it knows it, else "unknown"."""
        return self._tasks.get(_plain(text), UNKNOWN_TASK)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
