"""Embeddings as points: GeoParquet 1.1, a row a pixel or a given point, sorted along a Hilbert curve, with boxes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import PIXEL_SIZE, PlannedTile, Run, SmaltiError, read_embedding, sha256_json
from infer.contract.embedding import OBSERVED, Embedding
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import own_rows
from preproc.region.vector import read_vector
from preproc.run.progress import say
from preproc.survey.looks import pixels_of

_ORDER = 16
"""Bits of a coordinate along the curve."""
_ROWS = 16_384
"""Of a row group."""


@dataclass(frozen=True)
class Chosen:
    """Pixels (N) of one tile, and the points that stand for them."""

    row_n: NDArray[np.int64]
    column_n: NDArray[np.int64]
    longitude_n: NDArray[np.float64]
    latitude_n: NDArray[np.float64]
    id_n: pa.Array | None = None
    """What the points are called, where they were given."""

    def part(self, which_n: NDArray[Any]) -> Chosen:
        """Some of them, or all in another order."""
        names = None if self.id_n is None else self.id_n.take(pa.array(np.arange(len(self.row_n))[which_n]))
        places = self.longitude_n[which_n], self.latitude_n[which_n]
        return Chosen(self.row_n[which_n], self.column_n[which_n], *places, names)

    def fingerprint(self) -> str:
        """Of the points and their names."""
        places = np.column_stack([self.longitude_n, self.latitude_n]).tolist()
        return sha256_json([places, None if self.id_n is None else [str(name) for name in self.id_n.to_pylist()]])


def lattice(tile: PlannedTile, every: int) -> Chosen:
    """Every so many-th pixel in both directions, on a lattice that all tiles of a zone share; points are centres."""
    rows = np.arange(-(-tile.north // PIXEL_SIZE) % every, tile.size, every)
    rows = rows[own_rows(tile, rows)]
    columns = np.arange(-(tile.west // PIXEL_SIZE) % every, tile.size, every)
    row_n, column_n = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    x, y = tile.west + (column_n + 0.5) * PIXEL_SIZE, tile.north - (row_n + 0.5) * PIXEL_SIZE
    longitude_n, latitude_n = Transformer.from_crs(tile.epsg, 4326, always_xy=True).transform(x, y)
    return Chosen(row_n, column_n, np.asarray(longitude_n), np.asarray(latitude_n))


def given(
    run: Run,
    tiles: Sequence[PlannedTile],
    path: Path,
    *,
    missing: Collection[str],
    name: str | None,
    layer: str | None,
) -> Mapping[PlannedTile, Chosen]:
    """The pixels under the points of a vector file, by tile; those without an embedding are counted, said and left out.

    Args:
        run: the run directory.
        tiles: of it.
        path: of the points, in any CRS.
        missing: names of tiles without an embedding.
        name: attribute that names a point; without one it is the feature's number.
        layer: of the file.

    Raises:
        SmaltiError: if the file has anything but points, or none has an embedding.
    """
    vector = read_vector(path, key="--points", layer=layer, attributes=[] if name is None else [name])
    missing_n = shapely.is_missing(vector.geometries_n) | shapely.is_empty(vector.geometries_n)
    odd = np.flatnonzero(~missing_n & (shapely.get_type_id(vector.geometries_n) != shapely.GeometryType.POINT))
    if len(odd):
        kind = shapely.GeometryType(shapely.get_type_id(vector.geometries_n[odd[0]])).name.lower()
        raise SmaltiError(
            f"{path}: feature {vector.fids_n[odd[0]]} is a {kind}: --points takes points; for one vector a polygon "
            f"run `smalti parcels {run.quoted} {path}`"
        )
    at_n = np.flatnonzero(~missing_n)
    x, y = shapely.get_coordinates(vector.geometries_n[at_n]).T
    place_n2 = np.column_stack(Transformer.from_crs(vector.crs, 4326, always_xy=True).transform(x, y))
    names = pa.array(vector.fids_n) if name is None else vector.columns[name].combine_chunks()
    if isinstance(names, pa.ChunkedArray):  # what combine_chunks gives of no chunk at all
        names = pa.concat_arrays(names.chunks)
    members: dict[PlannedTile, list[tuple[int, int, int]]] = {}
    for at, pixel in enumerate(pixels_of(tiles, place_n2)):
        if pixel is not None:
            members.setdefault(pixel[0], []).append((at, pixel[1], pixel[2]))
    found: dict[PlannedTile, Chosen] = {}
    for tile, triples in members.items():
        if tile.name in missing:
            continue
        which_n, row_n, column_n = np.array(triples, np.int64).T
        longitude_n, latitude_n = place_n2[which_n].T
        chosen = Chosen(row_n, column_n, longitude_n, latitude_n, names.take(pa.array(at_n[which_n])))
        embedding = read_embedding(run.embeddings, tile.name, checksums=False)
        chosen = chosen.part(_embedded(embedding, chosen))
        if len(chosen.row_n):
            found[tile] = chosen
    inside, kept = sum(map(len, members.values())), sum(len(chosen.row_n) for chosen in found.values())
    if not kept:
        raise SmaltiError(f"{path}: none of its {len(vector)} points has an embedding in {run.root}")
    if kept < len(vector):
        say(
            f"{path}: {len(vector) - kept} of {len(vector)} points are left out: {int(missing_n.sum())} have no "
            f"geometry, {len(at_n) - inside} lie outside the run's tiles, {inside - kept} have no embedding"
        )
    return found


def _embedded(embedding: Embedding, chosen: Chosen) -> NDArray[np.bool_]:
    whole = slice(None)
    return np.asarray(embedding.embedded(whole, whole)[chosen.row_n, chosen.column_n])


def write_points(path: Path, run: Run, facts: RunProvenance, tile: PlannedTile, chosen: Chosen) -> None:
    """Write the points of a tile; nothing if none has an embedding.

    Args:
        path: of the file.
        run: the run directory.
        facts: about its embeddings.
        tile: which.
        chosen: its pixels.

    Raises:
        FormatError: if the embedding is missing or damaged.
    """
    embedding = read_embedding(run.embeddings, tile.name)
    chosen = chosen.part(_embedded(embedding, chosen))
    if not len(chosen.row_n):
        return
    chosen = chosen.part(np.argsort(hilbert(chosen.longitude_n, chosen.latitude_n), kind="stable"))
    row_n, column_n, longitude_n, latitude_n = chosen.row_n, chosen.column_n, chosen.longitude_n, chosen.latitude_n
    values_nc = np.ascontiguousarray(embedding.values_hwc[row_n, column_n])
    flat = pa.array(values_nc.ravel())
    columns_of: dict[str, Any] = {} if chosen.id_n is None else {"id": chosen.id_n}
    columns_of |= {
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
