"""The plan stage: what it writes, when it is current, what it refuses, and what it says of cost."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from support.service import serve, stac_api
from support.stac import SEASON, Api, collection, item, page, write

from infer.contract import FormatError, Plan, PlannedTile, Run, SmaltiError, planned_tiles, read_model_job
from infer.contract.manifest import describe_file
from infer.contract.plan import TILES_FILE
from preproc.catalogue import items as items_module
from preproc.catalogue.items import SCENES_FILE, SceneIndex, TileScenes, load_scenes, scenes_near
from preproc.catalogue.scene import OffsetPolicy
from preproc.plan.estimate import SeasonCounts, Work, count_season, estimate
from preproc.plan.stage import PlanStage, dry_run
from preproc.plan.text import render_plan
from preproc.region import region as region_module
from preproc.region.vector import read_vector
from preproc.run.config import Config, load_config
from preproc.run.stage import run_stage
from preproc.run.text import human_bytes, human_time

TOML = """
[region]
bbox = [4.05, 50.74, 4.07, 50.75]
start = "2021-06-01"
end = "2021-06-30"
[archive]
source = "static"
href = "../items.json"
[tiles]
size = 64
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write(tmp_path / "items.json", collection(*SEASON))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(TOML)
    return Run(folder)


def plan(run: Run, *, force: bool = False) -> Config:
    config = load_config(run)
    run_stage(PlanStage(), run, config, force=force)
    return config


def edit(run: Run, old: str, new: str) -> None:
    text = run.config.read_text()
    assert old in text
    run.config.write_text(text.replace(old, new))


def states(run: Run) -> list[str]:
    return [unit.state(checksums=True).kind for unit in PlanStage().open(run, load_config(run)).units]


def outputs(run: Run) -> dict[str, bytes]:
    files = [path for path in run.root.rglob("*") if path.is_file() and run.logs not in path.parents]
    return {path.relative_to(run.root).as_posix(): path.read_bytes() for path in files if path.name != "run.toml"}


def test_what_is_written(run: Run) -> None:
    config = plan(run)
    content = Plan.read(run)
    assert content.tile_size == 64
    assert content.window == (date(2021, 6, 1), date(2021, 6, 30))
    assert content.source == "static"
    tiles = planned_tiles(run)
    assert tiles[0] == PlannedTile("31N_E0573440_N5623040", 32631, 573440, 5623040, 64)
    assert tiles == list(content.tiles)
    assert content.scenes.s2.scenes == 28
    assert content.scenes.s1_ascending.days["2021-06-04"] == 1
    assert content.scenes.s1_descending.scenes == 0
    assert sorted(content.files) == ["items/sentinel-1-rtc_2021-06.json", "items/sentinel-2-l2a_2021-06.json"]
    assert read_model_job(run) == config.model.job()
    scenes = load_scenes(run, config)
    assert len(scenes) == 38
    assert [(scene.day, scene.id) for scene in scenes] == sorted((scene.day, scene.id) for scene in scenes)
    assert scenes[0].assets
    assert all(Path(href).is_absolute() for scene in scenes for href in scene.assets.values())


def test_again_nothing_is_done_and_by_force_the_same_bytes_come(run: Run) -> None:
    plan(run)
    first = outputs(run)
    assert states(run) == ["complete", "complete"]
    plan(run)
    assert outputs(run) == first
    plan(run, force=True)
    assert outputs(run) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("4.07", "4.08"),
        ("2021-06-30", "2021-06-29"),
        ("size = 64", "size = 32"),
        ('href = "../items.json"', 'href = "../items.json"\ndata_source = "aws"'),
    ],
)
def test_changed_settings_make_it_stale_and_a_new_plan_replaces_all(run: Run, old: str, new: str) -> None:
    plan(run)
    edit(run, old, new)
    if "aws" in new:  # items like Planetary Computer's, said to be Earth Search's: all before 2022, so nothing to guess
        assert states(run)[0] == "stale"
        plan(run)
        assert {scene.data_source for scene in load_scenes(run, load_config(run))} == {"aws"}
        return
    assert states(run) == ["stale", "complete"]
    plan(run)
    assert states(run) == ["complete", "complete"]


