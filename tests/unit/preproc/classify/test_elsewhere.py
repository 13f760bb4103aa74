"""A classifier that maps a run it was not trained in: what travels with it, what is refused, what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mosaicked import MODEL, classified_run, embed_crops, observe_tiles, planned_run
from typer.testing import CliRunner

from infer.contract import Plan, Run, SmaltiError, read_manifest
from infer.contract.classification import AccuracyManifest, ClassifierManifest
from infer.contract.rasters import MapManifest
from preproc.classify.card import show
from preproc.classify.predict import PredictStage
from preproc.classify.validate import ValidateStage
from preproc.cli import app
from preproc.mosaic.stage import StitchStage
from preproc.report.stage import ReportStage
from preproc.run.chain import run_one
from preproc.run.config import Config, parse_config
from preproc.run.stage import run_stage
from preproc.run.stages import chain, stage_named

CELLS = [(32631, c, r) for r in range(2) for c in range(2)]
TOML = """\
[region]
bbox = [4.0, 50.7, 4.1, 50.8]
start = "2019-12-01"
end = "2020-11-30"
[archive]
source = "mpc"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return classified_run(tmp_path_factory.mktemp("trained") / "run")[0]


@pytest.fixture
def folder(trained: Run, tmp_path: Path) -> Path:
    """A copy of the classifier, far from the run that made it."""
    return shutil.copytree(trained.model, tmp_path / "crops of 2019")


def other_run(root: Path, **embedding: Any) -> Run:
    """The same land a year later, without labels."""
    run = planned_run(root, CELLS)
    plan = Plan.read(run)
    replace(plan, window=(date(2019, 12, 1), date(2020, 11, 30))).write(run.plan, inputs={}, files=[])
    embed_crops(run, noise=1.2, **embedding)
    run.config.write_text(TOML)
    return run


def mapped_by(run: Run, folder: Path | str) -> Config:
    run.config.write_text(f'{TOML}[predict]\nmodel = "{folder}"\n')
    return parse_config(run.config.read_text(), run.config)


