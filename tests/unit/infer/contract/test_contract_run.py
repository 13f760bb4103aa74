"""Run directory, shards, locks, the model job."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.contract import (
    BusyError,
    FormatError,
    ModelJob,
    Plan,
    PlannedTile,
    Run,
    Shard,
    SmaltiError,
    planned_tiles,
    read_model_job,
    stage_lock,
    write_manifest,
    write_model_job,
)
from infer.contract.plan import PlannedTiles


@given(units=st.lists(st.integers()), count=st.integers(1, 9))
def test_shards_cover_every_unit_once(units: list[int], count: int) -> None:
    numbered = list(enumerate(units))
    taken = [unit for index in range(count) for unit in Shard(index, count).take(numbered)]
    assert sorted(taken) == numbered


@pytest.mark.parametrize("text", ["", "1", "a/b", "3/3", "-1/2", "0/0", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(SmaltiError, match="write I/N with 0 <= I < N"):
        Shard.parse(text)


def test_a_whole_stage_excludes_its_shards_and_the_other_way_round(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with stage_lock(run, "fetch"), pytest.raises(BusyError, match="another process is working on `fetch`"):
        stage_lock(run, "fetch", Shard(0, 2)).__enter__()
    with stage_lock(run, "fetch", Shard(0, 2)), stage_lock(run, "fetch", Shard(1, 2)), stage_lock(run, "infer"):
        with pytest.raises(BusyError):
            stage_lock(run, "fetch").__enter__()
        with pytest.raises(BusyError, match="--shard 0/2"):
            stage_lock(run, "fetch", Shard(0, 2)).__enter__()
    with stage_lock(run, "fetch"):
        pass


def test_a_lock_is_seen_by_another_process_and_goes_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from infer.contract import Run, stage_lock\n"
        "with stage_lock(Run(pathlib.Path(sys.argv[1])), 'fetch'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError):
            stage_lock(Run(tmp_path), "fetch").__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with stage_lock(Run(tmp_path), "fetch"):
        pass


def test_the_plan_gives_tiles_with_their_geometry(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [["31N_E0573440_N5626880", 32631, 573440, 5626880]]
    write_manifest(run.plan, "plan", inputs={}, files=[], fields={"tile_size": 512, "tiles": rows})
    (tile,) = planned_tiles(run)
    assert tile == PlannedTile("31N_E0573440_N5626880", 32631, 573440, 5626880, 512)
    assert tile.bounds == (573440, 5621760, 578560, 5626880)
    assert tile.transform == (10.0, 0.0, 573440.0, 0.0, -10.0, 5626880.0)


def test_parts_of_the_tiles_are_the_same_tiles() -> None:
    """Zones, sheets and shards of a country would make each tile again."""
    planned = [PlannedTile(f"t{n}", 32631, n * 320, 640, 32) for n in range(5)]
    for made in (False, True):
        tiles = PlannedTiles.of(planned)
        whole = list(tiles) if made else planned
        for part in (tiles.chosen(np.array([3, 1])), tiles.chosen(tiles.column("west") >= 640), tiles[1:4], tiles[::2]):
            assert list(part) == [whole[int(tile.name[1:])] for tile in part]
            assert all(tile is whole[int(tile.name[1:])] for tile in part) == made


def test_a_run_without_plan_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"plan.json: the manifest of this plan is missing: run `smalti plan "):
        Plan.read(Run(tmp_path))
    with pytest.raises(SmaltiError, match="no such run directory"):
        Plan.read(Run(tmp_path / "nowhere"))


def test_the_model_job_round_trips_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    run = Run(tmp_path)
    job = ModelJob("demo", None, "int8", 128, "auto")
    write_model_job(run, job)
    stamp = run.model_job.stat().st_mtime_ns
    write_model_job(run, job)
    assert run.model_job.stat().st_mtime_ns == stamp, "an unchanged job is not written again"
    assert read_model_job(run) == job
    run.model_job.write_text(run.model_job.read_text().replace('"dim"', '"dims"'))
    with pytest.raises(FormatError, match=r"model.json: .*dims"):
        read_model_job(run)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "", "a\nb", "a\0b", "x" * 300, None, 7, ["a"]])
def test_a_tile_whose_name_leaves_the_run_is_refused(tmp_path: Path, name: object) -> None:
    run = Run(tmp_path)
    write_manifest(
        run.plan, "plan", inputs={}, files=[], fields={"tile_size": 512, "tiles": [[name, 32631, 573440, 5626880]]}
    )
    with pytest.raises(FormatError, match=r"plan.json: the name .*run `smalti plan .* --force`"):
        planned_tiles(run)


@pytest.mark.parametrize(
    "change",
    [
        {"tiles": None},
        {"tiles": [None]},
        {"tiles": [["a", 32631, 0]]},
        {"tiles": [["a", 32631, 0.5, 0]]},
        {"tiles": [["a", 32631, 10**12, 0]]},
        {"tiles": [["a", 4326, 0, 0]]},
        {"tiles": [["a", 32661, 0, 0]]},
        {"tiles": [["a", 32631, 0, 0], ["a", 32631, 5120, 0]]},
        {"tile_size": 0},
        {"tile_size": 10**9},
        {"tile_size": True},
        {"tile_size": "512"},
    ],
    ids=str,
)
def test_a_plan_that_was_edited_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    run = Run(tmp_path)
    fields = {"tile_size": 512, "tiles": [["a", 32631, 573440, 5626880]], **change}
    write_manifest(run.plan, "plan", inputs={}, files=[], fields=fields)
    with pytest.raises(FormatError, match=r"plan\.json: .*: run `smalti plan .* --force`"):
        planned_tiles(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dim", -1), ("dim", 2.5), ("dim", "x" * 10**6), ("output", "int4"), ("checkpoint", "a\0b"), ("name", ["demo"])],
)
def test_a_model_job_that_was_edited_is_refused_in_one_short_line(tmp_path: Path, key: str, value: object) -> None:
    run = Run(tmp_path)
    write_model_job(run, ModelJob(**{**asdict(ModelJob("demo", None, "int8", 128, "auto")), key: value}))
    with pytest.raises(FormatError, match=rf"model\.json: {key} = .* is no {key} of a model") as caught:
        read_model_job(run)
    assert len(str(caught.value)) < 400
