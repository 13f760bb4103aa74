"""Tiles made on node-local disk equal those made in the run, and nothing stays there: not after failures or signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.range_server import RangeServer, serve_folder
from support.runs import digest
from support.tiny import TinyArchive

from infer.contract import EXIT_TRY_AGAIN, Run, SmaltiError, scratch_folder, temporary_path
from preproc.run.config import Config, load_config
from preproc.run.stage import StageFailedError, run_stage
from preproc.tile.stage import FetchStage


def on_scratch(run: Run, scratch: object) -> Config:
    with run.config.open("a") as stream:
        stream.write(f'[site]\nscratch = "{scratch}"\n')
    return load_config(run)


@pytest.fixture
def season(tmp_path: Path) -> TinyArchive:
    archive = TinyArchive(tmp_path / "archive")
    for day in (1, 11, 21):
        archive.s2(f"s2-{day}", f"2021-07-{day:02d}", bands=1000 + day, extent=640)
    archive.s1("s1", "2021-07-03", extent=640)
    return archive


def test_tiles_made_on_scratch_are_the_same(
    season: TinyArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = season.run(tmp_path / "run", tiles=(2, 2))
    run_stage(FetchStage(), run, config)
    other, _ = season.run(tmp_path / "other", tiles=(2, 2))
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    left = (
        tmp_path
        / "node"
        / "smalti"
        / temporary_path(Path("31N_E1_N1")).name.replace(f".{os.getpid()}.", f".{_dead_pid()}.")
    )
    left.mkdir(parents=True)
    run_stage(FetchStage(), other, on_scratch(other, "$NODE_DISK/smalti"))
    assert digest(other.tiles) == digest(run.tiles)
    assert list((tmp_path / "node" / "smalti").iterdir()) == [], "not even what a killed process had left"


def _dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_nothing_stays_on_scratch_when_a_tile_fails(season: TinyArchive, tmp_path: Path) -> None:
    run, _ = season.run(tmp_path / "run")
    (season.folder / "s2-11" / "B08.tif").unlink()
    with pytest.raises(StageFailedError, match="B08"):
        run_stage(FetchStage(), run, on_scratch(run, tmp_path / "node"))
    assert list((tmp_path / "node").iterdir()) == []
    assert not run.tiles.exists() or list(run.tiles.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_on_scratch_after_a_signal(season: TinyArchive, tmp_path: Path, number: int) -> None:
    node = tmp_path / "node"
    server = RangeServer(serve_folder(season.folder), latency_s=0.15)
    with server.running():
        run, _ = season.run(tmp_path / "run", tiles=(2, 2), base=server.url, archive="workers = 1")
        on_scratch(run, node)
        process = subprocess.Popen([sys.executable, "-m", "preproc.cli", "fetch", str(run.root)])
        while not (node.is_dir() and list(node.iterdir())) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait() == EXIT_TRY_AGAIN
    assert list(node.iterdir()) == []


def test_a_scratch_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    assert scratch_folder(None) is None
    with pytest.raises(SmaltiError, match=r"\$SURELY_NOT_SET is not set on this node"):
        scratch_folder("${SURELY_NOT_SET}/x")
    with pytest.raises(SmaltiError, match="absolute path"):
        scratch_folder("here")
    (tmp_path / "file").write_text("")
    with pytest.raises(SmaltiError, match="a file stands where a folder is needed"):
        scratch_folder(str(tmp_path / "file" / "below"))
