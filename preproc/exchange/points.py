"""Embeddings as points: GeoParquet 1.1, a row a pixel, sorted along a Hilbert curve with the boxes of its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import PIXEL_SIZE, PlannedTile, Run, read_embedding
from infer.contract.embedding import OBSERVED
from preproc.raster.provenance import RunProvenance

_ORDER = 16
"""Bits of a coordinate along the curve."""
_ROWS = 16_384
"""Of a row group."""


def write_points(path: Path, run: Run, facts: RunProvenance, tile: PlannedTile, every: int) -> None:
    """Write the points of a tile; nothing if none has an embedding.

    Args:
        path: of the file.
        run: the run directory.
        facts: about its embeddings.
        tile: which.
        every: distance of neighbouring points in pixels; they lie on a lattice that all tiles of a zone share.

    Raises:
        FormatError: if the embedding is missing or damaged.
    """
    embedding = read_embedding(run.embeddings, tile.name)
    rows = np.arange(-(-tile.north // PIXEL_SIZE) % every, tile.size, every)
    columns = np.arange(-(tile.west // PIXEL_SIZE) % every, tile.size, every)
    row_n, column_n = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    marks_hw = embedding.values_hwc[..., 0] if embedding.scales_hw is None else embedding.scales_hw
    there_n = ~np.isnan(marks_hw[row_n, column_n])
    row_n, column_n = row_n[there_n], column_n[there_n]
    if not len(row_n):
        return
    x, y = tile.west + (column_n + 0.5) * PIXEL_SIZE, tile.north - (row_n + 0.5) * PIXEL_SIZE
    longitude_n, latitude_n = Transformer.from_crs(tile.epsg, 4326, always_xy=True).transform(x, y)
    order_n = np.argsort(hilbert(longitude_n, latitude_n), kind="stable")
    row_n, column_n = row_n[order_n], column_n[order_n]
    longitude_n, latitude_n = (np.asarray(part, np.float64)[order_n] for part in (longitude_n, latitude_n))
    values_nc = np.ascontiguousarray(embedding.values_hwc[row_n, column_n])
    flat = pa.array(values_nc.ravel())
    columns_of: dict[str, Any] = {
        "geometry": pa.array(shapely.to_wkb(shapely.points(longitude_n, latitude_n)).tolist(), pa.binary()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, values_nc.shape[1]),
    }
    if embedding.scales_hw is not None:
        columns_of["scale"] = pa.array(np.asarray(embedding.scales_hw[row_n, column_n]))
    if embedding.observations_hwm is not None:
        for index, name in enumerate(OBSERVED):
            columns_of[f"observations_{name}"] = pa.array(
                np.asarray(embedding.observations_hwm[row_n, column_n, index])
            )
    corner = pa.array(longitude_n), pa.array(latitude_n)
    columns_of["bbox"] = pa.StructArray.from_arrays([*corner, *corner], ["xmin", "ymin", "xmax", "ymax"])
    table = pa.table(columns_of).replace_schema_metadata(
        {"geo": json.dumps(_geo(longitude_n, latitude_n)), **facts.tags()}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=_ROWS)


def _geo(longitude_n: NDArray[np.float64], latitude_n: NDArray[np.float64]) -> dict[str, Any]:
    """The metadata by which a Parquet file is a GeoParquet file; coordinates are OGC:CRS84, its default."""
    covering = {"bbox": {key: ["bbox", key] for key in ("xmin", "ymin", "xmax", "ymax")}}
    box = [float(longitude_n.min()), float(latitude_n.min()), float(longitude_n.max()), float(latitude_n.max())]
    column = {"encoding": "WKB", "geometry_types": ["Point"], "bbox": box, "covering": covering}
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def hilbert(longitude_n: NDArray[np.float64], latitude_n: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) place of each point along a Hilbert curve over the box of all of them. Pure."""
    side = (1 << _ORDER) - 1
    x, y = (_spread(values, side) for values in (longitude_n, latitude_n))
    found = np.zeros(len(x), np.int64)
    level = 1 << (_ORDER - 1)
    while level:
        right, upper = (x & level) > 0, (y & level) > 0
        found += level * level * ((3 * right) ^ upper)
        turn = ~upper
        flip = turn & right
        x, y = np.where(flip, side - x, x), np.where(flip, side - y, y)
        x, y = np.where(turn, y, x), np.where(turn, x, y)
        level >>= 1
    return found


def _spread(values: NDArray[np.float64], side: int) -> NDArray[np.int64]:
    low, high = float(values.min()), float(values.max())
    return np.round((values - low) / max(high - low, 1e-12) * side).astype(np.int64)
