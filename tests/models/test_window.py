"""One function builds every window, and the live memory gives the same ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarm2_client.errors import InvalidInput, InvalidSequence
from sarm2_models.window import EpisodeMemory, Instruction, WindowBatch, window_slots


def memory(gap: int = 2, length: int = 3) -> EpisodeMemory:
    return EpisodeMemory(cameras=1, dim=2, state_dim=1, gap=gap, length=length)


def push(to: EpisodeMemory, seq: int) -> int:
    return to.push(seq, np.full((1, 2), seq % 1000, np.float16), np.full(1, seq, np.float32))


def test_a_window_is_the_first_frame_and_then_the_past_in_even_steps() -> None:
    indices, mask = window_slots(20, 3, 4, 4)
    assert indices.tolist() == [3, 8, 12, 16, 20]
    assert mask.all()


def test_slots_before_the_first_frame_are_masked_and_clamped() -> None:
    indices, mask = window_slots(4, 3, 1, 4)
    assert indices.tolist() == [3, 3, 3, 3, 4]
    assert mask.tolist() == [True, False, False, True, True]


def test_at_the_first_frame_only_the_anchor_and_the_newest_slot_hold_it() -> None:
    indices, mask = window_slots(7, 7, 5, 3)
    assert indices.tolist() == [7, 7, 7, 7]
    assert mask.tolist() == [True, False, False, True]


def test_many_windows_at_once_equal_one_at_a_time() -> None:
    frames = np.arange(30)
    indices, mask = window_slots(frames, 0, 4, 6)
    for t in frames:
        one_indices, one_mask = window_slots(int(t), 0, 4, 6)
        assert (indices[t] == one_indices).all()
        assert (mask[t] == one_mask).all()


def test_no_slot_is_ever_later_than_its_frame() -> None:
    frames = np.arange(100)
    indices, _ = window_slots(frames, 0, 7, 6)
    assert (indices <= frames[:, None]).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True).map(sorted),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_a_live_memory_gives_the_windows_of_the_recorded_episode(
    seqs: list[int], gap: int, length: int
) -> None:
    """Missing frames are the last earlier frame, in both."""
    live = memory(gap, length)
    for seq in seqs:
        push(live, seq)
        indices, mask = window_slots(seq, seqs[0], gap, length)
        filled = np.asarray(seqs)[np.searchsorted(seqs, indices, side="right") - 1]
        window = live.window()
        assert window.state_WS[:, 0].tolist() == filled.tolist()
        assert window.mask_W.tolist() == mask.tolist()
        assert (window.embeddings_WCD[:, 0, 0] == filled).all()


def test_a_gap_is_counted_and_a_gap_of_a_thousand_million_costs_nothing() -> None:
    live = memory()
    assert push(live, 5) == 0
    assert push(live, 8) == 2
    assert push(live, 1_000_000_000) == 999_999_991
    assert live.window().state_WS[:, 0].tolist() == [5, 8, 8, 1_000_000_000]
    assert (live.first, live.last) == (5, 1_000_000_000)


@pytest.mark.parametrize("seq", [5, 4, 0])
def test_a_seq_that_does_not_rise_is_refused_and_changes_nothing(seq: int) -> None:
    live = memory()
    push(live, 5)
    with pytest.raises(InvalidSequence, match="above 5"):
        push(live, seq)
    assert live.last == 5


def test_a_frame_of_a_wrong_shape_is_refused_and_changes_nothing() -> None:
    live = memory()
    push(live, 0)
    with pytest.raises(InvalidInput, match="shapes"):
        live.push(1, np.zeros((1, 3), np.float16), np.zeros(1, np.float32))
    with pytest.raises(InvalidInput, match="shapes"):
        live.push(1, np.zeros((1, 2), np.float16), np.zeros(2, np.float32))
    assert live.last == 0


def test_there_is_no_window_before_the_first_frame() -> None:
    with pytest.raises(InvalidSequence, match="no frame"):
        memory().window()


def test_windows_stack_into_a_batch_with_their_own_instructions() -> None:
    live = memory()
    push(live, 0)
    first = live.window()
    push(live, 1)
    known = Instruction(np.zeros(2, np.float16), True, np.array([1.0, 2.0, 2.5]))
    strange = Instruction(np.ones(2, np.float16), False, np.array([3.0, 4.0, 4.5]))
    batch = WindowBatch.stack([first, live.window()], [known, strange], ["rollout", None])
    assert len(batch) == 2
    assert batch.embeddings_BWCD.shape == (2, 4, 1, 2)
    assert batch.instruction_BD[:, 0].tolist() == [0, 1]
    assert batch.task_known_B.tolist() == [True, False]
    assert batch.quantile_B.tolist() == [2.0, 4.5]
