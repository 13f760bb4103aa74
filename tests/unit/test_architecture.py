"""The rules of ARCHITECTURE.md that import-linter cannot say: what the engine may import, and the page itself."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE = sorted((ROOT / "infer").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_engine_needs_numpy_and_torch_only(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | {"infer", "numpy"}
    if "contract" not in path.parts:
        allowed.add("torch")
    if path.name == "triton_kernels.py":  # comes with torch's builds for GPUs; whoever imports this module does without
        allowed.add("triton")
    assert imported(path) <= allowed


def test_the_list_of_modules_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / ".ci" / "architecture"))
    assert (ROOT / "docs" / "modules.md").read_text() == script["listing"](), "run `make modules`"


def test_the_architecture_page_names_every_room_and_nothing_that_is_gone() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [path.name for path in (ROOT / "preproc").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"`{room}/`" not in page] == []
    named = re.findall(r"`((?:preproc|infer)/[\w/]+\.py)`", page)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_dependency_is_justified() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    page = (ROOT / "docs" / "dependencies.md").read_text()
    named = set(re.findall(r'^\s+"([a-z][a-z0-9_-]+)>=', text, re.MULTILINE))
    assert named
    assert not {name for name in named if name not in page}
