"""The map of the tree for the README, made from the first docstring line of every module.

`python tests/tree_map.py` writes it between the markers in README.md; a test compares the two.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- map: begin -->\n```text\n", "```\n<!-- map: end -->"
PACKAGES = ("clients", "models", "service", "deploy")
WIDTH = 38

NOTES = {
    "clients": "everyone who calls the service",
    "models": "the reward model and its training",
    "service": "the streaming service and the command line",
    "deploy": "the stack around the service",
    "tests": "one folder per room, with the same names",
    "Dockerfile": "the image; BASE chooses CPU or CUDA",
    "Makefile": "demo, test, check, bench",
    "constraints.txt": "the exact versions that CI and the image install",
}


def tracked() -> list[Path]:
    """Every file git knows or would add, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return sorted(path for name in set(listed) if (ROOT / (path := Path(name))).is_file())


def first_line(path: Path) -> str:
    """The first docstring line of a module, without its full stop."""
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return docstring.partition("\n")[0].rstrip(".")


def lines() -> Iterator[str]:
    """The map, a line each."""
    seen: set[Path] = set()
    modules = [p for p in tracked() if p.suffix == ".py" and p.parts[0] in PACKAGES]
    for path in modules:
        for folder in reversed(path.parents[:-1]):
            if folder not in seen:
                seen.add(folder)
                note = NOTES.get(str(folder), "")
                if (package := folder / "__init__.py") in modules:
                    note = first_line(package)
                yield entry(folder, f"{folder.name}/", note)
        if path.name != "__init__.py":
            yield entry(path, path.name, first_line(path))
    for name in ("tests", "Dockerfile", "Makefile", "constraints.txt"):
        slash = "/" if (ROOT / name).is_dir() else ""
        yield entry(Path(name), name + slash, NOTES[name])


def entry(path: Path, name: str, note: str) -> str:
    """One line: indented name, padded, and what it is."""
    label = "  " * (len(path.parts) - 1) + name
    return f"{label:<{WIDTH}} {note}".rstrip()


def render() -> str:
    """The block between the markers."""
    return BEGIN + "\n".join(lines()) + "\n" + END


def block_of(readme: str) -> str:
    """The block as the README has it. Raises ValueError without the markers."""
    return readme[readme.index(BEGIN) : readme.index(END) + len(END)]


if __name__ == "__main__":
    target = ROOT / "README.md"
    text = target.read_text()
    target.write_text(text.replace(block_of(text), render()))
