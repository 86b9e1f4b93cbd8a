"""What tuning varies: the rate of learning and the noise on the inputs, beside what the plan says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sarm2_models.train.plan import HeadPlan


@dataclass(frozen=True)
class Setting:
    """One way of training, as factors on a plan's own.

    Attributes:
        name: in files and tables.
        rate: of the learning rates. noise: of the noise on embeddings and states.
    """

    name: str
    rate: float = 1.0
    noise: float = 1.0

    def of(self, plan: HeadPlan) -> HeadPlan:
        """The plan with this setting."""
        return replace(
            plan,
            stage_learning_rate=plan.stage_learning_rate * self.rate,
            value_learning_rate=plan.value_learning_rate * self.rate,
            noise=plan.noise * self.noise,
        )


SETTINGS = (
    Setting("planned"),
    Setting("half_rate", rate=0.5),
    Setting("double_rate", rate=2.0),
    Setting("double_noise", noise=2.0),
)
"""Every contender's budget. The first are the settings that SARM2 was developed with."""
