"""How long `smalti plan` takes, and how much memory, for a region of a million tiles.

    python -m bench.plan [--tiles 1000000] [--scenes 20000]

A region of about that many tiles over several UTM zones, with a ragged edge and holes, and a static archive whose items
cover it, are made in a temporary folder; then the plan stage runs in a process of its own. Targets: 60 s and 1 GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

TARGET_S, TARGET_BYTES = 60.0, 2**30

CHILD = """
import resource, sys
from pathlib import Path
from infer.contract import Run
from preproc.run.config import load_config
from preproc.plan.stage import PlanStage
from preproc.run.stage import run_stage
run = Run(Path(sys.argv[1]))
run_stage(PlanStage(), run, load_config(run))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_region(tiles: int, size: int = 512) -> BaseGeometry:
    """A country-like shape of about `tiles` tiles: ragged outline of 20,000 vertices, and holes."""
    area = tiles * (size * 10.0) ** 2
    radius = math.degrees(math.sqrt(area / math.pi) / 6.371e6)
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    rng = np.random.default_rng(0)
    ragged = 1 + 0.05 * np.sin(7 * angle) + 0.02 * np.sin(31 * angle) + 0.002 * rng.standard_normal(angle.size)
    middle = (20.0, 5.0)
    outline = np.column_stack(
        [middle[0] + radius * ragged * np.cos(angle), middle[1] + 0.9 * radius * ragged * np.sin(angle)]
    )
    shape = shapely.Polygon(outline).buffer(0)
    holes = [
        shapely.Point(middle[0] + x, middle[1] + y).buffer(radius / 40) for x, y in rng.normal(0, radius / 4, (50, 2))
    ]
    return shape.difference(shapely.union_all(holes))


def make_items(region: BaseGeometry, count: int) -> dict[str, Any]:
    """Granules of one degree over the region, as Planetary Computer describes them."""
    west, south, east, north = region.bounds
    cells = [(x, y) for x in range(int(west) - 1, int(east) + 1) for y in range(int(south) - 1, int(north) + 1)]
    names = [*(f"B{n:02d}" for n in (2, 3, 4, 5, 6, 7, 8, 11, 12)), "B8A", "SCL"]
    features = []
    for number in range(count):
        x, y = cells[number % len(cells)]
        day = 1 + (number // len(cells)) * 5
        identifier = f"S2A_MSIL2A_2023{1 + day // 28:02d}{1 + day % 28:02d}T100000_R001_T{x + 200:03d}{y + 200:03d}"
        features.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": identifier,
                "collection": "sentinel-2-l2a",
                "geometry": json.loads(shapely.to_geojson(shapely.box(x, y, x + 1.1, y + 1.1))),
                "bbox": [x, y, x + 1.1, y + 1.1],
                "properties": {"datetime": f"2023-{1 + day // 28:02d}-{1 + day % 28:02d}T10:00:00Z"},
                "assets": {name: {"href": f"./{identifier}/{name}.tif"} for name in names},
                "links": [],
            }
        )
    return {"type": "FeatureCollection", "features": features}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--scenes", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        region = make_region(options.tiles)
        (root / "region.geojson").write_text(shapely.to_geojson(region))
        (root / "items.json").write_text(json.dumps(make_items(region, options.scenes)))
        (root / "run.toml").write_text(
            '[region]\ngeometry = "region.geojson"\nstart = "2023-01-01"\nend = "2023-12-31"\n'
            '[archive]\nsource = "static"\nhref = "items.json"\n'
        )
        started = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(root)], env=environment, capture_output=True, text=True, check=True
        )
        seconds, memory = time.monotonic() - started, int(child.stdout.split()[-1])
        print(child.stderr)
        plan = json.loads((root / "plan.json").read_text())
        print(f"tiles {len(plan['tiles']):,}, plan.json {(root / 'plan.json').stat().st_size / 1e6:.0f} MB")
    print(f"time {seconds:.1f} s: {seconds / TARGET_S:.2f} of the target")
    print(f"memory {memory / 2**20:.0f} MiB: {memory / TARGET_BYTES:.2f} of the target")
    return 0


if __name__ == "__main__":
    sys.exit(main())
