"""Where further labels would help: unsure, unlike what is known, apart from each other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.mosaicked import NAMES, classified_run

from infer.contract import Run, SmaltiError
from preproc.cli import app
from preproc.survey.suggest import choose


def test_unsure_and_unlike_comes_first_and_twins_do_not_follow() -> None:
    values = np.array([[0, 0], [5, 0], [5, 0.01], [0, 3], [9, 9]], np.float32)
    entropy = np.array([0.9, 0.8, 0.8, 0.7, 0.0])
    metres = np.array([[0, 0], [1000, 0], [2000, 0], [3000, 0], [4000, 0]], float)
    known = np.zeros((1, 2), np.float32)
    made = choose(entropy, values, known, metres, count=3, apart=0)
    assert made.at_n.tolist()[0] in (1, 2)  # .8 x 5; the first candidate is like the label, the last is sure
    assert made.at_n.tolist()[1] == 3  # the twin of the first is no news any more
    near = choose(entropy, values, known, metres, count=5, apart=1500)
    taken = metres[near.at_n, 0]
    assert len(taken) == 3
    assert np.diff(np.sort(taken)).min() >= 1500


def test_distances_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    values, known = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(700, 8)).astype(np.float32)
    made = choose(np.ones(300), values, known, rng.uniform(size=(300, 2)), count=1, apart=0)
    nearest = np.linalg.norm(values[:, None] - known, axis=2).min(axis=1)
    assert made.at_n[0] == nearest.argmax()
    assert made.distance_n[0] == pytest.approx(nearest.max() / np.median(nearest), rel=1e-4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return classified_run(tmp_path_factory.mktemp("suggest") / "run")[0]


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.root, tmp_path / "run")
    return Run(tmp_path / "run")


def suggest(run: Run, *more: object) -> None:
    app(["suggest", str(run.root), *map(str, more)], standalone_mode=False)


def test_places_are_written_to_be_labelled_and_never_written_over(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    suggest(run, "--count", 12, "--apart", 60)
    folder = run.root / "suggestions"
    with (folder / "why.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["likeliest"] for row in rows} <= set(NAMES)
    assert all(row["likeliest"] != row["next"] for row in rows)
    assert np.mean([float(row["entropy"]) for row in rows]) > 0.5
    assert "not for accuracy" in (folder / "label.html").read_text()
    assert json.loads((folder / "suggestions.json").read_text())["places"] == 12
    assert "say nothing of the map's accuracy" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    suggest(run, "--count", 12, "--apart", 60)
    assert "complete" in capsys.readouterr().err
    with pytest.raises(SmaltiError, match="holds suggestions from another map or other wishes"):
        suggest(run, "--count", 13, "--apart", 60)
    suggest(run, "--count", 12, "--apart", 60, "--output", run.root / "again")
    assert {path.name: path.read_bytes() for path in (run.root / "again").iterdir()} == before


def test_runs_that_are_not_there_yet_end_with_one_line(run: Run) -> None:
    with pytest.raises(SmaltiError, match="--count, --apart"):
        suggest(run, "--count", 0)
    (run.root / "mine").mkdir()
    (run.root / "mine" / "x").write_text("x")
    with pytest.raises(SmaltiError, match="holds no suggestions"):
        suggest(run, "--output", run.root / "mine")
    path = run.model / "classifier.cbm"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SmaltiError, match=r"classifier.cbm"):
        suggest(run)
    run.map_manifest.unlink()
    with pytest.raises(SmaltiError, match="run `smalti predict"):
        suggest(run)
