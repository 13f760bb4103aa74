"""Is the segmentation head worth it? Maps of CatBoost and of the head against the truth, by distance from field edges.

    python -m bench.segment DEMO            # a run of the demonstration, with its embeddings and archive/truth.tif

Both are trained on the same labelled pixels of that run: within fields (as [classify] shrink leaves them) and, with
--shrink 0, up to their edges. A pixel is at an edge where one of its four neighbours is truly of another class.
Training takes minutes on CPUs; figures of one simulated landscape say little of another.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from infer.contract import Run
from infer.contract.rasters import MapManifest

RINGS = ("at an edge", "1 pixel inside", "2 pixels inside", "further inside")
CLASSIFY = """\
[classify]
folds = 4
trials = 0
method = "{method}"
shrink = {shrink}
max_pixels = {max_pixels}
learning_curve = false
baseline = false

[segment]
steps = {steps}

"""


def rings(truth_hw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(h, w) index of RINGS of every pixel."""
    padded = np.pad(truth_hw, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    edge = np.zeros(truth_hw.shape, dtype=bool)
    for other in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        edge |= other != middle
    result = np.full(truth_hw.shape, len(RINGS) - 1, dtype=np.int64)
    near = edge
    for ring in range(len(RINGS) - 1):
        result[near & (result == len(RINGS) - 1)] = ring
        wide = np.pad(near, 1)
        near = near | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return result


def right(run: Run, truth: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R,) pixels that are right and pixels in all, by ring; of classes that the labels taught."""
    made = MapManifest.read(run)
    codes = {entry.name: entry.code for entry in made.classes}
    names = {int(entry["code"]): entry["crop"] for entry in json.loads(truth.with_name("legend.json").read_text())}
    lookup = np.zeros(256, dtype=np.uint8)
    for code, name in names.items():
        lookup[code] = codes.get(name, 0)
    hits, counts = np.zeros((2, len(RINGS)), dtype=np.int64)
    for zone in made.zones.values():
        with rasterio.open(run.map / zone.classes) as mapped, rasterio.open(truth) as source:
            grid = {"crs": mapped.crs, "transform": mapped.transform, "width": mapped.width, "height": mapped.height}
            with WarpedVRT(source, resampling=Resampling.nearest, nodata=0, **grid) as true:
                found, wanted = mapped.read(1), true.read(1)
        ring, known = rings(wanted), (found > 0) & (lookup[wanted] > 0)
        counts += np.bincount(ring[known], minlength=len(RINGS))
        hits += np.bincount(ring[known & (found == lookup[wanted])], minlength=len(RINGS))
    return hits, counts


def mapped(base: Path, folder: Path, **settings: object) -> Run:
    """A copy of a run, trained and mapped with such settings."""
    run = Run(folder)
    shutil.copytree(
        base, folder, ignore=shutil.ignore_patterns("model", "map", "report", "samples.*", "logs", "mosaic")
    )
    text = re.sub(r"\[classify\]\n(?:[^\[].*\n|\n)*", "", run.config.read_text())
    run.config.write_text(f"{text}\n{CLASSIFY.format(**settings)}")
    for stage in ("sample", "train", "predict"):
        subprocess.run([sys.executable, "-m", "preproc.cli", stage, str(folder)], check=True, capture_output=True)
    return run


def main() -> None:
    """Train, map, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="with embeddings, labels and archive/truth.tif")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--shrink", type=float, action="append", help="may be repeated; default 10 and 0")
    wanted = parser.parse_args()
    truth = wanted.run / "archive" / "truth.tif"
    print(f"| labels | method | {' | '.join(RINGS)} |\n{'| --- ' * (len(RINGS) + 2)}|")
    with tempfile.TemporaryDirectory() as temporary:
        for shrink in wanted.shrink or (10.0, 0.0):
            labels = f"shrunk by {shrink:g} m" if shrink else "up to the edges"
            for method in ("catboost", "segment"):
                folder = Path(temporary) / f"{method}-{shrink:g}"
                limit = 200 if shrink else 100_000
                run = mapped(wanted.run, folder, method=method, shrink=shrink, steps=wanted.steps, max_pixels=limit)
                hits, counts = right(run, truth)
                shares = " | ".join(f"{hit / count:.3f}" for hit, count in zip(hits, counts, strict=True))
                print(f"| {labels} | {method} | {shares} |", flush=True)
        print("pixels: " + ", ".join(f"{count} {name}" for count, name in zip(counts.tolist(), RINGS, strict=True)))


if __name__ == "__main__":
    main()
