"""What commands cost on a run of many tiles that are done: seconds and memory, and how both grow.

    python -m bench.country [--tiles 1000 10000 100000]

Runs of so many tiles of 16 pixels are made in a temporary folder, planned by the plan stage, all tiles released and
embedded (embeddings are holes of the right size: nobody reads them here). Then each command runs in a process of its
own: `status`, `submit --dry-run`, a task of fetch, infer, stitch and predict with nothing to do, `stitch` as a whole
likewise, and `sample` with labels on three tiles. Targets: `status` of 100 000 tiles 30 s and 500 MB, a task 3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.contract import (
    FORMAT_VERSION,
    TILE_ARRAYS,
    PlannedTile,
    Run,
    planned_tiles,
    sha256_file,
    write_embedding,
)
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel

if TYPE_CHECKING:
    from preproc.run.config import Config

SIZE, DIM, SHARDS = 16, 128, 100
COMMANDS: dict[str, list[str]] = {
    "status": ["-m", "preproc.cli", "status", "{run}", "--json"],
    "submit --dry-run": ["-m", "preproc.cli", "submit", "{run}", "--dry-run"],
    f"fetch --shard 0/{SHARDS}": ["-m", "preproc.cli", "fetch", "{run}", "--shard", f"0/{SHARDS}"],
    f"infer --shard 0/{SHARDS}": ["-m", "infer", "{run}", "--device", "cpu", "--shard", f"0/{SHARDS}"],
    f"stitch --shard 0/{SHARDS}": ["-m", "preproc.cli", "stitch", "{run}", "--shard", f"0/{SHARDS}"],
    f"predict --shard 0/{SHARDS}": ["-m", "preproc.cli", "predict", "{run}", "--shard", f"0/{SHARDS}"],
    "stitch": ["-m", "preproc.cli", "stitch", "{run}"],
    "sample": ["-m", "preproc.cli", "sample", "{run}"],
    "python, torch": ["-c", "import torch"],
    "smalti --help": ["-m", "preproc.cli", "--help"],
}
MODEL = EmbeddingModel("demo", "made codes", False, "v2-student", None, "v2-student")
STACKS = ("s2", "s1_ascending", "s1_descending")
STACK = {
    "dates_kept": 3,
    "dates_dropped": 0,
    "observations_per_pixel": {"0": 1, "50": 2, "100": 3},
    "pixels_without": 0,
    "largest_gap_days": 120,
}


def manifest(path: Path, kind: str, inputs: dict[str, Any], sizes: dict[str, int], **fields: Any) -> None:
    """A manifest whose files are taken on trust; not written as carefully as a real one, which takes long."""
    files = {name: {"bytes": size, "sha256": "0" * 64, "shape": [SIZE, SIZE, DIM]} for name, size in sizes.items()}
    content = {"format": f"smalti/{kind}", "format_version": FORMAT_VERSION, "software": "bench", "inputs": inputs}
    path.write_text(json.dumps({**fields, **content, "files": files}))


def made_codes(run: Run, tile: PlannedTile, inputs: dict[str, Any]) -> None:
    """An embedding that can be read."""
    codes = np.random.default_rng(0).integers(-100, 100, (SIZE, SIZE, DIM)).astype(np.int8)
    scales = np.full((SIZE, SIZE), 0.01, dtype=np.float32)
    write_embedding(run.embeddings, tile.name, codes, scales, inputs=inputs, about=EmbeddingManifest(model=MODEL))


def label(tile: PlannedTile, crop: str) -> dict[str, Any]:
    """A parcel on it."""
    from pyproj import Transformer

    west, south, _, _ = tile.bounds
    x, y = (
        [west + 20, west + 120, west + 120, west + 20, west + 20],
        [south + 20] * 2 + [south + 120] * 2 + [south + 20],
    )
    degrees = Transformer.from_crs(tile.epsg, 4326, always_xy=True).transform(x, y)
    ring = [list(corner) for corner in zip(*degrees, strict=True)]
    return {
        "type": "Feature",
        "properties": {"crop": crop},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


def make_run(root: Path, tiles: int) -> Run:
    """A run of about that many tiles, all of them released and embedded."""
    import shapely  # here: what a measured process seems to take begins with what its parent takes

    from bench.plan import make_items
    from infer.engine import SEMANTICS
    from preproc.plan.stage import PlanStage
    from preproc.run.config import load_config
    from preproc.run.embedded import embedding_units
    from preproc.run.stage import run_stage
    from preproc.tile.stage import FetchStage

    root.mkdir(parents=True)
    side = tiles**0.5 * SIZE * 10 / 111_000
    region = shapely.box(15.0, 0.5, 15.0 + side, 0.5 + side)
    (root / "items.json").write_text(json.dumps(make_items(region, 200)))
    (root / "run.toml").write_text(
        f'[region]\nbbox = {list(region.bounds)}\nstart = "2023-01-01"\nend = "2023-12-31"\n'
        f'[archive]\nsource = "static"\nhref = "items.json"\n'
        f'[tiles]\nsize = {SIZE}\nkeep = "record"\n[model]\nname = "demo"\nprecision = "float32"\n'
        f'[labels]\npath = "labels.geojson"\nclass = "crop"\n[stitch]\nsheet = {8 * SIZE}\n'
    )
    run = Run(root)
    config = load_config(run)
    run_stage(PlanStage(), run, config)
    run.embeddings.mkdir()
    quality = json.dumps({"region_pixels": SIZE**2, "pixels_unseen": 0, "stacks": dict.fromkeys(STACKS, STACK)})
    series = {spec.file: 1000 for spec in TILE_ARRAYS.values()}
    embedded = embedding_units(run, config)
    for unit in FetchStage().open(run, config).units:
        folder = unit.manifest.parent
        folder.mkdir(parents=True)
        (folder / "quality.json").write_text(quality)
        manifest(unit.manifest, "tile", dict(unit.inputs), {**series, "quality.json": len(quality)})
        manifest(folder / "released.json", "released", {"tile": sha256_file(unit.manifest)}, {})
        sizes = {f"{unit.name}.npy": SIZE**2 * DIM + 128, f"{unit.name}_scales.npy": SIZE**2 * 4 + 128}
        for name, size in sizes.items():
            with (run.embeddings / name).open("wb") as stream:
                stream.truncate(size)
        inputs = {**embedded(unit.name).inputs, "engine": SEMANTICS}
        manifest(run.embeddings / f"{unit.name}.json", "embedding", inputs, sizes, model=asdict(MODEL))
    labelled = planned_tiles(run)[:3]
    for tile in labelled:
        made_codes(run, tile, {**embedded(tile.name).inputs, "engine": SEMANTICS})
    features = [label(tile, crop) for tile, crop in zip(labelled, "aba", strict=True)]
    (root / "labels.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    make_sheets(run, config)
    return run


def make_sheets(run: Run, config: Config) -> None:
    """A mosaic and a map whose sheets are done, as their manifests say, and a classifier."""
    from bench.stitch import make_classifier
    from preproc.classify.predict import PredictSheetsStage
    from preproc.mosaic.stage import StitchStage

    make_classifier(run, np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32))
    for stage in (StitchStage(), PredictSheetsStage()):
        for unit in stage.open(run, config).units:
            unit.manifest.parent.mkdir(exist_ok=True)
            manifest(unit.manifest, unit.kind, dict(unit.inputs), {})


def measured(arguments: list[str], run: Run) -> tuple[float, float, float, str]:
    """Seconds by the clock and of the processor, MiB and the last line of a command."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *(part.format(run=run.root) for part in arguments)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
        _, _, usage = os.wait4(process.pid, 0)
        output.seek(0)
        said = output.read().strip().splitlines()
    seconds, computed = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    return seconds, computed, usage.ru_maxrss / 1024, said[-1] if said else ""


def main() -> int:
    """Make the runs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # in a process of its own, for it needs memory
    parser.add_argument("--tiles", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    if options.make is not None:
        make_run(options.make, options.tiles[0])
        return 0
    for tiles in options.tiles:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "run")
            again = [sys.executable, "-m", "bench.country", "--make", str(run.root), "--tiles", str(tiles)]
            subprocess.run(again, check=True, stderr=subprocess.DEVNULL)
            print(f"{len(planned_tiles(run)):,} tiles", flush=True)
            for name, arguments in COMMANDS.items():
                seconds, computed, memory, said = measured(arguments, run)
                print(
                    f"  {name:<22} {seconds:7.1f} s, processor {computed:6.1f} s {memory:6.0f} MiB  {said[:80]}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
