"""A real Prometheus scrapes a real service and answers every expression of the dashboard and of the rules."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

import fakes
from running_server import RunningServer
from sarm2_client import RewardClient
from sarm2_spiral.metrics import LoopMetrics
from sarm2_spiral.report import Collected
from sarm2_spiral.wilson import Rate

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
GENERATE = DEPLOY / "grafana" / "generate.py"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "sarm2.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(f"{p['title']} {t['refId']}", str(t["expr"])) for p in PANELS for t in p["targets"]]
RULE_LIST = [rule for group in RULES["groups"] for rule in group["rules"]]
RECORDED = [str(rule["record"]) for rule in RULE_LIST if "record" in rule]

SCRAPE = "200ms"
ATTEMPTS = 3
PAUSE_S = 0.05
READY_TIMEOUT_S = 90.0
SAMPLES_TIMEOUT_S = 60.0


# --- without a server -------------------------------------------------------------------------------


def test_the_dashboard_is_what_the_code_generates() -> None:
    checked = subprocess.run(
        [sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, timeout=30
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_panels_lie_beside_each_other_on_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_panel_says_what_it_means_and_reads_the_provisioned_source() -> None:
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "sarm2-prometheus"
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_promtool_accepts_the_scrape_configuration_and_the_rules() -> None:
    checked = promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """`rules_test.yml` says when: unit tests in promtool's own form."""
    checked = promtool("test", "rules", str(Path(__file__).with_name("rules_test.yml")))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_a_severity_and_tells_a_person_what_to_look_at() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for rule in RULE_LIST:
        if "alert" not in rule:
            continue
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"| {rule['alert']} |" in readme


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool, which comes with Debian's prometheus."""
    program = shutil.which("promtool")
    assert program, "promtool is missing; install the Debian package prometheus"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


# --- a service, robots, and Prometheus ----------------------------------------------------------------


def run_robot(service: RunningServer, stop: threading.Event) -> None:
    """Stream short episodes until told to stop: scores, drops, a refusal, known and unknown tasks."""
    episodes = 0
    # One HTTP client for all: each reads the machine's certificates anew, which holds everyone up.
    with RewardClient(port=service.port) as client, httpx2.Client(base_url=service.url) as http:
        while not stop.is_set():
            task = fakes.TASKS[episodes % 3] if episodes % 4 else "fold the towel"
            with client.episode(task, fakes.FPS, fakes.CAMERAS, f"robot-{episodes}") as episode:
                for step in range(8):
                    pictures = {camera: fakes.picture(step % 3 + i) for i, camera in enumerate(fakes.CAMERAS)}
                    episode.step(pictures, [0.1 * step] * fakes.STATE_DIM)
                pictures = {camera: fakes.picture(99 + i) for i, camera in enumerate(fakes.CAMERAS)}
                episode.push(pictures, [0.0] * fakes.STATE_DIM, deadline_ms=1e-3)
            assert http.get("/v1/episodes/nobody/events").status_code == 404
            episodes += 1
            stop.wait(PAUSE_S)


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=5)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression; fails the test if Prometheus refuses it."""
        answer = self.client.post("/api/v1/query", data={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        data = answer["data"]
        assert data["resultType"] == "vector"
        result: list[dict[str, Any]] = data["result"]
        return result

    def has_samples(self, expression: str) -> bool:
        """Whether the expression has any series now."""
        return bool(self.query(expression))

    def is_ready(self) -> bool:
        """Whether it serves queries."""
        try:
            return self.client.get("/-/ready").status_code == 200
        except httpx2.HTTPError:
            return False


def write_config(folder: Path, targets: Mapping[str, str]) -> Path:
    """The shipped configuration with other targets, by job, and shorter intervals."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE}
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    for group in (rules := yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text()))["groups"]:
        group["interval"] = SCRAPE
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """A ready server; another port is tried where somebody took ours between choice and start."""
    for attempt in range(ATTEMPTS):
        with started_prometheus(folder, targets, attempt) as (process, api):
            wait_until(lambda: process.poll() is not None or api.is_ready(), READY_TIMEOUT_S, "Prometheus")
            if process.poll() is None:
                yield api
                return
    raise AssertionError((folder / "log.txt").read_text())


