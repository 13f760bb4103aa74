"""The page of a run that maps a number (yield, height, biomass): its map, its figures, where it comes from."""

from __future__ import annotations

from typing import Any

from infer.contract import SOFTWARE, Plan, Run, SmaltiError, sha256_file, verify_files
from infer.contract.classification import ValueAccuracyManifest, ValueFigures
from infer.contract.rasters import MosaicManifest, ValueMapManifest
from preproc.report.figures import study_chart
from preproc.report.inputs import is_simulated
from preproc.report.pictures import data_uri, embedding_pictures, value_pictures
from preproc.run.classifier import MANIFEST, file_of, model_folder, read_regressor
from preproc.run.config import Config

TRIALS = "trials.jsonl"
_REMEDY = "run `smalti train` again"


def fingerprint(run: Run, config: Config) -> dict[str, str]:
    """SHA-256 of every manifest that the page tells of.

    Raises:
        FormatError: if one is missing or not what it should be; the message says which command makes it.
    """
    Plan.read(run)
    found = {"plan": sha256_file(run.plan)}
    for name, kind in (("mosaic", MosaicManifest), ("map", ValueMapManifest), ("accuracy", ValueAccuracyManifest)):
        kind.read(run)
        found[name] = sha256_file(kind.path(run))
    folder = model_folder(run, config)
    read_regressor(folder)
    return {**found, "model": sha256_file(file_of(folder, MANIFEST))}


def context(run: Run, config: Config) -> dict[str, Any]:
    """Everything that the template shows.

    Raises:
        SmaltiError: if something is missing or damaged, or if parts were made from different models.
    """
    folder = model_folder(run, config)
    about, made, accuracy = (
        read_regressor(folder),
        ValueMapManifest.read(run).verify(run),
        ValueAccuracyManifest.read(run),
    )
    verify_files(file_of(folder, MANIFEST), about.files, remedy=_REMEDY)
    pairs = {
        "the map was made by another model": (made.inputs.get("classifier"), about.fingerprint),
        "accuracy.json is about another model": (accuracy.inputs.get("model"), about.files_fingerprint),
    }
    for problem, (one, other) in pairs.items():
        if one != other:
            raise SmaltiError(f"{run.root}: {problem}: run `smalti run {run.quoted}` to bring the run up to date")
    plan = Plan.read(run)
    pictures, low, high = value_pictures(run, made)
    trials = file_of(folder, TRIALS).read_text().splitlines() if TRIALS in about.files else []  # older models have none
    return {
        "plan": plan,
        "made": made,
        "model": about,
        "accuracy": accuracy,
        "rows": _rows(accuracy),
        "pictures": pictures,
        "range": (low, high),
        "scatter": data_uri(file_of(folder, "scatter.png").read_bytes()),
        "previews": embedding_pictures(run, MosaicManifest.read(run)),
        "tuning": about.tuning,
        "study": study_chart(trials, "Pinball loss", less=True),
        "elsewhere": config.labels is None,
        "simulated": is_simulated(run),
        "software": SOFTWARE,
    }


def _rows(accuracy: ValueAccuracyManifest) -> list[tuple[str, ValueFigures]]:
    """The table of figures: what was tested, and how well."""
    rows = [("all pixels", accuracy.pixels), ("all groups, their means", accuracy.groups)]
    rows += [(fold.tests or f"fold {fold.fold}", fold.figures) for fold in accuracy.folds]
    rows += [(f"{row.tests}, of a model of {', '.join(row.trained_on)}", row.figures) for row in accuracy.transfers]
    if accuracy.held_out is not None:
        rows.append(("held out, used once", accuracy.held_out.figures))
    return rows