@pytest.mark.parametrize("key", ["[model]\nname = 'demo'\noutput = 'float32'", "[site]\nworkers = 3", "on_missing"])
def test_other_settings_do_not(run: Run, key: str) -> None:
    plan(run)
    before = Plan.read(run)
    if key == "on_missing":
        edit(run, "[tiles]", 'on_missing = "drop-date"\n[tiles]')
    else:
        run.config.write_text(run.config.read_text() + key)
    assert states(run)[0] == "complete"
    assert states(run)[1] == ("stale" if "model" in key else "complete")
    config = plan(run)
    assert Plan.read(run) == before
    assert read_model_job(run) == config.model.job()
    assert states(run) == ["complete", "complete"]


def test_a_changed_local_archive_is_searched_again_and_one_that_is_gone_is_not_missed(run: Run, tmp_path: Path) -> None:
    plan(run)
    write(tmp_path / "items.json", collection(*SEASON[:20]))
    assert states(run)[0] == "stale"
    plan(run)
    assert Plan.read(run).scenes.s2.scenes == 20
    (tmp_path / "items.json").unlink()
    assert states(run) == ["complete", "complete"]


@pytest.mark.parametrize("damage", ["plan", "items", "model", "items gone"])
def test_damage_is_seen_and_healed(run: Run, damage: str) -> None:
    config = plan(run)
    good = outputs(run)
    path = {"plan": run.plan, "model": run.model_job}.get(damage, run.items / "sentinel-2-l2a_2021-06.json")
    if damage == "items gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    assert "broken" in states(run)
    if damage.startswith("items"):
        with pytest.raises(FormatError, match=r"sentinel-2-l2a_2021-06.json: .*run `smalti plan"):
            load_scenes(run, config)
    plan(run)
    assert outputs(run) == good


def test_a_search_that_fails_leaves_the_old_plan(run: Run, tmp_path: Path) -> None:
    plan(run)
    good = outputs(run)
    write(tmp_path / "items.json", collection(item("x", "2019-01-01T00:00:00Z")))
    with pytest.raises(SmaltiError, match="no item of the region"):
        plan(run)
    assert outputs(run) == good


def test_a_dry_run_writes_nothing_and_says_what_it_will_cost(run: Run) -> None:
    text = dry_run(run, load_config(run))[0]
    assert sorted(path.name for path in run.root.iterdir()) == ["run.toml"]
    for words in (
        "bbox",
        "2021-06-01 to 2021-06-30",
        "of 64 x 64 pixels",
        "Sentinel-2: 28 on 28 days",
        "fetch",
        "infer",
    ):
        assert words in text
    plan(run)
    shown = render_plan(Plan.read(run)).splitlines()
    assert [line for line in text.splitlines() if line in shown] == shown
    assert "What lies on disk" in text, "and what that comes to with the run's settings"


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([entry for entry in SEASON if entry["id"].startswith("S1")], "10 Sentinel-1 scenes but no Sentinel-2 scene"),
        ([{**SEASON[0], "assets": {}}], r"1 items found, none of use: 1 of them: has no assets"),
        ([{**SEASON[0], "assets": {"B04": "x.tif"}}], r"1 items found, none of use: 1 of them: has no assets"),
        ([{**SEASON[0], "id": None}], r"1 items found, none of use: 1 of them: has no id"),
        ([{**SEASON[0], "collection": "sentinel-2-l1c"}], "none of use: 1 of them: is of collection sentinel-2-l1c"),
        ([], "no item of the region"),
    ],
)
def test_seasons_that_cannot_be_used(run: Run, tmp_path: Path, items: list[dict[str, Any]], words: str) -> None:
    write(tmp_path / "items.json", collection(*items))
    with pytest.raises(SmaltiError, match=words):
        dry_run(run, load_config(run))[0]


def test_warnings(run: Run, tmp_path: Path) -> None:
    broken = copy.deepcopy(SEASON[0])
    del broken["assets"]["B05"]
    write(tmp_path / "items.json", collection(broken, *SEASON[1:5], {**SEASON[-1], "assets": {"vv": {"href": "x"}}}))
    edit(run, "2021-06-30", "2021-09-30")
    text = dry_run(run, load_config(run))[0]
    assert "Warning: no Sentinel-1 scene was found" in text
    assert "has 5 Sentinel-2 dates before clouds are counted" in text
    assert "Warning: no Sentinel-2 scene for 117 days from 2021-06-05" in text
    assert "Warning: 1 Sentinel-2 items lack a band and will be left out, for example S2_01" in text
    assert "left out   1 items (such as S1_28): lacks VV or VH" in text
    assert "longer than a year" not in text
    assert "at all" not in text


