"""A run that is moved together with its archive keeps everything that is complete."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.runs import RUN_TOML, make_run, smalti


def test_a_moved_run_is_still_complete(tmp_path: Path, archive: Path) -> None:
    place = tmp_path / "here"
    shutil.copytree(archive, place / "archive")
    text = RUN_TOML.replace("{archive}", "../archive").split("[labels]")[0]
    root = make_run(place / "run", archive, text)
    smalti("plan", root)
    smalti("fetch", root)
    place.rename(tmp_path / "there")
    moved = tmp_path / "there" / "run"
    assert "already complete" in smalti("plan", moved).stderr
    done = smalti("fetch", moved)
    assert " built" not in done.stderr
    shutil.rmtree(moved / "tiles")
    assert " built" in smalti("fetch", moved).stderr
