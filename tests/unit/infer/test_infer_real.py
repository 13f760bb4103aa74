"""The demonstration model on a real season: precision, nodata, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.runs import smalti

from bench.infer_baseline import embed_plain
from bench.made_tile import made_tile
from infer.contract import DEMO_CHECKPOINT, TILE_ARRAYS, Run, Tile, planned_tiles, read_tile, write_npy
from infer.device import choose_device
from infer.engine import Engine
from infer.weights import load_checkpoint

ROOT = Path(__file__).parents[3]
RUN_TOML = """\
[region]
geometry = "{data}/region.geojson"
start = "2018-12-01"
end = "2019-11-30"
[archive]
source = "static"
href = "{data}/items.json"
[tiles]
size = 512
"""


@pytest.fixture(scope="module")
def season(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Tile:
    root = tmp_path_factory.mktemp("season") / "run"
    root.mkdir()
    (root / "run.toml").write_text(RUN_TOML.format(data=shared / "data" / "flanders-2019"))
    smalti("plan", root)
    smalti("fetch", root)
    (planned,) = planned_tiles(Run(root))
    return read_tile(Run(root).tiles / planned.name, need_manifest=True)


def test_bfloat16_keeps_the_direction_of_every_real_pixel(season):
    found = {}
    for precision in ("float32", "bfloat16"):
        engine = Engine(load_checkpoint(DEMO_CHECKPOINT), choose_device("cpu", precision))
        try:
            found[precision] = engine.embed(season).values_hwc.astype(np.float64)
        finally:
            engine.close()
    full = ~np.isnan(found["float32"]).any(axis=-1)
    assert full.sum() == 64 * 64
    a, b = (found[precision][full] for precision in ("float32", "bfloat16"))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.9999, cosine.min()


def test_real_pixels_agree_with_the_plain_computation(season):
    rows, columns = np.nonzero(season.masks_thw.any(axis=0))
    window = (slice(None), slice(rows.min(), rows.min() + 12), slice(columns.min(), columns.min() + 12))
    arrays = {name: getattr(season, name) for name in TILE_ARRAYS}
    part = Tile("part", **{name: a[window] if a.ndim > 1 else a for name, a in arrays.items()})
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    engine = Engine(checkpoint, choose_device("cpu", "float32"))
    try:
        found = engine.embed(part).values_hwc
    finally:
        engine.close()
    assert np.nanmax(np.abs(found - embed_plain(part, checkpoint))) <= 2e-5


@pytest.mark.slow
def test_memory_stays_below_the_tile_plus_one_gibibyte(tmp_path):
    folders = [tmp_path / "tiles" / name for name in "abc"]
    tile = made_tile(192, 70, 60)
    for folder in folders:
        folder.mkdir(parents=True)
        for name, spec in TILE_ARRAYS.items():
            write_npy(folder / spec.file, getattr(tile, name).astype(spec.dtype))
    size = sum((folders[0] / spec.file).stat().st_size for spec in TILE_ARRAYS.values())
    code = "import sys; from infer.__main__ import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    peaks = []
    for tiles in (folders[0], tmp_path / "tiles"):
        arguments = ["--tiles", str(tiles), "--checkpoint", "demo", "--out", str(tmp_path / "out"), "--overwrite"]
        command = [sys.executable, "-c", code, *arguments, "--device", "cpu"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        (line,) = (x for x in ran.stdout.splitlines() if x.startswith("VmHWM"))
        peaks.append(int(line.split()[1]) * 1024)
    assert peaks[0] <= size + 2**30
    assert peaks[1] <= peaks[0] + size + 2**27, "nothing grows with the number of tiles but the one that is read ahead"
    print(f"peak {peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB, tile {size / 2**20:.0f} MiB")
