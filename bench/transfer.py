"""How well a classifier travels: `python -m bench.transfer` prints a table; see docs/classify.md for what it was.

    python -m bench.transfer [--folder F] [--extent-km 1.2] [--dates 30] [--trials 0] [--method knn] [--flanders F]

Two simulated seasons (other weather, another calendar, eight days later growth), the second one on the same fields and
on others some kilometres away, and a real one (../shared/data/flanders-2019, where it is there) are embedded by the
demonstration encoder. A classifier of the first season maps the others; then one of all is tested on each year and
region, trained on the rest. Everything goes through the command line, as people would do it. Figures are macro-F1 over
the classes that a season has and the classifier knows.

maps    the whole map against the simulation's truth, pixel by pixel
labels  labelled pixels of parcels
rows    accuracy.json of a run with [train] runs: trained on all other years (regions), tested on this one
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from infer.contract import Run
from infer.contract.classification import AccuracyManifest
from infer.contract.rasters import MapManifest
from preproc.classify.accuracy import count_matrix, macro_f1
from preproc.classify.model import load_classifier
from preproc.classify.table import read_samples
from preproc.report.truth import Truth, compare
from preproc.simulate import SimulationOptions, simulate
from preproc.simulate.options import Climate

TOML = """\
[region]
geometry = "{archive}/region.geojson"
start = "{start}"
end = "{end}"
[archive]
source = "static"
href = "{archive}/items.json"
[tiles]
size = 64
[model]
name = "demo"
[classify]
folds = 4
trials = {trials}
method = "{method}"
shrink = {shrink}
"""
LABELS = '[labels]\npath = "{archive}/{file}"\nclass = "crop"\ngroup = "parcel"\n'
SAME, OTHER = (5.905, 50.798), (5.70, 50.84)


@dataclass(frozen=True)
class Season:
    """A season to embed."""

    name: str
    archive: Path
    start: date
    end: date
    labels: str
    shrink: float


def _season(folder: Path, name: str, wanted: argparse.Namespace, **options: object) -> Season:
    archive = folder / f"archive-{name}"
    chosen = SimulationOptions(
        extent_km=wanted.extent_km,
        s2_dates=wanted.dates,
        s1_dates=wanted.dates,
        **options,  # type: ignore[arg-type]
    )
    simulate(archive, chosen)
    return Season(name, archive, chosen.start, chosen.end, "landcover.geojson", 10.0)


def _seasons(folder: Path, wanted: argparse.Namespace) -> list[Season]:
    later = {"start": date(2022, 10, 1), "end": date(2023, 9, 30)}
    climate = Climate(season_shift=8, cloudiness=0.6)
    found = [
        _season(folder, "2022", wanted, seed=1, place=SAME),
        _season(folder, "2023-same-fields", wanted, seed=1, place=SAME, climate=climate, **later),
        _season(folder, "2023-other-fields", wanted, seed=2, place=OTHER, climate=climate, **later),
    ]
    if (wanted.flanders / "items.json").exists():
        window = date(2018, 12, 1), date(2019, 11, 30)
        found.append(Season("flanders-2019", wanted.flanders, *window, "parcels.geojson", 10.0))
    return found


def _smalti(*arguments: object) -> None:
    command = [sys.executable, "-m", "preproc.cli", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"})
    if done.returncode:
        sys.exit(f"smalti {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def _run(folder: Path, season: Season, wanted: argparse.Namespace, *, labels: bool, extra: str = "") -> Run:
    """A run on a season: its embeddings are made once, and a second run on it has them by links."""
    run = Run(folder / f"{season.name}{'' if labels and not extra else '-' + str(len(list(folder.glob('*'))))}")
    run.root.mkdir(parents=True, exist_ok=True)
    text = TOML.format(
        archive=season.archive, start=season.start, end=season.end, shrink=season.shrink,
        trials=wanted.trials, method=wanted.method,
    )  # fmt: skip
    if labels:
        text += LABELS.format(archive=season.archive, file=season.labels)
    run.config.write_text(text + extra)
    _smalti("plan", run.root)
    first = folder / season.name
    for name in ("tiles", "embeddings"):
        if run.root != first and (first / name).is_dir():
            subprocess.run(["cp", "-rl", first / name, run.root / name], check=True)
    _smalti("fetch", run.root)
    _smalti("infer", run.root)
    return run


def _map_score(truth: Truth) -> float:
    """Macro-F1 over the classes that the classifier knows."""
    scores = []
    for each in truth.classes:
        if each.taught:
            scores.append(2 * each.right / (each.pixels + each.mapped))
    return float(np.mean(scores))


def _labels_score(model: Run, other: Run) -> tuple[float, int]:
    """Macro-F1 of a classifier on the labelled pixels of another run, over the classes that both have."""
    classifier, samples = load_classifier(model.model), read_samples(other)
    codes = {entry.name: entry.code for entry in classifier.classes}
    known = np.array([samples.legend[code] in codes for code in samples.code_n.tolist()])
    here = samples.take(known)
    true_n = np.array([codes[here.legend[code]] for code in here.code_n.tolist()])
    codes_k = np.array(sorted(codes.values()))
    best_n = codes_k[classifier.predict_proba(here.values_nc).argmax(axis=1)]
    return macro_f1(count_matrix(best_n, true_n, codes_k)), len(np.unique(here.group_n))


def main() -> None:
    """Make the seasons, train, map, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the runs there")
    parser.add_argument("--extent-km", type=float, default=1.2)
    parser.add_argument("--dates", type=int, default=30)
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--method", default="catboost")
    parser.add_argument("--flanders", type=Path, default=Path(__file__).parents[2] / "shared/data/flanders-2019")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (wanted.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        seasons = _seasons(folder, wanted)
        runs = {}
        for season in seasons:
            runs[season.name] = _run(folder, season, wanted, labels=True)
            _smalti("sample", runs[season.name].root)
        home = runs["2022"]
        for stage in ("train", "predict", "validate"):
            _smalti(stage, home.root)
        told = AccuracyManifest.read(home).performance
        print(f"| trained on | tested on | what | macro-F1 | groups |\n{'| --- ' * 5}|")
        value = told.pixels.macro_f1.value
        print(f"| 2022 | 2022, fields it has not seen | labels | {value:.2f} | {told.pixels.n_groups} |")
        for season in seasons:
            if season.name != "flanders-2019":
                run = runs[season.name]
                if season.name != "2022":
                    run = _run(folder, season, wanted, labels=False, extra=f'[predict]\nmodel = "{home.model}"\n')
                    _smalti("predict", run.root)
                truth = compare(run, MapManifest.read(run), season.archive / "truth.tif")
                print(f"| 2022 | {season.name} | maps | {_map_score(truth):.2f} | {truth.pixels} pixels |")
            if season.name != "2022":
                score, groups = _labels_score(home, runs[season.name])
                print(f"| 2022 | {season.name} | labels | {score:.2f} | {groups} |")
        others = ", ".join(f'"{run.root}"' for name, run in runs.items() if name != seasons[-1].name)
        pool = _run(folder, seasons[-1], wanted, labels=True, extra=f"[train]\nruns = [{others}]\n")
        for stage in ("sample", "train", "validate"):
            _smalti(stage, pool.root)
        for row in AccuracyManifest.read(pool).performance.transfers:
            trained = ", ".join(row.trained_on)
            print(f"| {trained} | {row.tests} | rows by {row.by} | {row.macro_f1.value:.2f} | {row.n_groups} |")


if __name__ == "__main__":
    main()
