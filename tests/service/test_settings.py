"""Settings, logs and metrics: what an operator reads."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

import fakes
from running_server import RunningServer, wait_until
from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.reward_model import RewardModel
from sarm2_service import logs, run
from sarm2_service.app import create_app
from sarm2_service.cache import EmbeddingCache
from sarm2_service.metrics import Metrics
from sarm2_service.run import bind, load_model, serve
from sarm2_service.scorer import Scorer
from sarm2_service.settings import Settings, load_settings
from sarm2_service.state import LAG_INTERVAL_S


def test_the_defaults_serve_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8765)
    assert (settings.redis_url, settings.device) == (None, "cpu")
    assert settings.loopback


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARM2_PORT", "9000")
    monkeypatch.setenv("SARM2_MAX_SESSIONS", "7")
    monkeypatch.setenv("SARM2_ALLOWED_ORIGINS", "http://a.example, https://b.example:8443")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.max_sessions) == (9001, 7)
    assert settings.allowed_origins == ("http://a.example", "https://b.example:8443")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("port", -1, "greater than or equal to 0"),
        ("port", 70000, "less than or equal to 65535"),
        ("port", "http", "valid integer"),
        ("redis_url", "localhost:6379", "redis://"),
        ("redis_url", "http://cache", "redis://"),
        ("redis_url", "redis://cache:99999", "0-65535"),
        ("redis_url", "redis://cache/0?sockettimeout=1", "'sockettimeout'"),
        ("redis_url", "unix:///run/redis.sock?retry=5", "follows the `?`"),
        ("allowed_origins", "example.org", "scheme://host"),
        ("allowed_origins", "http://example.org/path", "without a path"),
        ("device", "tpu", "'cpu' or 'cuda'"),
        ("max_in_flight", 0, "greater than or equal to 1"),
        ("max_fps", float("nan"), "10000"),
        ("torch_threads", 0, "greater than or equal to 1"),
        ("device_timeout_s", 0, "greater than or equal to 0.1"),
        ("log_level", "loud", "'debug'"),
    ],
)
def test_a_wrong_value_is_refused_with_setting_value_and_rule(name: str, value: Any, rule: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_settings(**{name: value})
    text = refused.value.message
    assert refused.value.field == name
    assert f"SARM2_{name.upper()}" in text
    assert rule in text
    assert name == "redis_url" or repr(value) in text


def test_a_password_in_a_refused_url_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as refused:
        load_settings(redis_url="http://user:secret@cache")
    assert "secret" not in refused.value.message


def test_a_misspelt_setting_suggests_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="did you mean port"):
        load_settings(prt=1)
    monkeypatch.setenv("SARM2_MAX_SESION", "3")
    with pytest.raises(InvalidInput, match="SARM2_MAX_SESSIONS"):
        load_settings()


def test_settings_cannot_change_while_the_service_runs() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_a_bundle_that_is_missing_or_altered_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_model(Settings(bundle=tmp_path / "none"))
    bundle = fakes.make_bundle(tmp_path)
    weights = bundle / "heads.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"heads\.safetensors"):
        load_model(Settings(bundle=bundle))


def test_a_taken_port_is_told_before_the_model_is_loaded(server: RunningServer) -> None:
    with pytest.raises(InvalidInput, match=f"127.0.0.1:{server.port}"):
        serve(Settings(port=server.port, bundle=Path("/nowhere")))


def test_the_later_of_two_that_load_at_once_is_told_of_the_taken_port(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bind(Settings(port=0)) as first:
        settings = Settings(port=first.getsockname()[1])

        def load_while_the_first_gets_ready(settings: Settings) -> RewardModel:
            first.listen()
            return server.model

        monkeypatch.setattr(run, "load_model", load_while_the_first_gets_ready)
        with pytest.raises(InvalidInput, match=f"127.0.0.1:{settings.port}"):
            serve(settings)


def test_a_host_that_is_no_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no host name"):
        bind(Settings(host=".foo", port=0))


def test_port_zero_takes_a_free_one() -> None:
    with bind(Settings(port=0)) as listener:
        assert listener.getsockname()[1] > 0


def test_a_scorer_with_metrics_in_another_registry_is_refused(server: RunningServer) -> None:
    settings, metrics = Settings(), Metrics(CollectorRegistry())
    cache = EmbeddingCache(settings, server.model.encoder.dim, metrics)
    scorer = Scorer(server.model, settings, cache, metrics)
    with pytest.raises(InvalidInput, match="registry"):
        create_app(settings, scorer, cache, CollectorRegistry())


@pytest.fixture(autouse=True)
def _plain_logging() -> Iterator[None]:
    """Logging is the process's: put it back."""
    yield
    for name in (logs.LOGGER_NAME, "uvicorn"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True


@pytest.fixture
def lines() -> Callable[[], list[dict[str, Any]]]:
    """Configure logging to a string; returns what reads it back as JSON."""
    stream = io.StringIO()
    logs.configure("info", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_event_is_one_line_of_json_that_a_caller_cannot_forge(lines: Any) -> None:
    logs.log(logging.INFO, "refused", text='x"\n{"event": "forged"}')
    (line,) = lines()
    assert line["event"] == "refused"
    assert line["text"] == 'x"\n{"event": "forged"}'
    assert line["time"].endswith("Z")


def test_a_failure_is_found_in_the_log_by_the_error_id_the_caller_got(lines: Any) -> None:
    try:
        raise ValueError("boom")
    except ValueError as error:
        error_id = logs.log_failure("request_failed", error, path="/x")
    (line,) = lines()
    assert (line["error_id"], line["path"], line["level"]) == (error_id, "/x", "error")
    assert "ValueError: boom" in line["traceback"]


def test_the_error_id_of_a_refused_frame_is_in_the_log(server: RunningServer, lines: Any) -> None:
    with server.robot() as robot:
        robot.start("logged")
        robot.send(fakes.frame(3, size=32))
        robot.receive()
        robot.send(fakes.frame(1))
        error = robot.receive()
    found = [line for line in lines() if line.get("error_id") == error.error_id]  # type: ignore[union-attr]
    assert [(line["code"], line["session_id"]) for line in found] == [("invalid_sequence", "logged")]


def test_metrics_tell_what_happened_and_labels_stay_bounded(server: RunningServer) -> None:
    before = server.metric("sarm2_progress_count", task="unknown")
    known_before = server.metric("sarm2_progress_count", task=fakes.TASKS[0])
    open_before = server.metric("sarm2_sessions")
    with server.robot() as robot:
        for index in range(5):
            robot.start(f"metrics-{index}", task=f"strange task {index}")
            robot.score(fakes.frame(0))
            robot.end(0)
        robot.start("metrics-known", task=f"  {fakes.TASKS[0].upper()} ")
        robot.score(fakes.frame(0))
        assert server.metric("sarm2_sessions") == open_before + 1
    assert server.metric("sarm2_progress_count", task="unknown") == before + 5
    assert server.metric("sarm2_progress_count", task=fakes.TASKS[0]) == known_before + 1
    with server.http() as http:
        text = http.get("/metrics").text
    for name in (
        "sarm2_encoder_images_total",
        "sarm2_scored_steps_total",
        "sarm2_step_latency_seconds_bucket",
        'sarm2_model_seconds_bucket{le="0.001",part="encode"}',
        'sarm2_model_seconds_bucket{le="0.001",part="heads"}',
        'sarm2_queue_depth{queue="frames"}',
        'sarm2_queue_depth{queue="windows"}',
        "sarm2_queue_wait_seconds_bucket",
        'sarm2_batch_size_bucket{le="1.0",queue="frames"}',
        'sarm2_cache_requests_total{result="hit",tier="memory"}',
        "sarm2_cache_bytes",
        "sarm2_sessions",
        "sarm2_final_progress_bucket",
        "sarm2_primitive_total",
        "sarm2_uncertain_steps_total",
        "sarm2_event_loop_lag_seconds_bucket",
        "sarm2_build_info{model=",
    ):
        assert name in text, name
    assert "strange task" not in text


def test_a_stall_of_the_event_loop_is_exported(server: RunningServer) -> None:
    before = stalls(server)
    # However much of its pause the timer still has before it when the stall begins, the rest is late enough.
    server.call(lambda: time.sleep(LAG_INTERVAL_S + 0.2))
    wait_until(lambda: stalls(server) > before)


def stalls(server: RunningServer) -> float:
    """How often the loop was late by more than 120 ms."""
    late = server.metric("sarm2_event_loop_lag_seconds_count")
    return late - server.metric("sarm2_event_loop_lag_seconds_bucket", le="0.12")


def test_the_arithmetic_of_the_encoder_can_be_chosen(tmp_path: Path) -> None:
    bundle = fakes.make_bundle(tmp_path)
    full, half = (
        load_model(Settings(bundle=bundle, encoder_dtype=dtype, torch_threads=1)).encoder
        for dtype in ("float32", "bfloat16")
    )
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert full.id == half.id
    pictures = np.stack([fakes.picture(seed) for seed in range(4)])
    np.testing.assert_allclose(
        full.encode_images(pictures).astype(float), half.encode_images(pictures).astype(float), atol=0.05
    )
