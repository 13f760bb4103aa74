"""The rules of ARCHITECTURE.md that import-linter cannot say: what the engine may import, and the page itself."""

from __future__ import annotations

import ast
import re
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
    assert imported(path) <= allowed


def test_every_module_has_its_line_in_the_architecture_page() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    modules = [
        path.relative_to(ROOT).as_posix()
        for package in ("preproc", "infer")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    missing = [module for module in modules if f"`{module}`" not in page]
    assert not missing
    named = set(re.findall(r"`((?:preproc|infer)/[\w/]+\.py)`", page))
    assert named <= set(modules), "the page names modules that are gone"


def test_every_dependency_is_justified() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    page = (ROOT / "docs" / "dependencies.md").read_text()
    named = set(re.findall(r'^\s+"([a-z][a-z0-9_-]+)>=', text, re.MULTILINE))
    assert named
    assert not {name for name in named if name not in page}
