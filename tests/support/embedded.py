"""A run directory with a plan and synthetic embeddings, for the tests of what comes after the engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import Plan, PlannedTile, Run, planned_tiles, write_embedding
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel
from infer.contract.plan import Cost, FoundScenes, PlannedRegion, SampledTiles, SceneCount
from infer.contract.rasters import Encoder, MapManifest, MapZone, MosaicManifest, MosaicZone, PreviewColours, Window

TOML = """\
[region]
bbox = [4.0, 50.0, 4.1, 50.1]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
"""
WEST, NORTH, EPSG = 500_000, 5_600_000, 32631

MODEL = EmbeddingModel("demo", "untrained demonstration model", False, "v2-student", None, "v2-student")
ABOUT = EmbeddingManifest(model=MODEL, data_source="mpc")


def tiled_run(root: Path, *, across: int = 2, down: int = 2, size: int = 32, epsg: int = EPSG) -> Run:
    """A run with a plan of across x down tiles, and no embeddings yet."""
    run = Run(root)
    root.mkdir(parents=True, exist_ok=True)
    step = size * 10
    tiles = [
        PlannedTile(f"t{column}{row}", epsg, WEST + column * step, NORTH - row * step, size)
        for row in range(down)
        for column in range(across)
    ]
    plan_of(tiles).write(run.plan, inputs={}, files=[])
    return run


def plan_of(tiles: Sequence[PlannedTile]) -> Plan:
    """A whole plan of such tiles, of which nothing else is known."""
    size = tiles[0].size if tiles else 32
    none = SceneCount(0, {})
    return Plan(
        tile_size=size,
        tiles=tuple(tiles),
        zones={str(epsg): count for epsg, count in Counter(tile.epsg for tile in tiles).items()},
        region=PlannedRegion("test", "0", (4.0, 50.0, 4.1, 50.1), len(tiles) * size * size),
        window=(date(2021, 1, 1), date(2021, 12, 31)),
        source="mpc",
        scenes=FoundScenes(none, none, none, 0, ()),
        season=SampledTiles(len(tiles), 0.0, 0.0, 0, ""),
        neighbours_in_shards_of=1,
        estimate={"fetch": Cost(1, 1, 1, 1, 1)},
        warnings=(),
    )


_MADE: dict[str, Any] = {
    "model": Encoder("demo", "a model", False, "v2-student", "0" * 64),
    "dim": 4,
    "embeddings_as": "float32",
    "data_sources": ("mpc",),
    "archive": "mpc",
    "window": Window(date(2021, 1, 1), date(2021, 12, 31)),
    "pixels": 0,
}
"""What a mosaic and a map say of where they come from."""


def mosaic_of(zones: Mapping[str, MosaicZone]) -> MosaicManifest:
    """mosaic.json of such files."""
    return MosaicManifest(**_MADE, codes_clipped=0, dtype="float32", zones=zones, preview=PreviewColours(()))


def map_of(zones: Mapping[str, MapZone] = MappingProxyType({})) -> MapManifest:
    """map.json of a map whose files tell everything."""
    return MapManifest(**_MADE, classes=(), hectares=0.0, areas_are="", confidence_is="", zones=zones)


def truth(x: NDArray[Any], y: NDArray[Any], *, parcel: int = 8, classes: int = 3) -> NDArray[np.int64]:
    """Class 0 .. classes-1 of the square parcels (of `parcel` pixels a side) that tile the plane."""
    column = np.floor((x - WEST) / (10 * parcel)).astype(np.int64)
    row = np.floor((NORTH - y) / (10 * parcel)).astype(np.int64)
    return (column * 7 + row * 5 + column * row) % classes


def embed(
    run: Run,
    *,
    dim: int = 6,
    noise: float = 0.4,
    int8: bool = False,
    seed: int = 0,
    classes: int = 3,
    checkpoint: str = "ab" * 32,
) -> None:
    """Write embeddings that separate the classes of `truth` up to noise; row 0 of the first tile is nodata."""
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    inputs = {"seed": seed, "checkpoint": checkpoint}
    for index, tile in enumerate(planned_tiles(run)):
        x, y = centre_grid(tile)
        noise_hwc = np.random.default_rng([seed, index]).normal(size=(tile.size, tile.size, dim)) * noise
        values = (centres[truth(x, y, classes=classes)] + noise_hwc).astype(np.float32)
        if index == 0:
            values[0] = np.nan
        if int8:
            scales = (np.abs(values).max(axis=2) / 127).astype(np.float32)
            codes = np.nan_to_num(np.round(values / scales[..., None])).astype(np.int8)
            write_embedding(run.embeddings, tile.name, codes, scales, inputs=inputs, about=ABOUT)
        else:
            write_embedding(run.embeddings, tile.name, values, None, inputs=inputs, about=ABOUT)


def centre_grid(tile: PlannedTile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eastings and northings (H, W) of a tile's pixel centres."""
    steps = (np.arange(tile.size) + 0.5) * 10
    x, y = np.meshgrid(tile.west + steps, tile.north - steps)
    return x, y


def parcels(run: Run, *, parcel: int = 8, classes: int = 3) -> tuple[list[Any], list[str]]:
    """The square parcels of `truth` within the tiles, and the name of each one's class."""
    tiles = planned_tiles(run)
    west, north = min(t.bounds[0] for t in tiles), max(t.bounds[3] for t in tiles)
    east, south = max(t.bounds[2] for t in tiles), min(t.bounds[1] for t in tiles)
    side = parcel * 10
    shapes, names = [], []
    for top in range(north, south, -side):
        for left in range(west, east, side):
            shapes.append(shapely.box(left, top - side, left + side, top))
            code = int(truth(np.array([left + 5.0]), np.array([top - 5.0]), parcel=parcel, classes=classes)[0])
            names.append(f"crop {'abcdefghi'[code]}")
    return shapes, names


def write_vector(
    path: Path,
    shapes: Sequence[Any],
    fields: dict[str, Any],
    *,
    epsg: int | None = EPSG,
    to: int | None = None,
    geometry_type: str = "Unknown",
    layer: str | None = None,
    append: bool = False,
) -> Path:
    """Write shapes in metres of zone `epsg` (None: without CRS) to a vector file, in the CRS `to` if given."""
    geometries = np.array(shapes, dtype=object)
    if to is not None:
        move = Transformer.from_crs(epsg, to, always_xy=True)
        geometries = shapely.transform(geometries, lambda c: np.column_stack(move.transform(c[:, 0], c[:, 1])))
    crs = to if to is not None else epsg
    pyogrio.raw.write(
        path,
        shapely.to_wkb(geometries),
        [np.asarray(values) for values in fields.values()],
        list(fields),
        crs=None if crs is None else f"EPSG:{crs}",
        geometry_type=geometry_type,
        layer=layer,
        append=append,
    )
    return path
