"""Every metric against cases that can be computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from sarm2_models import metrics, ranking
from sarm2_models.falls import alarm_size, fallen, falls
from sarm2_models.metrics import Scored, evaluate, evaluate_by_task

GROUPS = (0, 0, 1, 2)
NULL = 3


def scored(
    truth: Sequence[float],
    progress: Sequence[float] | None = None,
    *,
    kind: str = "demo",
    primitives: tuple[Sequence[int], Sequence[int]] | None = None,
    confidence: float = 1.0,
    uncertain: Sequence[bool] | None = None,
    width: float = 0.1,
    success: bool = True,
    task: str = "hammer",
    others: Mapping[str, Sequence[float]] | None = None,
) -> Scored:
    """An episode at 10 frames a second; `primitives` are the predicted and the true ones."""
    count = len(truth)
    guess = np.asarray(truth if progress is None else progress, dtype=np.float64)
    predicted, true = primitives or ([0] * count, [0] * count)
    return Scored(
        task=task,
        kind=kind,
        fps=10.0,
        truth_T=np.asarray(truth, dtype=np.float64),
        progress_T=guess,
        low_T=guess - width,
        high_T=guess + width,
        primitive_T=np.asarray(predicted),
        true_primitive_T=np.asarray(true),
        confidence_T=np.full(count, confidence),
        uncertain_T=np.asarray(uncertain or [False] * count),
        success=success,
        others={name: np.asarray(values) for name, values in (others or {}).items()},
    )


def value(episodes: Sequence[Scored], metric: str) -> float | None:
    return evaluate(episodes, GROUPS, NULL)[metric].value


def test_only_what_is_not_marked_uncertain_counts_as_certain_and_wrong() -> None:
    named = ([0, 1, 1, 2], [0, 1, 2, 1])
    one = scored([0.0] * 4, primitives=named, uncertain=[False, False, False, True])
    assert value([one], "certain_error") == pytest.approx(1 / 3)
    assert value([one], "certain_share") == pytest.approx(3 / 4)


def test_demo_mse_weighs_frames_and_the_macro_one_episodes() -> None:
    short = scored([0.0, 1.0], [0.0, 0.0])  # squared errors 0, 1
    long = scored([0.5] * 6)  # six times 0
    assert value([short, long], "demo_mse") == pytest.approx(1 / 8)
    assert value([short, long], "demo_mse_macro") == pytest.approx(1 / 4)


def test_each_mse_looks_at_its_own_kind_and_predictor() -> None:
    blind = {"clock": [0.0, 0.0], "constant": [0.5, 0.5], "state_only": [0.8, 0.8], "images_only": [1.0, 1.0]}
    demo = scored([0.0, 1.0], [0.1, 0.9], others=blind)
    fall = scored([0.4, 0.4], [0.5, 0.5], kind="perturbed", others=blind)
    wander = scored([0.0, 0.0], [0.3, 0.3], kind="random", others=blind)
    clean = scored([0.0, 1.0], [1.0, 0.0], kind="clean_demo", others=blind)
    episodes = [demo, fall, wander, clean]
    assert value(episodes, "demo_mse") == pytest.approx(0.01)
    assert value(episodes, "clock_mse") == pytest.approx(0.5)
    assert value(episodes, "constant_mse") == pytest.approx(0.25)
    assert value(episodes, "rollout_mse") == pytest.approx((0.01 + 0.09) / 2)
    assert value(episodes, "perturbed_mse") == pytest.approx(0.01)
    assert value(episodes, "state_only_mse") == pytest.approx((0.16 + 0.64) / 2)
    assert value(episodes, "images_only_mse") == pytest.approx((0.36 + 1.0) / 2)


def test_a_predictor_that_was_not_run_has_no_value() -> None:
    estimate = evaluate([scored([0.0, 1.0])], GROUPS, NULL)["clock_mse"]
    assert (estimate.value, estimate.low, estimate.n) == (None, None, 0)


def test_a_fall_of_exactly_a_fifth_counts_and_a_smaller_one_does_not() -> None:
    assert falls(np.array([0.5, 0.25, 0.25]), 10.0, 0.25) == [(0, 0.25)]
    assert falls(np.array([0.5, 0.31, 0.31]), 10.0) == []


def test_a_fall_starts_where_the_plateau_ends_and_is_counted_once() -> None:
    curve = np.array([0.6] * 20 + [0.4, 0.3, 0.3, 0.3, 0.5, 0.6])
    ((start, depth),) = falls(curve, 10.0)
    assert start == 19
    assert depth == pytest.approx(0.3)


def test_a_fall_must_happen_within_the_window() -> None:
    slide = np.linspace(0.9, 0.5, 41)  # 0.01 a frame: 0.12 in 1.2 s
    assert falls(slide, 10.0) == []
    assert len(falls(np.array([0.9, 0.5, 0.9, 0.5]), 10.0)) == 2


def test_a_drop_is_caught_by_half_of_its_depth_within_the_window() -> None:
    truth = [0.8] * 5 + [0.4] * 20
    caught = scored(truth, [0.8] * 5 + [0.8] * 11 + [0.6] * 9, kind="perturbed")
    late = scored(truth, [0.8] * 5 + [0.8] * 12 + [0.6] * 8, kind="perturbed")
    shallow = scored(truth, [0.8] * 5 + [0.61] * 20, kind="perturbed")
    assert value([caught], "drop_recall") == 1.0
    assert value([late], "drop_recall") == 0.0
    assert value([shallow], "drop_recall") == 0.0
    estimate = evaluate([caught, late, shallow], GROUPS, NULL)["drop_recall"]
    assert estimate.value == pytest.approx(1 / 3)
    assert estimate.n == 3


def test_a_false_drop_is_a_fall_of_ours_on_a_clean_demo_where_truth_does_not_fall() -> None:
    rising = list(np.linspace(0, 1, 30))
    dented = rising.copy()
    dented[15] -= 0.2
    assert value([scored(rising, kind="clean_demo")], "false_drop_rate") == 0.0
    assert value([scored(rising, dented, kind="clean_demo")], "false_drop_rate") == 1.0
    assert value([scored(dented, dented, kind="clean_demo")], "false_drop_rate") == 0.0
    assert value([scored(rising, dented, kind="demo")], "false_drop_rate") is None


def test_an_alarm_goes_off_beyond_what_all_but_the_allowed_share_of_clean_demonstrations_show() -> None:
    dents = np.linspace(0.03, 0.4, 100)
    clean = [np.array([0.0, 0.5, 0.5 - dent, 0.6]) for dent in dents]
    size = alarm_size(clean, [10.0] * 100)
    assert size is not None
    assert sum(float(fallen(one, 10.0).max()) > size + 1e-9 for one in clean) == 2
    assert alarm_size([np.linspace(0, 1, 5)], [10.0]) == 0.02
    assert alarm_size([], []) is None


def test_a_regress_is_recalled_with_its_delay_at_the_clean_demonstrations_alarm() -> None:
    clean = scored([0.0, 0.5, 1.0], [0.0, 0.5, 0.45], kind="clean_demo")  # its largest fall: .05
    truth = [0.8] * 5 + [0.4] * 20
    quick = scored(truth, [0.8] * 5 + [0.74] * 20, kind="perturbed")  # .06 at once, a frame after frame 4
    slow = scored(truth, [0.8] * 8 + [0.7] * 17, kind="policy")  # three frames later
    silent = scored(truth, [0.8] * 5 + [0.76] * 20, kind="perturbed")  # .04 never goes off
    found = evaluate([clean, quick, slow, silent], GROUPS, NULL)
    assert found["regress_recall"].value == pytest.approx(2 / 3)
    assert found["regress_recall"].n == 3
    assert found["regress_delay_s"].value == pytest.approx((0.1 + 0.4) / 2)
    assert value([quick], "regress_recall") is None, "without clean demonstrations there is no alarm"


def test_order_in_time_is_one_for_a_clock_and_nothing_for_a_constant() -> None:
    truth = [0.0, 0.2, 0.6, 1.0]
    assert value([scored(truth)], "voc") == pytest.approx(1.0)
    assert value([scored(truth, truth[::-1])], "voc") == pytest.approx(-1.0)
    assert value([scored(truth), scored(truth, [0.5] * 4)], "voc") == pytest.approx(0.5)


def test_a_learned_policys_rollouts_are_rollouts_and_measured_apart() -> None:
    rollouts = [
        scored([0.0, 0.5], [0.0, 0.3], kind="policy", success=False),
        scored([0.0, 1.0], [0.0, 1.0], kind="policy"),
        scored([0.0, 0.5], [0.0, 1.0], kind="perturbed", success=False),
    ]
    assert value(rollouts, "policy_mse") == pytest.approx(0.04 / 4)
    assert value(rollouts, "rollout_mse") == pytest.approx((0.04 + 0.25) / 6)
    assert value(rollouts, "policy_success_auc") == 1.0
    assert value(rollouts, "success_auc") == pytest.approx(0.75)  # one tie in two pairs
    assert value(rollouts, "success_auprc") == pytest.approx(0.5)  # the success stands beside a failure


def test_coverage_of_demonstrations_and_of_rollouts_apart() -> None:
    inside, outside = scored([0.5] * 4), scored([0.5] * 4, [0.8] * 4, kind="perturbed", width=0.2)
    clean = scored([0.5] * 4, [0.8] * 4, kind="clean_demo")
    found = {
        key: one.value
        for key, one in evaluate([inside, clean, outside], GROUPS, NULL).items()
        if "interval" in key
    }
    assert found["interval_coverage"] == pytest.approx(1 / 3)
    assert (found["interval_coverage_demo"], found["interval_coverage_rollout"]) == (0.5, 0.0)
    assert found["interval_width_demo"] == pytest.approx(0.2)
    assert found["interval_width_rollout"] == pytest.approx(0.4)


def test_rollout_accuracy_without_null_leaves_idling_out() -> None:
    said, true = [0, 1, 0, 0], [0, 0, NULL, NULL]
    rollout = scored([0.5] * 4, kind="perturbed", primitives=(said, true))
    assert value([rollout], "rollout_primitive_accuracy") == pytest.approx(1 / 4)
    assert value([rollout], "rollout_primitive_accuracy_without_null") == pytest.approx(1 / 2)


def test_jitter_sees_trembling_and_no_step() -> None:
    step = scored([0.0] * 10, [0.2] * 5 + [0.8] * 5)
    assert value([step], "jitter") == 0.0
    # On 0 .1 0 .1 ... a median of five is the value itself or its opposite: residual 0 at every frame.
    spike = scored([0.0] * 9, [0.0] * 4 + [0.3] + [0.0] * 4)
    assert value([spike], "jitter") == pytest.approx(np.sqrt(0.09 / 5))
    assert len(metrics.jitter_residuals(np.zeros(4))) == 0


def test_primitives_are_counted_exactly_by_group_and_without_null() -> None:
    episode = scored([0.0] * 4, primitives=([0, 0, 1, 2], [0, 1, 2, 3]))
    assert value([episode], "primitive_accuracy") == pytest.approx(1 / 4)
    assert value([episode], "group_accuracy") == pytest.approx(2 / 4)
    assert value([episode], "primitive_accuracy_without_null") == pytest.approx(1 / 3)
    assert value([episode], "rollout_primitive_accuracy") is None


def test_both_kinds_of_demonstrations_have_an_accuracy_together() -> None:
    uneven = scored([0.0] * 4, primitives=([0, 0, 1, 2], [0, 1, 2, 3]))
    clean = scored([0.0] * 4, kind="clean_demo", primitives=([0, 1, 2, 3], [0, 1, 2, 3]))
    assert value([uneven, clean], "primitive_accuracy_demo") == pytest.approx(5 / 8)
    assert value([uneven, clean], "primitive_accuracy") == pytest.approx(1 / 4)


def test_some_tasks_are_told_together_beside_all_where_there_are_any() -> None:
    good, bad = (scored([0.0] * 4, [end] * 4, task=task) for task, end in (("a", 0.0), ("b", 0.5)))
    told = evaluate_by_task([good, bad], GROUPS, NULL, apart={"asked": ("a", "c"), "none": ("c",)})
    assert told.keys() == {"overall", "tasks", "asked"}
    alone = evaluate_by_task([good], GROUPS, NULL)
    assert told["asked"] == alone["overall"]
    assert told["asked"] != told["overall"]


def test_auc_is_the_share_of_well_ordered_pairs() -> None:
    ends = [(0.9, True), (0.5, True), (0.5, False), (0.1, False)]
    episodes = [scored([0.0], [end], kind="perturbed", success=done) for end, done in ends]
    # Of 4 pairs three are right and one is a tie.
    assert value(episodes, "success_auc") == pytest.approx(3.5 / 4)
    assert value(episodes[:2], "success_auc") is None


def test_spearman_is_one_for_any_rising_curve_and_minus_one_reversed() -> None:
    curve = np.array([0.0, 0.1, 0.5, 0.9])
    assert ranking.spearman(curve, np.arange(4.0)) == pytest.approx(1.0)
    assert ranking.spearman(curve[::-1], np.arange(4.0)) == pytest.approx(-1.0)
    assert ranking.spearman(np.ones(4), np.arange(4.0)) is None


def test_ece_is_the_gap_between_confidence_and_accuracy() -> None:
    episode = scored([0.0] * 4, primitives=([0, 0, 0, 1], [0, 0, 0, 0]), confidence=0.95)
    assert value([episode], "ece") == pytest.approx(0.95 - 0.75)
    sure = scored([0.0] * 4, confidence=1.0)
    assert value([sure], "ece") == pytest.approx(0.0)


def test_coverage_includes_the_ends_of_the_interval() -> None:
    episode = scored([0.5, 0.5, 0.5], [0.25, 0.2, 0.5], width=0.25)
    assert value([episode], "interval_coverage") == pytest.approx(2 / 3)
    assert value([episode], "interval_width") == pytest.approx(0.5)


def test_intervals_hold_the_value_and_are_the_same_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    episodes = [scored(row, row + rng.normal(0, 0.1, 5)) for row in rng.random((12, 5))]
    first = evaluate(episodes, GROUPS, NULL, seed=3)["demo_mse"]
    assert first == evaluate(episodes, GROUPS, NULL, seed=3)["demo_mse"]
    assert first.low is not None
    assert first.high is not None
    assert first.value is not None
    assert first.low < first.value < first.high
    assert first.n == 12


def test_tasks_are_measured_apart() -> None:
    episodes = [scored([0.0], [0.1], task="hammer"), scored([0.0], [0.3], task="drawer-open")]
    numbers = evaluate_by_task(episodes, GROUPS, NULL)
    tasks = numbers["tasks"]
    assert isinstance(tasks, dict)
    assert list(tasks) == ["drawer-open", "hammer"]
    assert tasks["hammer"]["demo_mse"]["value"] == pytest.approx(0.01)
    assert set(tasks["hammer"]["demo_mse"]) == {"value", "low", "high", "n"}


def test_predictions_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="clock has 1 values but the episode has 2 frames"):
        scored([0.0, 1.0], others={"clock": [0.5]})
