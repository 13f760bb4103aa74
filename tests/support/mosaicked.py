"""Runs with made embeddings that carry what the engine states, for the tests of mosaics, maps and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from infer.contract import PlannedTile, Run, planned_tiles, write_embedding, write_manifest
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel
from infer.contract.provenance import Window
from preproc.classify.predict import PredictStage
from preproc.classify.sample import SampleStage
from preproc.classify.train import TrainStage
from preproc.classify.validate import ValidateStage
from preproc.mosaic.stage import StitchStage
from preproc.raster.zones import FALSE_NORTHING, zone_grids
from preproc.run.config import Config, parse_config
from preproc.run.stage import run_stage
from support.embedded import MODEL, plan_of, write_vector

EPSG = 32631
WEST, NORTH = 573_440, 5_626_880
WINDOW = ["2018-12-01", "2019-11-30"]

TOML = """\
[region]
bbox = [4.0, 50.7, 4.1, 50.8]
start = "2018-12-01"
end = "2019-11-30"
[archive]
source = "mpc"
[labels]
path = "parcels.geojson"
class = "crop"
{extra}
"""


def config(run: Run, extra: str = "") -> Config:
    """Validated settings of such a run."""
    return parse_config(TOML.format(extra=extra), run.config)


def planned_run(root: Path, cells: Sequence[tuple[int, int, int]], size: int = 32) -> Run:
    """A run with a plan of tiles given as (epsg, column, row) of a grid, in that order."""
    run = Run(root)
    step = size * 10
    tiles = [PlannedTile(f"t{epsg}_{c}_{r}", epsg, WEST + c * step, NORTH - r * step, size) for epsg, c, r in cells]
    start, end = map(date.fromisoformat, WINDOW)
    plan = replace(plan_of(tiles), window=(start, end))
    run.root.mkdir(parents=True, exist_ok=True)
    run.config.write_text(TOML.format(extra=""))
    plan.write(run.plan, inputs={}, files=[])
    return run


def place_values(tile: PlannedTile, dim: int) -> NDArray[np.float32]:
    """(H, W, C) values that tell their own place: any misplacement changes them. Bounded by 1."""
    column = (tile.west // 10 + np.arange(tile.size))[None, :, None]
    row = (tile.north // 10 - np.arange(tile.size))[:, None, None]
    channel = np.arange(dim)[None, None, :]
    phase = column * 0.013 * (1 + channel) + row * 0.007 * (1 + channel % 5) + channel + tile.epsg % 100
    return np.sin(phase).astype(np.float32)


def embed_places(
    run: Run, *, dim: int = 8, int8: bool = False, model: EmbeddingModel | None = None
) -> dict[str, NDArray[np.float32]]:
    """Write embeddings of `place_values`, with a nodata corner in each tile.

    Returns:
        What a reader should get for each tile: (H, W, C) float32, dequantised.
    """
    expected = {}
    for tile in planned_tiles(run):
        values = place_values(tile, dim)
        values[: tile.size // 4, : tile.size // 3] = np.nan
        expected[tile.name] = write_tile(run, tile, values, int8=int8, model=model)
    return expected


def write_tile(
    run: Run,
    tile: PlannedTile,
    values_hwc: NDArray[np.float32],
    *,
    int8: bool = False,
    model: EmbeddingModel | None = None,
    checkpoint: str = "ab" * 32,
    observations_hwm: NDArray[np.uint8] | None = None,
    min_clear_s2: int = 0,
) -> NDArray[np.float32]:
    """Write one embedding as the engine does; what a reader should get for it."""
    about = EmbeddingManifest(
        model=model or MODEL,
        data_source="mpc",
        window=Window(*map(date.fromisoformat, WINDOW)),
        nodata_pixels=int(np.isnan(values_hwc[..., 0]).sum()),
        min_clear_s2=min_clear_s2 or None,
    )
    inputs, counts = {"checkpoint": checkpoint}, observations_hwm
    if not int8:
        write_embedding(
            run.embeddings, tile.name, values_hwc, None, observations_hwm=counts, inputs=inputs, about=about
        )
        return values_hwc
    scales = (np.abs(values_hwc).max(axis=2) / 127).astype(np.float32)
    codes = np.nan_to_num(np.rint(values_hwc / scales[..., None])).astype(np.int8)
    write_embedding(run.embeddings, tile.name, codes, scales, observations_hwm=counts, inputs=inputs, about=about)
    return codes.astype(np.float32) * scales[..., None]


def far_run(root: Path, *, dim: int) -> tuple[Run, dict[str, NDArray[np.float32]]]:
    """Where placement is hardest: tiles of 48 pixels in zones 60 and 1, each with tiles on both sides of the equator.

    Both hemispheres' lattices reach beyond it, by parts of a tile. What lies there is nodata, but for the row of pixels
    below 0, which tiles of both have. Sheets of 128 are divided by no edge of a tile, and some are empty. One tile has
    no embedding.

    Returns:
        The run, and what a reader should get for each tile: (H, W, C), of the one that is missing NaN.
    """
    run, tiles = Run(root), []
    for zone, corner, step in ((60, 833_760, -480), (1, 165_840, 480)):  # these corners cross the antimeridian
        for side, epsg, north, cells in (
            ("n", 32600, 320, [(0, 0), (1, 0), (2, 0), (2, -3), (5, -1)]),
            ("s", 32700, 10_000_160, [(0, 0), (1, 0), (3, 2)]),
        ):
            for column, row in cells:
                place = epsg + zone, corner + step * column, north - 480 * row
                tiles.append(PlannedTile(f"{side}{zone}_{column}_{abs(row)}", *place, 48))
    start, end = map(date.fromisoformat, WINDOW)
    run.root.mkdir(parents=True)
    run.config.write_text(TOML.format(extra=""))
    replace(plan_of(tiles), window=(start, end)).write(run.plan, inputs={}, files=[])
    expected = {}
    for index, tile in enumerate(tiles):
        values = np.random.default_rng(index).normal(size=(48, 48, dim)).astype(np.float32)
        values[40:44, 3:9] = np.nan
        if tile.name.startswith("n") and tile.north == 320:
            values[33:] = np.nan
        if tile.name.startswith("s") and tile.north == 10_000_160:
            values[:16] = np.nan
        expected[tile.name] = write_tile(run, tile, values, int8=True)
    gone = "n1_1_0"
    (run.embeddings / f"{gone}.json").unlink()
    expected[gone] = np.full_like(expected[gone], np.nan)
    return run, expected


def put_together(run: Run, tiles: Mapping[str, NDArray[np.float32]], label: str) -> NDArray[np.float32]:
    """(H, W, C) what a zone should hold, from coordinates; of a pixel that several tiles have the first one counts."""
    grid = next(grid for grid in zone_grids(planned_tiles(run)) if grid.label == label)
    dim = next(iter(tiles.values())).shape[2]
    values = np.full((grid.height, grid.width, dim), np.nan, dtype=np.float32)
    for tile in grid.tiles:
        shift = FALSE_NORTHING if tile.epsg > 32700 > grid.epsg else 0
        row, column = (grid.north - (tile.north - shift)) // 10, (tile.west - grid.west) // 10
        old = values[row : row + tile.size, column : column + tile.size]
        values[row : row + tile.size, column : column + tile.size] = np.where(np.isnan(old), tiles[tile.name], old)
    return values


CENTRES = np.random.default_rng(99).normal(size=(3, 6))


def crops(tile: PlannedTile, *, side: int = 8) -> NDArray[np.int64]:
    """(H, W) class 0..2 of the square parcels of `side` pixels that tile the plane."""
    columns = (tile.west // 10 + np.arange(tile.size)) // side
    rows = (tile.north // 10 - np.arange(tile.size) - 1) // side
    return (columns[None, :] * 7 + rows[:, None] * 5 + columns[None, :] * rows[:, None]) % 3


def looks(size: int) -> NDArray[np.uint8]:
    """(size, size, 2) made counts: clear looks from 20 in the west to fewer in the east, none in the first corner."""
    counts = np.empty((size, size, 2), np.uint8)
    counts[..., 0] = 20 - np.arange(size) * 12 // size
    counts[..., 1] = 30
    counts[:3, :3] = 0
    return counts


def embed_crops(
    run: Run, *, noise: float = 0.5, int8: bool = True, model: EmbeddingModel | None = None, min_clear_s2: int = 0
) -> None:
    """Embeddings of 6 numbers that tell the classes of `crops` apart up to noise; one corner is nodata.

    With `min_clear_s2` they come with the counts of `looks`, and are nodata where those are too few.
    """
    for index, tile in enumerate(planned_tiles(run)):
        values = CENTRES[crops(tile)] + np.random.default_rng(index).normal(size=(tile.size, tile.size, 6)) * noise
        values[:3, :3] = np.nan
        counts = looks(tile.size) if min_clear_s2 else None
        if counts is not None:
            values[counts[..., 0] < min_clear_s2] = np.nan
        kept = {"observations_hwm": counts, "min_clear_s2": min_clear_s2}
        write_tile(run, tile, values.astype(np.float32), int8=int8, model=model, **kept)


CHAIN = """
group = "parcel"
[classify]
folds = 2
trials = 0
max_pixels = 20
"""
NAMES = ("maize", "winter wheat", "beet & <i>others</i>")
"""Class names; the last must not become markup anywhere."""


def parcel_labels(run: Run, *, side: int = 8) -> Path:
    """parcels.geojson with the parcels of `crops`, each a group."""
    shapes, names, groups = [], [], []
    for tile in planned_tiles(run):
        codes = crops(tile, side=side)
        for row in range(0, tile.size, side):
            for column in range(0, tile.size, side):
                left, top = tile.west + column * 10, tile.north - row * 10
                shapes.append(shapely.box(left, top - side * 10, left + side * 10, top))
                names.append(NAMES[codes[row, column]])
                groups.append(len(groups))
    return write_vector(run.root / "parcels.geojson", shapes, {"crop": names, "parcel": groups}, epsg=EPSG, to=4326)


def observe_tiles(run: Run, *, worst: int = 12) -> None:
    """tile.json and quality.json of every tile, as fetch writes them; `worst`: looks of the worst pixel."""
    dates = {
        "s2": ["2018-12-05", "2019-04-01", "2019-04-11", "2019-07-02"],
        "s1_ascending": ["2019-04-02", "2019-05-01"],
        "s1_descending": [],
    }
    for index, tile in enumerate(planned_tiles(run)):
        folder = run.tiles / tile.name
        folder.mkdir(parents=True)
        stacks = {
            name: {
                "dates_kept": len(days),
                "dates_dropped": 3 if name == "s2" else 0,
                "dropped_for": {},
                "observations_per_pixel": {
                    p: 0 if not days else worst + index + int(p) // 10
                    for p in ("0", "5", "25", "50", "75", "95", "100")
                },
                "pixels_without": 0 if days else tile.size**2,
                "largest_gap_days": 40 + index,
            }
            for name, days in dates.items()
        }
        quality = {"region_pixels": tile.size**2 * (index + 1), "stacks": stacks}
        (folder / "quality.json").write_text(json.dumps(quality))
        fields = {"dates": dates, "data_source": "mpc"}
        write_manifest(folder / "tile.json", "tile", inputs={}, files=[folder / "quality.json"], fields=fields)


def classified_run(root: Path, *, extra: str = CHAIN, model: EmbeddingModel | None = None) -> tuple[Run, Config]:
    """A whole run from embeddings to accuracy.json, by the real stages, on four small tiles of one zone."""
    run = planned_run(root, [(EPSG, c, r) for r in range(2) for c in range(2)])
    embed_crops(run, noise=1.2, model=model)
    observe_tiles(run)
    parcel_labels(run)
    settings = config(run, extra)
    run.config.write_text(TOML.format(extra=extra))
    for stage in (StitchStage(), SampleStage(), TrainStage(), PredictStage(), ValidateStage()):
        run_stage(stage, run, settings)
    return run, settings
