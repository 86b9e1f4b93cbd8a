"""RM1 becomes RM2 on synthetic rollouts, which look like nothing it was trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.synthetic import FRAMES, synthetic_episode, write_synthetic
from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.checkpoint import default_bundle, load_bundle, read_manifest, save_bundle
from sarm2_models.estimate import Estimate
from sarm2_models.train import adaptation_parts
from sarm2_models.train.adapt import PLAN, adapt, adapt_curve, plan_of
from sarm2_models.train.adaptation_parts import Part, held_out, load_parts, mixed
from sarm2_models.train.corpus import index_dataset, load_corpus
from sarm2_models.train.plan import PlannedEpisode
from sarm2_models.train.windows import Frames
from sarm2_models.vocabulary import load_vocabulary
from sarm2_rollouts.episode import EpisodeKind, LabelledSegment
from sarm2_rollouts.lerobot_reader import open_dataset
from sarm2_rollouts.lerobot_writer import write_dataset
from sarm2_rollouts.simulated_marks import marks_of
from sarm2_rollouts.tasks import STATE_NAMES, TASKS
from sarm2_spiral.config import METAWORLD
from sarm2_spiral.folder import LEAST_ADAPTED

SHORT = replace(PLAN, stage_steps=20, value_steps=60, batch=32)


def test_fewer_steps_shorten_both_heads_alike() -> None:
    assert plan_of(None) == PLAN == plan_of(PLAN.value_steps)
    assert plan_of(80) == replace(PLAN, value_steps=80, stage_steps=30)
    assert plan_of(1).stage_steps == 1
    assert METAWORLD.loop.adapt_steps == PLAN.value_steps, "the loop's are those of `sarm2 adapt`"


def dataset(root: Path, kind: EpisodeKind, count: int) -> Path:
    write_synthetic([PlannedEpisode("hammer", kind, seed) for seed in range(count)], root)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("adapt")
    return dataset(root / "rollouts", "perturbed", 8), dataset(root / "training", "demo", 8)


@pytest.fixture(scope="module")
def adapted(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "rm2"
    return out, adapt(default_bundle(), *folders, out, plan=SHORT)


def test_rm2_errs_less_on_held_out_rollouts_and_says_what_it_came_from(
    adapted: tuple[Path, dict[str, Any]],
) -> None:
    out, report = adapted
    before, after = (report[which]["rollout_mse"]["value"] for which in ("before", "after"))
    assert after < 0.7 * before
    change = report["after_over_before"]["rollout_mse"]
    assert change["value"] == pytest.approx(after / before)
    assert report["rollouts"] == {"learned": 6, "measured": 1}
    assert read_manifest(out).adapted_from == report["adapted_from"]
    first, second = load_bundle(default_bundle()), load_bundle(out)
    assert report["adapted_from"].endswith(first.weights_sha256[:16])
    assert second.version == f"{first.version}+6rollouts"


def test_a_task_that_was_learned_is_known(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first, text = load_bundle(default_bundle()), TASKS["hammer"].instruction
    others_N = [known != text for known in first.instructions]
    assert others_N.count(False) == 1
    first.instructions = tuple(known for known in first.instructions if known != text)
    first.instruction_texts_ND = first.instruction_texts_ND[others_N]
    save_bundle(tmp_path / "rm1", first)
    plan = replace(SHORT, stage_steps=1, value_steps=1)
    adapt(tmp_path / "rm1", *folders, tmp_path / "rm2", plan=plan)
    before, after = (load_bundle(tmp_path / name) for name in ("rm1", "rm2"))
    assert [model.instruction(text).known for model in (before, after)] == [False, True]
    assert after.instructions == (*before.instructions, text)
    np.testing.assert_array_equal(after.instruction(text).embedding_D, before.instruction(text).embedding_D)


def test_the_first_model_is_kept_as_it_was(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def digest() -> str:
        files = sorted(path for path in default_bundle().rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    before = digest()
    adapt(default_bundle(), *folders, tmp_path / "rm2", plan=replace(SHORT, stage_steps=1, value_steps=1))
    assert digest() == before


def test_what_is_adapted_and_what_is_shipped_are_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "rm1").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "rm1")
    nowhere = tmp_path / "nowhere"  # what is read later is not even looked at
    for out in (tmp_path / "rm1", tmp_path / "link", tmp_path / "x" / ".." / "rm1", default_bundle()):
        with pytest.raises(InvalidInput, match="choose another folder") as refused:
            adapt(tmp_path / "rm1", nowhere, nowhere, out)
        assert refused.value.field == "out"
        with pytest.raises(InvalidInput, match="choose another folder"):
            adapt_curve(tmp_path / "rm1", nowhere, nowhere, out, (2,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "rm1"]


def test_fewer_rollouts_and_a_persons_marks_can_be_asked_for(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    plan = replace(SHORT, stage_steps=1, value_steps=1)
    few = adapt(default_bundle(), *folders, tmp_path / "few", rollout_count=2, plan=plan)
    assert few["rollouts"]["learned"] == 2
    marked = adapt(default_bundle(), *folders, tmp_path / "marked", labels="marks", plan=plan)
    assert (few["labels"], marked["labels"]) == ("exact", "marks")
    assert marked["before"] == few["before"], "what measures is the truth either way"


def test_of_marked_rollouts_nothing_learns_which_primitives_they_are_of(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    plan = replace(SHORT, stage_steps=1, value_steps=2)
    unnamed = tmp_path / "unnamed"
    named = [synthetic_episode(PlannedEpisode("hammer", "perturbed", seed)) for seed in range(8)]
    other = (LabelledSegment("push", 0, FRAMES),)
    write_dataset(
        [replace(one, segments=other) for one in named], unnamed, storage="image", state_names=STATE_NAMES
    )
    models = []
    for place, rollouts in enumerate((folders[0], unnamed)):
        adapt(default_bundle(), rollouts, folders[1], tmp_path / str(place), labels="marks", plan=plan)
        models.append(load_bundle(tmp_path / str(place)))
    first = load_bundle(default_bundle())
    assert models[0].weights_sha256 == models[1].weights_sha256
    for model in models:
        assert model.calibration == replace(first.calibration, interval=models[0].calibration.interval)


def write_marks(rollouts: Path, path: Path, final: float | None = None) -> Path:
    """What a person would mark, as a person writes it down; but for the end, if that is given."""
    lines = []
    for number, episode in enumerate(open_dataset(rollouts, pictures=False)):
        assert episode.progress_T is not None
        told = asdict(marks_of(episode.progress_T, episode.fps))
        lines.append(json.dumps({"episode": number, **told, **({} if final is None else {"final": final})}))
    path.write_text("\n".join(reversed(lines)) + "\n")
    return path


def test_a_persons_own_marks_are_learned_from(folders: tuple[Path, Path], tmp_path: Path) -> None:
    plan = replace(SHORT, stage_steps=1, value_steps=2)
    same, lower = write_marks(folders[0], tmp_path / "same"), write_marks(folders[0], tmp_path / "lower", 0.1)
    hashes, reports = [], []
    for place, marks in enumerate((None, same, lower)):
        out = tmp_path / str(place)
        reports.append(adapt(default_bundle(), *folders, out, labels="marks", marks=marks, plan=plan))
        hashes.append(load_bundle(out).weights_sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    told = [None, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in (same, lower))]
    assert [report["marks_sha256"] for report in reports] == told
    assert reports[2]["before"] == reports[0]["before"], "what measures is the truth"
    with pytest.raises(InvalidInput, match="they go with --labels marks, got exact"):
        adapt(default_bundle(), *folders, tmp_path / "no", marks=same)
    same.write_text(same.read_text().splitlines()[0])
    with pytest.raises(InvalidInput, match="7 episodes are not marked: 0, 1, 2, 3, 4, "):
        adapt(default_bundle(), *folders, tmp_path / "no", labels="marks", marks=same)
    with pytest.raises(NotFound, match="no such file"):
        adapt(default_bundle(), *folders, tmp_path / "no", labels="marks", marks=tmp_path / "none")


def test_an_embedding_that_was_killed_goes_on_with_the_frames_that_are_missing(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation_parts, "SHARD_FRAMES", 100)
    model, told = load_bundle(default_bundle()), list[tuple[int, int]]()

    def tick(done: int, total: int, what: str) -> None:
        told.append((done, total))
        if len(told) == 3:  # in the second file
            raise KeyboardInterrupt

    given = (model, *folders, tmp_path, (), "count", "cpu")
    with pytest.raises(KeyboardInterrupt):
        load_parts(*given, tick)
    assert len(list(tmp_path.rglob("embeddings*.npy"))) == 1
    parts = load_parts(*given, tick)
    frames = 8 * FRAMES
    assert told[:5] == [(done, frames) for done in (64, 100, frames, 100, frames)]
    assert [len(part.frames.embeddings_TCD) for part in parts] == [frames] * 2


def test_pictures_of_other_cameras_are_refused_before_any_is_read(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model = load_bundle(default_bundle())
    cameras = (*model.config.cameras[1:], model.config.cameras[0])
    model.config = replace(model.config, cameras=cameras)
    save_bundle(tmp_path / "rm1", model)
    with pytest.raises(InvalidInput, match=f"the model sees {', '.join(cameras)}, in this order") as refused:
        adapt(tmp_path / "rm1", *folders, tmp_path / "rm2")
    assert refused.value.field == "rollouts"


def test_the_curve_starts_from_rm1_and_has_a_picture(folders: tuple[Path, Path], tmp_path: Path) -> None:
    content = adapt_curve(default_bundle(), *folders, tmp_path / "curve", (6, 2), plan=SHORT)
    assert list(content["curve"]) == ["0", "2", "6"]
    errors = [measured["rollout_mse"]["value"] for measured in content["curve"].values()]
    assert errors[2] < errors[0]
    assert json.loads((tmp_path / "curve" / "curve.json").read_text()) == content
    assert (tmp_path / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "curve" / "draws.npz") as draws:
        for count, measured in content["curve"].items():
            again = Estimate.of(1.0, draws[f"{count}/rollout_mse"], 1)
            assert (again.low, again.high) == (
                measured["rollout_mse"]["low"],
                measured["rollout_mse"]["high"],
            )
    with pytest.raises(InvalidInput, match="curve: 0 rollouts to learn from; ask for 1 at least"):
        adapt_curve(default_bundle(), *folders, tmp_path / "none", (0, 2), plan=SHORT)
    with pytest.raises(InvalidInput, match="curve: 7 rollouts to learn from, and 6 are there"):
        adapt_curve(default_bundle(), *folders, tmp_path / "more", (2, 7), plan=SHORT)
    assert not list(tmp_path.rglob("embeddings*.npy")), "told before the work begins"


def test_too_few_episodes_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    few = dataset(tmp_path / "few", "perturbed", 3)
    for field, roots in (("rollouts", (few, folders[1])), ("training", (folders[0], few))):
        with pytest.raises(InvalidInput, match=f"{field}: .* at least 8 rollouts .* got 3") as refused:
            adapt(default_bundle(), *roots, tmp_path / "rm2")
        assert refused.value.field == field


def test_more_rollouts_than_there_are_cannot_be_learned_from(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="7 rollouts to learn from, and 6 are there") as refused:
        adapt(default_bundle(), *folders, tmp_path / "rm2", rollout_count=7)
    assert refused.value.field == "count"
    assert not list(tmp_path.rglob("embeddings*.npy")), "told before the work begins"


def test_what_another_adaptation_left_is_not_gone_on_with(folders: tuple[Path, Path], tmp_path: Path) -> None:
    rollouts, out = tmp_path / "few", tmp_path / "rm2"
    with pytest.raises(InvalidInput, match="got 3"):
        adapt(default_bundle(), dataset(rollouts, "perturbed", 3), folders[1], out)
    plan = replace(SHORT, stage_steps=1, value_steps=1)
    report = adapt(default_bundle(), *folders, out, plan=plan)
    assert report["rollouts"]["learned"] == 6


def test_the_loop_asks_for_as_many_rollouts_as_an_adaptation_needs() -> None:
    for count, held in ((LEAST_ADAPTED - 1, 1), (LEAST_ADAPTED, 2)):
        assert held_out(np.zeros(count, dtype=np.int64))[0].sum() == held


def test_every_kind_is_learned_from_calibrated_on_and_measured() -> None:
    kind_N = np.tile([0, 2], 16)  # demonstrations and rollouts in turn
    held_N, turn_N = held_out(kind_N)
    for kind in (0, 2):
        assert held_N[kind_N == kind].sum() == 4
        assert (held_N & turn_N)[kind_N == kind].sum() == 2


def part_of(root: Path, work: Path) -> Part:
    """A dataset with embeddings that tell their frame."""
    index_dataset(root, work, load_vocabulary("metaworld"), ["hammer"])
    corpus = load_corpus(work)
    embeddings_TCD = np.arange(len(corpus) * 3 * 2, dtype=np.float16).reshape(len(corpus), 3, 2)
    window = load_bundle(default_bundle()).config.window
    return Part(corpus, Frames.of(corpus, embeddings_TCD, corpus.state_TS, window))


def test_parts_are_cut_and_joined_by_episodes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    whole = part_of(folders[0], tmp_path)
    corpus, embeddings_TCD = whole.corpus, whole.frames.embeddings_TCD
    odd_N = np.arange(corpus.episodes) % 2 == 1
    odd = whole.only(odd_N)
    assert odd.corpus.seed_N.tolist() == corpus.seed_N[odd_N].tolist()
    assert odd.corpus.first_N.tolist() == [0, FRAMES, 2 * FRAMES, 3 * FRAMES]
    second = odd.corpus.frames(1)
    np.testing.assert_array_equal(odd.frames.embeddings_TCD[second], embeddings_TCD[corpus.frames(3)])
    assert set(odd.frames.first_T[second]) == {FRAMES}
    assert set(odd.frames.last_T[second]) == {2 * FRAMES - 1}
    both = Part.joined([odd, whole.only(~odd_N)])
    assert both.corpus.seed_N.tolist() == [*corpus.seed_N[odd_N], *corpus.seed_N[~odd_N]]
    assert both.frames.last_T[-1] == len(corpus) - 1
    said_T = np.arange(len(odd.frames))
    marked_T = np.linspace(0, 1, len(corpus), dtype=np.float32)
    marked = replace(whole, marked_T=marked_T).only(odd_N).as_marked(said_T)
    for labels in (marked.frames, marked.corpus):
        np.testing.assert_array_equal(labels.primitive_T, said_T)
        np.testing.assert_array_equal(labels.progress_T[second], marked_T[corpus.frames(3)])


def test_rollouts_and_training_weigh_half_each_however_many_they_are(tmp_path: Path) -> None:
    roots = dataset(tmp_path / "rollouts", "perturbed", 2), dataset(tmp_path / "training", "demo", 5)
    parts = [part_of(root, tmp_path / f"{root.name}_index") for root in roots]
    frames, hints_TH = mixed(parts)
    assert frames.weight_T is not None
    first = len(parts[0].frames)
    assert frames.weight_T[:first].sum() == pytest.approx(0.5)
    assert frames.weight_T[first:].sum() == pytest.approx(0.5)
    assert np.ptp(frames.weight_T[:first]) == np.ptp(frames.weight_T[first:]) == 0
    assert len(hints_TH) == len(frames)
