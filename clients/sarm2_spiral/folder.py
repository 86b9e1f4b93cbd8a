"""Where a run keeps what, readable by its names.

run.json                        settings, finished stages and their seconds
demos/                          demonstrations, a LeRobot dataset with their progress beside them
policies/NAME.safetensors       base policies: `bc`, `offline`, with the updater `rabc` also `roundK`
first_model/, reward_model/     bundles: RM1, and what the service serves: RM1, then RM2 once it is adapted
remember/                       a dataset: episodes of the kind RM1 was trained on
rounds/0/rollouts/              a dataset: what pi_1 did
rounds/K/rollouts/, trial/      datasets: what the deployed policy collected, and what the candidate tried
rounds/K/learner.safetensors    the correction after round K, and its checkpoint with the optimisers
rounds/K/losses.jsonl           how its update went
rounds/K/decision.json          whether it was deployed, and why
features/NAME/000000.npy        features of every frame of an episode
features/probe.npy              how the service embedded a picture when the run was begun
given.sha256                    of a given policy's weights when the run was begun
chunks/NAME/000000.npy          a given base policy's chunks for every frame of an episode
evaluations/NAME.jsonl          one line an episode
report/                         report.json, report.html and pictures
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sarm2_client.errors import InvalidInput
from sarm2_rollouts.episode import EpisodeKind
from sarm2_rollouts.metaworld_robot import SEED_BLOCK, EpisodePlan
from sarm2_rollouts.perturbations import Unevenness
from sarm2_rollouts.run_record import RunRecord, settings_of
from sarm2_spiral.config import ROUND_SEEDS, Ends, PolicyKind, SpiralConfig
from sarm2_spiral.given_policy import GivenPolicy
from sarm2_spiral.progress import Reward

Updater: TypeAlias = Literal["residual", "rabc"]
"""`residual`: a correction of the frozen base policy, learned by its critics. `rabc`: clone demonstrations
and rollouts anew each round, weighted by what the frames gained."""

RECIPE = 3
"""Raised with every change, here or of the adaptation's plan, by which the same settings come to other
numbers: a run that was begun before is then not gone on with, and not compared with later ones. One change
did not raise it from 3: adapted to marks, the value decoder is given the stage estimator's primitives, and no
longer the simulator's in under half of its windows. It is no worse for that on held-out rollouts of two runs
(an error of .00095 for .00096, and of .0042 for .0049), so what was flown before stays."""

SEEDS = {
    "demos": 1_000_000,
    "rollouts": 2_000_000,
    "evaluation": 3_000_000,
    "pictures": 4_000_000,
    "remember": 5_000_000,
}
"""Scenes from these numbers on; a run's own seed moves it on by whole blocks, so that no two runs and no two
kinds share a scene. What the reward model is trained and measured on lies below 1000000."""

SPAN = 10_000_000
RUNS_PER_SPAN = 50
"""The kinds lie 50 blocks apart: each further 50 runs have a span of their own."""

LEAST_ADAPTED = 8
"""Rollouts without which none would be left to measure an adapted model by (`sarm2 adapt` refuses fewer)."""

MOST_SEED = 20_000
"""What the simulator takes as a scene's number ends at 2^32."""


