"""Labels that may be wrong are listed, right ones mostly are not, and none is dropped."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from support.mosaicked import NAMES, classified_run

from infer.contract import Run, SmaltiError
from preproc.classify.sample import SampleStage
from preproc.classify.train import TrainStage
from preproc.cli import app
from preproc.run.config import Config
from preproc.run.stage import run_stage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Config, list[str]]:
    """Three fields of beet are called maize."""
    run, config = classified_run(tmp_path_factory.mktemp("suspects") / "run")
    path = run.root / "parcels.geojson"
    content = json.loads(path.read_text())
    wrong = [feature for feature in content["features"] if feature["properties"]["crop"] == NAMES[2]][:3]
    for feature in wrong:
        feature["properties"]["crop"] = NAMES[0]
    path.write_text(json.dumps(content))
    (run.root / "run.toml").write_text((run.root / "run.toml").read_text())
    for stage in (SampleStage(), TrainStage()):
        run_stage(stage, run, config)
    return run, config, [str(feature["properties"]["parcel"]) for feature in wrong]


def suspects(run: Run, config: Config, confidence: float = 0.5) -> list[dict[str, str]]:
    from preproc.survey.suspects import suspects as listed

    folder = listed(run, config, confidence)
    with (folder / "suspects.csv").open() as file:
        return list(csv.DictReader(file))


def test_fields_of_a_wrong_name_come_first(made: tuple[Run, Config, list[str]]) -> None:
    run, config, wrong = made
    rows = suspects(run, config)
    assert set(wrong) <= {row["group"] for row in rows[:6]}
    first = rows[0]
    assert (first["labelled"], first["predicted"]) == (NAMES[0], NAMES[2])
    assert first["reason"].startswith("the classifier is sure of another class")
    assert len(rows) < 12, "of 64 fields, three of which are wrong"
    _, _, geometry, _ = pyogrio.raw.read(run.root / "suspects" / "suspects.gpkg")
    points = shapely.from_wkb(geometry)
    parcels = shapely.from_wkb(pyogrio.raw.read(run.root / "parcels.geojson")[2])
    ids = np.array(
        [f["properties"]["parcel"] for f in json.loads((run.root / "parcels.geojson").read_text())["features"]]
    )
    for row, point in zip(rows, points, strict=True):
        assert parcels[ids == int(row["group"])][0].contains(point), "it lies in the field"


def test_equal_runs_list_the_same_bytes_and_nothing_is_dropped(made: tuple[Run, Config, list[str]]) -> None:
    run, config, _ = made
    before = hashlib.sha256(run.samples.read_bytes() + (run.model / "classifier.cbm").read_bytes()).hexdigest()
    suspects(run, config)
    one = {path.name: path.read_bytes() for path in (run.root / "suspects").iterdir()}
    suspects(run, config)
    assert {path.name: path.read_bytes() for path in (run.root / "suspects").iterdir()} == one
    after = hashlib.sha256(run.samples.read_bytes() + (run.model / "classifier.cbm").read_bytes()).hexdigest()
    assert after == before


def test_what_cannot_be_listed_is_said(made: tuple[Run, Config, list[str]], tmp_path: Path) -> None:
    run, config, _ = made
    with pytest.raises(SmaltiError, match=r"--confidence 0\.2: give a number from 0.5 to 1"):
        suspects(run, config, 0.2)
    bare = Run(tmp_path)
    bare.config.write_text(run.config.read_text())
    with pytest.raises(SmaltiError, match="run `smalti train"):
        app(["suspects", str(tmp_path)], standalone_mode=False)
