"""What is known before anything is paid for: labels, model, engine, disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import shapely
from support.embedded import tiled_run

from infer.contract import FormatError, Plan, Run, SmaltiError
from infer.contract.plan import Cost
from infer.contract.registry import cache_path
from preproc.preflight import check_labels, check_model, names_alike, preflight, refuse
from preproc.run.checks import Verdict
from preproc.run.config import Config, parse_config

TOML = """\
[region]
bbox = [3.0, 50.5, 3.1, 50.6]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
"""


def settings(run: Run, extra: str) -> Config:
    return parse_config(TOML + extra, run.config)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiled_run(tmp_path / "run", across=1, down=1)


def labels(run: Run, names: list[str], lon: float = 3.05, groups: list[str] | None = None) -> str:
    points = [shapely.Point(lon, 50.55 + 0.001 * index) for index in range(len(names))]
    path = run.root / "labels.geojson"
    rows = [
        {
            "type": "Feature",
            "properties": {"crop": name, "farm": (groups or names)[index]},
            "geometry": shapely.geometry.mapping(points[index]),
        }
        for index, name in enumerate(names)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": rows}))
    return '[labels]\npath = "labels.geojson"\nclass = "crop"\n'


def texts(found: list) -> str:
    return "\n".join(f"{item.verdict} {item.text}" for item in found)


def test_labels_are_counted_and_names_that_look_alike_are_shown(run: Run) -> None:
    extra = labels(run, ["wheat", "Wheat ", "maize", "maize", "wheat"], groups=["a", "b", "c", "d", "e"])
    said = texts(check_labels(settings(run, extra + 'group = "farm"\n')))
    assert "ok 5 in the region" in said
    assert "maize (2 in 2)" in said
    assert "'Wheat ' / 'wheat'" in said or "'Wheat' / 'wheat'" in said


@pytest.mark.parametrize(
    ("names", "lon", "extra", "message"),
    [
        (["wheat", "maize"], 9.0, "", "none lies in the region"),
        (["wheat", "wheat"], 3.05, "", "of one class only"),
        (["wheat", "maize"], 3.05, 'group = "farmer"\n', "has no attribute 'farmer'"),
        (["wheat", "maize"], 3.05, '[model]\nname = "demo"\ndim = 100\n', "dim 100: demo gives 16, 32, 64, 128"),
        (["wheat", "maize"], 3.05, '[model]\ncheckpoint = "gone.pt"\n', "gone.pt is missing"),
        (["wheat", "maize"], 3.05, '[model]\nname = "tessera-v2-small"\n', "smalti weights fetch"),
        (["wheat", "maize"], 3.05, '[site]\ncontainer = "gone.sif"\n', "gone.sif: no such container image"),
    ],
)
def test_what_would_stop_the_run_later_is_said_at_once(
    run: Run, names: list[str], lon: float, extra: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "no weights"))
    config = settings(run, labels(run, names, lon) + extra)
    assert preflight(run, config, None).worst is Verdict.FAILED
    with pytest.raises(SmaltiError, match=message.replace("(", r"\(")):
        refuse(run, config, None)


def test_no_engine_is_needed_where_all_embeddings_are_there(run: Run) -> None:
    config = settings(run, '[model]\ncheckpoint = "gone.pt"\n')
    with pytest.raises(SmaltiError, match=r"gone\.pt is missing"):
        refuse(run, config, Plan.read(run))
    run.embeddings.mkdir()
    (run.embeddings / "t00.json").write_text("{}")
    refuse(run, config, Plan.read(run))


@pytest.mark.parametrize("row", ["t00", [], None, 7, {"name": "t00"}])
def test_a_row_of_the_plan_that_is_no_tile_is_said(run: Run, row: object) -> None:
    content = json.loads(run.plan.read_text())
    run.plan.write_text(json.dumps({**content, "tiles": [row]}))
    with pytest.raises(FormatError, match=r"plan\.json: its tiles cannot be read .*: run `smalti plan .* --force`"):
        refuse(run, settings(run, ""), Plan.read(run))


def test_a_full_disk_is_foreseen(run: Run) -> None:
    plan = replace(Plan.read(run), estimate={"fetch": Cost(0, 10**18, 9, 0, 0)})
    found = preflight(run, settings(run, ""), plan)
    assert found.worst is Verdict.FAILED
    assert "free some, or move the run" in found.as_text()


def test_a_truth_that_the_report_would_miss_is_foreseen(run: Run) -> None:
    extra = labels(run, ["wheat", "maize"]) + '[report]\ntruth = "truth.tif"\n'
    with pytest.raises(SmaltiError, match=r"truth: .*truth\.tif: cannot be read .*correct \[report\] truth"):
        refuse(run, settings(run, extra), Plan.read(run))
    for name in ("truth.tif", "legend.json"):
        (run.root / name).write_bytes(b"")
    refuse(run, settings(run, extra), Plan.read(run))


def test_names_that_people_take_for_one() -> None:
    assert names_alike(["Blé", "Ble\u0301", "blé ", "maize"]) == [["Blé", "Ble\u0301", "blé "]]


def test_an_archive_of_other_data_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "w"))
    for theirs, source, ours in (("aws", "mpc", "mpc"), ("mpc", "earth-search", "aws")):
        weights = cache_path(f"tessera-v1.1-{theirs}")
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"x")
        text = TOML.replace('"mpc"', f'"{source}"') + f'[model]\nname = "{weights.parent.name}"\n'
        said = texts(check_model(parse_config(text, run.config)))
        assert f"trained on {theirs} data, the archive is {ours}" in said