def test_a_region_beyond_the_archive_is_warned_of(run: Run) -> None:
    """Most of it would be empty, and one tile with few dates does not sound like that."""
    edit(run, "4.07, 50.75]", "6.0, 50.75]")
    text = dry_run(run, load_config(run))[0]
    found = re.search(
        r"Warning: (\d+) of (\d+) tiles looked at have no Sentinel-2 scene at all, for example 31N_E", text
    )
    assert found
    assert 0 < int(found[1]) < int(found[2])
    assert "before clouds are counted" not in text


@pytest.mark.parametrize(
    ("start", "end", "long"), [("2020-07-01", "2021-06-30", False), ("2020-06-30", "2021-06-30", True)]
)
def test_a_window_over_two_years_is_warned_of(run: Run, start: str, end: str, long: bool) -> None:
    text = run.config.read_text()
    run.config.write_text(
        re.sub(r'start = "\S+"', f'start = "{start}"', re.sub(r'end = "\S+"', f'end = "{end}"', text))
    )
    text = dry_run(run, load_config(run))[0]
    assert (f"the window ({start} to {end}) is longer than a year" in text) is long


def test_duplicates_are_counted(run: Run, tmp_path: Path) -> None:
    again = {**SEASON[0], "id": "S2_01_again"}
    write(tmp_path / "items.json", collection(*SEASON, again))
    assert "left out   1 older copies" in dry_run(run, load_config(run))[0]


def test_planning_from_a_real_api(run: Run, tmp_path: Path) -> None:
    with stac_api(tmp_path / "items.json") as url:
        edit(run, 'source = "static"\nhref = "../items.json"', f'source = "mpc"\nurl = "{url}"')
        config = plan(run)
    assert Plan.read(run).source == "mpc"
    scenes = load_scenes(run, config)
    assert len(scenes) == 38
    assert {scene.data_source for scene in scenes} == {"mpc"}
    assert {scene.offset for scene in scenes} == {OffsetPolicy.NONE}


def test_the_api_is_asked_once_whatever_the_number_of_tiles(run: Run) -> None:
    api = Api(lambda number, root: page(SEASON, root, None))
    with serve(api) as service:
        edit(run, 'source = "static"\nhref = "../items.json"', f'source = "mpc"\nurl = "{service.url}"')
        plan(run)
        plan(run)
    assert len(planned_tiles(run)) > 3
    assert api.searches == 1


def test_the_real_season(tmp_path: Path, shared: Path) -> None:
    flanders = shared / "data" / "flanders-2019"
    (tmp_path / "run.toml").write_text(
        f'[region]\ngeometry = "{flanders}/region.geojson"\nstart = "2018-12-01"\nend = "2019-11-30"\n'
        f'[archive]\nsource = "static"\nhref = "{flanders}/items.json"\n'
    )
    config = plan(Run(tmp_path))
    content = Plan.read(Run(tmp_path))
    assert [tile.name for tile in content.tiles] == ["31N_E0573440_N5626880"]
    assert content.scenes.s2.scenes == 53
    assert content.scenes.s1_ascending.scenes == 59
    assert content.scenes.rejected == ()
    assert content.warnings == ()
    for scene in load_scenes(Run(tmp_path), config):
        assert all(Path(href).is_file() for href in scene.assets.values())


