"""Scores as a service would send them, for tests of what draws them."""

from __future__ import annotations

from sarm2_client import wire

TIMING = wire.Timing(total_ms=1.0, queue_ms=0.0, encode_ms=0.5, heads_ms=0.5)


def small_score(seq: int, *, progress: float | None = None, uncertain: bool = False) -> wire.Score:
    """The score of a frame; progress grows with it unless it is given."""
    reached = min(1.0, seq / 12) if progress is None else progress
    return wire.Score(
        seq=seq,
        t_ns=0,
        progress=reached,
        value=reached - 1,
        reward=None,
        primitive="grasp" if seq > 3 else "null",
        group="acquire",
        primitive_probs=[1.0],
        confidence=0.9,
        uncertain=uncertain,
        task_known=True,
        interval=(0.0, 1.0),
        experts=[],
        durable_seq=seq,
        filled=0,
        model_version="1",
        timing=TIMING,
    )
