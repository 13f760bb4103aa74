"""What is printed arrives as it was meant: brackets, blanks, long paths and signs that the encoding lacks."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text
from support.tiny import TinyArchive
from typer.testing import CliRunner

from infer.contract import Plan, Run, SmaltiError, planned_tiles
from preproc.cli import app
from preproc.cluster.run_overview import Watcher, show
from preproc.run import progress
from preproc.run.clean import leftover_lines, leftovers
from preproc.run.config import load_config
from preproc.run.status import StageStatus, as_table


def test_a_command_in_a_message_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    run = Run(tmp_path / "my run")
    with pytest.raises(SmaltiError, match=rf"make one with `smalti init '{run.root}'`"):
        load_config(run)
    run.root.mkdir()
    with pytest.raises(SmaltiError, match=rf"run `smalti plan '{run.root}'`"):
        Plan.read(run)


def test_a_file_in_place_of_a_run_is_told_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    for read in (load_config, Plan.read):
        with pytest.raises(SmaltiError, match=rf"run.toml: is a file, and a run is a folder: give `{tmp_path}`"):
            read(Run(tmp_path / "run.toml"))


def test_square_brackets_stay_in_messages(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("x.gpkg: no such file: [labels] path names it :warning:")
    waiting = StageStatus("plan", "plans", waiting="x.gpkg: no such file: [region] geometry names it")
    progress.show(as_table([waiting]))
    out, err = capsys.readouterr()
    assert "[labels] path names it :warning:" in err
    assert "[region] geometry names it" in out


def test_square_brackets_stay_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = progress.plain_console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.progress("fetch", 3, "tiles [of 10 m]") as bar:
        bar.advance(note="31UFS/[old]/B04.tif")
    assert isinstance(terminal.file, io.StringIO)
    assert "31UFS/[old]/B04.tif" in terminal.file.getvalue()
    assert "tiles [of 10 m]" in terminal.file.getvalue()


def test_square_brackets_stay_in_help() -> None:
    assert "[site] profile" in " ".join(CliRunner().invoke(app, ["submit", "--help"]).output.split())


def test_status_keeps_a_path_on_one_line_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = TinyArchive(tmp_path / "archive")
    archive.s2("one", "2021-07-01")
    run, config = archive.run(tmp_path / ("a long name of a [folder] " * 6))
    run.plan.unlink()
    watcher = Watcher(run, config)
    show(watcher.look(), watcher.look, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(run.root)
    assert sum(f"`smalti plan '{run.root}'`" in line for line in lines) >= 2
    assert progress.show(Text("x" * 300)) is None
    assert capsys.readouterr().out == "x" * 300 + "\n"


def test_tiles_of_an_earlier_plan_are_named_with_the_way_to_be_rid_of_them(tmp_path: Path) -> None:
    archive = TinyArchive(tmp_path / "archive")
    archive.s2("one", "2021-07-01")
    run, config = archive.run(tmp_path / "my run")
    (kept,) = (tile.name for tile in planned_tiles(run))
    for name in (kept, "31N_E1_N1", ".31N_E2_N2.tmp"):
        (run.tiles / name).mkdir(parents=True)
    run.embeddings.mkdir()
    for name in (kept, "31N_E1_N1", "31N_E11_N1"):
        for end in (".npy", "_scales.npy", ".json"):
            (run.embeddings / f"{name}{end}").touch()
    overview = Watcher(run, config).look()
    left = {"tiles": ["31N_E1_N1"], "embeddings": ["31N_E11_N1", "31N_E1_N1"]}
    assert overview.as_json()["leftovers"] == leftovers(run) == left
    lines = leftover_lines(run, left)
    assert lines[0].startswith("tiles/: 1 tile is not in the plan, and nothing reads what is left: `cd '")
    for line in lines:
        subprocess.run(["sh", "-c", line.split("`")[1]], check=True)
    assert leftovers(run) == {}
    assert {path.name for path in run.tiles.iterdir()} == {kept, ".31N_E2_N2.tmp"}
    assert len(list(run.embeddings.iterdir())) == 3
    assert "9 tiles are not in the plan" in leftover_lines(run, {"tiles": list("abcdefghi")})[0]
    assert "--json`" in leftover_lines(run, {"tiles": list("abcdefghi")})[0]


def test_any_text_can_be_printed_in_ascii() -> None:
    code = (
        "from preproc.run.environment import speak_any_encoding\nspeak_any_encoding()\n"
        "import sys\nprint('2 km² · ┏━┳│ Blé')\nprint('Blé – ²', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"2 km2 . +-+| Bl\\xe9\n"
    assert done.stderr == b"Bl\\xe9 - 2\n"
