"""The live page in a real Chromium, in front of a real service.

One episode is streamed by the real client through a (tiny, untrained) model. Those that need a story, a drop
or an uncertain stretch, are told to the service's own feed score by score and reach the page by its routes.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import TypeAlias

import msgspec
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

import fakes
from running_server import RunningServer
from sarm2_client import RewardClient, wire
from sarm2_models.reward_model import RewardModel
from sarm2_service.events import EpisodeView

Opener: TypeAlias = Callable[..., Page]

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
STAGES = ("reach", "grasp", "lift", "transport", "lower", "release")
HOSTILE_TASK = "<img src=x onerror='document.title=\"owned\"'> & <b>lift</b> the \u202ecup"


# --- stories --------------------------------------------------------------------------------------------


@dataclass
class Story:
    """An episode that is told to the service's feed, a stretch at a time."""

    server: RunningServer
    view: EpisodeView
    frames: int = 0
    progress: float = 0.0

    @classmethod
    def begin(cls, server: RunningServer, session_id: str, task: str = fakes.TASKS[0]) -> Story:
        start = fakes.start(session_id, task=task)
        story = cls(server, server.call(lambda: server.service.feed.open(start)))
        server.call(lambda: story.view.show(fakes.images(len(session_id), 64)))
        return story

    def tell(self, frames: int, *, by: float = 0.012, doubt: bool = False) -> Story:
        """Some frames more; each adds `by` to the progress."""
        for _ in range(frames):
            self.progress = min(0.99, max(0.0, self.progress + by))
            score = make_score(self.frames, self.progress, doubt, self.server)
            data = msgspec.msgpack.encode(score)
            self.server.call(lambda score=score, data=data: self.view.add_score(score, data))  # type: ignore[misc]
            self.frames += 1
        return self

    def drop(self) -> Story:
        """The object falls: .3 of progress within half a second."""
        return self.tell(5, by=-0.06)

    def end(self) -> Story:
        summary = make_summary(self.view, self.frames, self.progress)
        self.server.call(lambda: self.view.end(summary))
        return self


def make_score(seq: int, progress: float, doubt: bool, server: RunningServer) -> wire.Score:
    info = server.service.scorer.info
    primitive = "null" if doubt and seq % 2 else STAGES[min(len(STAGES) - 1, int(progress * len(STAGES)))]
    index = info.primitives.index(primitive)
    group = "other" if doubt else info.groups[info.primitive_groups[index]]
    probs = [0.0] * len(info.primitives)
    probs[index] = 1.0
    experts = [0.0] * info.experts
    experts[info.groups.index(group) % info.experts] = 0.7
    experts[(info.groups.index(group) + 3) % info.experts] = 0.3
    return wire.Score(
        seq=seq, t_ns=seq, progress=progress, value=progress - 1, reward=0.01 if seq else None,
        primitive=primitive, group=group, primitive_probs=probs, confidence=0.4 if doubt else 0.95,
        uncertain=doubt, task_known=True, interval=(max(0.0, progress - 0.08), min(1.0, progress + 0.08)),
        experts=experts, durable_seq=seq, filled=0, model_version="0.0.1",
        timing=wire.Timing(total_ms=9.5, queue_ms=0.5, encode_ms=6.0, heads_ms=3.0),
    )  # fmt: skip


def make_summary(view: EpisodeView, frames: int, progress: float) -> wire.Summary:
    return wire.Summary(
        session_id=view.session_id, task=view.task, task_known=True, frames=frames, scored=frames, dropped=0,
        duration_s=frames / view.fps, final_progress=progress, max_progress=progress, largest_fall=0.0,
        mean_confidence=0.9, uncertain_share=0.0, segments=[], model_version="0.0.1",
    )  # fmt: skip


