"""The two heads: causality, masks, routing, gradients, losses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.tiny import DIM, tiny_config
from sarm2_models.config import Inputs, RewardModelConfig, ValueConfig
from sarm2_models.layers import CausalTrunk, ParallelMLP, Standardise, block_causal_mask
from sarm2_models.stage import StageEstimator, stage_loss
from sarm2_models.value import (
    ProgressError,
    ValueDecoder,
    ValueOutput,
    keep_top,
    progress_error,
    value_loss,
)

SLOTS, ROWS = 7, 5


def windows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(ROWS, SLOTS, 3, DIM, generator=generator)
    state = torch.randn(ROWS, SLOTS, 4, generator=generator)
    mask = torch.ones(ROWS, SLOTS, dtype=torch.bool)
    mask[1, 1:4] = False
    mask[2, 1:6] = False
    return embeddings, state, mask


def texts(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, DIM, generator=generator), torch.randn(ROWS, DIM, generator=generator)


def decoder(config: RewardModelConfig | None = None) -> ValueDecoder:
    torch.manual_seed(0)
    return ValueDecoder(config or tiny_config()).eval()


def decode(head: ValueDecoder, groups: list[int]) -> ValueOutput:
    output: ValueOutput = head(*windows(), *texts(), torch.tensor(groups))
    return output


# --- causality --------------------------------------------------------------------------------------


def test_the_mask_lets_a_slot_see_all_tokens_of_its_own_and_earlier_slots_and_no_other() -> None:
    mask = block_causal_mask(torch.ones(1, 3, dtype=torch.bool), 2)[0, 0]
    slot = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(mask, slot[:, None] >= slot[None, :])


def test_a_masked_slot_is_seen_by_itself_alone() -> None:
    mask = block_causal_mask(torch.tensor([[True, False, True]]), 1)[0, 0]
    assert mask.tolist() == [[True, False, False], [True, True, False], [True, False, True]]


@pytest.mark.parametrize("changed", range(1, SLOTS))
def test_nothing_at_time_t_depends_on_a_later_frame(changed: int) -> None:
    """Change slot `changed` of every camera, text and state: slots before it keep every bit."""
    torch.manual_seed(0)
    trunk = CausalTrunk(dim=16, heads=2, layers=3, dropout=0.0, slots=SLOTS, tokens_per_slot=6).eval()
    tokens = torch.randn(2, SLOTS, 6, 16)
    other = tokens.clone()
    other[:, changed:] = torch.randn_like(other[:, changed:])
    mask = torch.ones(2, SLOTS, dtype=torch.bool)
    before, after = trunk(tokens, mask), trunk(other, mask)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed:], after[:, changed:])


@pytest.mark.parametrize("kind", range(6))
def test_every_kind_of_token_of_the_present_and_the_past_reaches_the_last_slot(kind: int) -> None:
    torch.manual_seed(0)
    trunk = CausalTrunk(dim=16, heads=2, layers=2, dropout=0.0, slots=SLOTS, tokens_per_slot=6).eval()
    tokens = torch.randn(1, SLOTS, 6, 16, requires_grad=True)
    torch.autograd.backward(trunk.last_slot(tokens, torch.ones(1, SLOTS, dtype=torch.bool)).square().sum())
    assert tokens.grad is not None
    assert (tokens.grad[0, :, kind].abs().sum(-1) > 0).all()


def test_the_cheap_last_slot_equals_the_last_slot_of_all() -> None:
    torch.manual_seed(0)
    trunk = CausalTrunk(dim=16, heads=2, layers=2, dropout=0.0, slots=SLOTS, tokens_per_slot=4).eval()
    tokens, mask = torch.randn(4, SLOTS, 4, 16), windows()[2][:4]
    torch.testing.assert_close(trunk.last_slot(tokens, mask), trunk(tokens, mask)[:, -1], atol=1e-6, rtol=0)


def test_what_stands_in_a_masked_slot_changes_no_answer() -> None:
    torch.manual_seed(0)
    stage, value = StageEstimator(tiny_config()).eval(), decoder()
    embeddings, state, mask = windows()
    noisy, moved = embeddings.clone(), state.clone()
    noisy[~mask], moved[~mask] = 100.0, -100.0
    group = torch.zeros(ROWS, dtype=torch.long)
    assert torch.equal(stage(embeddings, state, mask), stage(noisy, moved, mask))
    one = value(embeddings, state, mask, *texts(), group)
    other = value(noisy, moved, mask, *texts(), group)
    assert torch.equal(one.progress_B, other.progress_B)


def test_the_stage_estimator_does_not_see_the_anchor() -> None:
    stage = StageEstimator(tiny_config()).eval()
    embeddings, state, mask = windows()
    moved = embeddings.clone()
    moved[:, 0] += 1
    assert torch.equal(stage(embeddings, state, mask), stage(moved, state, mask))


def test_the_value_decoder_sees_the_anchor_and_both_texts() -> None:
    value = decoder()
    embeddings, state, mask = windows()
    primitive, instruction = texts()
    group = torch.zeros(ROWS, dtype=torch.long)
    anchored = embeddings.clone()
    anchored[:, 0] += 1
    base = value(embeddings, state, mask, primitive, instruction, group).progress_B
    for changed in (
        value(anchored, state, mask, primitive, instruction, group),
        value(embeddings, state, mask, primitive + 1, instruction, group),
        value(embeddings, state, mask, primitive, instruction + 1, group),
    ):
        assert (changed.progress_B != base).all()


@pytest.mark.parametrize(("inputs", "seen", "hidden"), [("state", 1, 0), ("images", 0, 1)])
def test_an_ablated_head_does_not_see_what_was_taken_away(inputs: Inputs, seen: int, hidden: int) -> None:
    config = tiny_config()
    config = replace(
        config,
        stage=replace(config.stage, inputs=inputs),
        value=replace(config.value, inputs=inputs),
    )
    stage, value = StageEstimator(config).eval(), decoder(config)
    group = torch.zeros(ROWS, dtype=torch.long)
    *pair, mask = windows()

    def answers(pair: list[Tensor]) -> Tensor:
        progress: Tensor = value(*pair, mask, *texts(), group).progress_B
        return torch.cat([stage(*pair, mask), progress[:, None]], dim=1)

    base = answers(pair)
    pair[hidden] = pair[hidden] + 1
    assert torch.equal(answers(pair), base)
    pair[seen] = pair[seen] + 1
    assert not torch.equal(answers(pair), base)


# --- gates and experts ------------------------------------------------------------------------------


def test_exactly_two_experts_weigh_in_and_their_weights_sum_to_one() -> None:
    output = decode(decoder(), [0, 1, 2, 3, 7])
    assert ((output.weights_BE > 0).sum(-1) == 2).all()
    torch.testing.assert_close(output.weights_BE.sum(-1), torch.ones(ROWS))
    torch.testing.assert_close(output.gate_probs_BE.sum(-1), torch.ones(ROWS))


def test_the_top_two_are_kept_in_proportion() -> None:
    kept = keep_top(torch.tensor([[0.1, 0.6, 0.0, 0.3]]), 2)
    torch.testing.assert_close(kept, torch.tensor([[0.0, 2 / 3, 0.0, 1 / 3]]))


@pytest.mark.parametrize("group", range(8))
def test_a_gate_routes_to_the_experts_it_prefers_and_no_other_gate_has_a_say(group: int) -> None:
    value = decoder()
    last_bias = value.gates.biases[-1]
    with torch.no_grad():
        last_bias.zero_()
        for gate in range(8):
            last_bias[gate, 0, [gate, gate + 1]] = 100.0
    output = decode(value, [group] * ROWS)
    chosen = output.weights_BE.nonzero()[:, 1].view(ROWS, 2)
    assert (chosen == torch.tensor([group, group + 1])).all()


def test_an_unused_expert_and_an_unused_gate_get_no_gradient() -> None:
    value = decoder()
    output = decode(value, [3] * ROWS)
    torch.autograd.backward(output.progress_B.sum())
    used = (output.weights_BE > 0).any(0)
    assert 2 <= int(used.sum()) < 10
    for parameter in [*value.experts.weights, *value.experts.biases, value.experts.norm_scale]:
        assert parameter is not None
        assert parameter.grad is not None
        reached = parameter.grad.flatten(1).abs().sum(1) > 0
        assert not reached[~used].any()
    for parameter in [*value.gates.weights, *value.gates.biases]:
        assert parameter.grad is not None
        reached = parameter.grad.flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [gate == 3 for gate in range(8)]


def test_the_answer_is_the_weighted_experts_and_no_other() -> None:
    """Break an unused expert: nothing moves. Break a used one: the answer does."""
    value = decoder()
    base = decode(value, [0] * ROWS)
    used = (base.weights_BE > 0).any(0)
    for expert in range(10):
        changed = decoder()
        with torch.no_grad():
            changed.experts.biases[-1][expert] += 5.0
        moved = not torch.equal(decode(changed, [0] * ROWS).progress_B, base.progress_B)
        assert moved == bool(used[expert])


def test_parallel_networks_equal_separate_ones() -> None:
    torch.manual_seed(0)
    parallel = ParallelMLP(3, (4, 5, 2), layer_norm=True)
    x = torch.randn(6, 4)
    for index in range(3):
        first, second = nn.Linear(4, 5), nn.Linear(5, 2)
        with torch.no_grad():
            for linear, weight, bias in zip((first, second), parallel.weights, parallel.biases, strict=True):
                linear.weight.copy_(weight[index].T)
                linear.bias.copy_(bias[index, 0])
        expected = second(nn.functional.gelu(first(nn.functional.layer_norm(x, (4,)))))
        torch.testing.assert_close(parallel(x)[:, index], expected)


def test_progress_lies_between_0_and_1() -> None:
    value = decoder()
    for extreme in (-1e4, 1e4):
        with torch.no_grad():
            value.experts.biases[-1].fill_(extreme)
        progress = decode(value, [0] * ROWS).progress_B
        assert ((progress >= 0) & (progress <= 1)).all()


# --- losses -----------------------------------------------------------------------------------------


def made_output(progress: list[float], weights: list[list[float]], probs: list[list[float]]) -> ValueOutput:
    return ValueOutput(torch.tensor(progress, requires_grad=True), torch.tensor(weights), torch.tensor(probs))


def test_the_value_loss_is_the_published_sum() -> None:
    output = made_output([0.5, 0.0], [[1.0, 0.0], [0.5, 0.5]], [[0.75, 0.25], [0.25, 0.75]])
    loss = value_loss(output, torch.tensor([0.0, 0.0]))
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    torch.testing.assert_close(loss.error, torch.tensor(0.125))
    torch.testing.assert_close(loss.load_variance, torch.tensor(0.0625))
    torch.testing.assert_close(loss.importance_variance, torch.tensor(0.0))
    torch.testing.assert_close(loss.entropy, entropy)
    torch.testing.assert_close(loss.total, 0.125 + 0.2 * (2.5 * 0.0625 - 0.5 * entropy))


def test_the_cross_entropy_of_progress_is_as_computed_by_hand_and_least_at_the_target() -> None:
    said = torch.tensor([0.5, 0.9, 0.9, 0.95], requires_grad=True)
    error_B = progress_error(said, torch.tensor([1.0, 0.9, 0.8, 0.95]), "cross_entropy")
    expected = [-math.log(0.5) / 4, -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / 4]
    torch.testing.assert_close(error_B[:2], torch.tensor(expected))
    torch.autograd.backward(error_B.sum())
    assert said.grad is not None
    torch.testing.assert_close(said.grad[[1, 3]], torch.zeros(2), atol=1e-6, rtol=0)
    assert said.grad[0] < 0 < said.grad[2]


@pytest.mark.parametrize(("kind", "pull"), [("squared", 2 * 0.05 * 0.98 * 0.02), ("cross_entropy", 0.05 / 4)])
def test_nearly_done_that_is_said_to_be_done_is_pulled_back(kind: ProgressError, pull: float) -> None:
    """By what the sigmoid's input feels: ten times as strongly by the cross entropy."""
    raw = torch.tensor([math.log(0.98 / 0.02)], requires_grad=True)
    torch.autograd.backward(progress_error(raw.sigmoid(), torch.tensor([0.93]), kind))
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad, torch.tensor([pull]), rtol=1e-4, atol=0)


