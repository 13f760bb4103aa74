"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no fault, and one commit gets one verdict: SMALTI_SEARCH=1 looks for examples that nobody has seen.
settings.register_profile("smalti", deadline=None, derandomize=not os.environ.get("SMALTI_SEARCH"))
settings.load_profile("smalti")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
"""Reference data that lies beside a developer's checkout; the project does not need it."""


@pytest.fixture(scope="session", autouse=True)
def checkout_in_programs() -> None:
    """Programs that a test starts import this checkout too, not the one that happens to be installed."""
    os.environ["PYTHONPATH"] = str(ROOT)


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