def test_a_copy_of_a_classifier_maps_another_run_to_the_last_page(
    folder: Path, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = other_run(tmp_path / "run")
    observe_tiles(run)
    config = mapped_by(run, folder)
    names = [entry.name for entry in chain(config)]
    assert names == ["plan", "fetch", "infer", "stitch", "predict", "validate", "report"]
    run_stage(PredictStage(), run, config)
    said = capsys.readouterr().err
    assert "another season: trained on 2018-12-01 to 2019-11-30; this run is of 2019-12-01 to 2020-11-30" in said
    assert "another archive" not in said
    made, about = MapManifest.read(run).verify(run), ClassifierManifest.read(trained)
    assert made.inputs["classifier"] == about.fingerprint
    assert (made.pixels, [entry.name for entry in made.classes]) == (4 * (32 * 32 - 9), [e.name for e in about.classes])
    run_stage(ValidateStage(), run, config)
    accuracy = AccuracyManifest.read(run)
    assert accuracy.performance.baseline is None, "its labelled pixels have another year's time series here"
    assert accuracy.performance.pixels == AccuracyManifest.read(trained).performance.pixels
    run_stage(StitchStage(), run, config)
    run_stage(ReportStage(), run, config)
    page = (run.report / "index.html").read_text()
    assert "No labels of this place and season" in page
    assert "Trained on" in page
    assert not run.model.exists()


def test_the_command_line_takes_a_classifier_and_explains_it(
    folder: Path, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = other_run(tmp_path / "run")
    shown = CliRunner().invoke(app, ["model", "show", str(folder)])
    assert shown.exit_code == 0
    assert "| 1 | beet &" in shown.output
    assert "2018-12-01 to 2019-11-30" in shown.output
    assert "not the accuracy of a map" in shown.output
    assert shown.output.strip() == show(trained.root).strip(), "a run stands for its classifier"
    assert (folder / "card.md").read_text().strip() == shown.output.strip()
    card = json.loads((folder / "card.json").read_text())
    assert card["classes"][0]["name"].startswith("beet")
    assert card["trained_on"][0]["embedded"]["model"]["checkpoint"] == "ab" * 32
    assert card["recipe"]["folds"] == 2
    monkeypatch.setattr("preproc.run.chain.refuse_stale", lambda *_, **__: None)  # the plan of these tests is made up
    done = CliRunner().invoke(app, ["predict", str(run.root), "--model", str(folder)])
    assert done.exit_code == 0, done.output
    assert run.map_manifest.exists()


def float_numbers(run: Run) -> None:
    embed_crops(run, int8=False)


def fewer_numbers(run: Run) -> None:
    for path in sorted(run.embeddings.glob("t*.json")):
        manifest = read_manifest(path, "embedding", remedy="")
        array = run.embeddings / f"{path.stem}.npy"
        np.save(array, np.load(array)[..., :4])
        from infer.contract.manifest import describe_file

        manifest["files"][array.name] = describe_file(array)
        path.write_text(json.dumps(manifest))


def other_encoder(run: Run) -> None:
    for path in sorted(run.embeddings.glob("t*.json")):
        content = path.read_text().replace("ab" * 32, "cd" * 32)
        path.write_text(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (float_numbers, "trained on embeddings kept as int8 codes, those of this run are kept as float32"),
        (fewer_numbers, "trained on embeddings of 6 numbers, those of this run are of 4"),
        (other_encoder, r"of untrained demonstration model \(abababab\), those of this run are of .*\(cdcdcdcd\)"),
    ],
)
def test_embeddings_of_another_kind_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[Run], None], message: str
) -> None:
    run = other_run(tmp_path / "run")
    change(run)
    with pytest.raises(SmaltiError, match=message) as caught:
        run_stage(PredictStage(), run, mapped_by(run, folder))
    assert len(str(caught.value).splitlines()) == 1
    assert not run.map.exists()


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, r"model\.json: the manifest of this classifier is missing"),
    "no manifest": (lambda f: (f / "model.json").unlink(), r"model\.json: the manifest of this classifier is missing"),
    "cut .cbm": (lambda f: (f / "classifier.cbm").write_bytes(b"CBM1"), r"classifier\.cbm: 4 bytes, model\.json says"),
    "damaged .cbm": (lambda f: flip(f / "classifier.cbm"), r"classifier\.cbm: its contents do not match the checksum"),
    "no .cbm": (lambda f: (f / "classifier.cbm").unlink(), r"classifier\.cbm: missing, though"),
    "damaged card": (lambda f: flip(f / "card.json"), r"card\.json: its contents do not match"),
    "not JSON": (lambda f: (f / "model.json").write_text("{"), r"model\.json: .*run `smalti train`"),
    "another manifest": (lambda f: rewrite(f, format="smalti/map"), r"model\.json: not a smalti classifier manifest"),
    "another version": (lambda f: rewrite(f, format_version=9), r"model\.json: format version 9"),
    "dim is text": (lambda f: rewrite(f, dim="6"), r"model\.json: dim = '6' is not a whole number"),
    "another dim": (lambda f: rewrite(f, dim=5), r"embeddings of 5 numbers, those of this run are of 6"),
    "no classes": (lambda f: rewrite(f, classes=[]), r"model\.json: its classes or dimensions are not those of"),
    "older": (lambda f: rewrite(f, trained_on=[]), r"a classifier of an older version"),
    "path out of it": (lambda f: rewrite(f, files={"../x": {"bytes": 1, "sha256": "0" * 64}}), r"\.\./x"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_folder_that_is_no_whole_classifier_is_refused_in_a_line(name: str, folder: Path, tmp_path: Path) -> None:
    run = other_run(tmp_path / "run")
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(SmaltiError, match=message) as caught:
        run_stage(PredictStage(), run, mapped_by(run, folder))
    assert len(str(caught.value).splitlines()) == 1
    assert not run.map_manifest.exists()


def test_a_file_and_two_classifiers_are_refused(folder: Path, tmp_path: Path) -> None:
    run = other_run(tmp_path / "run")
    with pytest.raises(SmaltiError, match=r"classifier\.cbm: is a file, and a classifier is a folder"):
        run_stage(PredictStage(), run, mapped_by(run, folder / "classifier.cbm"))
    with pytest.raises(SmaltiError, match=r"\[predict\] model names a classifier, and from \[labels\] another"):
        parse_config(f'{TOML}[labels]\npath = "l.gpkg"\nclass = "c"\n[predict]\nmodel = "m"\n', run.config)
    with pytest.raises(SmaltiError, match="`smalti train` has nothing to do"):
        run_one(stage_named("train"), run, mapped_by(run, folder))
    bare = parse_config(TOML, run.config)
    for stage, ways in {
        "sample": r"class \(or value\)$",
        "train": r", or \[train\] runs$",
        "validate": r", \[train\] runs or \[predict\] model$",
    }.items():
        with pytest.raises(SmaltiError, match=rf"\[labels\]: missing: `smalti {stage}` needs .*{ways}"):
            run_one(stage_named(stage), run, bare)


def test_a_dry_run_foresees_a_classifier_of_other_embeddings(folder: Path, tmp_path: Path) -> None:
    from preproc.preflight import check_classifier
    from preproc.run.checks import Verdict

    run = other_run(tmp_path / "run")
    config = mapped_by(run, folder)
    (found,) = check_classifier(config)
    assert found.verdict is Verdict.FAILED
    assert "dim 6, not 128" in found.text
    fitting = config.model_copy(update={"model": config.model.model_copy(update={"dim": 6})})
    assert check_classifier(fitting)[0].verdict is Verdict.OK
    flip(folder / "classifier.cbm")
    assert "do not match the checksum" in check_classifier(fitting)[0].text


def test_another_archive_and_another_length_are_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((folder / "model.json").read_text())["trained_on"]
    about[0]["embedded"] |= {"data_sources": ["aws"], "window": {"start": "2018-03-01", "end": "2018-08-31"}}
    rewrite(folder, trained_on=about)
    run = other_run(tmp_path / "run", model=MODEL)
    run_stage(PredictStage(), run, mapped_by(run, folder))
    said = " ".join(capsys.readouterr().err.split())
    assert "another archive: trained on data of aws; this run has mpc" in said
    assert "a window of another length: trained on 184 days; this run has 366" in said
    assert "begins 90 days away" in said
