"""What training reads: planned seeds, indexed episodes, windows, targets, texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from models.synthetic import FRAMES, synthetic_corpus, synthetic_episode, write_synthetic
from sarm2_client.errors import InvalidInput, NotFound
from sarm2_client.images import decode_jpeg
from sarm2_models.config import WindowConfig
from sarm2_models.train.corpus import Corpus, index_dataset
from sarm2_models.train.plan import (
    EVALUATION_SEEDS_FROM,
    KINDS,
    PLANS,
    SEED_BLOCKS,
    PlannedEpisode,
    planned_episodes,
    train_plan,
)
from sarm2_models.train.targets import TowerTargets, stage_rests
from sarm2_models.train.tokenizer import TEXT_LENGTH, make_tokenizer, text_corpus
from sarm2_models.train.windows import CHANGE_SCALE, Frames, hints_of, rewound_slots
from sarm2_models.vocabulary import load_vocabulary
from sarm2_models.window import window_slots
from sarm2_rollouts.metaworld_robot import SEED_BLOCK

TASKS = ("hammer", "drawer-open")
VOCABULARY = load_vocabulary("metaworld")
PLAN = [
    PlannedEpisode("hammer", "demo", 1),
    PlannedEpisode("drawer-open", "perturbed", 2),
    PlannedEpisode("hammer", "random", 3),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return synthetic_corpus(PLAN, tmp_path_factory.mktemp("corpus"), TASKS)


@pytest.fixture(scope="module")
def frames(corpus: Corpus) -> Frames:
    embeddings = np.arange(len(corpus), dtype=np.float16)[:, None, None] * np.ones((1, 3, 4), np.float16)
    return Frames.of(corpus, embeddings, corpus.state_TS, WindowConfig(length=6, gap_s=0.2))


# --- the plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_each_split_draws_its_seeds_from_a_block_of_its_own_below_the_evaluation_seeds(name: str) -> None:
    seen: set[int] = set()
    for split in PLANS[name].episodes:
        low, high = SEED_BLOCKS[split]
        seeds = {episode.seed for episode in planned_episodes(PLANS[name], TASKS, split, seed=7)}
        assert all(low <= seed < high <= EVALUATION_SEEDS_FROM for seed in seeds)
        assert low % SEED_BLOCK == high % SEED_BLOCK == 0  # so that a retried episode stays inside too
        assert not seeds & seen
        seen |= seeds


def test_the_same_seed_plans_the_same_episodes_and_another_one_others() -> None:
    plan = PLANS["quick"]
    first = planned_episodes(plan, TASKS, "train", 1)
    assert first == planned_episodes(plan, TASKS, "train", 1)
    assert {e.seed for e in first}.isdisjoint(e.seed for e in planned_episodes(plan, TASKS, "train", 2))
    counts = Counter((episode.task_name, episode.kind) for episode in first)
    assert all(counts[task, kind] == plan.episodes["train"].count(kind) for task in TASKS for kind in KINDS)


def test_the_first_half_of_a_plan_holds_every_task_and_kind() -> None:
    planned = planned_episodes(PLANS["small"], TASKS, "train", 0)
    start = {(episode.task_name, episode.kind) for episode in planned[: len(planned) // 2]}
    planned_kinds = [kind for kind in KINDS if PLANS["small"].episodes["train"].count(kind)]
    assert start == {(task, kind) for task in TASKS for kind in planned_kinds}


def test_learned_policies_come_after_the_kinds_of_older_runs_and_are_never_planned() -> None:
    """A kind's place is written into indexed corpora and drives its random stream."""
    assert KINDS == ("demo", "clean_demo", "perturbed", "random", "policy")
    assert PLANS["quick"].episodes["train"].count("policy") == 0
    rng = np.random.default_rng([5, SEED_BLOCKS["train"][0], KINDS.index("perturbed"), 1])
    expected = SEED_BLOCKS["train"][0] + rng.choice(60_000, size=4, replace=False)
    planned = planned_episodes(PLANS["quick"], TASKS, "train", 5)
    chosen = [one.seed for one in planned if (one.task_name, one.kind) == (TASKS[1], "perturbed")]
    assert chosen == expected.tolist()


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'quick'"):
        train_plan("quik")


# --- the corpus ------------------------------------------------------------------------------------


def test_indexing_keeps_every_picture_and_label_in_order(corpus: Corpus) -> None:
    assert corpus.episodes == 3
    assert len(corpus) == 3 * FRAMES
    for number, planned in enumerate(PLAN):
        episode, cut = synthetic_episode(planned), corpus.frames(number)
        assert corpus.kind(number) == planned.kind
        assert corpus.instructions[corpus.task_N[number]] == episode.task
        np.testing.assert_array_equal(corpus.progress_T[cut], episode.progress_T)
        np.testing.assert_array_equal(corpus.simulator_TK[cut], episode.simulator_TK)
        assert [VOCABULARY.primitives[i] for i in corpus.primitive_T[cut]] == episode.primitives_T
        picture = corpus.picture(cut.start + 5, 1)
        np.testing.assert_array_equal(picture, decode_jpeg(episode.images[corpus.cameras[1]][5]))


