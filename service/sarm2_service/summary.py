"""What an episode amounts to, kept up to date one answer at a time."""

from __future__ import annotations

from sarm2_client import wire

MAX_SEGMENTS = 10_000
"""An episode that flickers faster keeps its first segments; the numbers still count every frame."""


class SummaryBuilder:
    """Counts and extremes of one episode. Memory is bounded, however long the episode."""

    def __init__(
        self, *, session_id: str, task: str, task_known: bool, fps: float, model_version: str
    ) -> None:
        self._identity = (session_id, task)
        self._model = (task_known, model_version)
        self._fps = fps
        self.frames = 0
        self.scored = 0
        self.dropped = 0
        self.final_progress: float | None = None
        self.max_progress: float | None = None
        self._largest_fall = 0.0
        self._confidence = 0.0
        self._uncertain = 0
        self._first_seq: int | None = None
        self._last_seq = 0
        self._segments: list[tuple[str, int, int]] = []

    def add_frame(self, seq: int) -> None:
        """A frame was accepted."""
        self.frames += 1
        self._first_seq = seq if self._first_seq is None else self._first_seq
        self._last_seq = seq

    def add_dropped(self) -> None:
        """An accepted frame was answered without a score."""
        self.dropped += 1

    def add_score(self, score: wire.Score) -> None:
        """An accepted frame was scored."""
        self.scored += 1
        self._model = (score.task_known, score.model_version)  # another after a reload
        progress = score.progress
        self.max_progress = progress if self.max_progress is None else max(self.max_progress, progress)
        self._largest_fall = max(self._largest_fall, self.max_progress - progress)
        self.final_progress = progress
        self._confidence += score.confidence
        self._uncertain += score.uncertain
        if self._segments and self._segments[-1][0] == score.primitive:
            self._segments[-1] = (score.primitive, self._segments[-1][1], score.seq)
        elif len(self._segments) < MAX_SEGMENTS:
            self._segments.append((score.primitive, score.seq, score.seq))

    def build(self) -> wire.Summary:
        """The summary so far. Duration counts every frame from the first to the last, gaps included."""
        session_id, task = self._identity
        task_known, model_version = self._model
        span = 0 if self._first_seq is None else self._last_seq - self._first_seq + 1
        return wire.Summary(
            session_id=session_id,
            task=task,
            task_known=task_known,
            frames=self.frames,
            scored=self.scored,
            dropped=self.dropped,
            duration_s=span / self._fps,
            final_progress=self.final_progress,
            max_progress=self.max_progress,
            largest_fall=self._largest_fall,
            mean_confidence=self._confidence / self.scored if self.scored else None,
            uncertain_share=self._uncertain / self.scored if self.scored else None,
            segments=[wire.Segment(primitive=p, start_seq=a, end_seq=b) for p, a, b in self._segments],
            model_version=model_version,
        )