def test_killed_in_the_middle_the_next_run_completes(run: Run) -> None:
    """Between the new items and the new plan: the old plan is gone, the items alone are no plan."""
    plan(run)
    good = outputs(run)
    code = (
        "import os, sys; from pathlib import Path; import preproc.plan.stage as plan;"
        "from infer.contract import Run, record;"
        "from preproc.run.config import load_config; from preproc.run.stage import run_stage;"
        "record.write_manifest = lambda *a, **k: os.kill(os.getpid(), 9);"
        "run = Run(Path(sys.argv[1])); run_stage(plan.PlanStage(), run, load_config(run), force=True)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(run.root)], capture_output=True, check=False)
    assert killed.returncode == -9
    assert states(run)[0] == "missing"
    plan(run)
    assert outputs(run) == good


def test_the_estimate_grows_with_the_work(run: Run) -> None:
    config = load_config(run)
    season = SeasonCounts(60, 70, 100, 110, 55, "t")
    one = estimate(Work(1, 512, 512**2, season, 7_000_000, 2), config)
    many = estimate(Work(1000, 512, 1000 * 512**2, season, 7_000_000, 2), config)
    for stage, costs in one.items():
        for key in ("read_bytes", "written_bytes", "seconds"):
            assert (
                getattr(many[stage], key) == pytest.approx(1000 * getattr(costs, key), rel=0.1)
                or getattr(costs, key) < 10
            )
        assert many[stage].memory_bytes == costs.memory_bytes


def test_the_estimate_is_of_the_right_order(run: Run) -> None:
    """A tile's arrays are known exactly: 21 bytes a pixel and Sentinel-2 date kept, 4 a Sentinel-1 date."""
    season = SeasonCounts(100, 100, 100, 100, 100, "t")
    costs = estimate(Work(1, 512, 512**2, season, 7_000_000, 2), load_config(run))
    assert costs["fetch"].written_bytes == pytest.approx(512**2 * (60 * 21 + 100 * 4), rel=0.05)
    assert costs["infer"].written_bytes == pytest.approx(512**2 * 132, rel=0.05)


def test_the_season_is_a_mean_over_tiles(run: Run, tmp_path: Path) -> None:
    config = plan(run)
    scenes = load_scenes(run, config)
    season = count_season({"a": scenes, "b": [scene for scene in scenes if scene.day.day < 11]})
    assert (season.s2_days, season.s1_days) == ((28 + 10) / 2, (10 + 4) / 2)
    assert (season.least_s2_days, season.least_tile) == (10, "b")


def test_units_for_people() -> None:
    assert [human_bytes(value) for value in (12, 3_400, 2.5e9, 7e15)] == ["12 B", "3.4 kB", "2.5 GB", "7 PB"]
    assert [human_time(value) for value in (0.2, 30, 600, 7200, 9e5)] == ["< 1 s", "30 s", "10 min", "2 h", "10 days"]


def test_a_region_without_crs_fails_before_the_search(run: Run, tmp_path: Path) -> None:
    import numpy as np
    import pyogrio

    square = np.array([shapely.to_wkb(shapely.box(4, 50, 5, 51))], dtype=object)
    with pytest.warns(UserWarning, match="crs"):
        pyogrio.raw.write(
            tmp_path / "r.gpkg", geometry=square, field_data=[], fields=[], geometry_type="Polygon", crs=None
        )
    edit(run, "bbox = [4.05, 50.74, 4.07, 50.75]", 'geometry = "../r.gpkg"')
    with pytest.raises(SmaltiError, match=r"r.gpkg: has no CRS"):
        plan(run)
    assert not run.plan.exists()


def test_a_region_file_is_read_again_when_its_bytes_are_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(east: float, **more: object) -> None:
        ring = [[4.05, 50.74], [east, 50.74], [east, 50.75], [4.05, 50.75], [4.05, 50.74]]
        drawn = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        write(tmp_path / "region.geojson", {"type": "FeatureCollection", "features": [drawn], **more})

    draw(4.07)
    edit(run, "bbox = [4.05, 50.74, 4.07, 50.75]", 'geometry = "../region.geojson"')
    config = plan(run)
    assert Plan.read(run).region.read_from is not None
    reads: list[Path] = []
    monkeypatch.setattr(
        region_module, "read_vector", lambda path, **how: reads.append(path) or read_vector(path, **how)
    )

    def state() -> str:
        return PlanStage().open(run, config).units[0].state().kind

    assert (state(), len(reads)) == ("complete", 0)
    draw(4.07, name="written anew")
    assert (state(), len(reads)) == ("complete", 1), "other bytes, the same outline"
    draw(4.0701)
    assert (state(), len(reads)) == ("stale", 2)
    plan(run)
    assert (state(), len(reads)) == ("complete", 4), "to see that it is due, and to make it"
    (tmp_path / "region.geojson").unlink()
    with pytest.raises(SmaltiError, match="no such file"):
        state()


def test_the_plan_is_json_without_times_or_hosts(run: Run) -> None:
    plan(run)
    text = run.plan.read_text()
    import socket

    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert json.loads(text)["format"] == "smalti/plan"


# --- a country: tables beside plan.json, of which a task reads its part


def test_a_large_plan_has_its_tiles_and_scenes_in_tables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan(run)
    small, scenes = planned_tiles(run), load_scenes(run, config)
    assert not (run.root / TILES_FILE).exists(), "a small plan is read by people"
    monkeypatch.setattr("infer.contract.plan._ROWS_IN_JSON", 2)
    monkeypatch.setattr("preproc.catalogue.items._INDEXED", 2)
    plan(run, force=True)
    assert states(run) == ["complete", "complete"]
    assert json.loads(run.plan.read_text())["tiles"] == len(small) > 2
    assert planned_tiles(run) == small
    assert Plan.read(run).tiles == small
    assert planned_tiles(run)[1::3] == list(small)[1::3]
    assert load_scenes(run, config) == scenes
    whole = SceneIndex(scenes)
    for share in (small, small[:1], small[2:5]):
        near = scenes_near(run, config, share)
        assert list(SceneIndex(near).for_tiles(share)) == list(whole.for_tiles(share))
    monkeypatch.undo()
    plan(run, force=True)
    assert planned_tiles(run) == small
    assert not {TILES_FILE, SCENES_FILE} & {path.name for path in run.root.iterdir()}, "what the large plan had"


def test_a_task_parses_the_items_near_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(4.05 + 0.1 * step, 4.06 + 0.1 * step) for step in range(8)]
    items = [
        item(f"S2_{number}", f"2021-06-0{number + 1}T10:00:00Z", box=(west, 50.74, east, 50.75))
        for number, (west, east) in enumerate(places)
    ]
    write(tmp_path / "items.json", collection(*items))
    run = Run(tmp_path / "run")
    run.root.mkdir()
    run.config.write_text(TOML.replace("4.07", "4.85"))
    monkeypatch.setattr("preproc.catalogue.items._INDEXED", 2)
    config = plan(run)
    parsed: list[str] = []
    really = items_module._parsed
    monkeypatch.setattr(items_module, "_parsed", lambda item, *rest: parsed.append(item["id"]) or really(item, *rest))
    tiles = [tile for tile in planned_tiles(run) if tile.west < 574_500]
    found = TileScenes(run, config)
    assert list(found.for_tiles([])) == [], "of a run whose tiles are all imported"
    assert [[scene.id for scene in scenes] for scenes in found.for_tiles(tiles)] == [["S2_0"]] * len(tiles)
    assert parsed == ["S2_0"]
    other = planned_tiles(run)[-1]
    assert found.for_tile(other) == SceneIndex(load_scenes(run, config)).for_tile(other), "others are found as well"