@dataclass(frozen=True)
class SpiralFolder:
    """A run's folder and settings.

    Attributes:
        task: a key of `TASKS`.
        kind: what a built-in policy sees, and the critics.
        seed: of scenes, networks and batches.
        reward: where rewards come from. updater: what becomes of them.
        own_service: whether the service is the run's own, with its own reward model, which it may adapt.
        given: the base policy that other people trained, in the place of cloned ones.

    Raises InvalidInput for a given policy with an updater that clones, or with a kind other than `image`, for
    a seed that has no scenes, for more executed actions than a chunk of a built-in policy has, and for fewer
    first rollouts than the reward model can be adapted to.
    """

    root: Path
    task: str
    kind: PolicyKind
    seed: int
    config: SpiralConfig
    reward: Reward = "service"
    updater: Updater = "residual"
    given: GivenPolicy | None = None
    own_service: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MOST_SEED:
            raise InvalidInput(f"seed: expected 0 to {MOST_SEED}, got {self.seed}", field="seed")
        if self.given is not None and (self.updater, self.kind) != ("residual", "image"):
            raise InvalidInput(
                f"{self.given} stays as it is, and needs pictures: it goes with the updater residual and the "
                f"kind image, not with {self.updater} and {self.kind}",
                field="updater",
            )
        executed, horizon = self.config.update.executed, self.config.policy.horizon
        if self.given is None and executed > horizon:
            raise InvalidInput(
                f"executed: expected at most the {horizon} actions of a chunk (policy.horizon), got "
                f"{executed}",
                field="executed",
            )
        loop = self.config.loop
        if self.adapts and not (loop.first >= LEAST_ADAPTED and loop.remember >= LEAST_ADAPTED // 2):
            raise InvalidInput(
                f"first: a reward model is adapted to at least {LEAST_ADAPTED} rollouts, and to half as many "
                f"episodes to `remember` of each kind, got {loop.first} and {loop.remember}; take more, or "
                "leave the adaptation out",
                field="first",
            )

    @property
    def adapts(self) -> bool:
        """Whether the loop adapts its reward model: one of its own, whose rewards it learns from."""
        return self.config.loop.adapt and self.own_service and self.reward == "service"

    @property
    def rendered(self) -> bool:
        """Whether episodes need pictures: a state policy with a control for its reward looks at nothing."""
        return self.kind == "image" or self.reward == "service"

    @property
    def ends(self) -> Ends:
        """Who ends the rollouts that the loop learns from: the service where it gives the rewards. A control
        has the simulator's word: it is not to lose for having flown on, long after it was done."""
        return "service" if self.reward == "service" else "success"

    @property
    def demos(self) -> Path:
        """The demonstrations."""
        return self.root / "demos"

    @property
    def reward_model(self) -> Path:
        """The bundle that the run's own service serves."""
        return self.root / "reward_model"

    @property
    def first_model(self) -> Path:
        """RM1, which is kept."""
        return self.root / "first_model"

    @property
    def adaptation(self) -> Path:
        """What the adaptation made of the reward model's errors. A model that this run did not adapt may have
        brought one of its own."""
        return self.reward_model / "report" / "adaptation.json"

    @property
    def remember(self) -> Path:
        """Episodes of the kind that the reward model was trained on."""
        return self.root / "remember"

    @property
    def adapted(self) -> bool:
        """Whether the served model is another than the first one."""
        models = (self.first_model, self.reward_model)
        first, served = ((place / "manifest.json").read_bytes() for place in models)
        return first != served

    def remember_plan(self) -> list[EpisodePlan]:
        """Episodes of the kind that the reward model was trained on."""
        first, count = self.first_seed("remember"), self.config.loop.remember
        kinds: tuple[EpisodeKind, ...] = ("demo", "perturbed")
        return [EpisodePlan(self.task, kind, first + n) for n in range(count) for kind in kinds]

    def round(self, number: int) -> Path:
        """A round's folder; they count from 1, and 0 holds the rollouts of pi_1."""
        return self.root / "rounds" / str(number)

    def policy(self, name: str) -> Path:
        """Weights of a base policy."""
        return self.root / "policies" / f"{name}.safetensors"

    def learner(self, number: int) -> Path:
        """Weights of the correction after a round."""
        return self.round(number) / "learner.safetensors"

    def losses(self, number: int) -> Path:
        """How a round's update went: a line of losses and values each few hundred steps."""
        return self.round(number) / "losses.jsonl"

    def advantages(self, number: int) -> Path:
        """Advantages of the frames of a round's rollouts, by the critics that have learned from them."""
        return self.round(number) / "advantages.npy"

    def decision(self, number: int) -> Path:
        """Whether a round's candidate was deployed, and why."""
        return self.round(number) / "decision.json"

    def features(self, name: str) -> Path:
        """Features of every frame of a dataset."""
        return self.root / "features" / name

    @property
    def given_weights(self) -> Path:
        """The hash of the weights that a given policy had when the run was begun."""
        return self.root / "given.sha256"

    def chunks(self, name: str) -> Path:
        """A given base policy's chunks for every frame of a dataset."""
        return self.root / "chunks" / name

    def evaluation(self, name: str) -> Path:
        """The episodes by which a policy was judged."""
        return self.root / "evaluations" / f"{name}.jsonl"

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.root / "report"

    def first_seed(self, what: str) -> int:
        """Where this run's scenes of a kind begin."""
        span, block = divmod(self.seed, RUNS_PER_SPAN)
        return span * SPAN + SEEDS[what] + block * SEED_BLOCK

    def demo_plan(self) -> list[EpisodePlan]:
        """The demonstrations to record: uneven ones."""
        first, loop = self.first_seed("demos"), self.config.loop
        uneven = Unevenness(loop.demo_noise, loop.demo_bad_rate)
        return [EpisodePlan(self.task, "demo", first + n, uneven) for n in range(loop.demos)]

    def rollout_plan(self, number: int) -> list[EpisodePlan]:
        """The rollouts of a round; those of round 0 are pi_1's."""
        first = self.first_seed("rollouts") + number * ROUND_SEEDS
        count = self.config.loop.rollouts if number else self.config.loop.first
        return [EpisodePlan(self.task, "policy", first + n) for n in range(count)]

    def trial_plan(self, number: int) -> list[EpisodePlan]:
        """The scenes of a round that the deployed policy met without noise, for the candidate to try.

        Both fly the same ones, which tells more of few flights than scenes of their own would, if a little
        kindly to the candidate: it has learned from the other's flights there.
        """
        loop = self.config.loop
        calm = [e for e in self.rollout_plan(number) if loop.exploration[e.seed % len(loop.exploration)] == 0]
        return calm[: loop.trial]

    def evaluation_plan(self, episodes: int) -> list[EpisodePlan]:
        """Scenes that nothing learns from; the same for every policy of a seed."""
        first = self.first_seed("evaluation")
        return [EpisodePlan(self.task, "policy", first + n) for n in range(episodes)]

    @classmethod
    def of(cls, root: Path) -> SpiralFolder:
        """The folder of a run that was begun.

        Raises Conflict where there is none, InvalidInput for one of another kind or another version.
        """
        found = settings_of(root)
        names = ("config", "task", "policy", "seed", "reward", "updater", "own_service")
        missing = [name for name in names if name not in found]
        if missing:
            raise InvalidInput(
                f"--out {root}: the run in it is none of SPIRAL's, or one of another version: its settings "
                f"lack {', '.join(missing)}",
                field="out",
            )
        config, task, kind, seed, reward, updater, own = (found[name] for name in names)
        given = GivenPolicy.from_dict(found["given"]) if "given" in found else None
        return cls(root, task, kind, seed, SpiralConfig.from_dict(config), reward, updater, given, own)

    @property
    def record(self) -> RunRecord:
        """What it has done."""
        return RunRecord(self.root, self.settings())

    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to be gone on with."""
        return {
            "recipe": RECIPE,
            "task": self.task,
            "policy": self.kind,
            "seed": self.seed,
            "reward": self.reward,
            "updater": self.updater,
            "own_service": self.own_service,
            "config": asdict(self.config),
            **({"given": asdict(self.given)} if self.given is not None else {}),
        }
