"""The demonstration's run directory: settings that load, files that they name, a picture, and no second effort."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.simulated import tree

from infer.contract import Run, SmaltiError
from preproc.report.truth import truth_fingerprint
from preproc.run.config import load_config
from preproc.simulate import SimulationOptions
from preproc.simulate.demo import write_demo_run, write_quicklook

SMALL = SimulationOptions(extent_km=0.5, s2_dates=4, s1_dates=2, neighbour_dates=1, parcel_ha=0.7)


def test_the_demonstration_is_complete_and_its_settings_load(tmp_path: Path) -> None:
    assert write_demo_run(tmp_path / "demo", SMALL).written
    config = load_config(Run(tmp_path / "demo"))
    assert config.region.geometry is not None
    assert config.region.geometry.is_file()
    assert (config.region.start, config.region.end) == (SMALL.start, SMALL.end)
    assert config.archive.source == "static"
    assert Path(str(config.archive.href)).is_file()
    assert config.labels is not None
    assert config.labels.path.is_file()
    assert (config.labels.class_, config.labels.group) == ("crop", "parcel")
    assert config.model.name == "demo"
    assert config.report.truth is not None
    assert truth_fingerprint(config.report.truth).keys() == {"truth", "legend"}
    with rasterio.open(tmp_path / "demo" / "archive.png") as picture:
        assert picture.count >= 3
        assert np.unique(picture.read(1)).size > 50


def test_a_second_time_changes_nothing_and_keeps_edited_settings(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    write_demo_run(run, SMALL)
    before = tree(run)
    assert not write_demo_run(run, SMALL).written
    assert tree(run) == before
    edited = (run / "run.toml").read_text().replace("trials = 12", "trials = 3")
    (run / "run.toml").write_text(edited)
    assert write_demo_run(run, replace(SMALL, seed=5)).written
    assert (run / "run.toml").read_text() == edited
    write_demo_run(tmp_path / "again", replace(SMALL, seed=5))
    assert (tmp_path / "again" / "archive.png").read_bytes() == (run / "archive.png").read_bytes()


def test_somebody_elses_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[region]\nbbox = [5, 50, 6, 51]\n")
    before = tree(tmp_path)
    with pytest.raises(SmaltiError, match=r"run\.toml: not the demonstration's: name another folder"):
        write_demo_run(tmp_path, SMALL)
    assert tree(tmp_path) == before


def test_a_picture_needs_an_archive(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="simulate it again"):
        write_quicklook(tmp_path, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()
