"""Is the bundled encoder worth it on real land? `python -m bench.worth FLANDERS WORK` prints a table for its card.

Makes a run of ../shared/data/flanders-2019 in WORK (a minute or two, once), then scores the demo encoder, monthly
medians and both together on its labelled pixels without the parcels' border pixels ([classify] shrink), same folds by
parcel, five deals. The differences from monthly medians are paired: the same parcels are drawn for both, in all deals
at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from infer.contract import Run
from preproc.classify.accuracy import count_matrix, macro_f1
from preproc.classify.folds import groups_per_class
from preproc.classify.performance import paired
from preproc.classify.probe.features import raw_features
from preproc.classify.probe.score import CLASSIFIERS, deal_predictions
from preproc.classify.table import read_samples

PARCELS = 4
"""A class with fewer is left out: a fold would lack it."""
TOML = """\
[region]
geometry = "{data}/region.geojson"
start = "2018-12-01"
end = "2019-11-30"
[archive]
source = "static"
href = "{data}/items.json"
[tiles]
size = 64
[model]
name = "demo"
[labels]
path = "{data}/parcels.geojson"
class = "crop"
group = "parcel"
"""


def made_run(data: Path, work: Path) -> Run:
    work.mkdir(parents=True, exist_ok=True)
    (work / "run.toml").write_text(TOML.format(data=data.resolve()))
    for stage in ("plan", "fetch", "infer", "sample"):
        subprocess.run([sys.executable, "-m", "preproc.cli", stage, str(work)], check=True)
    return Run(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, metavar="FLANDERS")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--deals", type=int, default=5)
    parser.add_argument("--folds", type=int, default=4)
    asked = parser.parse_args()
    run = made_run(asked.data, asked.work)
    samples = read_samples(run)
    groups = groups_per_class(samples.code_n, samples.group_n)
    samples = samples.take(np.isin(samples.code_n, [code for code, count in groups.items() if count >= PARCELS]))
    codes_k = np.unique(samples.code_n)
    demo, monthly = samples.values_nc, raw_features(run, samples)
    tables = {"monthly": monthly, "demo": demo, "demo+monthly": np.concatenate([demo, monthly], axis=1)}
    names = ", ".join(samples.legend[int(code)] for code in codes_k)
    print(f"{len(samples)} pixels of {len(set(samples.group_n))} parcels: {names}; {asked.deals} deals\n")
    print("| features | numbers | classifier | macro-F1 | against monthly, 95 % interval |", flush=True)
    print("| --- | --- | --- | --- | --- |")
    stacked = np.tile(samples.code_n, asked.deals), np.tile(samples.group_n, asked.deals)
    for kind in CLASSIFIERS:
        plain = None
        for name, x_nc in tables.items():
            given = x_nc, samples.code_n, samples.group_n
            found_dn = deal_predictions(kind, *given, folds=asked.folds, deals=asked.deals, seed=0)
            score = np.mean([macro_f1(count_matrix(found_n, samples.code_n, codes_k)) for found_n in found_dn])
            told = ""
            if plain is None:
                plain = found_dn
            else:
                difference = paired(found_dn.ravel(), plain.ravel(), *stacked, codes_k, 0)["macro_f1"]
                low, high = difference["ci95"]
                told = f"{difference['value']:+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"| {name} | {x_nc.shape[1]} | {kind} | {score:.3f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
