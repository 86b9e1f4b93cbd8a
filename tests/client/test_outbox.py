"""Buffers that never grow beyond their bounds and say what they let go."""

from __future__ import annotations

import threading

import numpy as np

from sarm2_client.images import ImageHWC
from sarm2_client.outbox import Outbox, PendingFrame, ResendBuffer


def frame(seq: int, nbytes: int = 10) -> PendingFrame:
    return PendingFrame(seq=seq, t_ns=0, images={"corner": bytes(nbytes)}, state=[0.0])


def drained(outbox: Outbox) -> list[int]:
    seqs = []
    while (taken := outbox.take()) is not None:
        seqs.append(taken.seq)
    return seqs


def test_a_full_outbox_drops_its_oldest_frames_and_counts_them() -> None:
    outbox = Outbox(max_frames=3, max_bytes=10**6)
    for seq in range(5):
        outbox.put(frame(seq))
    assert outbox.dropped == 2
    assert drained(outbox) == [2, 3, 4]


def test_an_outbox_is_bounded_by_bytes_too_but_always_keeps_the_newest_frame() -> None:
    outbox = Outbox(max_frames=100, max_bytes=100)
    for seq in range(20):
        outbox.put(frame(seq, 30))
    assert len(outbox) == 3
    outbox.put(frame(20, 10**4))
    assert drained(outbox) == [20]
    assert outbox.dropped == 20


def test_full_means_that_one_more_would_push_another_out() -> None:
    outbox = Outbox(max_frames=2, max_bytes=10**6)
    seen = []
    for seq in range(2):
        outbox.put(frame(seq))
        seen.append(outbox.full)
    outbox.take()
    assert [*seen, outbox.full] == [False, True, False]


def test_frames_from_many_threads_are_each_taken_or_counted_as_dropped() -> None:
    outbox = Outbox(max_frames=16, max_bytes=10**6)

    def put(first: int) -> None:
        for seq in range(first, first + 500):
            outbox.put(frame(seq))

    threads = [threading.Thread(target=put, args=(500 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads):
        taken += outbox.take() is not None
    for thread in threads:
        thread.join()
    assert taken + len(drained(outbox)) + outbox.dropped == 2000


def test_arrays_count_with_all_their_bytes() -> None:
    images: dict[str, ImageHWC | bytes] = {"corner": np.zeros((4, 5, 3), np.uint8), "wrist": bytes(7)}
    assert PendingFrame(seq=0, t_ns=0, images=images, state=[]).nbytes == 67


def test_the_resend_buffer_keeps_the_anchor_the_unanswered_and_the_newest() -> None:
    buffer = ResendBuffer(max_frames=4, max_bytes=10**6)
    for seq in range(10):
        buffer.keep(seq, bytes([seq]))
        buffer.shrink({2: 0.0})
    assert [seq for seq, _ in buffer.wanted(0, {})] == [0, 2, 8, 9]


def test_the_resend_buffer_is_bounded_by_bytes() -> None:
    buffer = ResendBuffer(max_frames=100, max_bytes=100)
    for seq in range(20):
        buffer.keep(seq, bytes(20))
        buffer.shrink({})
    assert [seq for seq, _ in buffer.wanted(0, {})] == [0, 16, 17, 18, 19]


def test_a_resume_wants_what_the_server_lacks_and_what_was_never_answered() -> None:
    buffer = ResendBuffer(max_frames=100, max_bytes=10**6)
    for seq in range(6):
        buffer.keep(seq, bytes([seq]))
    assert buffer.wanted(4, {1: 0.0}) == [(1, b"\x01"), (4, b"\x04"), (5, b"\x05")]


def test_when_the_anchor_was_refused_the_next_kept_frame_takes_its_place() -> None:
    buffer = ResendBuffer(max_frames=2, max_bytes=10**6)
    for seq in range(2):
        buffer.keep(seq, b"x")
    buffer.forget(0)
    buffer.forget(0)
    for seq in range(2, 6):
        buffer.keep(seq, b"x")
        buffer.shrink({})
    assert [seq for seq, _ in buffer.wanted(0, {})] == [1, 5]
