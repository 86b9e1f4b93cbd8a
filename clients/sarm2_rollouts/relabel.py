"""Progress labels for a whole dataset: `sarm_progress.parquet`, which LeRobot's trainers read as it is.

One row a frame, sorted by `index`: `index`, `episode_index`, `frame_index` (int64), `progress_sparse` and
`progress_dense` (float32, the same numbers), `primitive`, `uncertain`; the schema's metadata names the model
in `reward_model_path`. Beside it `rabc_weights.parquet` has the weight of every frame.

A reader of these files gives full weight to a frame that is missing or NaN. So a frame that could not be
scored never gets into the file: either nothing is written, or (`skip_failed`) its whole episode is given a
curve that falls, which means weight 0 (and half a weight at most for its last frame, which cannot fall).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sarm2_client.errors import Conflict, InvalidInput, NotFound
from sarm2_rollouts.episode import Episode
from sarm2_rollouts.episode_scorer import EpisodeScorer, EpisodeScores
from sarm2_rollouts.lerobot_reader import Dataset
from sarm2_rollouts.parquet import parquet_schema, read_parquet
from sarm2_rollouts.rabc import gains, rabc_weights, suggested_kappa
from sarm2_rollouts.run_record import hold
from sarm2_rollouts.whole_file import whole_file

PROGRESS_FILE = "sarm_progress.parquet"
WEIGHTS_FILE = "rabc_weights.parquet"
PARTS = ".sarm_progress"
MODEL_KEY = "reward_model_path"
FAILURES_KEY = "failures"
"""What could not be scored, as JSON: of a part too, so that a kill forgets none of it."""
ASKED_KEY = "asked"
"""What the whole file was scored by and for, as JSON: other weights need no new scores."""

FALLING = 1e-6
"""Progress lost a frame by an episode that could not be scored: as little as float32 holds, and a loss."""

FORGET = "forget its scores with --restart"

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("episode_index", pa.int64()),
        ("frame_index", pa.int64()),
        ("progress_sparse", pa.float32()),
        ("progress_dense", pa.float32()),
        ("primitive", pa.string()),
        ("uncertain", pa.bool_()),
    ]
)

Failures: TypeAlias = tuple[tuple[int, int, str], ...]
"""(episode, frame, why) of every frame that could not be scored."""

Tick: TypeAlias = Callable[[int, int], None]
"""Called with the episodes done and the episodes in all."""


@dataclass(frozen=True)
class Relabelled:
    """What came of it.

    Attributes:
        path: of the progress file. weights: of the weights file.
        episodes, frames: written.
        failures: what could not be scored.
        kappa: gain from which on a frame has full weight. suggested_kappa: a quarter of the frames reach it.
        full, none: shares of the frames with weight 1 and 0.
    """

    path: Path
    weights: Path
    episodes: int
    frames: int
    failures: Failures
    kappa: float
    suggested_kappa: float
    full: float
    none: float


def relabel(
    dataset: Dataset,
    scorer: EpisodeScorer,
    *,
    chunk: int,
    kappa: float | None = None,
    skip_failed: bool = False,
    restart: bool = False,
    prepare: Callable[[Episode], Episode] = lambda episode: episode,
    asked: Mapping[str, object] = MappingProxyType({}),
    tick: Tick = lambda done, total: None,
) -> Relabelled:
    """Score every episode and write both files.

    What was scored before, up to a kill or as a whole, is not scored again: other weights are made of the
    same scores. But for an episode that failed: `skip_failed` reports it as before, and without it the
    episode is scored anew.

    Args:
        chunk: frames over which a gain of progress is measured, the trainer's own chunk size.
        kappa: gain from which on a frame has full weight; by default the suggested one.
        skip_failed: give an episode with a frame that cannot be scored weight 0, instead of giving up.
        restart: forget what was scored before.
        prepare: called with each episode before it is scored (to rename cameras, say).
        asked: what `prepare` and `scorer` were told, as plain data: scores for other words are never gone on
            with.

    Raises:
        Conflict: the folder holds scores of another model, of other frames or for other words, the model
        changed meanwhile, or another process scores the dataset.
        InvalidInput: a frame could not be scored; every other episode is kept, so that a second try only
        repeats the failed ones.
    """
    if not len(dataset):
        raise InvalidInput(f"{dataset.root} holds no episode; there is nothing to relabel", field="dataset")
    dataset.episode_frames(0)  # a dataset that cannot be written to is told before anything is scored
    wanted = {"model": scorer.model, "frames": dataset.frames, **asked}
    failures = None if restart else _finished(dataset.root / PROGRESS_FILE, wanted)
    if failures is None or (failures and not skip_failed):
        _claim(dataset.root / PARTS, wanted, restart)
        failures = _score_all(dataset, scorer, str(wanted["model"]), prepare, skip_failed, tick)
        if failures and not skip_failed:
            raise InvalidInput(_told(failures), field="frames")
        _join(dataset, wanted, failures)
    tick(len(dataset), len(dataset))
    return _weigh(dataset, chunk, kappa, failures)


def _finished(progress: Path, wanted: Mapping[str, object]) -> Failures | None:
    """What could not be scored when the whole file was made by this model, of these frames, for these words;
    None where it was not."""
    told = parquet_schema(progress).metadata or {} if progress.exists() else {}
    if ASKED_KEY.encode() not in told or json.loads(told[ASKED_KEY.encode()]) != wanted:
        return None
    return tuple((episode, frame, why) for episode, frame, why in json.loads(told[FAILURES_KEY.encode()]))


def _score_all(
    dataset: Dataset,
    scorer: EpisodeScorer,
    model: str,
    prepare: Callable[[Episode], Episode],
    skip_failed: bool,
    tick: Tick,
) -> Failures:
    """A part for every episode that has none; returns what could not be scored."""
    failures: list[tuple[int, int, str]] = []
    for index in range(len(dataset)):
        place = _part(dataset, index)
        failed = _kept_failures(place)
        if failed is None or (failed and not skip_failed):
            scores = _scores(dataset, index, prepare, scorer)
            if (now := scorer.model) != model:
                raise Conflict(f"{model} scored {index} episodes, and now {now} answers; {FORGET}")
            failed = scores.failures
            if not failed or skip_failed:
                told = {MODEL_KEY: model, FAILURES_KEY: json.dumps(failed)}
                _write_atomically(place, _rows(dataset, index, scores), told)
        failures += [(index, frame, why) for frame, why in failed]
        tick(index + 1, len(dataset))
    return tuple(failures)


def _join(dataset: Dataset, wanted: Mapping[str, object], failures: Failures) -> None:
    """The progress file from all parts, which then go. Weights that were made of other scores go before."""
    told = {
        MODEL_KEY: str(wanted["model"]),
        ASKED_KEY: json.dumps(wanted),
        FAILURES_KEY: json.dumps(failures),
    }
    (dataset.root / WEIGHTS_FILE).unlink(missing_ok=True)
    with (
        whole_file(dataset.root / PROGRESS_FILE) as fresh,
        pq.ParquetWriter(fresh, SCHEMA.with_metadata(told)) as writer,
    ):
        for index in range(len(dataset)):
            writer.write_table(read_parquet(_part(dataset, index)).replace_schema_metadata(told))
    forget_parts(dataset.root)


def _weigh(dataset: Dataset, chunk: int, kappa: float | None, failures: Failures) -> Relabelled:
    """The weights file, from the progress file."""
    progress, weights = dataset.root / PROGRESS_FILE, dataset.root / WEIGHTS_FILE
    written = list(curves(progress))
    gain_N = np.concatenate([gains(curve_T, chunk) for curve_T in written])
    skipped_N = np.repeat([is_skipped(one) for one in written], [len(one) for one in written])
    suggested = suggested_kappa(gain_N[~skipped_N])
    chosen = suggested if kappa is None else kappa
    weight_N = rabc_weights(gain_N, chosen)  # as their reader makes them of the same file
    index_N = read_parquet(progress, ("index",))["index"]
    _write_atomically(
        weights, pa.table({"index": index_N, "weight": weight_N}), {"kappa": str(chosen), "chunk": str(chunk)}
    )
    return Relabelled(
        path=progress,
        weights=weights,
        episodes=len(dataset),
        frames=len(weight_N),
        failures=failures,
        kappa=chosen,
        suggested_kappa=suggested,
        full=float((weight_N == 1).mean()),
        none=float((weight_N == 0).mean()),
    )


def forget_parts(root: Path) -> None:
    """Throw away what was scored of a dataset and never joined."""
    shutil.rmtree(root / PARTS, ignore_errors=True)


def scored_by(root: Path) -> str | None:
    """The model that scored the dataset in a folder; None where none has."""
    path = root / PROGRESS_FILE
    if not path.exists():
        return None
    metadata = parquet_schema(path).metadata or {}
    return str(metadata.get(MODEL_KEY.encode(), b"").decode())


def curves(path: Path) -> Iterator[npt.NDArray[np.float32]]:
    """The progress (T,) of every episode of a progress file, in order. Raises InvalidInput or NotFound."""
    table = read_parquet(path, ("episode_index", "progress_sparse"))
    episode_N = table["episode_index"].to_numpy()
    progress_N = table["progress_sparse"].to_numpy().astype(np.float32)
    if len(episode_N):
        yield from np.split(progress_N, np.flatnonzero(np.diff(episode_N)) + 1)


def is_skipped(progress_T: npt.NDArray[np.float32]) -> bool:
    """Whether a curve says no more than that its episode could not be scored (`skip_failed`)."""
    return np.array_equal(progress_T, _falling(len(progress_T)))


def _part(dataset: Dataset, index: int) -> Path:
    return dataset.root / PARTS / f"{index:06d}.parquet"


def _claim(parts: Path, wanted: dict[str, object], restart: bool) -> None:
    """Make the folder of parts the scores of this model, of these frames, for these words alone."""
    hold(parts)
    owner = parts / "asked.json"
    if restart or not owner.exists():  # without it a kill has left them half deleted
        for part in parts.glob("*.parquet*"):
            part.unlink()
        owner.unlink(missing_ok=True)
    before = json.loads(owner.read_text()) if owner.exists() else wanted
    for name in sorted(before.keys() | wanted.keys()):
        if before.get(name) != wanted.get(name):
            raise Conflict(
                f"{parts} holds scores with {name} {before.get(name)}, and now it is {wanted.get(name)}; "
                f"go on with that one, or {FORGET}",
                field=name,
            )
    with whole_file(owner) as fresh:
        fresh.write_text(json.dumps(wanted))


def _scores(
    dataset: Dataset, index: int, prepare: Callable[[Episode], Episode], scorer: EpisodeScorer
) -> EpisodeScores:
    """One score a frame; none at all of an episode whose files cannot be read."""
    try:
        episode = dataset.episode(index)
    except (InvalidInput, NotFound) as error:
        count = dataset.episode_length(index)
        failures = ((0, f"the episode cannot be read: {error.message}"),)
        nothing_T = np.full(count, np.nan, dtype=np.float32)
        return EpisodeScores(nothing_T, ("",) * count, np.ones(count, dtype=bool), failures)
    return scorer.score(prepare(episode))


def _kept_failures(part: Path) -> tuple[tuple[int, str], ...] | None:
    """(frame, why) of what could not be scored of an episode; None where its part is missing or silent."""
    if not part.exists():
        return None
    kept = (parquet_schema(part).metadata or {}).get(FAILURES_KEY.encode())
    return None if kept is None else tuple((int(frame), str(why)) for frame, why in json.loads(kept))


def _rows(dataset: Dataset, index: int, scores: EpisodeScores) -> pa.Table:
    frames = dataset.episode_frames(index)
    count = len(frames)
    progress_T = scores.progress_T
    if scores.failures:
        progress_T = _falling(count)
    columns = [
        np.asarray(frames, dtype=np.int64),
        np.full(count, index, dtype=np.int64),
        np.arange(count, dtype=np.int64),
        progress_T,
        progress_T,
        list(scores.primitives_T),
        scores.uncertain_T,
    ]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def _falling(count: int) -> npt.NDArray[np.float32]:
    return (FALLING * np.arange(count, 0, -1)).astype(np.float32)


def _write_atomically(path: Path, table: pa.Table, metadata: dict[str, str]) -> None:
    with whole_file(path) as fresh:
        pq.write_table(table.replace_schema_metadata(metadata), fresh)


def _told(failures: Failures) -> str:
    shown = "; ".join(f"episode {episode} frame {frame}: {why}" for episode, frame, why in failures[:5])
    more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
    return (
        f"{len(failures)} frames could not be scored ({shown}{more}). Nothing was written, for trainers give "
        "full weight to a frame that is missing; mend them and run again, or give their episodes weight 0 "
        "with --skip-failed"
    )
