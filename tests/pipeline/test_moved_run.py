"""A run that is moved together with its archive, or copied away from it, keeps everything that is complete."""

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


def test_a_copy_elsewhere_is_complete_as_long_as_the_archive_holds_the_same(tmp_path: Path, archive: Path) -> None:
    place = tmp_path / "here"
    shutil.copytree(archive, place / "archive")
    root = make_run(place / "run", place / "archive", RUN_TOML.split("[labels]")[0])
    smalti("plan", root)
    smalti("fetch", root)
    copy = tmp_path / "elsewhere" / "deeper" / "run"
    shutil.copytree(root, copy)
    assert "already complete" in smalti("plan", copy).stderr
    tile = next(path for path in (copy / "tiles").iterdir() if path.is_dir())
    shutil.rmtree(tile)
    assert "fetch: 1 built" in smalti("fetch", copy).stderr
    assert (tile / "tile.json").read_bytes() == (root / "tiles" / tile.name / "tile.json").read_bytes()
    items = place / "archive" / "items.json"
    items.write_text(items.read_text() + " ")
    assert " built" in smalti("plan", copy).stderr
