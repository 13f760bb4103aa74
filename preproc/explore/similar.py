"""`smalti similar`: how like some given places every pixel of a run is, by brute force on the stored codes.

The measure is the cosine of embeddings. A pixel's scale cancels in it, so that codes are compared as they lie on the
disk: a block of them that fits a core's cache becomes float32, is multiplied by the examples, and is gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import PIXEL_SIZE, Plan, Run, SmaltiError, write_bytes
from infer.contract.explored import SimilarManifest
from infer.contract.record import to_json
from preproc.explore.strips import Strip, squares, write_layer
from preproc.mosaic.reader import EmbeddingReader, moved
from preproc.raster.cog import Layer
from preproc.raster.provenance import RunProvenance, missing_lines, read_provenance
from preproc.raster.stac import AssetRecord, write_item
from preproc.run.config import Config
from preproc.run.progress import progress, say
from preproc.run.stage import Session, Unit, one_by_one, run_stage

NODATA, SAME = 255, 254
"""In the raster: no embedding; as like as an example itself."""
BLOCK = 2048
"""Rows that become float32 at a time: 1 MiB of 128 numbers."""
CELL = 10
"""Pixels along the side of a cell that gives one place at most."""
_RASTER_IS = f"similarity: 0 nothing in common, {SAME} the same; {NODATA} no embedding"

Places = tuple[tuple[float, float], ...]
"""Longitude and latitude of each."""


def cosines(codes_nc: NDArray[Any], queries_qc: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, q) cosine of each row with each query; NaN for a row of zeros.

    Args:
        codes_nc: int8 codes or float32 values.
        queries_qc: of length one each.
    """
    found = np.empty((len(codes_nc), len(queries_qc)), np.float32)
    block = np.empty((min(BLOCK, len(codes_nc)), codes_nc.shape[1]), np.float32)
    turned_cq = np.ascontiguousarray(queries_qc.T)
    for start in range(0, len(codes_nc), BLOCK):
        stop = min(start + BLOCK, len(codes_nc))
        rows = block[: stop - start]
        np.copyto(rows, codes_nc[start:stop])
        dots = rows @ turned_cq
        lengths = np.sqrt(np.einsum("nc,nc->n", rows, rows))
        with np.errstate(invalid="ignore"):
            np.divide(dots, lengths[:, None], out=found[start:stop])
    return found


