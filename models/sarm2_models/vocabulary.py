"""Action primitives, their texts and their groups, read from the TOML files beside this module.

A vocabulary has P primitives, the last of which is the null class (idle, dithering, fumbling), and G groups,
one gate of the value decoder each, the last of which is the fallback `other`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sarm2_client.errors import InvalidInput, NotFound

FOLDER = Path(__file__).parent / "vocabularies"
NULL = "null"
OTHER = "other"


@dataclass(frozen=True)
class Vocabulary:
    """Primitives and groups, in the order of the model's outputs.

    Attributes:
        name: how configs refer to it.
        primitives: P names; the last is `null`.
        texts: P short phrases for the text encoder.
        groups: G names; the last is `other`.
        group_of_primitive: P indices into `groups`; of the primitives only `null` belongs to `other`.
    """

    name: str
    primitives: tuple[str, ...]
    texts: tuple[str, ...]
    groups: tuple[str, ...]
    group_of_primitive: tuple[int, ...]

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise InvalidInput(f"vocabulary {self.name!r}: {problem}", field="vocabulary")

    @property
    def null_index(self) -> int:
        """Index of the null class among the primitives."""
        return len(self.primitives) - 1

    @property
    def other_group(self) -> int:
        """Index of the fallback gate among the groups."""
        return len(self.groups) - 1

    def index(self, primitive: str) -> int:
        """Index of a primitive by name. Raises NotFound with the nearest name."""
        if primitive not in self.primitives:
            raise NotFound(
                f"vocabulary {self.name!r} has no primitive {primitive!r}"
                f"{_suggest(primitive, self.primitives)}",
                field="primitive",
            )
        return self.primitives.index(primitive)

    def group_name(self, primitive_index: int) -> str:
        """The group of a primitive, by index."""
        return self.groups[self.group_of_primitive[primitive_index]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the layout of the TOML files."""
        rows = zip(self.primitives, self.texts, self.group_of_primitive, strict=True)
        return {
            "name": self.name,
            "groups": list(self.groups),
            "primitive": [{"name": name, "text": text, "group": self.groups[g]} for name, text, g in rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """The inverse of `to_dict`. Raises InvalidInput where the data are no vocabulary."""
        try:
            groups = tuple(str(group) for group in data["groups"])
            rows = list(data["primitive"])
            return cls(
                name=str(data["name"]),
                primitives=tuple(str(row["name"]) for row in rows),
                texts=tuple(str(row["text"]) for row in rows),
                groups=groups,
                group_of_primitive=tuple(groups.index(row["group"]) for row in rows),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"not a vocabulary: expected `name`, `groups` and a `primitive` table with name, text and a "
                f"known group each; got {error!r}",
                field="vocabulary",
            ) from error


@cache
def load_vocabulary(name: str) -> Vocabulary:
    """A vocabulary by name: `published` or `metaworld`.

    Raises:
        NotFound: no file of that name; the text lists the known ones.
    """
    known = vocabulary_names()
    if name not in known:
        raise NotFound(
            f"no vocabulary {name!r}; known: {', '.join(known)}{_suggest(name, known)}", field="vocabulary"
        )
    return Vocabulary.from_dict(tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")))


def vocabulary_names() -> tuple[str, ...]:
    """The names that `load_vocabulary` knows, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def _suggest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _problems(vocabulary: Vocabulary) -> list[str]:
    primitives, groups = vocabulary.primitives, vocabulary.groups
    counts = {len(primitives), len(vocabulary.texts), len(vocabulary.group_of_primitive)}
    problems = []
    if len(counts) != 1:
        problems.append("every primitive needs one text and one group")
    if not primitives or primitives[-1] != NULL:
        problems.append(f"the last primitive must be {NULL!r}")
    if not groups or groups[-1] != OTHER:
        problems.append(f"the last group must be {OTHER!r}")
    if len(set(primitives)) != len(primitives) or len(set(groups)) != len(groups):
        problems.append("names must be unique")
    other = [
        name
        for name, g in zip(primitives, vocabulary.group_of_primitive, strict=False)
        if g == len(groups) - 1
    ]
    if other != [NULL]:
        problems.append(f"the group {OTHER!r} must hold {NULL!r} and nothing else, got {other}")
    return problems
