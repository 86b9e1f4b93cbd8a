"""Vocabularies are data, and bad data are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sarm2_client.errors import InvalidInput, NotFound
from sarm2_models.vocabulary import Vocabulary, load_vocabulary, vocabulary_names


@pytest.mark.parametrize("name", ["published", "metaworld"])
def test_each_vocabulary_has_21_primitives_null_and_8_groups(name: str) -> None:
    vocabulary = load_vocabulary(name)
    assert len(vocabulary.primitives) == 22
    assert len(vocabulary.groups) == 8
    assert len(set(vocabulary.texts)) == 22
    assert vocabulary.primitives[vocabulary.null_index] == "null"
    assert vocabulary.groups[vocabulary.other_group] == "other"


@pytest.mark.parametrize("name", ["published", "metaworld"])
def test_null_alone_belongs_to_the_fallback_gate_and_no_gate_is_empty(name: str) -> None:
    vocabulary = load_vocabulary(name)
    in_other = [p for p in range(22) if vocabulary.group_of_primitive[p] == vocabulary.other_group]
    assert in_other == [vocabulary.null_index]
    assert set(vocabulary.group_of_primitive) == set(range(8))


@pytest.mark.parametrize(
    ("name", "primitive", "group"),
    [
        ("published", "scoop", "acquire"),
        ("published", "pass", "translate"),
        ("published", "wrap", "rotate"),
        ("published", "clamp", "force"),
        ("metaworld", "hold", "carry"),
        ("metaworld", "close", "place"),
        ("metaworld", "pull", "joint"),
        ("metaworld", "extract", "lift"),
    ],
)
def test_primitives_stand_in_the_groups_of_the_design(name: str, primitive: str, group: str) -> None:
    vocabulary = load_vocabulary(name)
    assert vocabulary.group_name(vocabulary.index(primitive)) == group


def test_a_vocabulary_survives_plain_data() -> None:
    vocabulary = load_vocabulary("metaworld")
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert vocabulary_names() == ("metaworld", "published")
    with pytest.raises(NotFound, match="did you mean 'published'"):
        load_vocabulary("publised")
    with pytest.raises(NotFound, match="did you mean 'grasp'"):
        load_vocabulary("metaworld").index("grap")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"texts": ("one",)}, "one text and one group"),
        ({"primitives": ("a", "b")}, "last primitive must be 'null'"),
        ({"groups": ("other", "x")}, "last group must be 'other'"),
        ({"group_of_primitive": (1, 1)}, "and nothing else"),
        ({"groups": ("other", "other")}, "unique"),
    ],
)
def test_a_vocabulary_that_breaks_a_rule_is_refused(
    changes: dict[str, tuple[object, ...]], rule: str
) -> None:
    good = Vocabulary("toy", ("a", "null"), ("do a", "nothing"), ("x", "other"), (0, 1))
    with pytest.raises(InvalidInput, match=rule):
        replace(good, **changes)  # type: ignore[arg-type]


def test_data_that_are_no_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidInput, match="not a vocabulary"):
        Vocabulary.from_dict({"name": "x", "groups": ["other"], "primitive": [{"name": "a", "text": "t"}]})
