"""Fixtures of the whole suite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/support is shared by all folders of tests

SHARED = Path(__file__).parents[1].parent / "shared"
"""Reference data that lies beside a developer's checkout; the project does not need it."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, or a skip that says so."""
    if not SHARED.is_dir():
        pytest.skip("the reference data (../shared) is not here")
    return SHARED


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated archive, made once."""
    from support.runs import make_archive

    return make_archive(tmp_path_factory.mktemp("archive") / "archive")
