"""Scoring windows: company, routing, the uncertain rule, known instructions."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from models.tiny import DIM, INSTRUCTIONS, random_states, tiny_config, tiny_encoder, tiny_model
from sarm2_client.errors import InvalidInput
from sarm2_models.calibration import Calibration, ConformalInterval, UncertainRule
from sarm2_models.reward_model import RewardModel, ScoreBatch, Statistics, bucket
from sarm2_models.window import WindowBatch

NULL, OTHER = 21, 7


def batch(rows: int, *, known: bool = True, seed: int = 0) -> WindowBatch:
    generator = np.random.default_rng(seed)
    mask = np.ones((rows, 7), dtype=bool)
    mask[::3, 1:4] = False
    return WindowBatch(
        embeddings_BWCD=generator.normal(size=(rows, 7, 3, DIM)).astype(np.float16),
        state_BWS=generator.normal(size=(rows, 7, 4)).astype(np.float32),
        mask_BW=mask,
        instruction_BD=generator.normal(size=(rows, DIM)).astype(np.float16),
        task_known_B=np.full(rows, known),
        quantile_B=1 + np.arange(rows) % 3 / 2,
    )


def rows_of(whole: WindowBatch, rows: list[int]) -> WindowBatch:
    return WindowBatch(**{one.name: getattr(whole, one.name)[rows] for one in fields(whole)})


def assert_same(one: ScoreBatch, other: ScoreBatch) -> None:
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=0, err_msg=field.name)


def test_a_score_does_not_depend_on_its_batch_mates(model: RewardModel) -> None:
    """Alone and in any company: primitive, gate and flag are the same, numbers within 1e-6.

    (At the sizes of both presets the bits are the same on one thread; at this toy size a product may round.)
    """
    whole = batch(33)
    together = model.score(whole)
    for company in ([0], [5, 6], [1, 2, 3], [32, 7, 9, 4, 30], list(range(16)), list(range(32, 16, -1))):
        alone = model.score(rows_of(whole, company))
        picked = ScoreBatch(*(getattr(together, one.name)[company] for one in fields(ScoreBatch)))
        assert_same(alone, picked)


def test_many_windows_are_scored_in_turns(model: RewardModel) -> None:
    scores = model.score(batch(300))
    assert len(scores) == 300
    assert_same(
        model.score(rows_of(batch(300), [299])),
        ScoreBatch(*(getattr(scores, one.name)[299:] for one in fields(scores))),
    )


@pytest.mark.parametrize(("rows", "size"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (33, 64), (256, 256)])
def test_buckets_are_powers_of_two_from_four(rows: int, size: int) -> None:
    assert bucket(rows) == size


def test_scores_have_the_documented_shapes_and_ranges(model: RewardModel) -> None:
    scores = model.score(batch(5))
    assert scores.probs_BP.shape == (5, 22)
    np.testing.assert_allclose(scores.probs_BP.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(scores.confidence_B, scores.probs_BP.max(-1))
    np.testing.assert_allclose(scores.weights_BE.sum(-1), 1, atol=1e-6)
    assert ((scores.weights_BE > 0).sum(-1) == 2).all()
    assert ((scores.low_B <= scores.progress_B) & (scores.progress_B <= scores.high_B)).all()
    for name in ("progress_B", "probs_BP", "confidence_B", "weights_BE", "low_B", "high_B"):
        assert getattr(scores, name).dtype == np.float32
    assert scores.uncertain_B.dtype == np.bool_


def with_stage_bias(primitive: int, *, calibration: Calibration | None = None) -> RewardModel:
    """A model that predicts one primitive, come what may."""
    model = tiny_model(calibration=calibration)
    with torch.no_grad():
        model.stage.head.weight.zero_()
        model.stage.head.bias.zero_()
        model.stage.head.bias[primitive] = 3.0
    return model


@pytest.mark.parametrize("primitive", range(21))
def test_a_certain_primitive_goes_through_the_gate_of_its_group(primitive: int) -> None:
    model = with_stage_bias(primitive)
    scores = model.score(batch(4))
    assert not scores.uncertain_B.any()
    assert (scores.primitive_index_B == primitive).all()
    assert (scores.group_index_B == model.vocabulary.group_of_primitive[primitive]).all()


def routed(
    model: RewardModel, primitive: int, given: WindowBatch
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Progress by the heads themselves, through a primitive's gate with its text."""
    with torch.inference_mode():
        output = model.value(
            torch.from_numpy(given.embeddings_BWCD),
            torch.from_numpy(model.statistics.standardise(given.state_BWS)),
            torch.from_numpy(given.mask_BW),
            torch.from_numpy(model.primitive_texts_PD[[primitive] * len(given)]),
            torch.from_numpy(given.instruction_BD),
            torch.full((len(given),), model.vocabulary.group_of_primitive[primitive]),
        )
    return np.asarray(output.progress_B.numpy(), dtype=np.float32)


