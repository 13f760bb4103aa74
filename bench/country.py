"""What commands cost on a run of many tiles that are done: seconds and memory, and how both grow.

    python -m bench.country [--tiles 1000 10000 100000]

Runs of so many tiles of 32 pixels (above 10 000 of 16) are made in a temporary folder, planned by the plan stage, all
tiles released and embedded (most embeddings are holes of the right size: nobody reads them here). Then each command
runs in a process of its own: `status`, `submit --dry-run`, a task of fetch, infer, stitch and predict with nothing to
do, `stitch` as a whole likewise, and `sample`. Targets: `status` of 100 000 tiles 30 s and 500 MB, a task 3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.contract import (
    FORMAT_VERSION,
    TILE_ARRAYS,
    Inputs,
    PlannedTile,
    Run,
    planned_tiles,
    sha256_text,
    write_embedding,
)
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel

if TYPE_CHECKING:
    from preproc.run.config import Config

DIM, SHARDS = 128, 100
LABELLED = 300
"""Tiles with a label each."""
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
DAYS = [f"2023-{1 + day // 28:02d}-{1 + day % 28:02d}" for day in range(0, 330, 8)]
STACK = {
    "dates_kept": len(DAYS),
    "dates_dropped": 0,
    "dropped_for": {},
    "observations_per_pixel": {str(share): len(DAYS) for share in (0, 5, 25, 50, 75, 95, 100)},
    "pixels_without": 0,
    "largest_gap_days": 8,
}
SEASON = {
    "dates": dict.fromkeys(STACKS, DAYS),
    "items": {stack: {day: [f"S2A_MSIL2A_{day}_R008_{n:020d}" for n in range(3)] for day in DAYS} for stack in STACKS},
    "window": {"start": DAYS[0], "end": DAYS[-1]},
}
"""As long as a real season: some twenty kilobytes."""


def manifest_text(kind: str, inputs: Inputs, sizes: Mapping[str, int], **fields: Any) -> str:
    """A manifest as they are laid out, whose files are taken on trust."""
    files = {name: {"bytes": size, "sha256": "0" * 64, "shape": [1, 1, DIM]} for name, size in sizes.items()}
    content = {"format": f"smalti/{kind}", "format_version": FORMAT_VERSION, "software": "bench", "inputs": inputs}
    return json.dumps({**fields, **content, "files": files}, indent=1, sort_keys=True)


def manifest_template(kind: str, sizes: Mapping[str, int], **fields: Any) -> str:
    """One of many tiles: INPUTS and NAME stand for what differs, for to lay it out takes long."""
    return manifest_text(kind, {"INPUTS": 0}, sizes, **fields)


def filled(template: str, inputs: Inputs, name: str) -> str:
    """The manifest of a tile."""
    return template.replace('"INPUTS": 0', json.dumps(inputs)[1:-1]).replace("NAME", name)


def made_codes(run: Run, tile: PlannedTile, inputs: Inputs) -> None:
    """An embedding that can be read."""
    codes = np.random.default_rng(0).integers(-100, 100, (tile.size, tile.size, DIM)).astype(np.int8)
    scales = np.full((tile.size, tile.size), 0.01, dtype=np.float32)
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
    from infer.due import SEMANTICS
    from preproc.plan.stage import PlanStage
    from preproc.run.config import load_config
    from preproc.run.embedded import embedding_units
    from preproc.run.stage import run_stage
    from preproc.tile.stage import FetchStage

    root.mkdir(parents=True)
    size = 32 if tiles <= 10_000 else 16
    side = tiles**0.5 * size * 10 / 111_000
    region = shapely.box(15.0, 0.5, 15.0 + side, 0.5 + side)
    (root / "items.json").write_text(json.dumps(make_items(region, 200)))
    (root / "run.toml").write_text(
        f'[region]\nbbox = {list(region.bounds)}\nstart = "2023-01-01"\nend = "2023-12-31"\n'
        f'[archive]\nsource = "static"\nhref = "items.json"\n'
        f'[tiles]\nsize = {size}\nkeep = "record"\n[model]\nname = "demo"\nprecision = "float32"\n'
        f'[labels]\npath = "labels.geojson"\nclass = "crop"\n[stitch]\nsheet = {8 * size}\n'
    )
    run = Run(root)
    config = load_config(run)
    run_stage(PlanStage(), run, config)
    run.embeddings.mkdir()
    quality = {"region_pixels": size**2, "pixels_unseen": 0, "stacks": dict.fromkeys(STACKS, STACK)}
    quality_text = json.dumps(quality, indent=1, sort_keys=True)
    series = {spec.file: 1000 for spec in TILE_ARRAYS.values()}
    tile_text = manifest_template("tile", {**series, "quality.json": len(quality_text)}, **SEASON)
    sizes = {"": size**2 * DIM + 128, "_scales": size**2 * 4 + 128}
    embedding = manifest_template("embedding", {f"NAME{k}.npy": v for k, v in sizes.items()}, model=asdict(MODEL))
    released = manifest_template("released", {})
    embedded = embedding_units(run, config)
    session = FetchStage().open(run, config)
    units = list(session.units)
    session.ahead(units)
    for unit in units:
        folder = unit.manifest.parent
        folder.mkdir(parents=True)
        (folder / "quality.json").write_text(quality_text)
        text = filled(tile_text, unit.wanted(), unit.name)
        unit.manifest.write_text(text)
        digest = sha256_text(text)
        (folder / "released.json").write_text(filled(released, {"tile": digest}, unit.name))
        for suffix, length in sizes.items():
            with (run.embeddings / f"{unit.name}{suffix}.npy").open("wb") as stream:
                stream.truncate(length)
        inputs = {**embedded.of(unit.name, digest).wanted(), "engine": SEMANTICS}
        (run.embeddings / f"{unit.name}.json").write_text(filled(embedding, inputs, unit.name))
    labelled = planned_tiles(run)[:: max(1, tiles // LABELLED)]
    for tile in labelled:
        made_codes(run, tile, {**embedded.of(tile.name).inputs, "engine": SEMANTICS})
    features = [label(tile, "ab"[place % 2]) for place, tile in enumerate(labelled)]
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
            unit.manifest.write_text(manifest_text(unit.kind, dict(unit.inputs), {}))


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