def test_rows_of_weight_zero_enter_no_term_even_with_a_nan_target() -> None:
    whole = made_output([0.5, 0.9], [[1.0, 0.0], [0.0, 1.0]], [[0.7, 0.3], [0.1, 0.9]])
    alone = made_output([0.5], [[1.0, 0.0]], [[0.7, 0.3]])
    masked = value_loss(whole, torch.tensor([0.25, float("nan")]), torch.tensor([True, False]))
    torch.autograd.backward(masked.total)
    torch.testing.assert_close(masked.total, value_loss(alone, torch.tensor([0.25])).total)
    assert whole.progress_B.grad is not None
    assert whole.progress_B.grad[1] == 0


def test_the_terms_weigh_as_the_config_says() -> None:
    output = made_output([0.5], [[1.0, 0.0]], [[0.7, 0.3]])
    plain = value_loss(output, torch.tensor([0.0]), config=ValueConfig(auxiliary=0.0))
    torch.testing.assert_close(plain.total, plain.error)


def test_rows_of_weight_zero_do_not_enter_the_stage_loss_even_without_a_label() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    masked = stage_loss(logits, torch.tensor([1, -1, 2]), torch.tensor([True, False, True]))
    torch.testing.assert_close(masked, stage_loss(logits[[0, 2]], torch.tensor([1, 2])))
    torch.autograd.backward(masked)
    assert logits.grad is not None
    assert (logits.grad[1] == 0).all()


# --- input statistics -------------------------------------------------------------------------------


def test_fitted_inputs_have_mean_0_and_deviation_1_and_are_clipped() -> None:
    standardise = Standardise(2, 3)
    rows = torch.randn(100, 2, 3) * 5 + 7
    standardise.fit(rows)
    scaled = standardise(rows.half())
    torch.testing.assert_close(scaled.mean(0), torch.zeros(2, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(2, 3), atol=1e-2, rtol=0)
    assert standardise(torch.full((1, 2, 3), 1e6)).max() == 10


def test_statistics_are_saved_with_the_weights() -> None:
    value = decoder()
    value.fit_inputs(torch.randn(50, 3, DIM) + 3, torch.randn(22, DIM))
    again = decoder()
    again.load_state_dict(value.state_dict())
    assert torch.equal(decode(again, [0] * ROWS).progress_B, decode(value, [0] * ROWS).progress_B)
