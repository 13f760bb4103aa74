"""Small runs on a simulated archive, and the fingerprint of all that a run has written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from preproc.simulate import SimulationOptions, simulate

STAGES = ("plan", "fetch", "infer", "stitch", "sample", "train", "predict", "validate", "report")

SMALL = SimulationOptions(extent_km=0.6, s2_dates=8, s1_dates=5, neighbour_dates=2, parcel_ha=0.9)
"""About 60 x 60 pixels: a whole chain in some seconds."""

RUN_TOML = """\
[region]
geometry = "{archive}/region.geojson"
start = "2021-10-01"
end = "2022-09-30"
[archive]
source = "static"
href = "{archive}/items.json"
[tiles]
size = 32
[model]
name = "demo"
[labels]
path = "{archive}/parcels.geojson"
class = "crop"
group = "parcel"
[classify]
folds = 2
trials = 2
shrink = 0.0
max_pixels = 40
"""


def make_archive(folder: Path) -> Path:
    """A small simulated archive."""
    simulate(folder, SMALL)
    return folder


def make_run(root: Path, archive: Path, text: str = RUN_TOML) -> Path:
    """A run directory on that archive. All runs of a comparison must name the archive by the same path."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "run.toml").write_text(text.format(archive=archive))
    return root


def smalti(*arguments: object, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        command(*arguments), env=environment(), check=False, capture_output=True, text=True, timeout=timeout
    )
    if check and done.returncode:
        raise AssertionError(f"smalti {' '.join(map(str, arguments))} -> {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def command(*arguments: object) -> list[str]:
    """The command line as a list."""
    return [sys.executable, "-m", "preproc.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, so that several processes do not fight over the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def digest(root: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file of a run, but for its logs and locks and the settings people wrote."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("logs", "run.toml")
    }
