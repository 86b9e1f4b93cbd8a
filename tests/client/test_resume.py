"""The client against a peer that breaks: every break ends in a whole episode or in a typed error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from client.peer import CAMERAS, LIMITS, Peer, Script, score_of
from sarm2_client import wire
from sarm2_client.aio import AsyncRewardClient
from sarm2_client.client import Episode, RewardClient
from sarm2_client.connection import RESUMABLE_CLOSE_CODES
from sarm2_client.errors import Conflict, ConnectionLost, InvalidInput, NotAllowed, Overloaded, WaitTimeout
from sarm2_client.opener import MAX_FRUITLESS
from sarm2_client.options import EpisodeOptions
from sarm2_client.timeouts import Backoff, Timeouts

TASK = "open the drawer"
STATE = [0.0, 0.1, 0.2, 0.3]
WAITS = Timeouts(connect=1, hello=1, start=1, send=1, score=1, queue=2, summary=4, resume=2, close=0.2)
BACKOFF = Backoff(first=0.01, longest=0.05)


def client_of(peer: Peer, waits: Timeouts = WAITS, options: EpisodeOptions | None = None) -> RewardClient:
    return RewardClient(port=peer.port, timeouts=waits, backoff=BACKOFF, options=options)


def client_of_both(first: Peer, second: Peer) -> RewardClient:
    replicas = [("127.0.0.1", second.port)]
    return RewardClient(port=first.port, timeouts=WAITS, backoff=BACKOFF, replicas=replicas)


def push_all(episode: Episode, count: int, pause_s: float = 0.0) -> None:
    for seq in range(count):
        image = np.full((20, 20, 3), seq % 251, dtype=np.uint8)
        episode.push(dict.fromkeys(CAMERAS, image), STATE)
        time.sleep(pause_s)


def play(script: Script, count: int = 40, options: EpisodeOptions | None = None) -> tuple[Episode, Peer]:
    with Peer(script) as peer, client_of(peer, options=options) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS, session_id="s", qos="batch") as episode:
            push_all(episode, count)
        return episode, peer


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def curve(episode: Episode) -> list[tuple[int, float]]:
    return sorted((score.seq, score.progress) for score in episode.scores)


@pytest.fixture(scope="module")
def uninterrupted() -> list[tuple[int, float]]:
    return curve(play(Script())[0])


@pytest.mark.parametrize("code", sorted(RESUMABLE_CLOSE_CODES))
def test_a_connection_lost_in_the_middle_is_resumed_and_the_curve_is_the_same(
    code: int, uninterrupted: list[tuple[int, float]]
) -> None:
    episode, peer = play(Script(close_after={15: code}))
    assert curve(episode) == uninterrupted
    assert episode.resumes == 1
    assert len(peer.frames) == 40  # nothing was scored twice
    assert episode.summary is not None


def test_many_losses_in_one_episode_are_each_resumed(uninterrupted: list[tuple[int, float]]) -> None:
    episode, _ = play(Script(close_after={5: 1006, 6: 1012, 20: 1013, 39: 1006}))
    assert curve(episode) == uninterrupted
    assert episode.resumes == 4


@pytest.mark.parametrize("losses", [1, 3])
def test_frames_still_unanswered_when_a_resumed_connection_breaks_too_are_sent_again(
    losses: int, uninterrupted: list[tuple[int, float]]
) -> None:
    """Frames 12 to 14 are scored and their answers lost; so is each resumed connection, before any answer."""

    def answer(frame: wire.Frame, previous: float | None) -> list[wire.ServerMessage]:
        if frame.seq == 14:  # from now on one frame at a time, so that not all of them are sent again at once
            script.limits = structs.replace(LIMITS, max_in_flight=1)
        return [score_of(frame, previous)]

    script = Script(answer=answer, withhold=frozenset({12, 13}), close_after={15: 1006}, close_resumes=losses)
    episode, peer = play(script)
    assert curve(episode) == uninterrupted
    assert episode.errors == []
    assert episode.resumes == 1 + losses
    assert len({start.resume_from for start in peer.starts[1:]}) == 1  # no answer came in between
    assert len(peer.frames) == 40  # nothing was scored twice


def test_a_server_that_forgot_the_episode_gets_all_kept_frames_again(
    uninterrupted: list[tuple[int, float]],
) -> None:
    episode, peer = play(Script(close_after={15: 1006}, forget_on_close=True))
    assert curve(episode) == uninterrupted
    assert [frame.seq for frame in peer.frames[15:]] == list(range(40))


def test_a_full_resend_buffer_keeps_the_anchor_and_the_last_frames() -> None:
    options = EpisodeOptions(resend_frames=12)
    episode, peer = play(Script(close_after={30: 1006}, forget_on_close=True), options=options)
    again = [frame.seq for frame in peer.frames[30:]]
    assert again[0] == 0
    assert again[1] >= 15
    assert again[1:] == list(range(again[1], 40))
    assert [seq for seq, _ in curve(episode)] == list(range(40))


def test_resume_asks_for_the_first_frame_without_an_answer() -> None:
    _, peer = play(Script(close_after={15: 1006}))
    assert peer.starts[0].resume_from is None
    assert peer.starts[1].session_id == "s"
    assert peer.starts[1].resume_from == 14  # frame 14 was taken and its answer lost


def test_a_server_that_comes_back_on_its_port_is_found_again() -> None:
    with Peer() as first:
        port = first.port
        client = client_of(first)
        episode = client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()
        push_all(episode, 3)
        wait_until(lambda: len(episode.scores) == 3)
    time.sleep(0.1)
    with Peer(port=port) as second:
        episode.push(dict.fromkeys(CAMERAS, np.zeros((20, 20, 3), np.uint8)), STATE)
        episode.__exit__(None, None, None)
        client.close()
    assert [score.seq for score in episode.scores] == [0, 1, 2, 3]
    assert [frame.seq for frame in second.frames] == [0, 1, 2, 3]


def test_a_lost_episode_goes_on_at_a_replica() -> None:
    with Peer() as second, Peer(Script(close_after={4: 1012})) as first:
        client = client_of_both(first, second)
        with client, client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            push_all(episode, 10)
    assert [score.seq for score in episode.scores] == list(range(10))
    assert [frame.seq for frame in second.frames] == list(range(10))


@pytest.mark.parametrize("episodes_before", [0, 1])
def test_an_episode_begins_at_a_replica_when_the_service_in_use_is_gone(episodes_before: int) -> None:
    with Peer() as second:
        with Peer() as first:
            client = client_of_both(first, second)
            for _ in range(episodes_before):
                with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
                    push_all(episode, 2)
        with client:
            for _ in range(2):
                with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
                    push_all(episode, 2)
            step = {"images": dict.fromkeys(CAMERAS, np.zeros((20, 20, 3), np.uint8)), "state": STATE}
            assert client.infer({**step, "task": TASK})["seq"] == 0
    assert len(first.frames) == 2 * episodes_before
    assert [frame.seq for frame in second.frames] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "script",
    [
        Script(refuse_status=503),
        Script(refuse_starts=[wire.Error(code="draining", message="", retryable=True, error_id="e")]),
        Script(greet=False),
    ],
    ids=["refuses the connection", "refuses the episode", "says nothing"],
)
def test_an_episode_begins_at_a_replica_when_the_service_in_use_is_draining_or_silent(script: Script) -> None:
    with Peer(script) as first, Peer() as second, client_of_both(first, second) as client:
        for _ in range(2):
            with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
                push_all(episode, 2)
        assert first.frames == []
        assert len(first.starts) <= 1  # not asked again
    assert len(second.frames) == 4


def test_episodes_that_begin_at_once_all_find_the_replica() -> None:
    async def run(port: int, replica: int) -> list[wire.Summary]:
        async with AsyncRewardClient(port=port, timeouts=WAITS, replicas=[("127.0.0.1", replica)]) as client:
            episodes = [client.episode(TASK, fps=10, cameras=CAMERAS) for _ in range(3)]
            await asyncio.gather(*(episode.__aenter__() for episode in episodes))
            return await asyncio.gather(*(episode.close() for episode in episodes))

    with Peer() as second:
        with Peer() as first:
            port = first.port
        assert len(asyncio.run(run(port, second.port))) == 3


def test_each_address_is_asked_once_and_the_last_refusal_is_raised() -> None:
    with Peer(Script(refuse_status=503)) as first, Peer(Script(greet=False)) as second:
        with client_of_both(first, second) as client, pytest.raises(WaitTimeout, match="hello"):
            client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()
        assert second.connections == 1


def test_a_refusal_for_good_is_not_taken_to_a_replica() -> None:
    script = Script(refuse_starts=[error("invalid_input", False)])
    with Peer(script) as first, Peer() as second:
        with client_of_both(first, second) as client, pytest.raises(InvalidInput, match="scripted"):
            client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()
        assert second.connections == 0


def test_after_the_resume_budget_every_call_raises_connection_lost() -> None:
    waits = replace(WAITS, resume=0.2)
    with Peer() as peer:
        client = client_of(peer, waits)
        episode = client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()
        push_all(episode, 1)
    wait_until(lambda: episode.failure is not None)
    with pytest.raises(ConnectionLost, match=r"0\.2 s"):
        push_all(episode, 1)
    with pytest.raises(ConnectionLost):
        episode.close()
    client.close()


@pytest.mark.parametrize("before", [0, 2])
def test_a_frame_that_breaks_the_server_every_time_does_not_loop_for_ever(before: int) -> None:
    """The frames `before` it are sent and answered again each time."""
    count = before + 1
    script = Script(close_after=dict.fromkeys(range(count, 100, count), 1006), forget_on_close=True)
    with Peer(script) as peer, client_of(peer) as client:
        with (
            pytest.raises(ConnectionLost, match="without a new answer"),
            client.episode(TASK, fps=10, cameras=CAMERAS) as episode,
        ):
            push_all(episode, count)
        assert len(episode.scores) == before
        assert peer.connections == MAX_FRUITLESS + 2


def test_a_stream_without_answers_is_taken_for_lost_and_resumed() -> None:
    silent = threading.Event()

    def answer(frame: wire.Frame, previous: float | None) -> list[wire.ServerMessage]:
        if frame.seq == 2 and not silent.is_set():
            silent.set()
            peer.sessions.clear()
            return []
        return [score_of(frame, previous)]

    with Peer(Script(answer=answer)) as peer, client_of(peer, replace(WAITS, score=0.3)) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            push_all(episode, 3)
            wait_until(lambda: len(episode.scores) == 3)
        assert [score.seq for score in episode.scores] == [0, 1, 2]
        assert episode.resumes == 1


def error(code: str, retryable: bool) -> wire.Error:
    return wire.Error(code=code, message="scripted", retryable=retryable, error_id="e")


def test_a_start_that_is_refused_raises_what_the_server_said() -> None:
    refusals = {"overloaded": Overloaded, "conflict": Conflict, "invalid_input": InvalidInput}
    for code, kind in refusals.items():
        script = Script(refuse_starts=[error(code, code == "overloaded")])
        with Peer(script) as peer, client_of(peer) as client, pytest.raises(kind, match="scripted"):
            client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()


def test_a_resume_waits_out_a_server_that_is_full_or_still_holds_the_old_connection() -> None:
    refusals = [error("conflict", False), error("overloaded", True)]
    script = Script(close_after={3: 1006}, refuse_resumes=refusals)
    with Peer(script) as peer, client_of(peer) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS, qos="batch") as episode:
            push_all(episode, 6)
        assert [score.seq for score in episode.scores] == list(range(6))
        assert peer.connections == 4


def test_a_resume_that_is_refused_for_good_is_not_tried_again() -> None:
    script = Script(close_after={3: 1006}, refuse_resumes=[error("not_allowed", False)])
    with Peer(script) as peer, client_of(peer) as client:
        with pytest.raises(NotAllowed), client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            push_all(episode, 6)
        assert peer.connections == 2


def test_a_refusal_for_good_in_mid_episode_ends_it() -> None:
    with Peer(Script(close_after={3: 1008})) as peer, client_of(peer) as client:
        with (
            pytest.raises(NotAllowed, match="1008"),
            client.episode(TASK, fps=10, cameras=CAMERAS) as episode,
        ):
            push_all(episode, 6)
        assert episode.resumes == 0


def test_an_idle_connection_that_went_stale_is_replaced_without_a_word() -> None:
    with Peer() as first:
        port = first.port
        client = client_of(first)
        client.get_server_metadata()
    with Peer(port=port) as second, client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            push_all(episode, 2)
        assert episode.resumes == 0
        assert len(second.frames) == 2


def test_push_does_not_wait_while_the_connection_is_away() -> None:
    options = EpisodeOptions(queue_frames=8)
    with Peer() as peer:
        client = client_of(peer, options=options)
        episode = client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()
        push_all(episode, 1)
    started = time.monotonic()
    push_all(episode, 30)
    assert time.monotonic() - started < 1.0
    assert episode.dropped_unsent >= 30 - 8 - LIMITS.max_in_flight - 1
    episode.abort()
    client.close()


def test_pauses_double_up_to_the_longest_and_are_jittered_by_up_to_half() -> None:
    backoff = Backoff(first=0.1, longest=3.0)
    for attempt, whole in [(0, 0.1), (1, 0.2), (4, 1.6), (5, 3.0), (1000, 3.0)]:
        pauses = [backoff.pause(attempt) for _ in range(50)]
        assert all(whole / 2 <= pause <= whole for pause in pauses)
        assert max(pauses) - min(pauses) > whole / 20


def test_limits_of_the_newest_server_count() -> None:
    narrow = structs.replace(LIMITS, max_in_flight=1)
    episode, _ = play(Script(limits=narrow, close_after={5: 1012}))
    assert len(episode.scores) == 40