@pytest.mark.parametrize("name", [TILES_FILE, SCENES_FILE])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_table_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, damage: str) -> None:
    monkeypatch.setattr("infer.contract.plan._ROWS_IN_JSON", 2)
    monkeypatch.setattr("preproc.catalogue.items._INDEXED", 2)
    config = plan(run)
    path = run.root / name
    content = path.read_bytes()
    path.write_bytes(content[:-20] if damage == "cut" else content[:-20] + bytes(20))
    if damage == "gone":
        path.unlink()
    with pytest.raises(FormatError, match=rf"{name}: .*run `smalti plan"):
        scenes_near(run, config, planned_tiles(run)[:1])
    assert "broken" in states(run)
    plan(run, force=damage == "changed")  # of the same size: found by those who read it
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", ["names", "zone", "place", "short", "numbers"])
def test_a_table_of_no_tiles_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.setattr("infer.contract.plan._ROWS_IN_JSON", 2)
    plan(run)
    about, path = Plan.read(run), run.root / TILES_FILE
    rows = np.load(path)
    if change == "names":
        rows[:, 12:] = rows[0, 12:]
    elif change == "zone":
        rows[0, :4] = 0
    elif change == "place":
        rows[0, 4:8] = 127
    elif change == "short":
        rows = rows[1:]
    else:
        rows = rows.astype(np.int32)
    np.save(path, rows)
    content = json.loads(run.plan.read_text())
    content["files"][TILES_FILE] = describe_file(path)
    run.plan.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r": run `smalti plan .* --force`"):
        planned_tiles(run)
    assert len(about.tiles) > 2