def test_a_certain_answer_uses_its_primitives_text_and_gate(model: RewardModel) -> None:
    sure = with_stage_bias(2)
    np.testing.assert_array_equal(sure.score(batch(8)).progress_B, routed(sure, 2, batch(8)))


@pytest.mark.parametrize("why", ["confidence", "null", "task"])
def test_an_uncertain_answer_goes_through_the_other_gate_with_the_null_text(why: str) -> None:
    low = Calibration(rule=UncertainRule(threshold=0.999))
    model = with_stage_bias(NULL if why == "null" else 2, calibration=low if why == "confidence" else None)
    given = batch(8, known=why != "task")
    scores = model.score(given)
    assert scores.uncertain_B.all()
    assert (scores.group_index_B == OTHER).all()
    assert (scores.primitive_index_B == (NULL if why == "null" else 2)).all()
    np.testing.assert_array_equal(scores.progress_B, routed(model, NULL, given))


def test_confidence_exactly_at_the_threshold_is_certain() -> None:
    confidence = float(with_stage_bias(2).score(batch(4)).confidence_B[0])
    at = with_stage_bias(2, calibration=Calibration(rule=UncertainRule(threshold=confidence)))
    above = with_stage_bias(
        2, calibration=Calibration(rule=UncertainRule(threshold=np.nextafter(confidence, 2)))
    )
    assert not at.score(batch(4)).uncertain_B.any()
    assert above.score(batch(4)).uncertain_B.all()


def test_the_temperature_flattens_probabilities_and_keeps_their_order(model: RewardModel) -> None:
    hot = tiny_model(calibration=Calibration(temperature=5.0))
    cold, warm = model.score(batch(6)), hot.score(batch(6))
    assert (warm.confidence_B < cold.confidence_B).all()
    np.testing.assert_array_equal(warm.primitive_index_B, cold.primitive_index_B)


def test_the_interval_is_that_of_the_calibration() -> None:
    interval = ConformalInterval(0.9, (1.0, 2.0), ((0.05,), (0.2,)), 10)
    model = with_stage_bias(2, calibration=Calibration(interval=interval))
    certain, unsure = model.score(batch(4)), model.score(batch(4, known=False))
    for scores, scale in ((certain, 0.05), (unsure, 0.2)):
        half_B = scale * np.array([1.0, 1.5, 2.0, 1.0])
        np.testing.assert_allclose(scores.high_B, np.minimum(scores.progress_B + half_B, 1), atol=1e-6)


def test_an_interval_is_that_of_the_episodes_instruction_and_source() -> None:
    own: dict[str, tuple[float, ...]] = {"pick up the ball": (0.5, 3.0)}
    interval = ConformalInterval(0.9, (1.0, 2.0), ((0.05,), (0.2,)), 10, own)
    model = tiny_model(calibration=Calibration(interval=interval))
    assert model.instruction("Pick up the BALL").quantile_S.tolist() == [0.5, 3.0, 3.0]
    assert model.instruction("juggle").quantile_S.tolist() == [1.0, 2.0, 2.0]


