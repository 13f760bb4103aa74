"""What the size of a region costs those who only look, or have nothing to do: seconds and memory, and how they grow.

    python -m bench.country [--tiles 1000 10000 100000] [--size 16]

Runs of so many tiles are made in a temporary folder: planned for real, and for the rest records without arrays, all
complete. Then each command runs in a process of its own: `status`, `submit --dry-run`, a task of each stage that is
divided (of 100 tiles, or the first of a hundred sheets), and the whole of a stage of which nothing is due, which is
what a gather step reads before it begins. Targets: `status` of 100,000 tiles in 30 s and 500 MB; a task in 3 s at any
size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely

from bench.plan import make_items, make_region
from infer.contract import FORMAT_VERSION, QUALITY_FILE, SOFTWARE, Run, embedding_paths, sha256_file
from infer.contract.registry import DEMO_CHECKPOINT
from infer.engine import SEMANTICS
from preproc.run.config import Config, load_config
from preproc.run.quality import STACKS
from preproc.run.stage import Unit
from preproc.run.stages import stage_named

TASK_TILES = 100
"""Tiles of a task."""
_MODEL = {"name": "demo", "label": "demonstration model", "trained": True, "family": "v2-student", "normalisation": ""}
_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _write(path: Path, kind: str, inputs: dict[str, Any], files: dict[str, Any], fields: dict[str, Any]) -> None:
    """A manifest, without the fsync that makes a real one slow."""
    content = {**fields, "format": f"smalti/{kind}", "format_version": FORMAT_VERSION, "software": SOFTWARE}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "inputs": inputs, "files": files}, sort_keys=True))


def _complete(unit: Unit) -> None:
    _write(unit.manifest, unit.kind, dict(unit.inputs), {}, {})


def _quality(size: int) -> str:
    counts = {str(share): 20 for share in (0, 5, 25, 50, 75, 95, 100)}
    stack = {"dates_kept": 40, "dates_dropped": 30, "pixels_without": 0, "largest_gap_days": 20}
    stacks = {name: {**stack, "observations_per_pixel": counts} for name in STACKS}
    return json.dumps({"region_pixels": size**2, "pixels_unseen": 0, "stacks": stacks})


def make_run(root: Path, tiles: int, size: int, scenes: int) -> Run:
    """A run of about so many tiles: planned, and complete as far as records tell."""
    region = make_region(tiles, size)
    (root / "region.geojson").write_text(shapely.to_geojson(region))
    (root / "items.json").write_text(json.dumps(make_items(region, scenes)))
    (root / "run.toml").write_text(
        '[region]\ngeometry = "region.geojson"\nstart = "2023-01-01"\nend = "2023-12-31"\n'
        f'[archive]\nsource = "static"\nhref = "items.json"\n[tiles]\nsize = {size}\n'
        '[model]\nname = "demo"\nprecision = "float32"\n[site]\nprofile = "saga"\njob = { account = "nn0000k" }\n'
    )
    (root / "image.sif").touch()
    with (root / "run.toml").open("a") as stream:
        stream.write('container = "image.sif"\n')
    run = Run(root)
    _command(["plan", str(root)])
    config = load_config(run)
    _make_tiles(run, config, size)
    _make_embeddings(run, config, size)
    for unit in stage_named("stitch").load().open(run, config).units:
        _complete(unit)
    return run


def _make_tiles(run: Run, config: Config, size: int) -> None:
    quality = _quality(size)
    record = {QUALITY_FILE: {"bytes": len(quality), "sha256": _EMPTY}}
    for unit in stage_named("fetch").load().open(run, config).units:
        _write(unit.manifest, unit.kind, dict(unit.inputs), record, {"tile": unit.name, "data_source": "mpc"})
        (unit.manifest.parent / QUALITY_FILE).write_text(quality)


def _make_embeddings(run: Run, config: Config, size: int) -> None:
    known: dict[str, Any] = {"output": config.model.output, "dim": config.model.dim, "precision": "float32"}
    known |= {"engine": SEMANTICS, "checkpoint": sha256_file(DEMO_CHECKPOINT)}
    for unit in stage_named("infer").load().open(run, config).units:
        values, scales, manifest = embedding_paths(run.embeddings, unit.name)
        shapes = {values: ("int8", [size, size, 128]), scales: ("float32", [size, size])}
        files = {
            path.name: {"bytes": 0, "sha256": _EMPTY, "dtype": dtype, "shape": shape}
            for path, (dtype, shape) in shapes.items()
        }
        inputs = {**known, "tile": sha256_file(run.tiles / unit.name / "tile.json")}
        _write(manifest, unit.kind, inputs, files, {"tile": unit.name, "data_source": "mpc", "model": _MODEL})
        for path in shapes:
            path.touch()


_CHILD = """
import atexit, os, runpy, sys
_, told, program, *arguments = sys.argv
def tell():  # of this process alone: what getrusage says of a child begins with its parent's
    memory = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    with open(told, "w") as stream:
        stream.write(f"{sum(os.times()[:4])} {int(memory) * 1024}")
atexit.register(tell)
sys.argv = [program, *arguments]
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Measured:
    """Of a command."""

    seconds: float
    cpu: float
    """Seconds of processors: what other work on the machine does not change."""
    memory: int
    """Most bytes resident."""


def _command(arguments: Sequence[str], program: str = "preproc.cli") -> Measured:
    """A command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
    with tempfile.NamedTemporaryFile("r") as told:
        command = [sys.executable, "-c", _CHILD, told.name, program, *arguments]
        started = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:]
            raise SystemExit(f"{program} {' '.join(arguments)} ended with {done.returncode}:\n{said}")
        cpu, memory = told.read().split()
    return Measured(seconds, float(cpu), int(memory))


def commands(run: Run, tiles: int) -> dict[str, tuple[str, list[str]]]:
    """What is measured: label -> program and arguments."""
    root = str(run.root)
    shard = f"0/{max(2, tiles // TASK_TILES)}"
    return {
        "nothing but starting": ("preproc.cli", ["plan", "--help"]),
        "status": ("preproc.cli", ["status", root]),
        "submit --dry-run": ("preproc.cli", ["submit", root, "--dry-run"]),
        "a task of fetch": ("preproc.cli", ["fetch", root, "--shard", shard]),
        "a task of infer": ("infer", [root, "--device", "cpu", "--shard", shard]),
        "a task of stitch": ("preproc.cli", ["stitch", root, "--shard", "0/100"]),
        "stitch, the last step": ("preproc.cli", ["stitch", root]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--size", type=int, default=16, help="pixels along a tile")
    parser.add_argument("--scenes", type=int, default=300, help="of the archive")
    parser.add_argument("--only", default="", help="measure commands with this in their label")
    options = parser.parse_args()
    found: dict[str, dict[int, Measured]] = {}
    for tiles in options.tiles:
        with tempfile.TemporaryDirectory(prefix="smalti-country-") as folder:
            run = make_run(Path(folder), tiles, options.size, options.scenes)
            for label, (program, arguments) in commands(run, tiles).items():
                if options.only in label:
                    got = found.setdefault(label, {})[tiles] = _command(arguments, program)
                    figures = f"{got.seconds:7.2f} s {got.cpu:7.2f} s of processors {got.memory / 1e6:6.0f} MB"
                    print(f"{tiles:>9,} tiles  {label:<22} {figures}", flush=True)
    for label, row in found.items():
        first, last = row[options.tiles[0]], row[options.tiles[-1]]
        growth = f"{last.cpu / first.cpu:5.1f} times the processors' seconds, {last.memory / first.memory:4.1f} times"
        print(f"{label:<22} {growth} the memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