@contextmanager
def started_prometheus(
    folder: Path, targets: Mapping[str, str], attempt: int
) -> Iterator[tuple[subprocess.Popen[bytes], Prometheus]]:
    """A server that was started on a free port and is ended with the block."""
    program = shutil.which("prometheus")
    assert program, "prometheus is missing; install the Debian package prometheus"
    port = free_port()
    command = [
        program,
        f"--config.file={write_config(folder, targets)}",
        f"--storage.tsdb.path={folder / f'data{attempt}'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        api = Prometheus(port)
        try:
            yield process, api
        finally:
            api.client.close()
            process.terminate()
            process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


def concrete(expression: str) -> str:
    """An expression of the dashboard with Grafana's variables replaced, as Grafana does before it asks."""
    return expression.replace("$__rate_interval", "20s").replace("$instance", ".*")


def told_loop() -> str:
    """The address of a loop's metrics, after its first round."""
    metrics, port = LoopMetrics("hammer"), free_port()
    curves = [np.array([0.0, final], np.float32) for final in (1.0, 0.4)]
    metrics.judged("bc", Rate(5, 10))
    metrics.collected(1, Collected("round 1", curves, [True, False]))
    metrics.decided(1, deployed=True)
    metrics.serve(port, "127.0.0.1")
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a busy service for a while; robots go on during the tests."""
    folder = tmp_path_factory.mktemp("prometheus")
    stop = threading.Event()
    with RunningServer(fakes.make_model(tmp_path_factory.mktemp("model"))) as service:
        robot = threading.Thread(target=run_robot, args=(service, stop), name="robot")
        robot.start()
        try:
            with running_prometheus(folder, {"sarm2": service.address, "sarm2-spiral": told_loop()}) as api:
                for name in ("sarm2_dropped_frames_total", "sarm2_errors_total"):
                    scraped = f"sum(increase({name}[1m])) > 0"
                    wait_until(partial(api.has_samples, scraped), SAMPLES_TIMEOUT_S, scraped)
                yield api
        finally:
            stop.set()
            robot.join(30)


def test_the_service_is_up_and_scraped(prometheus: Prometheus) -> None:
    assert [sample["value"][1] for sample in prometheus.query('up{job="sarm2"}')] == ["1"]


@pytest.mark.parametrize(("panel", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_every_expression_of_the_dashboard_has_samples(
    prometheus: Prometheus, panel: str, expression: str
) -> None:
    assert "$" not in concrete(expression)
    assert prometheus.query(concrete(expression)), panel


@pytest.mark.parametrize(
    "rule", RULE_LIST, ids=[str(rule.get("record") or rule["alert"]) for rule in RULE_LIST]
)
def test_every_rule_is_answered(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    prometheus.query(str(rule["expr"]))


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_ratio_has_samples(prometheus: Prometheus, name: str) -> None:
    wait_until(partial(prometheus.has_samples, name), SAMPLES_TIMEOUT_S, name)


def test_prometheus_itself_finds_no_rule_in_error(prometheus: Prometheus) -> None:
    groups = prometheus.client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RULE_LIST)
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


def test_the_dashboard_reads_every_metric_that_the_service_has(prometheus: Prometheus) -> None:
    """A metric nobody looks at is a cost; the few exceptions say why."""
    unread = {
        "sarm2_connections",  # sessions say the same to an operator
        "sarm2_cache_lost_writes_total",  # cache errors are told by cache_requests
    }
    names = prometheus.client.get("/api/v1/label/__name__/values").json()["data"]
    shown = json.dumps(DASHBOARD) + json.dumps(RULES)
    for name in names:
        if not name.startswith("sarm2_") or name.endswith("_created"):
            continue
        base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert base in shown or name in unread, name


def test_the_share_of_the_primitives_adds_up_to_one(prometheus: Prometheus) -> None:
    (expression,) = (e for name, e in EXPRESSIONS if name.startswith("Share of each primitive"))
    (total,) = prometheus.query(f"sum({concrete(expression)})")
    assert float(total["value"][1]) == pytest.approx(1)


def test_each_frame_is_encoded_once_or_comes_from_the_cache(prometheus: Prometheus) -> None:
    (expression,) = (e for name, e in EXPRESSIONS if name.startswith("Encoder pictures a step A"))
    (sample,) = prometheus.query(concrete(expression))
    assert 0 <= float(sample["value"][1]) <= len(fakes.CAMERAS) + 1e-6