# --- instructions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["pick up the ball", "Pick up  the BALL ", "pick\nup the ball"])
def test_a_training_instruction_is_known_whatever_its_case_and_spaces(model: RewardModel, text: str) -> None:
    instruction = model.instruction(text)
    assert instruction.known
    np.testing.assert_array_equal(instruction.embedding_D, model.instruction_texts_ND[0])


def test_an_unknown_instruction_goes_through_the_text_tower_once() -> None:
    model = tiny_model()
    instruction = model.instruction("hammer the nail")
    assert not instruction.known
    np.testing.assert_array_equal(instruction.embedding_D, model.encoder.encode_texts(["hammer the nail"])[0])
    assert model.instruction("HAMMER the nail") is instruction


def test_the_memory_of_unknown_instructions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarm2_models.reward_model.CACHED_INSTRUCTIONS", 2)
    model = tiny_model()
    first = model.instruction("ball one")
    model.instruction("ball two")
    assert model.instruction("ball one") is first
    model.instruction("ball three")
    assert model.instruction("ball one") is first
    assert len(model._unknown) == 2


def test_an_empty_instruction_is_unknown_and_harmless(model: RewardModel) -> None:
    instruction = model.instruction("")
    assert not instruction.known
    assert np.isfinite(instruction.embedding_D).all()


# --- states -----------------------------------------------------------------------------------------


def test_statistics_are_of_the_training_states_and_standardise_them() -> None:
    states = [random_states(50, seed) * 3 + 1 for seed in range(4)]
    statistics = Statistics.fit(states)
    scaled = statistics.standardise(np.concatenate(states))
    assert (statistics.episodes, statistics.frames) == (4, 200)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-5)


def test_a_state_that_never_varied_and_one_out_of_all_bounds_stay_finite() -> None:
    statistics = Statistics((0.0, 1.0), (0.0, 1.0))
    scaled = statistics.standardise(np.array([[0.0, 3e38], [5.0, -3e38]], np.float32))
    assert scaled.tolist() == [[0.0, 10.0], [10.0, -10.0]]


# --- what does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("embeddings_BWCD", (2, 7, 3, DIM + 1)),
        ("embeddings_BWCD", (2, 6, 3, DIM)),
        ("state_BWS", (2, 7, 5)),
        ("mask_BW", (2, 6)),
        ("instruction_BD", (2, 3)),
        ("task_known_B", (3,)),
        ("quantile_B", (3,)),
    ],
)
def test_a_batch_of_a_wrong_shape_is_refused(model: RewardModel, name: str, shape: tuple[int, ...]) -> None:
    dtype = getattr(batch(2), name).dtype
    with pytest.raises(InvalidInput, match=name):
        model.score(replace(batch(2), **{name: np.zeros(shape, dtype)}))


def test_an_empty_batch_is_refused(model: RewardModel) -> None:
    with pytest.raises(InvalidInput, match="at least one row"):
        model.score(batch(0))


def test_a_model_of_unequal_sizes_is_refused() -> None:
    statistics = Statistics((0.0,) * 4, (1.0,) * 4)
    with pytest.raises(InvalidInput, match="encoder width"):
        RewardModel.build(tiny_config(embedding_dim=DIM + 2), tiny_encoder(), statistics)
    with pytest.raises(InvalidInput, match="statistics"):
        RewardModel.build(tiny_config(), tiny_encoder(), Statistics((0.0,), (1.0,)))


def test_hello_says_what_the_model_is(model: RewardModel) -> None:
    info = model.info
    assert (info.window, info.gap_s, info.causal, info.state_dim, info.experts) == (6, 0.4, True, 4, 10)
    assert info.cameras == ["corner", "side", "wrist"]
    assert info.tasks == list(INSTRUCTIONS)
    assert [info.groups[group] for group in info.primitive_groups][-1] == "other"
    assert model.preprocess.size == model.encoder.image_size
