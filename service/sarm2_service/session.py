"""One episode: which frames were accepted, what they were answered, and where answers go."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sarm2_client import wire
from sarm2_client.codec import encode, error_message
from sarm2_client.errors import Conflict, InvalidInput, InvalidSequence, Overloaded, TooLarge
from sarm2_service.events import EpisodeView
from sarm2_service.logs import new_error_id
from sarm2_service.metrics import Metrics
from sarm2_service.scorer import Scorer
from sarm2_service.settings import Settings
from sarm2_service.steps import Embedded, Lane, Late, Outcome, Scored, Step
from sarm2_service.summary import SummaryBuilder


@dataclass(slots=True)
class _Answer:
    fingerprint: int
    t_ns: int
    message: bytes | None = None  # None while the device works on it


class Session:
    """An open episode. Lives on the event loop; survives its connection until the resume window ends.

    Attributes:
        sink: takes encoded messages for the client, or None while no connection is there.
        last_heard: monotonic seconds of the client's latest message.
        detached_at: monotonic seconds since which no connection is there, or None.
    """

    def __init__(
        self, start: wire.Start, lane: Lane, scorer: Scorer, settings: Settings, view: EpisodeView
    ) -> None:
        self.start = start
        self.lane = lane
        self.view = view
        self.sink: Callable[[bytes], None] | None = None
        self.last_heard = time.monotonic()
        self.detached_at: float | None = None
        self.on_score: Callable[[wire.Score], None] | None = None
        self._scorer = scorer
        self._settings = settings
        self._metrics: Metrics = scorer.metrics
        self._task_label = self._metrics.task(start.task)
        self._cameras = list(scorer.info.cameras)
        self._answers: OrderedDict[int, _Answer] = OrderedDict()
        self._pending: dict[int, None] = {}
        self._first_seq: int | None = None
        self._last_seq = -1
        self._previous: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._answered = asyncio.Event()
        self._displaced: Callable[[], None] | None = None
        self.summary = SummaryBuilder(
            session_id=start.session_id,
            task=start.task,
            task_known=lane.instruction.known,
            fps=start.fps,
            model_version=scorer.info.version,
        )

    @property
    def next_seq(self) -> int:
        """The first `seq` that was not accepted yet."""
        return self._last_seq + 1

    def replays(self, seq: int) -> bool:
        """Whether a frame was sent to another replica before: its embeddings may be in Redis."""
        return self.start.resume_from is not None and seq < self.start.resume_from

    @property
    def in_flight(self) -> int:
        """Frames accepted and not answered."""
        return len(self._pending)

    # --- frames in -------------------------------------------------------------------------------

    async def accept(self, frame: wire.Frame, received: float) -> None:
        """Take a frame for scoring, or answer again what was answered before.

        Raises a Sarm2Error about this frame only; the episode goes on.
        """
        step = self.prepare(frame, received)
        if step is None:
            return
        if self.replays(frame.seq):
            await self._scorer.prefetch([step])
        self.submit(step, frame)

    def prepare(self, frame: wire.Frame, received: float) -> Step | None:
        """Check a frame and make its step; None if it repeats an earlier one, whose answer is sent again."""
        fingerprint = _fingerprint(frame)
        known = self._answers.get(frame.seq)
        if known is not None:
            self._repeat(frame.seq, known, fingerprint)
            return None
        self._check_seq(frame.seq)
        if self.in_flight >= self._settings.max_in_flight:
            raise Overloaded(
                f"{self.in_flight} frames wait for their answers, the most allowed; wait for scores",
                seq=frame.seq,
            )
        images = self._ordered(frame.images, frame.seq)
        # A frame that comes again after a resume is context for the next ones: never too late.
        live = self.start.qos == "realtime" and not self.replays(frame.seq)
        return self._scorer.new_step(
            self.lane,
            frame.seq,
            images,
            frame.state,
            self._on_outcome,
            received=received,
            deadline_ms=frame.deadline_ms if live else None,
        )

    def submit(self, step: Step, frame: wire.Frame) -> None:
        """Hand a prepared step to the device. Raises Overloaded, accepting nothing, if its queue is full."""
        self._scorer.submit(step)
        self._first_seq = frame.seq if self._first_seq is None else self._first_seq
        self._last_seq = frame.seq
        self._answers[frame.seq] = _Answer(_fingerprint(frame), frame.t_ns)
        self._pending[frame.seq] = None
        self._idle.clear()
        self.summary.add_frame(frame.seq)
        self.view.show(dict(zip(self._cameras, step.images, strict=True)))
        while len(self._answers) > self._settings.history_frames + self.in_flight:
            self._answers.popitem(last=False)

    def _repeat(self, seq: int, known: _Answer, fingerprint: int) -> None:
        if known.fingerprint != fingerprint:
            raise InvalidSequence(
                f"seq {seq} was sent before with other content; number frames anew", field="seq", seq=seq
            )
        if known.message is not None:
            self._send(known.message)

    def _check_seq(self, seq: int) -> None:
        if seq <= self._last_seq:
            raise InvalidSequence(f"expected a seq above {self._last_seq}, got {seq}", field="seq", seq=seq)
        first = seq if self._first_seq is None else self._first_seq
        if seq - first >= self._settings.max_episode_frames:
            raise TooLarge(
                f"an episode has at most {self._settings.max_episode_frames} frames; end this one",
                field="seq",
                seq=seq,
            )

    def _ordered(self, images: Mapping[str, wire.Image], seq: int) -> list[wire.Image]:
        if images.keys() != set(self._cameras):
            raise InvalidInput(
                f"expected a picture of each of {self._cameras}, got {sorted(images)[:10]}",
                field="images",
                seq=seq,
            )
        return [images[camera] for camera in self._cameras]

    # --- answers out -----------------------------------------------------------------------------

    def _on_outcome(self, step: Step, outcome: Outcome) -> None:
        self._pending.pop(step.seq, None)
        answer = self._answers.get(step.seq)
        message = self._message(step, outcome, 0 if answer is None else answer.t_ns)
        data = encode(message)
        if answer is not None:
            answer.message = data
        self._send(data)
        if isinstance(message, wire.Score):
            self.view.add_score(message, data)
            if self.on_score is not None:
                self.on_score(message)
        self._answered.set()
        if not self._pending:
            self._idle.set()

    def _message(self, step: Step, outcome: Outcome, t_ns: int) -> wire.Score | wire.Dropped | wire.Error:
        if isinstance(outcome, Scored):
            return self._score(step, outcome, t_ns)
        self.summary.add_dropped()
        if isinstance(outcome, Late | Embedded):
            self._metrics.dropped_frames.labels("deadline").inc()
            return wire.Dropped(seq=step.seq, reason="deadline")
        self._metrics.errors.labels(outcome.code).inc()
        return error_message(outcome, error_id=outcome.error_id or new_error_id(), seq=step.seq)

    def _score(self, step: Step, scored: Scored, t_ns: int) -> wire.Score:
        info, metrics = self._scorer.info, self._metrics
        total_s = time.monotonic() - step.received
        score = wire.Score(
            seq=step.seq,
            t_ns=t_ns,
            progress=scored.progress,
            value=scored.progress - 1.0,
            reward=self._reward(scored.progress),
            primitive=info.primitives[scored.primitive],
            group=info.groups[scored.group],
            primitive_probs=scored.probs_P,
            confidence=scored.confidence,
            uncertain=scored.uncertain,
            task_known=self.lane.instruction.known,
            interval=(scored.low, scored.high),
            experts=scored.weights_E,
            durable_seq=self._durable_seq(),
            filled=scored.filled,
            model_version=info.version,
            timing=wire.Timing(
                total_ms=total_s * 1e3,
                queue_ms=step.queue_s * 1e3,
                encode_ms=step.encode_s * 1e3,
                heads_ms=step.heads_s * 1e3,
            ),
        )
        self._previous = scored.progress
        self.summary.add_score(score)
        metrics.scored_steps.inc()
        metrics.step_latency.observe(total_s)
        metrics.progress_of[self._task_label].observe(scored.progress)
        metrics.primitive.labels(score.primitive).inc()
        if scored.uncertain:
            metrics.uncertain_steps.inc()
        return score

    def _reward(self, progress: float) -> float | None:
        """`delta.v1`: p_t - p_{t-1}. `shaped.v1`: gamma p_t - p_{t-1} (potential-based shaping)."""
        if self._previous is None:
            return None
        gamma = self.start.gamma if self.start.reward == "shaped.v1" else 1.0
        return gamma * progress - self._previous

    def _durable_seq(self) -> int:
        """Every accepted frame up to it has its answer."""
        return next(iter(self._pending)) - 1 if self._pending else self._last_seq

    def _send(self, data: bytes) -> None:
        if self.sink is not None:
            self.sink(data)

    # --- its life --------------------------------------------------------------------------------

    def check_same(self, start: wire.Start) -> None:
        """Raise Conflict if a resume names anything else than the episode was started with."""
        mine, theirs = self.start, start
        same = (mine.task, mine.reward, mine.qos, mine.source, sorted(mine.cameras)) == (
            theirs.task,
            theirs.reward,
            theirs.qos,
            theirs.source,
            sorted(theirs.cameras),
        )
        rates = math.isclose(mine.fps, theirs.fps) and math.isclose(mine.gamma, theirs.gamma)
        if not same or not rates:
            raise Conflict(
                "this session began with another task, fps, cameras, qos, source, reward or gamma; "
                "resume it unchanged",
                field="session_id",
            )

    def attach(self, sink: Callable[[bytes], None], displaced: Callable[[], None]) -> None:
        """Answers go to `sink` from now on; who had them is told by its `displaced`."""
        if self._displaced is not None:
            self._displaced()
        self.sink, self._displaced = sink, displaced
        self.detached_at = None
        self.last_heard = time.monotonic()

    def detach(self) -> None:
        """The connection is gone; answers are kept for a resume."""
        self.sink = self._displaced = None
        self.detached_at = time.monotonic()

    def answers_from(self, seq: int) -> list[bytes]:
        """Every kept answer from `seq` on, as it was sent."""
        return [
            answer.message
            for known_seq, answer in self._answers.items()
            if known_seq >= seq and answer.message is not None
        ]

    async def settled(self) -> None:
        """Wait until every accepted frame is answered."""
        await self._idle.wait()

    async def room(self) -> None:
        """Wait until another frame may be accepted."""
        while self.in_flight >= self._settings.max_in_flight:
            self._answered.clear()
            await self._answered.wait()

    def close(self) -> wire.Summary:
        """End the episode: frames still waiting are given up."""
        self.lane.closed = True
        summary = self.summary.build()
        if summary.final_progress is not None:
            self._metrics.final_progress.labels(self._task_label).observe(summary.final_progress)
        self.view.end(summary)
        return summary


def _fingerprint(frame: wire.Frame) -> int:
    """Tells a repeated frame from another one with the same `seq`; within this process only."""
    pictures = tuple((name, hash(image.data), image.shape) for name, image in sorted(frame.images.items()))
    return hash((pictures, tuple(frame.state)))
