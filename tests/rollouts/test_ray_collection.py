"""Episodes by a real Ray on this machine: whole, in order, and no process left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import ray

from rollouts.ray_makers import Maker
from rollouts.small_episodes import assert_same
from sarm2_cli.server_process import free_port
from sarm2_client.errors import ConnectionLost, InvalidInput, NotFound, WaitTimeout
from sarm2_rollouts import ray_collection
from sarm2_rollouts.collection import PENDING_PER_WORKER, iterate_episodes
from sarm2_rollouts.metaworld_robot import EpisodePlan
from sarm2_rollouts.ray_collection import iterate_episodes_on_ray

CPUS = 2
SOON_S = 20.0

on_ray = partial(iterate_episodes_on_ray, address="local")


@pytest.fixture(autouse=True, scope="module")
def known_to_workers() -> Iterator[None]:
    """Ray's workers start from the environment: let them find the helpers beside these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]), prepend=os.pathsep)
        yield


def a_plan(episodes: int) -> list[EpisodePlan]:
    return [EpisodePlan("pick-place", "random", seed) for seed in range(episodes)]


def runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON_S
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


def all_end(processes: set[int]) -> bool:
    return soon(lambda: not any(map(runs, processes)))


# --- without a Ray: these stand first, for the shared one below stays until the module's end -------------


@pytest.fixture
def no_ray() -> None:
    assert not ray.is_initialized()


def test_a_missing_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidInput, match=r'pip install -e "\.\[ray\]"'):
        next(on_ray(a_plan(1)))


def test_no_worker_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one worker"):
        next(on_ray(a_plan(1), 0))


@pytest.mark.usefixtures("no_ray")
def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with pytest.raises(ConnectionLost, match="there is no Ray"):
        next(iterate_episodes_on_ray(a_plan(1), address=f"127.0.0.1:{free_port(0)}"))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["nonsense", ""])
def test_what_is_no_address_says_what_is(address: str) -> None:
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        next(iterate_episodes_on_ray(a_plan(1), address=address))


@pytest.mark.usefixtures("no_ray")
def test_a_ray_of_its_own_ends_with_the_loop(tmp_path: Path) -> None:
    maker = Maker(tmp_path, slow=1)
    episodes = on_ray(a_plan(4), 1, make=maker.make)
    assert next(episodes).seed == 0
    assert soon(lambda: maker.begun(1) != [])
    assert ray.is_initialized()
    episodes.close()  # type: ignore[attr-defined]  # it is a generator
    assert not ray.is_initialized()
    assert all_end(maker.processes())


# --- with a Ray that the process is connected to already -------------------------------------------------


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("shared_ray")
def test_episodes_come_in_the_plan_s_order_from_several_workers(tmp_path: Path) -> None:
    maker = Maker(tmp_path, slow=0, until=CPUS * PENDING_PER_WORKER)
    episodes = list(on_ray(a_plan(9), CPUS, make=maker.make))
    assert [episode.seed for episode in episodes] == list(range(9))
    assert len({episode.info["worker"] for episode in episodes}) == CPUS
    assert {episode.info["renderer_threads"] for episode in episodes} == {"1"}
    assert ray.is_initialized()


@pytest.mark.usefixtures("shared_ray")
def test_a_plan_without_end_is_read_only_as_far_as_it_is_needed(tmp_path: Path) -> None:
    asked = count()
    plan = (EpisodePlan("pick-place", "random", seed) for seed in asked)
    episodes = on_ray(plan, 1, make=Maker(tmp_path).make)
    assert [next(episodes).seed for _ in range(2)] == [0, 1]
    assert next(asked) == PENDING_PER_WORKER + 1


@pytest.mark.sim
@pytest.mark.usefixtures("shared_ray")
def test_the_simulator_makes_the_same_episodes_as_in_this_process() -> None:
    plan = [EpisodePlan("drawer-open", "random", 21), EpisodePlan("drawer-open", "random", 22)]
    here, there = list(iterate_episodes(plan, 0)), list(on_ray(plan, 1))
    for one, two in zip(here, there, strict=True):
        assert_same(two, one)


@pytest.mark.usefixtures("shared_ray")
def test_an_episode_whose_worker_dies_is_made_again(tmp_path: Path) -> None:
    maker = Maker(tmp_path, deadly=1)
    assert [episode.seed for episode in on_ray(a_plan(4), CPUS, make=maker.make)] == [0, 1, 2, 3]
    assert len(maker.begun(1)) == 2


@pytest.mark.usefixtures("shared_ray")
def test_an_episode_that_kills_every_worker_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_collection, "RETRIES", 1)
    maker = Maker(tmp_path, deadly=0, deaths=100)
    with pytest.raises(ConnectionLost, match="gave an episode up"):
        list(on_ray(a_plan(1), 1, make=maker.make))
    assert len(maker.begun(0)) == 2


@pytest.mark.usefixtures("shared_ray")
def test_leaving_the_loop_early_ends_what_is_under_way_for_good(tmp_path: Path) -> None:
    maker = Maker(tmp_path, slow=1)
    for episode in on_ray(a_plan(6), CPUS, make=maker.make):
        assert episode.seed == 0
        assert soon(lambda: maker.begun(1) != [])
        break
    assert all_end(set(maker.begun(1)))
    assert len(maker.begun(1)) == 1, "made again"
    assert ray.is_initialized()


@pytest.mark.usefixtures("shared_ray")
def test_an_error_arrives_as_what_it_was(tmp_path: Path) -> None:
    episodes = on_ray(a_plan(2), 1, make=Maker(tmp_path, unknown=1).make)
    assert next(episodes).seed == 0
    with pytest.raises(NotFound) as caught:
        next(episodes)
    assert type(caught.value) is NotFound
    assert (caught.value.message, caught.value.field) == ("no task for 1", "task_name")


@pytest.mark.usefixtures("shared_ray")
def test_more_workers_than_cpus_are_not_waited_for_without_end() -> None:
    with pytest.raises(WaitTimeout, match="3 CPUs free"):
        next(on_ray(a_plan(1), CPUS + 1, start_s=0.5))


@pytest.mark.usefixtures("shared_ray")
def test_an_episode_is_not_waited_for_without_end(tmp_path: Path) -> None:
    maker = Maker(tmp_path, slow=0)
    with pytest.raises(WaitTimeout, match="next episode"):
        next(on_ray(a_plan(1), 1, make=maker.make, episode_s=2))