def scores(strip: Strip, like_qc: NDArray[np.float32], unlike_qc: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(h, W) similarity, SAME at most: the best cosine with an example, less that part of it that an unlike one has.

    A pixel that is nearer to one of what it should not be like than to any example has 0.
    """
    height, width, dim = strip.values_hwc.shape
    valid_n = strip.valid_hw.ravel()
    found = np.full(height * width, NODATA, np.uint8)
    both = cosines(strip.values_hwc.reshape(-1, dim), np.concatenate([like_qc, unlike_qc]))
    best = both[:, : len(like_qc)].max(axis=1)
    if len(unlike_qc):
        worst = both[:, len(like_qc) :].max(axis=1)
        best = np.where(worst >= best, 0.0, best)
    shares = np.clip(np.nan_to_num(best[valid_n]), 0.0, 1.0)
    found[valid_n] = np.rint(shares * SAME).astype(np.uint8)
    return found.reshape(height, width)


@dataclass
class TopPlaces:
    """The best cells of 100 m, one pixel each; those of the examples themselves are left out."""

    limit: int
    taken: frozenset[tuple[int, int, int]]
    """(zone, row, column) of the cells that hold an example."""
    found: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Score, zone's EPSG, and easting and northing of the pixel's centre in metres."""

    def look(self, strip: Strip, scores_hw: NDArray[np.uint8]) -> None:
        """Look at a strip."""
        grid = strip.grid
        least = self.found[self.limit - 1][0] if len(self.found) >= self.limit else 1
        rows, columns = np.nonzero((scores_hw >= least) & (scores_hw != NODATA))
        if not len(rows):
            return
        x = grid.west + (strip.left + columns) * PIXEL_SIZE + PIXEL_SIZE // 2
        y = grid.north - (strip.top + rows) * PIXEL_SIZE - PIXEL_SIZE // 2
        values = scores_hw[rows, columns].astype(np.int64)
        order = np.lexsort((x, -y, -values))
        best: dict[tuple[int, int, int], tuple[int, int, int, int]] = {_cell(*place[1:]): place for place in self.found}
        for index in order[: CELL**2 * (self.limit + len(self.taken))].tolist():  # of so many, `limit` cells are free
            place = (int(values[index]), grid.epsg, int(x[index]), int(y[index]))
            cell = _cell(*place[1:])
            if cell not in self.taken and (cell not in best or _rank(place) < _rank(best[cell])):
                best[cell] = place
        self.found = sorted(best.values(), key=_rank)[: self.limit]


def _rank(place: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    score, epsg, x, y = place
    return -score, epsg, -y, x


def _cell(epsg: int, x: int, y: int) -> tuple[int, int, int]:
    side = CELL * PIXEL_SIZE
    return epsg, y // side, x // side


@dataclass
class SimilarStage:
    """`smalti similar RUN --at lon,lat`."""

    at: Places
    unlike: Places
    limit: int

    name: str = "similar"
    noun: str = "maps of similarity"
    sharded: bool = False
    apart: bool = False

    def open(self, run: Run, config: Config) -> Session:
        """One map of all zones."""
        facts = read_provenance(run, gaps=config.stitch.missing == "nodata")
        asked = {"at": to_json(self.at), "unlike": to_json(self.unlike), "places": self.limit}
        unit = Unit(
            "similar", SimilarManifest.path(run), SimilarManifest.kind, {"embeddings": facts.fingerprint, **asked}
        )
        after = partial(missing_lines, self.name, run, facts.missing)
        return Session(
            [unit], lambda due: one_by_one(due.units, lambda unit: self._make(run, facts, unit)), after=after
        )

    def _make(self, run: Run, facts: RunProvenance, unit: Unit) -> None:
        reader = EmbeddingReader(run, Plan.read(run), gaps=True)  # what may not be missing, `open` has looked for
        like, unlike = ([_example(reader, place) for place in places] for places in (self.at, self.unlike))
        like_qc = np.stack([vector for vector, _ in like])
        unlike_qc = np.array([vector for vector, _ in unlike], np.float32).reshape(-1, like_qc.shape[1])
        folder = unit.manifest.parent
        folder.mkdir(exist_ok=True)
        unit.manifest.unlink(missing_ok=True)
        top = TopPlaces(self.limit, frozenset(cell for _, cell in [*like, *unlike]))
        grids, files = reader.grids, [folder / "places.geojson"]
        with progress("similar", sum(len(squares(grid)) for grid in grids), "squares") as bar:
            for grid in grids:
                layer = Layer(
                    "uint8", NODATA, ("similarity",), "nearest", {**facts.tags(), "SMALTI_CONTENT": _RASTER_IS}
                )
                path = folder / f"similarity_{grid.label}.tif"
                write_layer(run, path, grid, layer, facts, lambda s: scores(s, like_qc, unlike_qc), top.look, bar)
                item = path.with_suffix(".json")
                assets = [AssetRecord("similarity", path, _RASTER_IS, "data", layer)]
                properties = {
                    "title": f"Similarity to {len(self.at)} places, UTM zone {grid.label}",
                    "smalti:model": to_json(facts.encoder),
                    "smalti:at": to_json(self.at),
                    "smalti:unlike": to_json(self.unlike),
                }
                write_item(item, grid, facts.window, assets, properties, of=(facts.region, facts.model))
                files += [path, item]
        write_bytes(files[0], _geojson(top.found))
        made = SimilarManifest(
            **facts.stated(),
            at=self.at,
            unlike=self.unlike,
            places=len(top.found),
            zones={grid.label: f"similarity_{grid.label}.tif" for grid in grids},
        )
        made.write(unit.manifest, inputs=unit.inputs, files=files)


def _example(reader: EmbeddingReader, place: tuple[float, float]) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """The embedding of a place, of length one, and its cell.

    Raises:
        SmaltiError: if it lies outside, or has none.
    """
    longitude, latitude = place
    inside = False
    for grid in reader.grids:
        (x,), (y,) = moved(4326, grid, np.array([longitude]), np.array([latitude]))
        if not np.isfinite([x, y]).all():
            continue
        row, column = int((grid.north - y) // PIXEL_SIZE), int((x - grid.west) // PIXEL_SIZE)
        if not len(grid.part(row, column, 1, 1).tiles):
            continue
        inside = True
        vector = reader.window(grid, row, column, 1, 1)[0, 0]
        length = float(np.linalg.norm(vector))
        if np.isfinite(length) and length > 0:
            return (vector / length).astype(np.float32), _cell(grid.epsg, int(x), int(y))
    why = "lies in no tile (longitude comes first)"
    if inside:
        why = "has no embedding: it was not observed, or lies outside the region"
    raise SmaltiError(f"{longitude},{latitude}: {why}: choose another place")


def _geojson(found: Sequence[tuple[int, int, int, int]]) -> bytes:
    features = []
    for rank, (score, epsg, x, y) in enumerate(found, start=1):
        longitude, latitude = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [round(longitude, 6), round(latitude, 6)]},
                "properties": {"rank": rank, "similarity": round(score / SAME, 3)},
            }
        )
    content = {"type": "FeatureCollection", "name": "places", "features": features}
    return (json.dumps(content, indent=1) + "\n").encode()


def parse_places(texts: Sequence[str], option: str) -> Places:
    """The places of an option's values.

    Raises:
        SmaltiError: if one is not longitude,latitude.
    """
    found = []
    for text in texts:
        try:
            longitude, latitude = (float(part) for part in text.split(","))
        except ValueError:
            raise SmaltiError(f"{option} {text}: write longitude,latitude in degrees, for example 4.05,50.75") from None
        if not (-180 <= longitude <= 180 and -90 <= latitude <= 90):
            raise SmaltiError(f"{option} {text}: longitude is -180 to 180 and comes first, latitude -90 to 90")
        found.append((longitude, latitude))
    return tuple(found)


def find_similar(run: Run, config: Config, at: Places, unlike: Places, limit: int, *, force: bool = False) -> None:
    """Write RUN/similar; see `SimilarStage`.

    Raises:
        SmaltiError: if a place has no embedding, or embeddings are missing.
    """
    run_stage(SimilarStage(at, unlike, limit), run, config, force=force)
    made = SimilarManifest.read(run)
    folder = SimilarManifest.path(run).parent
    say(f"similar: {folder}: similarity_*.tif, and the {made.places} best places in places.geojson")