# --- the browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def server(model: RewardModel) -> Iterator[RunningServer]:
    with RunningServer(model) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """Opens pages whose scripts must not fail: neither by an exception nor against the security policy."""
    complaints: list[str] = []
    contexts: list[AbstractContextManager[object]] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_one(
        server: RunningServer,
        path: str = "",
        *,
        phone: bool = False,
        dark: bool = True,
        key: str | None = None,
    ) -> Page:
        context = browser.new_context(
            http_credentials=None if key is None else {"username": "anybody", "password": key},
            viewport=PHONE if phone else DESK,  # type: ignore[arg-type]  # a TypedDict of the same two keys
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{server.url}/{path}")
        return page

    yield open_one
    for context in contexts:
        context.close()  # type: ignore[attr-defined]  # a BrowserContext
    assert complaints == []


def card(page: Page, session_id: str) -> Locator:
    return page.get_by_role("article", name=f"Episode {session_id}", exact=True)


def fact(of: Locator, name: str) -> Locator:
    return of.locator(f'[data-fact="{name}"] dd')


def keep_picture(page: Page, name: str) -> None:
    """Write a screenshot where SARM2_SCREENSHOTS says, for people to look at."""
    if folder := os.environ.get("SARM2_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def colours_of(canvas: Locator) -> int:
    """How many different colours a canvas shows: more than a few when something is drawn."""
    script = """canvas => {
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    count: int = canvas.evaluate(script)
    return count


# --- what the page shows ------------------------------------------------------------------------------------


def test_without_an_episode_the_page_teaches_how_to_start_one(
    server: RunningServer, open_page: Opener
) -> None:
    page = open_page(server)
    expect(page.get_by_role("heading", name="No episode yet")).to_be_visible()
    expect(page.get_by_text("sarm2 demo")).to_be_visible()
    snippet = page.locator("#snippet")
    expect(snippet).to_contain_text(f"port={server.port}")
    expect(snippet).to_contain_text('cameras = ["corner", "side", "wrist"]')
    compile(snippet.inner_text(), "snippet", "exec")
    assert colours_of(page.locator("#example")) > 10
    keep_picture(page, "empty")


def test_a_browser_that_was_given_a_key_follows_episodes(model: RewardModel, open_page: Opener) -> None:
    key = "robots-of-the-first-hall"
    with RunningServer(model, api_keys=key) as server:
        story = Story.begin(server, "robot-7").tell(10)
        page = open_page(server, key=key)
        shown = card(page, "robot-7")
        expect(fact(shown, "frames")).to_have_text("10")
        story.tell(5)
        expect(fact(shown, "frames")).to_have_text("15")
        expect(shown.get_by_role("img", name=f"{fakes.CAMERAS[0]} camera")).to_be_visible()
        keep_picture(page, "key")


def stream_and_hold(port: int, answers: Queue[wire.Score], over: threading.Event) -> None:
    """A robot: 12 frames of the real client, then the episode stays open until `over`."""
    pictures = {camera: fakes.picture(7 + i, 96) for i, camera in enumerate(fakes.CAMERAS)}
    with (
        RewardClient(port=port) as client,
        client.episode(fakes.TASKS[2], fakes.FPS, fakes.CAMERAS, "robot-1") as episode,
    ):
        scores = [episode.step(pictures, [0.0] * fakes.STATE_DIM) for _ in range(12)]
        answers.put(scores[-1])
        over.wait(60)


def test_an_episode_of_the_real_client_appears_while_it_runs(
    server: RunningServer, open_page: Opener
) -> None:
    page = open_page(server)
    answers: Queue[wire.Score] = Queue()
    over = threading.Event()
    robot = threading.Thread(target=stream_and_hold, args=(server.port, answers, over), name="robot")
    robot.start()
    try:
        latest = answers.get(timeout=30)
        shown = card(page, "robot-1")
        expect(shown.locator(".badge")).to_have_text("live")
        expect(shown.get_by_role("heading")).to_have_text(fakes.TASKS[2])
        expect(fact(shown, "frames")).to_have_text("12")
        expect(shown.locator(".value")).to_have_text(str(round(latest.progress * 100)))
        expect(shown.locator(".primitive")).to_have_text(latest.primitive)
        expect(fact(shown, "model")).to_have_text(latest.model_version)
        for camera in fakes.CAMERAS:
            picture = shown.get_by_role("img", name=f"{camera} camera")
            expect(picture).to_be_visible()
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert colours_of(shown.locator("canvas.timeline")) > 10
        expect(page.get_by_role("heading", name="No episode yet")).to_be_hidden()
    finally:
        over.set()
        robot.join(30)
    expect(card(page, "robot-1").locator(".badge")).to_have_text("ended")


def test_scores_arrive_live_and_a_drop_is_marked(server: RunningServer, open_page: Opener) -> None:
    story = Story.begin(server, "robot-2").tell(40)
    page = open_page(server)
    shown = card(page, "robot-2")
    expect(fact(shown, "frames")).to_have_text("40")
    expect(shown.locator(".fall-note")).to_be_hidden()
    page.wait_for_timeout(1600)  # what is replayed in the first moments is not announced as news
    story.drop().tell(4)
    expect(fact(shown, "frames")).to_have_text("49")
    expect(shown.locator(".fall-note")).to_have_text("▼ fell 30 at 4.4 s")
    expect(page.locator("#announce")).to_contain_text("robot-2: progress fell")


def test_a_slow_decline_is_not_a_fall(server: RunningServer, open_page: Opener) -> None:
    Story.begin(server, "robot-3").tell(40).tell(40, by=-0.008).end()
    page = open_page(server)
    shown = card(page, "robot-3")
    expect(fact(shown, "frames")).to_have_text("80")
    expect(shown.locator(".fall-note")).to_be_hidden()


def test_an_uncertain_stretch_is_hatched_in_the_legend_and_told(
    server: RunningServer, open_page: Opener
) -> None:
    story = Story.begin(server, "robot-4").tell(30).tell(10, doubt=True)
    page = open_page(server, "#robot-4")
    shown = card(page, "robot-4")
    expect(shown.locator(".certainty")).to_have_text("uncertain, 40 % sure")
    expect(shown.locator(".legend .hatched")).to_be_visible()
    expect(fact(shown, "uncertain share")).to_have_text("25 %")
    story.tell(5)
    expect(shown.locator(".certainty")).to_have_text("95 % sure")


def test_several_episodes_stand_side_by_side_the_live_ones_first(
    server: RunningServer, open_page: Opener
) -> None:
    Story.begin(server, "done").tell(60).drop().tell(50).end()
    Story.begin(server, "doubtful", fakes.TASKS[1]).tell(30).tell(12, doubt=True).tell(15)
    Story.begin(server, "dropping", fakes.TASKS[2]).tell(55).drop().tell(12)
    page = open_page(server)
    expect(page.get_by_role("article")).to_have_count(3)
    expect(page.locator("#counts")).to_have_text("2 live, 1 ended")
    expect(page.get_by_role("article").last).to_have_attribute("aria-label", "Episode done")
    for name in ("done", "doubtful", "dropping"):
        expect(fact(card(page, name), "frames")).to_have_text(re.compile(r"\d+"))
        expect(card(page, name).locator(".interval")).to_have_text(re.compile(r"\d+ to \d+"))
    tops = {round(box["y"]) for one in page.get_by_role("article").all() if (box := one.bounding_box())}
    assert len(tops) == 1, "three cards fit beside each other at 1280 pixels"
    keep_picture(page, "grid")


def test_more_live_episodes_than_streams_are_all_shown_in_turn(
    server: RunningServer, open_page: Opener
) -> None:
    stories = [Story.begin(server, f"robot-{i}").tell(10 + i) for i in range(7)]
    page = open_page(server)
    for i, _ in enumerate(stories):
        shown = card(page, f"robot-{i}")
        shown.scroll_into_view_if_needed()
        expect(shown.locator(".interval")).to_have_text(re.compile(r"\d+ to \d+"), timeout=20_000)


def test_a_card_is_enlarged_by_click_or_key_and_shrinks_by_escape(
    server: RunningServer, open_page: Opener
) -> None:
    Story.begin(server, "one").tell(60).drop().tell(10, doubt=True).tell(40)
    Story.begin(server, "two").tell(20)
    page = open_page(server)
    button = card(page, "one").get_by_role("button")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("article").first).to_have_attribute("aria-label", "Episode one")
    expect(fact(card(page, "one"), "falls")).to_have_text("1")
    expect(fact(card(page, "one"), "experts")).to_contain_text("E")
    keep_picture(page, "large")
    assert page.url.endswith("#one"), "the enlarged card can be linked to"
    page.keyboard.press("Escape")
    expect(button).to_have_attribute("aria-expanded", "false")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")


def test_the_frames_of_an_enlarged_card_can_be_read_one_by_one(
    server: RunningServer, open_page: Opener
) -> None:
    Story.begin(server, "read").tell(50).end()
    page = open_page(server, "#read")
    slider = card(page, "read").get_by_role("slider", name="Frame of the episode")
    expect(slider).to_have_attribute("aria-valuemax", "49")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute(
        "aria-valuetext", re.compile(r"^0\.0 s: 1 % \(0 to 9\), reward .*, reach 95 % sure$")
    )
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuenow", "1")
    slider.hover()
    expect(card(page, "read").locator(".cursor-readout")).to_contain_text("reward")


def test_what_robots_name_things_stays_text(server: RunningServer, open_page: Opener) -> None:
    Story.begin(server, "a.b:c-d_e", HOSTILE_TASK).tell(5)
    page = open_page(server)
    shown = card(page, "a.b:c-d_e")
    expect(shown.get_by_role("heading")).to_have_text(HOSTILE_TASK)
    assert shown.locator("h2 img, h2 b").count() == 0
    assert page.title() == "SARM2 live"


def test_a_new_episode_of_the_same_name_replaces_the_old_one(
    server: RunningServer, open_page: Opener
) -> None:
    Story.begin(server, "again").tell(60).end()
    page = open_page(server)
    expect(fact(card(page, "again"), "frames")).to_have_text("60")
    Story.begin(server, "again").tell(3)
    expect(fact(card(page, "again"), "frames")).to_have_text("3")
    expect(card(page, "again").locator(".badge")).to_have_text("live")


def test_a_lost_service_is_told_and_its_return_too(model: RewardModel, open_page: Opener) -> None:
    with RunningServer(model) as first:
        Story.begin(first, "before").tell(10)
        page = open_page(first)
        expect(page.locator("#link")).to_have_text("connected")
        expect(fact(card(page, "before"), "frames")).to_have_text("10")
        port = first.port
    expect(page.locator("#link")).to_contain_text("no connection to the service")
    expect(fact(card(page, "before"), "frames")).to_have_text("10")
    expect(card(page, "before").locator(".badge")).to_have_text("reconnecting")
    with RunningServer(model, port=port) as second:
        Story.begin(second, "after").tell(4)
        expect(page.locator("#link")).to_have_text("connected", timeout=20_000)
        expect(fact(card(page, "after"), "frames")).to_have_text("4")
        expect(card(page, "before")).to_have_count(0)


@pytest.mark.parametrize("dark", [True, False])
def test_a_phone_scrolls_down_but_never_sideways(
    server: RunningServer, open_page: Opener, dark: bool
) -> None:
    Story.begin(server, "long-name." + "x" * 100, HOSTILE_TASK * 3).tell(60).drop().tell(20)
    Story.begin(server, "robot-2").tell(10, doubt=True)
    page = open_page(server, "#robot-2", phone=True, dark=dark)
    expect(page.get_by_role("article")).to_have_count(2)
    expect(fact(card(page, "robot-2"), "frames")).to_have_text("10")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    keep_picture(page, f"phone-{'dark' if dark else 'light'}")


def test_the_page_has_no_inline_script_or_style_and_asks_no_other_host(
    server: RunningServer, open_page: Opener
) -> None:
    Story.begin(server, "robot-5").tell(10)
    asked: list[str] = []
    page = open_page(server)
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(fact(card(page, "robot-5"), "frames")).to_have_text("10")
    assert asked
    assert [url for url in asked if not url.startswith(f"{server.url}/")] == []
    source = page.request.get(server.url).text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", source)
