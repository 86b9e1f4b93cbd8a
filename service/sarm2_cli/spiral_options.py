"""What the options of `sarm2 spiral` come to: a policy, settings, and the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sarm2_client.errors import InvalidInput

if TYPE_CHECKING:
    from sarm2_spiral.config import SpiralConfig
    from sarm2_spiral.folder import SpiralFolder
    from sarm2_spiral.given_policy import GivenPolicy


def given_policy(policy: str, inputs: list[str] | None, device: str) -> GivenPolicy | None:
    """The policy that others trained, or None for a built-in one. Raises InvalidInput for other options."""
    from sarm2_spiral.given_policy import GivenPolicy

    given = GivenPolicy.parse(policy, inputs or (), device)
    if given is None and inputs:
        raise InvalidInput(f"--map: the policy {policy!r} is a built-in one, which needs no map", field="map")
    if device != "cpu" and (given is None or given.library != "lerobot"):
        raise InvalidInput(
            f"--policy-device {device}: it says where a policy of LeRobot runs, and {policy!r} is none; "
            "leave it out",
            field="policy_device",
        )
    return given


def configured(
    preset: str, counts: Mapping[str, int | None], settings: Sequence[str] | None, *, adapt: bool
) -> SpiralConfig:
    """A preset and what the options change of it. Raises NotFound or InvalidInput for values that are none.

    Args:
        counts: of `LoopConfig`, by name; where one is None, the preset's stays.
        settings: as `with_settings` takes them, but for those that have an option of their own.
    """
    from sarm2_spiral.config import spiral_config, with_settings

    for setting in settings or ():
        section, _, name = setting.partition("=")[0].partition(".")
        if section == "loop" and name in (*counts, "adapt"):
            raise InvalidInput(f"--set {setting}: this one has an option of its own, --{name}", field="set")
    config = with_settings(spiral_config(preset), settings or ())
    told: dict[str, Any] = {name: count for name, count in counts.items() if count is not None}
    return replace(config, loop=replace(config.loop, adapt=adapt, **told))


def planned(
    out: Path,
    task: str,
    policy: str,
    config: SpiralConfig,
    reward: str,
    updater: str,
    seed: int,
    *,
    given: GivenPolicy | None = None,
    own: bool = True,
) -> SpiralFolder:
    """The folder of a run by its options. Raises NotFound or InvalidInput for values that are none."""
    from sarm2_cli.record import one_choice
    from sarm2_rollouts.metaworld_robot import TASKS
    from sarm2_spiral.folder import SpiralFolder
    from sarm2_spiral.progress import REWARDS

    name = one_choice("task", task, sorted(TASKS))
    kind = one_choice("policy", policy, ["image", "state"]) if given is None else "image"
    source = one_choice("reward", reward, list(REWARDS))
    kept = one_choice("updater", updater, ["residual", "rabc"])
    return SpiralFolder(out, name, kind, seed, config, source, kept, given, own)  # type: ignore[arg-type]


def check_asked(folder: SpiralFolder, server: str | None, bundle: Path | None) -> None:
    """Raise InvalidInput for a service or a reward model that a run would never ask."""
    for option, value in (("server", server), ("bundle", bundle)):
        if value is not None and not folder.rendered:
            raise InvalidInput(
                f"--{option} {value}: a state policy with --reward {folder.reward} asks no service; leave it "
                "out",
                field=option,
            )
