"""The scorer: pictures and state in, scores out, with every open episode sharing the device's batches.

A step goes through two queues on the one device thread: its pictures to the encoder, then its window to
the heads. An idle device does all of it in one hop from the event loop and back. Windows go first, for
their steps are nearer to an answer.

Shapes: C cameras, D embedding, S state, N pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sarm2_client import wire
from sarm2_client.errors import (
    Conflict,
    InvalidImage,
    InvalidInput,
    InvalidState,
    ModelFailed,
    Overloaded,
    Sarm2Error,
)
from sarm2_client.images import decode_image, decoding_work, resize_with_pad
from sarm2_models.checkpoint import load_bundle
from sarm2_models.reward_model import RewardModel, ScoreBatch
from sarm2_models.window import Window, WindowBatch
from sarm2_service import __version__
from sarm2_service.batcher import BoundedQueue, Entry, run_isolated
from sarm2_service.cache import CacheKeys, Embedding, EmbeddingCache
from sarm2_service.device import DeviceThread, end_process, is_device_lost
from sarm2_service.logs import log, log_failure
from sarm2_service.metrics import Metrics
from sarm2_service.settings import Settings
from sarm2_service.steps import Embedded, Lane, Late, Outcome, Scored, Step, rows_of

USUAL_PIXELS = 640 * 480
"""A picture of up to so many pixels counts once in a batch, a larger one as often as it holds them."""


class Scorer:
    """Owns the device thread and both queues. Everything public is for the event loop.

    Args:
        model: the reward model; after `start` only the device thread calls it.
        on_lost: what to do when the device is lost; ends the process by default.
    """

    def __init__(
        self,
        model: RewardModel,
        settings: Settings,
        cache: EmbeddingCache,
        metrics: Metrics,
        *,
        on_lost: Callable[[str], None] = end_process,
    ) -> None:
        self.model = model
        self.info: wire.ModelInfo = model.info
        self.preprocess: wire.Preprocess = model.preprocess
        self.metrics = metrics
        self.cache = cache
        self.ready = False
        self._settings = settings
        self._keys = CacheKeys(
            encoder_id=model.encoder.id,
            weights_sha256=model.encoder.weights_sha256,
            preprocess_hash=self.preprocess.hash,
            dtype=str(model.encoder.dtype),  # of the arithmetic: the encoder's id does not tell it
        )
        self._frames: BoundedQueue[Step] = BoundedQueue(
            "frames",
            max_items=settings.max_queue_frames,
            max_bytes=settings.max_queue_bytes,
            max_cost=settings.max_batch_images,
            max_background_cost=settings.max_background_images,
            background_share=settings.background_share,
        )
        self._windows: BoundedQueue[tuple[Step, Window]] = BoundedQueue(
            "windows",
            max_items=settings.max_queue_frames,
            max_bytes=2**62,  # bounded by the encoder's batch, which the device drains before the next
            max_cost=settings.max_batch_windows,
            max_background_cost=settings.max_batch_windows,
            background_share=settings.background_share,
        )
        self._device = DeviceThread(self._work, timeout_s=settings.device_timeout_s, on_lost=on_lost)
        threads = settings.decode_threads
        self._pool = ThreadPoolExecutor(threads, "decode") if threads else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reloading = asyncio.Lock()

    # --- for the event loop ----------------------------------------------------------------------

    async def start(self) -> None:
        """Start the device thread and run everything once, so that the first robot does not pay for it."""
        self._loop = asyncio.get_running_loop()
        self._device.start()
        await self._device.call(self._warm_up)
        self.ready = True

    def stop(self) -> None:
        """End the device thread after the batch it is running."""
        self.ready = False
        self._device.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def healthy(self) -> bool:
        """Loaded, warm, and with a living device thread."""
        return self.ready and self._device.alive

    async def open_lane(
        self, task: str, fps: float, qos: wire.Qos, source: wire.EpisodeSource | None
    ) -> Lane:
        """Begin an episode: embeds its instruction if it is new."""
        instruction = await self._device.call(self.model.instruction, task)
        return Lane(self.model.new_memory(fps), instruction, qos, fps, source)

    async def renew_lane(self, lane: Lane, task: str) -> None:
        """Let an open episode know what the model of now knows of its instruction."""
        await self._device.call(self._renew, lane, task)

    async def reload(self, folder: Path) -> wire.ModelInfo:
        """Take the heads that a bundle's folder holds now, between two batches; open episodes go on.

        Raises NotFound, InvalidInput or Conflict for a bundle that does not fit or diverged; the old model
        serves on.
        """
        async with self._reloading:
            old = self.model
            load = partial(load_bundle, folder, self._settings.device, encoder=old.encoder)
            model = await asyncio.get_running_loop().run_in_executor(None, load)
            if (model.config, model.vocabulary) != (old.config, old.vocabulary):
                raise Conflict("the bundle has other sizes or primitives; start a new server for it")
            await self._device.call(self._take_over, model)
            self.info = model.info
            self.metrics.add_tasks(model.info.tasks)
            self.metrics.build_info.labels(__version__, old.version).set(0)
            self.metrics.build_info.labels(__version__, model.version).set(1)
            log(logging.INFO, "reloaded", version=model.version, before=old.version)
            return self.info

    def new_step(
        self,
        lane: Lane | None,
        seq: int,
        images: Sequence[wire.Image],
        state: Sequence[float],
        deliver: Callable[[Step, Outcome], None],
        *,
        received: float | None = None,
        deadline_ms: float | None = None,
    ) -> Step:
        """A step with its cache keys. Raises InvalidImage and InvalidState for what can be seen at once."""
        state_S = np.asarray(state, dtype=np.float32)
        if lane is not None and len(state_S) != self.info.state_dim:
            raise InvalidState(
                f"expected {self.info.state_dim} state values, got {len(state_S)}", field="state", seq=seq
            )
        now = time.monotonic() if received is None else received
        expires = None if deadline_ms is None else now + deadline_ms / 1000
        step = Step(seq, images, state_S, deliver, lane, now, expires)
        step.keys = [self._keys.of(image) for image in images] if self.cache.enabled else []
        step.embeddings = [None] * len(images)
        return step

    async def prefetch(self, steps: Iterable[Step]) -> None:
        """Ask Redis for all that these steps need, in one round trip; what it lacks is encoded."""
        steps = list(steps)
        found = await self.cache.fetch(key for step in steps for key in step.keys)
        for step in steps if found else ():
            for index, key in enumerate(step.keys):
                step.embeddings[index] = found.get(key)

    def submit(self, step: Step) -> None:
        """Queue a step. Raises Overloaded, and keeps nothing, if the queue is full."""
        for index, key in enumerate(step.keys):
            if step.embeddings[index] is None:
                step.embeddings[index] = self.cache.get(key)
        entry = self._entry(step)
        busy = self._device.busy
        with self._device.condition:
            self._frames.put(entry)
            self._device.wake()
            self.metrics.queue_depth.labels("frames").set(len(self._frames))
        if step.lane is not None:
            step.lane.unanswered += 1
        if busy and self._pool is not None and step.missing:
            with contextlib.suppress(RuntimeError):  # the pool has closed: the device decodes
                step.decoding = self._pool.submit(self._decode, step)

    async def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Embeddings (N, D) float16 of instructions, those that the model reads."""
        rows = [(await self._device.call(self.model.instruction, text)).embedding_D for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.model.encoder.dim), np.float16)

    async def embed(self, images: Sequence[wire.Image]) -> npt.NDArray[np.float16]:
        """Image embeddings (N, D) float16, through cache and batches. Raises for the first bad picture."""
        chunk = max(1, self._settings.max_background_images // 2)
        rows: list[Embedding] = []
        for begin in range(0, len(images), chunk):
            future: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
            part = images[begin : begin + chunk]
            step = self.new_step(None, begin, part, (), lambda s, o, f=future: _settle(f, s, o))  # type: ignore[misc]
            await self.prefetch([step])
            self.submit(step)
            rows += [row for row in (await future).embeddings if row is not None]
        return np.stack(rows) if rows else np.zeros((0, self.model.encoder.dim), np.float16)

    def _entry(self, step: Step) -> Entry[Step]:
        now = time.monotonic()
        cost = self._cost(step)
        qos: wire.Qos = "batch"
        step.order = now
        if (lane := step.lane) is not None:
            if not lane.unanswered:  # nothing to overtake: a long deadline before holds up nothing
                lane.order, lane.background = 0.0, lane.qos == "batch"
            # More than a robot is made to wait for: the others' frames go before it.
            lane.background |= cost > max(self._settings.max_background_images, len(step.missing))
            qos = "batch" if lane.background else "realtime"
            target = step.received + 1 / lane.fps if step.expires is None else step.expires
            step.order = lane.order = max(target, lane.order)
        size = sum(len(image.data) for image in step.images)
        return Entry(step, qos, step.order, cost, size, now)

    def _cost(self, step: Step) -> int:
        """Pictures that a step adds to a batch; a large one, slow to decode, counts as several."""
        usual = max(USUAL_PIXELS, self.model.encoder.image_size**2)
        cost = 0
        for index in step.missing:
            try:
                cost += max(1, -(-decoding_work(step.images[index]) // usual))
            except InvalidImage:
                cost += 1  # it is refused when its turn comes, at no cost
        return max(1, cost)

    # --- on the device thread --------------------------------------------------------------------

    def _take_over(self, model: RewardModel) -> None:
        before, self.model = self.model, model
        try:
            self._warm_up()
        except Exception:
            self.model = before
            raise

    def _renew(self, lane: Lane, task: str) -> None:
        lane.instruction = self.model.instruction(task)

    def _warm_up(self) -> None:
        config = self.model.config
        size = self.model.encoder.image_size
        tasks = self.model.instructions
        instruction = self.model.instruction(tasks[0] if tasks else "task")
        memory = self.model.new_memory(config.fps)
        black = np.zeros((len(config.cameras), size, size, 3), np.uint8)
        memory.push(0, self.model.encoder.encode_images(black), np.zeros(config.state_dim, np.float32))
        scores = self.model.score(WindowBatch.stack([memory.window()], [instruction], [None]))
        if not _is_finite(scores):
            raise InvalidInput(
                "the bundle's model gives scores that are not finite: it diverged; train it again",
                field="bundle",
            )

    def _work(self) -> bool:
        with self._device.condition:
            windows = self._windows.take()
            frames = [] if windows else self._frames.take()
            self.metrics.queue_depth.labels("frames").set(len(self._frames))
            self.metrics.queue_depth.labels("windows").set(len(self._windows))
        if windows:
            self._score(windows)
        elif frames:
            self._embed(frames)
        return bool(windows or frames)

    def _embed(self, entries: Sequence[Entry[Step]]) -> None:
        now = time.monotonic()
        waits = self.metrics.queue_wait.labels("frames")
        outcomes: list[tuple[Step, Outcome]] = []
        decoded: list[Step] = []
        for entry in entries:
            step = entry.item
            step.queue_s = now - entry.enqueued
            waits.observe(step.queue_s)
            if step.lane is not None and step.lane.closed:
                continue  # the episode is over and nobody waits for the answer
            if step.expires is not None and now > step.expires:
                outcomes.append((step, Late()))
            elif (problem := self._decoded(step)) is not None:
                outcomes.append((step, problem))
            else:
                decoded.append(step)
        results = run_isolated(decoded, self._encode, fatal=is_device_lost)
        for step, result in zip(decoded, results, strict=True):
            step.pixels = []
            if isinstance(result, Exception):
                outcomes.append((step, self._failure(result, step, "encoder")))
            elif step.lane is None:
                outcomes.append((step, Embedded()))
            else:
                self._remember(step, step.lane)
        self._post(outcomes)

    def _decoded(self, step: Step) -> Sarm2Error | None:
        """Decode what is missing here, unless a thread of the pool already does."""
        try:
            if step.decoding is None or step.decoding.cancel():
                self._decode(step)
            else:
                step.decoding.result()
        except Sarm2Error as error:
            return error
        except Exception as error:  # a decoder's surprise is the picture's fault, not the model's
            return self._failure(error, step, "decoder")
        return None

    def _decode(self, step: Step) -> None:
        size, limit = self.model.encoder.image_size, self._settings.max_image_pixels
        step.pixels = [
            resize_with_pad(decode_image(step.images[index], max_pixels=limit), size)
            for index in step.missing
        ]

    def _encode(self, steps: Sequence[Step]) -> list[None]:
        """Embed the missing pictures of all steps in one batch; raises if any embedding is not finite."""
        pixels = [image for step in steps for image in step.pixels]
        if not pixels:
            return [None] * len(steps)
        started = time.perf_counter()
        rows_ND = self.model.encoder.encode_images(np.stack(pixels))
        elapsed = time.perf_counter() - started
        if not np.isfinite(rows_ND).all():
            raise ModelFailed("the encoder gave numbers that are not finite for this picture", field="images")
        self.metrics.encoder_images.inc(len(pixels))
        self.metrics.batch_size.labels("frames").observe(len(pixels))
        self.metrics.model_seconds.labels("encode").observe(elapsed)
        fresh: dict[bytes, Embedding] = {}
        rows = iter(rows_ND)
        for step in steps:
            step.encode_s = elapsed if step.pixels else 0.0
            for index in step.missing:
                step.embeddings[index] = row = next(rows)
                if step.keys:
                    fresh[step.keys[index]] = row
        if fresh:
            self.cache.put_many(fresh)
        return [None] * len(steps)

    def _remember(self, step: Step, lane: Lane) -> None:
        embeddings_CD = np.stack([row for row in step.embeddings if row is not None])
        step.filled = lane.memory.push(step.seq, embeddings_CD, step.state_S)
        entry = Entry((step, lane.memory.window()), lane.qos, step.order, 1, 0, time.monotonic())
        with self._device.condition:
            self._windows.put(entry)

    def _score(self, entries: Sequence[Entry[tuple[Step, Window]]]) -> None:
        now = time.monotonic()
        waits = self.metrics.queue_wait.labels("windows")
        for entry in entries:
            waits.observe(now - entry.enqueued)
            entry.item[0].queue_s += now - entry.enqueued
        items = [entry.item for entry in entries]
        outcomes: list[tuple[Step, Outcome]] = []
        results = run_isolated(items, self._heads, fatal=is_device_lost)
        for (step, _), result in zip(items, results, strict=True):
            outcome = self._failure(result, step, "heads") if isinstance(result, Exception) else result
            outcomes.append((step, outcome))
        self._post(outcomes)

    def _heads(self, items: Sequence[tuple[Step, Window]]) -> list[Scored]:
        lanes = [lane for step, _ in items if (lane := step.lane) is not None]
        started = time.perf_counter()
        batch = WindowBatch.stack(
            [window for _, window in items],
            [lane.instruction for lane in lanes],
            [lane.source for lane in lanes],
        )
        scores = self.model.score(batch)
        elapsed = time.perf_counter() - started
        if not _is_finite(scores):
            raise ModelFailed("the heads gave numbers that are not finite for this frame")
        self.metrics.batch_size.labels("windows").observe(len(items))
        self.metrics.model_seconds.labels("heads").observe(elapsed)
        for step, _ in items:
            step.heads_s = elapsed
        return rows_of(scores, [step.filled for step, _ in items])

    def _failure(self, error: Exception, step: Step, part: str) -> Sarm2Error:
        """What the caller is told; everything else goes to the log."""
        if isinstance(error, Sarm2Error) and not isinstance(error, ModelFailed):
            return error
        error_id = log_failure("step_failed", error, part=part, seq=step.seq)
        if type(error).__name__ == "OutOfMemoryError":
            # Frames go one way: this one cannot come again, but the next ones and the episode can.
            return Overloaded(
                "the device is out of memory and leaves this frame out; go on, or send the episode again",
                error_id=error_id,
                seq=step.seq,
            )
        text = error.message if isinstance(error, ModelFailed) else f"the {part} failed on this frame"
        return ModelFailed(f"{text}; other frames are not affected", error_id=error_id, seq=step.seq)

    def _post(self, outcomes: list[tuple[Step, Outcome]]) -> None:
        if outcomes and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                self._loop.call_soon_threadsafe(_deliver, outcomes)


def _is_finite(scores: ScoreBatch) -> bool:
    """Whether every number is; an unsound stage head shows in the probabilities alone."""
    rows = (scores.progress_B, scores.probs_BP, scores.weights_BE, scores.low_B, scores.high_B)
    return all(bool(np.isfinite(numbers).all()) for numbers in rows)


def _deliver(outcomes: list[tuple[Step, Outcome]]) -> None:
    for step, outcome in outcomes:
        if step.lane is not None:
            step.lane.unanswered -= 1
        try:
            step.deliver(step, outcome)
        except Exception as error:  # one episode's trouble must not reach its batch mates
            log_failure("delivery_failed", error, seq=step.seq)


def _settle(future: asyncio.Future[Step], step: Step, outcome: Outcome) -> None:
    if future.done():
        return
    if isinstance(outcome, Sarm2Error):
        log(logging.DEBUG, "embedding_refused", code=outcome.code)
        future.set_exception(outcome)
    else:
        future.set_result(step)
