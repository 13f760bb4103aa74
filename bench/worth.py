"""Is the bundled encoder worth it? `python -m bench.worth FLANDERS WORK` prints tables for its card.

Two grounds, each made once in WORK: real parcels (../shared/data/flanders-2019) within their season, and simulated land
of two years with other fields and other weather, within each year and from either to the other. Only labelled pixels
are embedded, by `smalti compare`; border pixels are out ([classify] shrink). Folds by parcel are dealt five times;
differences from monthly medians are paired: the same parcels are drawn for both.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from infer.contract import Run
from infer.contract.compared import Comparison
from preproc.classify.accuracy import count_matrix, macro_f1
from preproc.classify.methods import METHODS, Method, fit_any, parameters, probabilities
from preproc.classify.performance import paired
from preproc.classify.table import Samples
from preproc.compare.compare import Wishes, compare, field_of
from preproc.compare.entrants import entrants
from preproc.compare.pixels import values_of
from preproc.run.chain import run_one
from preproc.run.config import load_config
from preproc.run.stages import stage_named
from preproc.simulate.demo import simulate_archive
from preproc.simulate.options import Climate, SimulationOptions

TOML = """\
[region]
geometry = "{data}/region.geojson"
start = "{start}"
end = "{end}"
[archive]
source = "static"
href = "{data}/items.json"
[tiles]
size = 64
[model]
name = "demo"
[labels]
path = "{data}/{labels}"
class = "{label}"
group = "{group}"
[classify]
folds = {folds}
min_groups = 4
max_pixels = 150
"""
YEARS = (
    SimulationOptions(seed=11, start=date(2020, 10, 1), end=date(2021, 9, 30), extent_km=1.5, s2_dates=30),
    SimulationOptions(
        seed=12, start=date(2022, 10, 1), end=date(2023, 9, 30), extent_km=1.5, s2_dates=24,
        place=(13.3, 52.6), climate=Climate(season_shift=10, dryness=0.45, cloudiness=0.6),
    ),
)  # fmt: skip
"""Another year, another place, another weather."""


def made_run(root: Path, **settings: object) -> Run:
    """A run that is fetched."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "run.toml").write_text(TOML.format(**settings))
    run = Run(root)
    for stage in ("plan", "fetch"):
        run_one(stage_named(stage), run, load_config(run))
    return run


def compared(run: Run, wishes: Wishes, title: str) -> None:
    """Compare within a run, and print the table."""
    text = compare(run, load_config(run), wishes)
    made = Comparison.read(run)
    names = ", ".join(entry.name for entry in made.classes)
    print(
        f"\n{title}: {made.pixels} pixels of {made.groups} groups ({names}), {made.deals} deals\n\n{text}", flush=True
    )


def labelled(run: Run, wishes: Wishes) -> tuple[Samples, dict[str, np.ndarray]]:
    """The labelled pixels of a compared run, and what each model says of them."""
    config = load_config(run)
    field, folder = field_of(run, config, wishes), Comparison.path(run).parent
    numbers = {
        one.name: values_of(one.embeddings(folder), field.cuts, len(field.samples))
        for one in entrants(config, wishes.models)
    }
    seen_n = np.logical_and.reduce([~np.isnan(values).all(axis=1) for values in numbers.values()])
    return field.samples.take(seen_n), {name: values[seen_n] for name, values in numbers.items()}


def across(runs: tuple[Run, Run], wishes: Wishes, methods: tuple[Method, ...]) -> None:
    """Train in one year and test in the other, both ways, and print the table."""
    sides = [labelled(run, wishes) for run in runs]
    named = [np.array([samples.legend[int(code)] for code in samples.code_n]) for samples, _ in sides]
    kinds = sorted(set(named[0]) & set(named[1]))
    kept = [np.isin(names, kinds) for names in named]
    codes = [np.searchsorted(kinds, names[keep]).astype(np.int32) + 1 for names, keep in zip(named, kept, strict=True)]
    codes_k = np.arange(1, len(kinds) + 1, dtype=np.int32)
    groups = np.concatenate([[f"{way} {group}" for group in sides[way][0].group_n[kept[way]]] for way in (1, 0)])
    truth = np.concatenate([codes[1], codes[0]])
    where = f"{len(truth)} pixels of {len(set(groups))} groups: {', '.join(kinds)}"
    print(f"\nfrom one year and place to another: {where}\n")
    for method in methods:
        said = {}
        for name in wishes.models:
            ways = []
            for train, test in ((0, 1), (1, 0)):
                model = fit_any(sides[train][1][name][kept[train]], codes[train], parameters(method), 0)
                shares = probabilities(model, sides[test][1][name][kept[test]], threads=1)
                ways.append(np.asarray(model.classes_)[shares.argmax(axis=1)])
            said[name] = np.concatenate(ways)
            score = macro_f1(count_matrix(said[name], truth, codes_k))
            found = paired(said[name], said[wishes.models[0]], truth, groups, codes_k, 0)["macro_f1"]
            low, high = found["ci95"]
            told = "" if name == wishes.models[0] else f"{found['value']:+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"{method:<10} {name:<16} {score:.3f}  {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, metavar="FLANDERS", help="../shared/data/flanders-2019")
    parser.add_argument("work", type=Path, metavar="WORK", help="where runs and archives go")
    parser.add_argument("--only", choices=("real", "simulated"), help="one of the two grounds")
    parser.add_argument("--models", default="monthly,demo,demo+monthly", help="the first is what others are taken from")
    parser.add_argument("--methods", default="linear,catboost")
    parser.add_argument("--deals", type=int, default=5)
    asked = parser.parse_args()
    models, methods = tuple(asked.models.split(",")), tuple(asked.methods.split(","))
    chosen = tuple(method for method in METHODS if method in methods)
    wishes = Wishes(models, methods, models[0], asked.deals, 3000)
    if asked.only != "simulated":
        season = {"start": "2018-12-01", "end": "2019-11-30", "folds": 4}
        labels = {"labels": "parcels.geojson", "label": "crop", "group": "parcel"}
        run = made_run(asked.work / "flanders", data=asked.data.resolve(), **labels, **season)
        compared(run, wishes, "Flanders 2019, real parcels")
    runs: list[Run] = []
    for options in YEARS if asked.only != "real" else ():
        archive = asked.work / f"archive-{options.seed}"
        simulate_archive(archive, options)
        season = {"start": options.start, "end": options.end, "folds": 4}
        labels = {"labels": "landcover.geojson", "label": "crop", "group": "parcel"}
        runs.append(made_run(asked.work / f"run-{options.seed}", data=archive.resolve(), **labels, **season))
        compared(runs[-1], wishes, f"simulated land, {options.end.year}")
    if runs:
        across((runs[0], runs[1]), wishes, chosen)


if __name__ == "__main__":
    main()
