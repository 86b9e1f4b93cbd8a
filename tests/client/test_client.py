"""The client against a scripted peer on a real websocket: one connection that holds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from client.peer import CAMERAS, LIMITS, SIZE, Peer, Script, score_of
from sarm2_client import wire
from sarm2_client.aio import AsyncRewardClient
from sarm2_client.client import RewardClient
from sarm2_client.errors import (
    ConnectionLost,
    Draining,
    InvalidImage,
    InvalidInput,
    InvalidMessage,
    InvalidSequence,
    InvalidState,
    ModelFailed,
    NotAllowed,
    NotFound,
    Overloaded,
    Sarm2Error,
    WaitTimeout,
)
from sarm2_client.images import ImageHWC, encode_jpeg
from sarm2_client.options import EpisodeOptions
from sarm2_client.timeouts import Timeouts

TASK = "open the drawer"
STATE = [0.1, 0.2, 0.3, 1.0]
QUICK = Timeouts(
    connect=1, hello=1, start=1, send=1, score=1, queue=1, summary=2, resume=2, request=2, close=0.2
)


def picture(value: int = 0, height: int = 24, width: int = 32) -> ImageHWC:
    return np.full((height, width, 3), value, dtype=np.uint8)


def pictures(value: int = 0) -> dict[str, Any]:
    return {camera: picture(value) for camera in CAMERAS}


def observation(value: int = 0, **more: Any) -> dict[str, Any]:
    return {"images": pictures(value), "state": STATE, **more}


def test_infer_scores_one_step_after_another() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        first = client.infer(observation(task=TASK))
        second = client.infer(observation())
    assert (first["seq"], second["seq"]) == (0, 1)
    assert first["reward"] is None
    assert second["reward"] == pytest.approx(second["progress"] - first["progress"])
    assert second["timing"]["total_ms"] == 1.0


def test_the_first_observation_needs_a_task_and_a_later_one_may_not_change_it() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with pytest.raises(InvalidInput, match="task"):
            client.infer(observation())
        client.infer(observation(prompt=TASK))
        with pytest.raises(InvalidInput, match="reset"):
            client.infer(observation(task="close the drawer"))
        assert client.infer(observation(task=TASK))["seq"] == 1


def test_reset_ends_the_episode_and_the_next_step_begins_another_on_the_same_connection() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        assert client.reset() is None
        client.infer(observation(task=TASK))
        summary = client.reset()
        assert summary is not None
        assert summary.frames == 1
        assert client.infer(observation(task="close the drawer"))["seq"] == 0
    assert peer.connections == 1


def test_an_observation_without_images_or_state_names_what_is_missing() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with pytest.raises(InvalidInput, match="images"):
            client.infer({"task": TASK, "state": STATE})
        with pytest.raises(InvalidInput, match="state"):
            client.infer({"task": TASK, "images": pictures()})


def test_server_metadata_is_the_hello_as_a_plain_dict() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        metadata = client.get_server_metadata()
    assert metadata["protocol"] == "sarm.v1"
    assert metadata["preprocess"]["size"] == SIZE


def test_an_episode_gets_a_score_for_every_push_and_a_summary() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS, session_id="one") as episode:
            live = episode.scores
            for value in range(20):
                episode.push(pictures(value), STATE)
        assert [score.seq for score in episode.scores] == list(range(20))
        assert live is episode.scores
        assert episode.latest is episode.scores[-1]
        assert episode.summary is not None
        assert episode.summary.session_id == "one"
        assert episode.errors == []
    assert [frame.seq for frame in peer.frames] == list(range(20))


def test_pictures_are_resized_with_pad_to_the_size_that_the_server_asks_for() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        client.infer(observation(task=TASK))
    image = peer.frames[0].images["corner"]
    assert image.enc == "jpeg"
    from sarm2_client.images import read_jpeg_header

    header = read_jpeg_header(image.data)
    assert (header.height, header.width) == (SIZE, SIZE)


def test_a_jpeg_of_the_right_size_is_sent_untouched() -> None:
    ready = encode_jpeg(picture(7, SIZE, SIZE), quality=50)
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        client.infer({"images": dict.fromkeys(CAMERAS, ready), "state": STATE, "task": TASK})
    assert peer.frames[0].images["wrist"].data == ready


def test_a_pushed_array_may_be_overwritten_at_once() -> None:
    reused = picture(0)
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=["corner", "wrist"]) as episode:
            episode.push({"corner": reused, "wrist": reused}, STATE)
            reused[:] = 255
        from sarm2_client.images import decode_image

        assert decode_image(peer.frames[0].images["corner"], max_pixels=10**6).max() < 8


def test_a_wrong_step_is_refused_at_the_call_and_the_episode_goes_on() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            with pytest.raises(InvalidImage, match="corner, wrist"):
                episode.push({"corner": picture()}, STATE)
            with pytest.raises(InvalidImage, match="uint8"):
                episode.push(dict.fromkeys(CAMERAS, picture().astype(np.float32)), STATE)
            with pytest.raises(InvalidImage, match="channels last"):
                episode.push(dict.fromkeys(CAMERAS, picture().transpose(2, 0, 1)), STATE)
            with pytest.raises(InvalidState, match=r"\(4,\)"):
                episode.push(pictures(), STATE[:3])
            with pytest.raises(InvalidState, match="finite"):
                episode.push(pictures(), [0.0, 0.0, 0.0, float("nan")])
            with pytest.raises(InvalidState, match="4 numbers"):
                episode.push(pictures(), ["a", "b", "c", "d"])
            episode.push(pictures(), STATE)
        assert [score.seq for score in episode.scores] == [0]


def test_gaps_in_seq_are_allowed_and_going_back_is_not() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            episode.push(pictures(), STATE, seq=3)
            with pytest.raises(InvalidSequence, match="above 3"):
                episode.push(pictures(), STATE, seq=3)
            assert episode.push(pictures(), STATE) == 4
        assert [score.seq for score in episode.scores] == [3, 4]


def test_a_damaged_jpeg_is_reported_and_the_episode_goes_on() -> None:
    damaged = encode_jpeg(picture())[:-40]
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            episode.push(dict.fromkeys(CAMERAS, damaged), STATE)
            episode.push(pictures(), STATE)
        assert [score.seq for score in episode.scores] == [1]
        assert [error.seq for error in episode.errors] == [0]
        assert isinstance(episode.errors[0], InvalidImage)


def fails_at_one(frame: wire.Frame, previous: float | None) -> list[wire.ServerMessage]:
    if frame.seq == 1:
        return [wire.Error(code="model_failed", message="no", retryable=False, error_id="e1", seq=1)]
    if frame.seq == 2:
        return [wire.Dropped(seq=2, reason="deadline")]
    return [score_of(frame, previous)]


def test_frames_that_the_server_refuses_or_drops_are_told_and_the_episode_goes_on() -> None:
    with Peer(Script(answer=fails_at_one)) as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            for _ in range(4):
                episode.push(pictures(), STATE)
        assert [score.seq for score in episode.scores] == [0, 3]
        assert episode.dropped == 1
        assert isinstance(episode.errors[0], ModelFailed)
        assert episode.errors[0].error_id == "e1"


def test_infer_raises_what_happened_to_its_own_frame() -> None:
    with Peer(Script(answer=fails_at_one)) as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        client.infer(observation(task=TASK))
        with pytest.raises(ModelFailed):
            client.infer(observation())
        with pytest.raises(Overloaded, match="deadline"):
            client.infer(observation())
        assert client.infer(observation())["seq"] == 3


def test_push_never_waits_and_a_full_queue_drops_its_oldest_frames() -> None:
    options = EpisodeOptions(queue_frames=4)
    script = Script(delay_s=0.02)
    with Peer(script) as peer, RewardClient(port=peer.port, timeouts=QUICK, options=options) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            started = time.monotonic()
            for value in range(50):
                episode.push(pictures(value), STATE)
            assert time.monotonic() - started < 0.5
        assert episode.dropped_unsent > 0
        assert len(episode.scores) + episode.dropped_unsent == 50
        assert episode.scores[-1].seq == 49


def test_a_batch_episode_waits_for_room_and_loses_nothing() -> None:
    options = EpisodeOptions(queue_frames=2)
    script = Script(delay_s=0.002)
    with Peer(script) as peer, RewardClient(port=peer.port, timeouts=QUICK, options=options) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS, qos="batch") as episode:
            for value in range(60):
                episode.push(pictures(value), STATE)
        assert [score.seq for score in episode.scores] == list(range(60))
        assert episode.dropped_unsent == 0


def test_a_frame_that_found_no_room_may_be_pushed_again_under_its_number() -> None:
    going = threading.Event()

    def answer(frame: wire.Frame, previous: float | None) -> list[wire.ServerMessage]:
        going.wait(10)
        return [score_of(frame, previous)]

    script = Script(limits=structs.replace(LIMITS, max_in_flight=1), answer=answer)
    waits, options = replace(QUICK, queue=0.2, score=10), EpisodeOptions(queue_frames=1)
    with Peer(script) as peer, RewardClient(port=peer.port, timeouts=waits, options=options) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS, qos="batch") as episode:
            episode.push(pictures(), STATE, seq=0)
            episode.push(pictures(), STATE, seq=3)
            with pytest.raises(WaitTimeout, match="queue"):
                episode.push(pictures(), STATE, seq=5)
            going.set()
            episode.push(pictures(), STATE, seq=5)
        assert [score.seq for score in episode.scores] == [0, 3, 5]


def test_never_more_frames_are_in_flight_than_the_server_allows() -> None:
    most = 0
    answered = 0
    peer = Peer()

    def answer(frame: wire.Frame, previous: float | None) -> list[wire.ServerMessage]:
        nonlocal most, answered
        held.append(score_of(frame, previous))
        most = max(most, len(held))
        if len(held) < LIMITS.max_in_flight and frame.seq < 39:
            return []
        answered += len(held)
        out, held[:] = list(held), []
        return list(out)

    held: list[wire.ServerMessage] = []
    peer.script.answer = answer
    with peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            for value in range(40):
                episode.push(pictures(value), STATE)
        assert len(episode.scores) == 40
    assert most == LIMITS.max_in_flight


def test_leaving_an_episode_by_an_exception_keeps_the_exception_and_asks_for_no_summary() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with pytest.raises(KeyError), client.episode(TASK, fps=10, cameras=CAMERAS) as episode:  # noqa: PT012
            episode.push(pictures(), STATE)
            raise KeyError("the robot's own fault")
        assert episode.summary is None


def test_an_exception_at_once_drops_the_connection_too() -> None:
    async def run(peer: Peer) -> None:
        async with AsyncRewardClient(port=peer.port, timeouts=QUICK) as client:
            with pytest.raises(KeyError):
                async with client.episode(TASK, fps=10, cameras=CAMERAS):
                    raise KeyError("the robot's own fault")
            deadline = time.monotonic() + 2
            while peer.open:
                assert time.monotonic() < deadline, "the connection was left open"
                await asyncio.sleep(0.01)

    with Peer() as peer:
        asyncio.run(run(peer))


def test_the_block_of_an_aborted_episode_ends_with_connection_lost() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with (
            pytest.raises(ConnectionLost, match="before its summary"),
            client.episode(TASK, fps=10, cameras=CAMERAS) as episode,
        ):
            episode.abort()
        assert episode.summary is None


def test_the_asynchronous_block_of_an_aborted_episode_ends_with_connection_lost() -> None:
    async def run(port: int) -> None:
        async with AsyncRewardClient(port=port, timeouts=QUICK) as client:
            with pytest.raises(ConnectionLost, match="before its summary"):
                async with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
                    await episode.abort()

    with Peer() as peer:
        asyncio.run(run(peer.port))


def test_an_episode_of_no_frames_has_a_summary() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
            pass
        assert episode.summary is not None
        assert episode.summary.frames == 0
        with pytest.raises(InvalidSequence, match="not open"):
            episode.push(pictures(), STATE)


def test_two_episodes_at_once_each_have_their_own_connection() -> None:
    with Peer() as peer, RewardClient(port=peer.port, timeouts=QUICK) as client:
        with (
            client.episode(TASK, fps=10, cameras=CAMERAS) as one,
            client.episode(TASK, fps=10, cameras=CAMERAS) as two,
        ):
            one.push(pictures(), STATE)
            two.push(pictures(), STATE)
        assert len(one.scores) == len(two.scores) == 1
    assert peer.connections == 2


def test_a_robot_that_pauses_keeps_its_connection_by_pings() -> None:
    limits = wire.Limits(
        **{**{f: getattr(LIMITS, f) for f in LIMITS.__struct_fields__}, "idle_timeout_s": 0.3}
    )
    with (
        Peer(Script(limits=limits)) as peer,
        RewardClient(port=peer.port, timeouts=QUICK) as client,
        client.episode(TASK, fps=10, cameras=CAMERAS),
    ):
        time.sleep(0.7)
    assert peer.pings >= 1


# --- every wait ends ----------------------------------------------------------------------------------


def test_nobody_listening_is_a_lost_connection_with_the_address_in_its_text() -> None:
    with Peer() as peer:
        port = peer.port
    with RewardClient(port=port, timeouts=QUICK) as client, pytest.raises(ConnectionLost, match=str(port)):
        client.infer(observation(task=TASK))


def test_a_server_without_hello_is_given_up_after_the_named_wait() -> None:
    waits = Timeouts(hello=0.2)
    with (
        Peer(Script(greet=False)) as peer,
        RewardClient(port=peer.port, timeouts=waits) as client,
        pytest.raises(WaitTimeout, match="hello"),
    ):
        client.get_server_metadata()


def test_a_score_that_never_comes_ends_in_wait_timeout() -> None:
    waits = Timeouts(score=0.2, resume=0.3, summary=0.5, close=0.2)
    with (
        Peer(Script(answer=lambda frame, previous: [])) as peer,
        RewardClient(port=peer.port, timeouts=waits) as client,
        pytest.raises(WaitTimeout, match="score"),
    ):
        client.infer(observation(task=TASK))


def test_a_summary_that_never_comes_ends_in_wait_timeout() -> None:
    waits = Timeouts(summary=0.3, close=0.2)
    with Peer(Script(summarise=False)) as peer, RewardClient(port=peer.port, timeouts=waits) as client:
        with (
            pytest.raises(WaitTimeout, match="summary"),
            client.episode(TASK, fps=10, cameras=CAMERAS) as episode,
        ):
            episode.push(pictures(), STATE)
        assert len(episode.scores) == 1


def test_a_key_goes_in_the_header_and_a_wrong_one_is_refused() -> None:
    with Peer(Script(key="right")) as peer:
        with RewardClient(port=peer.port, timeouts=QUICK, api_key="right") as client:
            assert client.infer(observation(task=TASK))["seq"] == 0
        for key in (None, "wrong"):
            with (
                RewardClient(port=peer.port, timeouts=QUICK, api_key=key) as client,
                pytest.raises(NotAllowed, match="401"),
            ):
                client.infer(observation(task=TASK))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, NotAllowed), (404, NotFound), (429, Overloaded), (503, Draining), (500, ConnectionLost)],
)
def test_a_refused_handshake_is_told_by_its_status(status: int, kind: type[Sarm2Error]) -> None:
    with (
        Peer(Script(refuse_status=status)) as peer,
        RewardClient(port=peer.port, timeouts=QUICK) as client,
        pytest.raises(kind, match=str(status)),
    ):
        client.get_server_metadata()


@pytest.mark.parametrize("script", [Script(subprotocol=None), Script(protocol="sarm.v9")])
def test_a_server_of_another_protocol_is_refused(script: Script) -> None:
    with (
        Peer(script) as peer,
        RewardClient(port=peer.port, timeouts=QUICK) as client,
        pytest.raises(InvalidMessage, match=r"sarm\.v1"),
    ):
        client.get_server_metadata()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_wait_that_is_not_finite_or_not_above_zero_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="'score'"):
        Timeouts(score=seconds)


@pytest.mark.parametrize("host", ["", "ws://robot", "a/b", "user@robot"])
def test_a_host_that_is_an_address_of_something_else_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput, match="host"):
        RewardClient(host=host)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(InvalidInput, match="port"):
        RewardClient(port=port)


# --- asynchronous -------------------------------------------------------------------------------------


def test_the_asynchronous_client_does_the_same_inside_a_loop() -> None:
    async def run(port: int) -> list[int]:
        async with AsyncRewardClient(port=port, timeouts=QUICK) as client:
            async with client.episode(TASK, fps=10, cameras=CAMERAS) as episode:
                await episode.push(pictures(), STATE)
                score = await episode.step(pictures(), STATE)
                assert score.seq == 1
            return [score.seq for score in episode.scores]

    with Peer() as peer:
        assert asyncio.run(run(peer.port)) == [0, 1]


def test_closing_the_client_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with Peer() as peer:
        client = RewardClient(port=peer.port, timeouts=QUICK)
        client.infer(observation(task=TASK))
        client.close()
        client.close()
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_closing_the_client_under_an_open_episode_ends_that_with_connection_lost() -> None:
    with Peer() as peer:
        client = RewardClient(port=peer.port, timeouts=QUICK)
        episode = client.episode(TASK, fps=10, cameras=CAMERAS).__enter__()
        client.close()
        with pytest.raises(ConnectionLost):
            episode.push(pictures(), STATE)
        with pytest.raises(ConnectionLost):
            episode.close()


def test_a_script_that_forgets_to_close_still_ends_quietly() -> None:
    with Peer() as peer:
        program = (
            "import numpy as np, sarm2_client\n"
            f"client = sarm2_client.RewardClient(port={peer.port})\n"
            f"images = dict.fromkeys({CAMERAS!r}, np.zeros((8, 8, 3), np.uint8))\n"
            f"print(client.infer({{'images': images, 'state': {STATE!r}, 'task': {TASK!r}}})['seq'])"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
