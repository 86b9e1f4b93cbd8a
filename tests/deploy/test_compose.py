"""The compose file agrees with the files it mounts, the scrape configuration and the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def published(name: str) -> list[tuple[str, str, str]]:
    """(address, port on the host, port in the container) of a service."""
    parts = [str(port).split(":") for port in SERVICES[name].get("ports", [])]
    return [(address, outside, inside) for address, outside, inside in parts]


def bind_mounts(name: str) -> list[tuple[str, str, list[str]]]:
    """(file beside compose.yml, path in the container, options) of what a service mounts from here."""
    volumes = [str(volume).split(":") for volume in SERVICES[name].get("volumes", [])]
    return [(source, target, options) for source, target, *options in volumes if source.startswith(".")]


def test_the_stack_is_the_service_redis_prometheus_and_grafana() -> None:
    assert sorted(SERVICES) == ["grafana", "prometheus", "redis", "sarm2"]


@each_service
def test_every_mounted_file_exists_and_is_mounted_read_only(name: str) -> None:
    for source, _, options in bind_mounts(name):
        assert (DEPLOY / source).exists(), source
        assert options == ["ro"]


@each_service
def test_every_named_volume_and_network_is_declared(name: str) -> None:
    volumes = {str(volume).split(":")[0] for volume in SERVICES[name].get("volumes", [])}
    assert {volume for volume in volumes if not volume.startswith(".")} <= set(COMPOSE["volumes"])
    assert set(SERVICES[name]["networks"]) <= set(COMPOSE["networks"])
    assert set(SERVICES[name].get("depends_on", [])) <= set(SERVICES)


@each_service
def test_every_image_is_pinned_by_a_tag_that_names_a_version(name: str) -> None:
    tag = str(SERVICES[name]["image"]).partition(":")[2]
    assert re.match(r"v?\d+\.\d+\.\d+", tag)


@each_service
def test_ports_are_published_on_loopback_alone(name: str) -> None:
    assert all(address == "127.0.0.1" for address, _, _ in published(name))


def test_redis_is_published_nowhere_and_shares_a_network_with_the_service_alone() -> None:
    assert published("redis") == []
    assert SERVICES["redis"]["networks"] == ["cache"]
    assert COMPOSE["networks"]["cache"]["internal"] is True
    assert [name for name in SERVICES if "cache" in SERVICES[name]["networks"]] == ["sarm2", "redis"]


@each_service
def test_every_container_is_unprivileged_read_only_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), "a number other than root's"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"


def test_the_service_has_the_port_and_the_user_of_the_image() -> None:
    assert "EXPOSE 8765" in DOCKERFILE
    assert published("sarm2") == [("127.0.0.1", "8765", "8765")]
    assert SERVICES["sarm2"]["environment"]["SARM2_PORT"] == "8765"
    user = SERVICES["sarm2"]["user"].partition(":")[0]
    assert f"USER {user}" in DOCKERFILE
    assert (DEPLOY / SERVICES["sarm2"]["build"]["context"] / "Dockerfile").exists()
    assert set(SERVICES["sarm2"]["build"]["args"]) == set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))


def test_the_service_reads_every_setting_that_the_stack_gives_it() -> None:
    from sarm2_service.settings import ENV_PREFIX, Settings

    environment = SERVICES["sarm2"]["environment"]
    values = {name.removeprefix(ENV_PREFIX).lower(): value for name, value in environment.items()}
    settings = Settings(**values)
    assert settings.redis_url == "redis://redis:6379/0"
    assert not settings.loopback
    assert settings.drain_timeout_s < int(SERVICES["sarm2"]["stop_grace_period"].removesuffix("s"))


def test_prometheus_scrapes_the_service_under_its_name_and_is_answered() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    targets = jobs["sarm2"]["static_configs"][0]["targets"]
    assert targets == ["sarm2:8765"]
    assert "sarm2" in SERVICES["sarm2"]["environment"]["SARM2_ALLOWED_HOSTS"].split(",")
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["sarm2"]["networks"])


def test_prometheus_finds_its_files_where_they_are_mounted() -> None:
    targets = {target for _, target, _ in bind_mounts("prometheus")}
    command = SERVICES["prometheus"]["command"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in command
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} < targets


def test_grafana_is_provisioned_with_prometheus_and_the_dashboard() -> None:
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/sarm2.yml").read_text())
    mounts = {target: path for path, target, _ in bind_mounts("grafana")}
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    folder = provider["providers"][0]["options"]["path"]
    assert (DEPLOY / mounts[folder] / "sarm2.json").exists()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/sarm2.json"
