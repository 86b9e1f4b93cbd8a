"""Rules about the tree itself: the map is true, and whole classes of faults are designed out."""

from __future__ import annotations

import re
import tomllib

import pytest

import readme_numbers
import tree_map
from sarm2_models.benchmark.bars import ASKED

SOURCES = [
    path
    for path in tree_map.tracked()
    if path.suffix in {".py", ".toml", ".sh", ".yml", ".yaml", ".js", ".html"}
]
THIS_FILE = "tests/test_tree.py"


def test_the_readme_map_names_every_module_with_its_own_first_line() -> None:
    readme = (tree_map.ROOT / "README.md").read_text()
    assert tree_map.block_of(readme) == tree_map.render(), "run `python tests/tree_map.py`"


def test_the_readme_states_the_numbers_of_the_shipped_evaluation() -> None:
    readme = (tree_map.ROOT / "README.md").read_text()
    assert readme_numbers.block_of(readme) == readme_numbers.render(), "run `python tests/readme_numbers.py`"


def test_the_readme_asks_what_the_benchmark_asks() -> None:
    rows = {metric: aim.rsplit(" ", 1) for metric, (_, aim) in readme_numbers.ROWS.items() if aim}
    assert {metric: (kind, float(bar)) for metric, (kind, bar) in rows.items()} == dict(ASKED)


def test_every_module_says_in_its_first_line_what_it_is() -> None:
    modules = [p for p in tree_map.tracked() if p.suffix == ".py" and p.parts[0] in tree_map.PACKAGES]
    silent = [str(path) for path in modules if not tree_map.first_line(path)]
    assert silent == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\s*(import|from)\s+(pickle|dill|joblib|cloudpickle|shelve|marshal)\b",
        r"torch\.load\(",
        r"trust_remote_code\s*=\s*True",
        r"allow_pickle\s*=\s*True",
        r"yaml\.load\(",
    ],
)
def test_nothing_in_the_tree_unpickles_or_runs_foreign_code(pattern: str) -> None:
    found = [
        str(path)
        for path in SOURCES
        if str(path) != THIS_FILE and re.search(pattern, (tree_map.ROOT / path).read_text(), re.MULTILINE)
    ]
    assert found == []


def test_the_page_loads_nothing_from_another_host() -> None:
    web = [path for path in tree_map.tracked() if "sarm2_service/web" in str(path)]
    assert web
    for path in web:
        urls = re.findall(
            r"(?:src|href|url\(|@import|fetch\()\s*=?\s*[\"'(]?\s*(?:https?:)?//[^\s\"')]+",
            (tree_map.ROOT / path).read_text(),
        )
        assert urls == [], path


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (tree_map.ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for name in ("pyproject.toml", "clients/pyproject.toml"):
        project = tomllib.loads((tree_map.ROOT / name).read_text())["project"]
        extras = project.get("optional-dependencies", {})
        wanted = project["dependencies"] + [one for key in extras if key != "gpu" for one in extras[key]]
        names = {re.split(r"[\[<>=!~ ]", one)[0].lower().replace("_", "-") for one in wanted}
        assert names - pinned - {"sarm2-client"} == set()


def test_the_whole_tree_stays_under_fifty_megabytes() -> None:
    total = sum((tree_map.ROOT / path).stat().st_size for path in tree_map.tracked())
    assert total < 50e6