def test_episodes_of_another_task_are_refused(tmp_path: Path) -> None:
    write_synthetic(PLAN[:1], tmp_path / "data")
    with pytest.raises(InvalidInput, match="expected episodes of drawer-open, got 'hammer'"):
        index_dataset(tmp_path / "data", tmp_path / "index", VOCABULARY, ["drawer-open"])


# --- windows ---------------------------------------------------------------------------------------


def test_a_window_that_is_not_rewound_is_the_window_of_scoring() -> None:
    frames_B = np.arange(40)
    expected = window_slots(frames_B, 3, 2, 6)
    got = rewound_slots(frames_B, np.full(40, 3), np.zeros(40, np.int64), 2, 6)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_a_rewound_window_goes_past_its_frame_and_ends_on_it() -> None:
    indices, mask = rewound_slots(np.array([20]), np.array([0]), np.array([2]), 4, 6)
    assert indices.tolist() == [[0, 16, 20, 24, 28, 24, 20]]
    assert mask.all()


def test_rewinding_stays_inside_the_episode(frames: Frames) -> None:
    rng = np.random.default_rng(0)
    drawn_B = frames.draw(rng, 500)
    rewind_B = frames.draw_rewinds(rng, drawn_B, share=1.0)
    indices, _ = frames.slots(drawn_B, rewind_B)
    assert (indices <= frames.last_T[drawn_B][:, None]).all()
    assert (indices >= frames.first_T[drawn_B][:, None]).all()
    np.testing.assert_array_equal(indices[:, -1], drawn_B)
    assert 0 < (rewind_B > 0).mean() < 1


def test_half_of_the_windows_come_from_demonstrations(corpus: Corpus, frames: Frames) -> None:
    kind_T = np.repeat(corpus.kind_N, corpus.length_N)
    hammer_T = frames.task_T == 0
    demos = frames.weight_T[hammer_T & (kind_T == KINDS.index("demo"))].sum()
    rollouts = frames.weight_T[hammer_T & (kind_T != KINDS.index("demo"))].sum()
    assert demos == pytest.approx(rollouts)
    assert frames.weight_T.sum() == pytest.approx(1.0)


def test_hints_are_what_is_left_of_every_stage_and_the_change_of_progress(corpus: Corpus) -> None:
    hints_TH = hints_of(corpus)
    np.testing.assert_array_equal(hints_TH[:, :-1], stage_rests(corpus))
    assert 0 <= hints_TH[:, :-1].min() <= hints_TH[:, :-1].max() <= 1
    first, last = (
        corpus.first_N,
        corpus.first_N + corpus.length_N - 1,
    )  # shorter than the stall: all of it counts
    gained = corpus.progress_T[last] - corpus.progress_T[first]
    np.testing.assert_allclose(hints_TH[last, -1], CHANGE_SCALE * gained, atol=1e-6)
    np.testing.assert_array_equal(hints_TH[first, -1], 0)


# --- targets ---------------------------------------------------------------------------------------


def test_targets_are_centred_and_scaled_within_their_task(corpus: Corpus) -> None:
    targets = TowerTargets.fit(corpus)
    for task in range(len(TASKS)):
        mine = targets.values_TR[targets.task_T == task]
        weight = targets.weight_TR[targets.task_T == task][0]
        np.testing.assert_allclose(mine.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(mine.std(axis=0)[weight > 0], 1, atol=1e-4)
    assert targets.weight_TR.min() == 0, "what never moves in a task is not asked for"


def test_the_wrist_view_is_not_asked_for_the_goal(corpus: Corpus) -> None:
    targets = TowerTargets.fit(corpus)
    wrist, corner = corpus.cameras.index("wrist"), corpus.cameras.index("corner")
    assert targets.asked_CR[corner].all()
    assert 0 < targets.asked_CR[wrist].sum() < targets.count


def test_a_points_patch_and_offset_give_its_place_back(corpus: Corpus) -> None:
    targets = TowerTargets.fit(corpus)
    frames_B = np.arange(FRAMES)
    batch = targets.batch(corpus, frames_B, np.random.default_rng(0), patch_size=16)
    column = batch["patch"] % 6 + 0.5 + batch["offset"][..., 0]
    names = list(corpus.simulator_names)
    expected = corpus.simulator_TK[frames_B][:, names.index("corner_tool_u")] * 6
    np.testing.assert_allclose(column[:, 0].numpy(), expected, atol=1e-4)


# --- texts -----------------------------------------------------------------------------------------


def test_any_text_can_be_tokenised_and_the_saved_tokenizer_agrees(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(text_corpus(["open the green drawer"]))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("open the green drawer", "zürich 東京 🙂", ""):
        ids = tokenizer(text, padding="max_length", max_length=TEXT_LENGTH, truncation=True)["input_ids"]
        assert len(ids) == TEXT_LENGTH
        assert ids == again(text, padding="max_length", max_length=TEXT_LENGTH, truncation=True)["input_ids"]
        assert tokenizer.unk_token_id not in ids


def test_training_texts_fit_the_text_tower() -> None:
    texts = text_corpus([])
    tokenizer = make_tokenizer(texts)
    assert max(len(tokenizer(text)["input_ids"]) for text in texts) <= TEXT_LENGTH
