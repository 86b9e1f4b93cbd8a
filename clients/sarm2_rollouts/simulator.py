"""The simulator itself: making it, its renderer, cloning its state, and keeping it for the next robot."""

from __future__ import annotations

import atexit
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from sarm2_client.errors import InvalidInput

from .cameras import SUPERSAMPLE, ViewRenderer, prepare_display
from .tasks import TaskSpec


@dataclass
class Machine:
    """A simulator and its renderer (None for one that never renders), kept between robots."""

    key: tuple[str, int]
    env: Any
    renderer: ViewRenderer | None

    def close(self) -> None:
        """Free the renderer and the simulator."""
        if self.renderer is not None:
            self.renderer.close()
        self.env.close()


@dataclass(frozen=True)
class Snapshot:
    """The simulator's integration state and the last observation, which the next one repeats."""

    state: npt.NDArray[np.float64]
    previous: npt.NDArray[np.float64]


_IDLE: dict[tuple[str, int], Machine] = {}


def borrow(spec: TaskSpec, size: int) -> Machine:
    """A simulator of a task that renders at `size` pixels (0: never renders). Give it back after use."""
    key = (spec.name, size)
    if key in _IDLE:
        return _IDLE.pop(key)
    env = make_env(spec)
    return Machine(key, env, ViewRenderer(env.model, spec.views, size, SUPERSAMPLE) if size else None)


def give_back(machine: Machine) -> None:
    """Keep a simulator for the next `borrow`, or close it if one of its kind is kept already."""
    if machine.key in _IDLE:
        machine.close()
    else:
        _IDLE[machine.key] = machine
        _close_at_exit()  # not before the GL library is loaded: what is registered last runs first


def close_idle() -> None:
    """Close every simulator kept for reuse. Also runs at exit, while the GL library is still loaded."""
    while _IDLE:
        _IDLE.popitem()[1].close()


@cache
def _close_at_exit() -> None:
    atexit.register(close_idle)


def make_env(spec: TaskSpec) -> Any:
    """A simulator whose placement is seeded and whose goal is known to the expert.

    Raises InvalidInput where the simulator is not installed, or does not load.
    """
    prepare_display()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "the simulator is not installed; install it with: pip install -e './clients[sim]'"
        ) from error
    except ImportError as error:  # the renderer that MUJOCO_GL names, say
        raise InvalidInput(f"the simulator is installed and does not load: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = ALL_V3_ENVIRONMENTS[spec.env_name]()
    # `reset(seed=)` ignores its argument, and the goal is hidden, unless all of this is set by hand.
    env._set_task_called = True
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._partially_observable = False
    del env.sawyer_observation_space  # cached with the goal's bounds at zero, to which `step` would clip
    if spec.start is not None:
        env.hand_init_pos = np.array(spec.start)
    env.max_path_length = 1_000_000  # `step` raises after 500 otherwise; episodes are bounded here
    return env


def save_state(env: Any) -> Snapshot:
    """Everything that decides the simulator's future."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, state, kind)
    return Snapshot(state, env._prev_obs.copy())


def load_state(env: Any, snapshot: Snapshot) -> None:
    """Go back to a snapshot of the same episode; what follows then repeats to about 1e-13."""
    import mujoco

    mujoco.mj_setState(env.model, env.data, snapshot.state, mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(env.model, env.data)
    env._prev_obs = snapshot.previous.copy()
