"""With keys set, nothing but liveness is told to anyone who names none of them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

import pytest
from starlette.routing import BaseRoute, Route
from websockets.exceptions import InvalidStatus

import fakes
from running_server import RunningServer, Serve
from sarm2_client import RewardClient
from sarm2_client.aio import KEY_VARIABLE
from sarm2_client.errors import InvalidInput, NotAllowed
from sarm2_service.auth import OPEN
from sarm2_service.settings import load_settings

KEY, OTHER = "robots-of-the-first-hall", "trainers-of-the-second-hall"


@pytest.fixture
def locked(serve: Serve) -> RunningServer:
    return serve(api_keys=f"{KEY}, {OTHER}")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def basic(pair: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Method and path of every HTTP route, those of included routers too."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or ())
        elif (router := getattr(route, "original_router", None)) is not None:
            yield from routes_of(router.routes)


def test_every_route_but_liveness_needs_a_key(locked: RunningServer) -> None:
    asked = set(routes_of(locked.app.routes))
    assert {("POST", "/v1/embed"), ("GET", "/"), ("GET", "/metrics"), ("GET", "/livez")} <= asked
    with locked.http() as http:
        for method, path in sorted(asked | {("GET", "/no/such/page")}):
            answer = http.request(method, path.replace("{", "").replace("}", ""))
            if path in OPEN:
                assert answer.status_code == 200, path
                continue
            assert answer.status_code == 401, (method, path)
            assert method == "HEAD" or answer.json()["code"] == "not_allowed"
            assert answer.headers["www-authenticate"].startswith("Basic realm=")
    with pytest.raises(InvalidStatus) as refused, locked.robot():
        pass
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize("headers", [bearer(KEY), bearer(OTHER), basic(f"anybody:{KEY}"), basic(f":{OTHER}")])
def test_any_of_the_keys_opens_everything(locked: RunningServer, headers: dict[str, str]) -> None:
    with locked.http(headers=headers) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.get("/").status_code == 200
        assert http.get("/metrics").status_code == 200
    with locked.robot(additional_headers=headers) as robot:
        robot.start("keyed")
        robot.score(fakes.frame(0))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        bearer(KEY[:-1]),
        bearer(KEY + "x"),
        bearer(f"{KEY}, {OTHER}"),
        basic(KEY),
        basic(f"{KEY}:"),
        {"authorization": "Basic ???"},
        {"authorization": "Basic \u00e9\u00e9\u00e9\u00e9".encode("latin-1")},
        {"authorization": "Basic /////w=="},
        {"authorization": KEY},
    ],
)
def test_anything_else_opens_nothing(locked: RunningServer, headers: dict[str, str]) -> None:
    with locked.http(headers=headers) as http:
        assert http.get("/v1/models").status_code == 401
        assert http.get(f"/v1/models?api_key={KEY}").status_code == 401


def test_a_client_names_its_key_or_finds_it_in_the_environment(
    locked: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with RewardClient(port=locked.port) as client, pytest.raises(NotAllowed, match="needs a key"):
        client.models()
    with RewardClient(port=locked.port, api_key="wrong") as client, pytest.raises(NotAllowed):
        client.get_server_metadata()
    with RewardClient(port=locked.port, api_key=KEY) as client:
        assert client.models()["models"]
    monkeypatch.setenv(KEY_VARIABLE, OTHER)
    with (
        RewardClient(port=locked.port) as client,
        client.episode(fakes.TASKS[0], fakes.FPS, fakes.CAMERAS) as episode,
    ):
        pictures = {camera: fakes.picture(index) for index, camera in enumerate(fakes.CAMERAS)}
        assert 0 <= episode.step(pictures, [0.0] * fakes.STATE_DIM).progress <= 1


def test_a_page_of_another_origin_may_ask_whether_it_may_send_a_key(serve: Serve) -> None:
    origin = {"origin": "https://elsewhere.example"}
    server = serve(api_keys=KEY, allowed_origins=origin["origin"])
    with server.http(headers=origin) as http:
        answer = http.options("/v1/models")
        assert answer.status_code == 204
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers=bearer(KEY)).status_code == 200


@pytest.mark.parametrize(
    "keys", ["short", "with a space in its middle", f"{KEY},tiny", "schlüssel-der-roboter"]
)
def test_a_key_that_can_be_guessed_is_refused_and_never_shown(keys: str) -> None:
    with pytest.raises(InvalidInput, match="at least 16 printable ASCII characters") as refused:
        load_settings(api_keys=keys)
    assert refused.value.field == "api_keys"
    assert keys not in refused.value.message
    assert KEY not in repr(load_settings(api_keys=KEY))
