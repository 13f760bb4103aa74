"""What is published, and the rest computed: both are one run, and the mosaic says which pixel is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from support.tiny import SIZE, TinyArchive

from infer.contract import Run, planned_tiles, read_embedding
from infer.contract.imported import imported_tiles
from preproc.exchange.export import export
from preproc.exchange.importing import import_embeddings
from preproc.mosaic.stage import StitchStage
from preproc.run.config import Config
from preproc.run.engine import InferStage
from preproc.run.stage import run_stage
from preproc.tile.stage import FetchStage

pytestmark = pytest.mark.slow


def season(folder: Path, root: Path) -> tuple[Run, Config]:
    """A planned run of 2 x 2 tiles with twenty dates, some of them cloudy in the east."""
    archive = TinyArchive(folder)
    rng = np.random.default_rng(0)
    extent = 2 * SIZE * 10
    for month in range(1, 11):
        cloudy = np.full((2 * SIZE // 2, 2 * SIZE // 2), 4, np.uint8)
        cloudy[:, SIZE // 2 * (month % 3) :] = 9
        bands = {name: rng.integers(1500, 4000, (2 * SIZE, 2 * SIZE)).astype(np.uint16) for name in ("B02", "B04")}
        archive.s2(f"S2_{month}", f"2021-{month:02d}-10", scl=cloudy, bands=bands, extent=extent)
        archive.s1(f"S1_{month}", f"2021-{month:02d}-12", vv=float(0.05 + month / 100), extent=extent)
    return archive.run(root, tiles=(2, 2))


def test_gaps_are_computed_and_everything_else_is_taken(tmp_path: Path) -> None:
    whole, config = season(tmp_path / "archive", tmp_path / "whole")
    for stage in (FetchStage(), InferStage(), StitchStage()):
        run_stage(stage, whole, config)
    export(whole, str(tmp_path / "published"), "zarr")
    first, *others = planned_tiles(whole)
    scales: Any = zarr.open_group(tmp_path / "published", mode="r+")["utm31/scales"]
    left = (first.west - min(tile.west for tile in planned_tiles(whole))) // 10
    top = (max(tile.north for tile in planned_tiles(whole)) - first.north) // 10
    values = scales[:]
    values[0, top + 10, left + 10 : left + 13] = np.inf  # not published yet
    scales[:] = values

    run, config = season(tmp_path / "archive2", tmp_path / "filled")
    import_embeddings(run, config, str(tmp_path / "published"), fill=True)
    assert sorted(imported_tiles(run)) == sorted(tile.name for tile in others)
    run_stage(FetchStage(), run, config)
    assert [path.name for path in run.tiles.iterdir()] == [first.name], "no scene of an imported tile is read"
    outcome = run_stage(InferStage(), run, config)
    assert (outcome.built, outcome.complete_before) == (1, 3)
    for tile in planned_tiles(run):
        mine, theirs = (read_embedding(r.embeddings, tile.name) for r in (run, whole))
        assert theirs.scales_hw is not None
        np.testing.assert_array_equal(mine.scales_hw, theirs.scales_hw)
        valid = ~np.isnan(theirs.scales_hw)
        np.testing.assert_array_equal(mine.values_hwc[valid], theirs.values_hwc[valid])
    run_stage(StitchStage(), run, config)
    with rasterio.open(run.mosaic / "observations_31N.tif") as raster:
        reason, origin = raster.read([3, 4])
    filled = np.zeros(origin.shape, bool)
    filled[top : top + SIZE, left : left + SIZE] = True
    np.testing.assert_array_equal(origin, np.where(reason == 0, np.where(filled, 0, 1), 255))
    again = run_stage(InferStage(), run, config)
    assert (again.built, again.complete_before) == (0, 4)
