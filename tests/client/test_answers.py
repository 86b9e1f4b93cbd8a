"""Each frame is counted by its first answer, whatever a resumed connection brings after it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from client.peer import score_of
from sarm2_client import wire
from sarm2_client.answers import Answers
from sarm2_client.images import encode_jpeg


def score(answers: Answers) -> None:
    picture = wire.Image(enc="jpeg", data=encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    answers.take_score(score_of(wire.Frame(seq=3, t_ns=0, images={"corner": picture}, state=[]), None))


def drop(answers: Answers) -> None:
    answers.take_dropped(wire.Dropped(seq=3, reason="deadline"))


def refuse(answers: Answers) -> None:
    error = wire.Error(code="model_failed", message="no", retryable=False, error_id="e", seq=3)
    answers.take_error(error, 3)


@pytest.mark.parametrize("first", [score, drop, refuse])
@pytest.mark.parametrize("second", [score, drop, refuse])
def test_a_frame_that_is_answered_and_sent_and_answered_again_counts_once(
    first: Callable[[Answers], None], second: Callable[[Answers], None]
) -> None:
    new: list[None] = []
    answers = Answers(lambda: None, lambda: new.append(None))
    for answer in (first, second):
        answers.expect(3)
        answer(answers)
        assert not answers.unsettled
    counts = [len(answers.scores), answers.dropped, len(answers.errors)]
    assert counts == [first is score, first is drop, first is refuse]
    assert len(new) == 1
