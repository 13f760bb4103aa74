"""Labelled pixels, picked tile by tile; of many tiles in parts that tasks pick side by side: RUN/logs/samples/.

Groups reach across parts, so what is kept of a group is settled where all of them are known, in `sample.py`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from infer.contract import (
    PIXEL_SIZE,
    Embedding,
    FormatError,
    Plan,
    PlannedTile,
    PlannedTiles,
    Run,
    SmaltiError,
    write_bytes,
)
from infer.contract.classification import SamplesPart
from infer.contract.glance import lacks_embedding
from infer.contract.regular import read_regular
from preproc.classify.labels import LabelSet, read_labels, to_zone
from preproc.classify.pixels import Claims, Shapes, claim_pixels, prepare_shapes
from preproc.classify.table import keep_per_group, pixel_hash
from preproc.raster.provenance import Embeddings
from preproc.raster.strips import open_embedding
from preproc.raster.zones import shares_of
from preproc.region.vector import fingerprint
from preproc.run.config import Config, Labels
from preproc.run.progress import progress
from preproc.run.stage import LateInputs, Unit
from preproc.run.workers import in_order, worker_count

_TOGETHER = 1 << 15
"""Pixels of a tile looked at together."""
_MOST_BYTES = 1 << 32
"""Of a part."""
_BY, _PIXELS, _WHOLE = range(3)
"""What became of a feature: it touches tiles; it has pixels; it has, being too small to shrink."""

Pixels = NDArray[np.int32]


def label_settings(run: Run, config: Config) -> Labels:
    """[labels], which sampling cannot do without.

    Raises:
        SmaltiError: if there are none.
    """
    if config.labels is None:
        raise SmaltiError(
            f"{run.config}: [labels]: missing: add the section with path (points or polygons), class (their attribute) "
            "and, if several belong together, group"
        )
    return config.labels


def sampling_inputs(run: Run, config: Config) -> dict[str, Any]:
    """What samples depend on beside the embeddings."""
    labels = label_settings(run, config)
    return {
        "labels": fingerprint(labels.path),
        "attributes": {
            **({"class": labels.class_} if labels.value is None else {"value": labels.value}),
            "group": labels.group,
            "layer": labels.layer,
            **({"encoding": labels.encoding} if labels.encoding else {}),
            **({"district": labels.district} if labels.district else {}),
        },
        "sampling": {
            "shrink": config.classify.shrink,
            "max_pixels": config.classify.max_pixels,
            "seed": config.classify.seed,
        },
    }


@dataclass(frozen=True)
class Chosen:
    """Labelled pixels (N), by tile, row and column."""

    tile_n: Pixels
    """Index of the tile in the plan."""
    row_n: Pixels
    col_n: Pixels
    feature_n: Pixels
    """Index of the feature among the labels."""

    def __len__(self) -> int:
        return len(self.tile_n)

    def take(self, which: NDArray[Any]) -> Chosen:
        """Those that a mask or an index selects."""
        return Chosen(self.tile_n[which], self.row_n[which], self.col_n[which], self.feature_n[which])


@dataclass(frozen=True)
class Picked:
    """The labelled pixels of some tiles, of a group at most `max_pixels` a tile."""

    place_n4: Pixels
    """(N, 4) tile, row, column, feature: as in `Chosen`."""
    fates_m2: Pixels
    """(M, 2) feature near these tiles, and what became of it: _BY, _PIXELS, _WHOLE."""
    counts: Counter[str]
    """What was dropped, by reason."""
    dim: int = 0
    """Numbers of an embedding; 0 where none was looked at."""


def joined(run: Run, parts: Sequence[Picked]) -> tuple[Chosen, Counter[str], int]:
    """What was picked of all tiles: the pixels, what became of pixels and features, numbers of an embedding.

    Raises:
        FormatError: if embeddings are of different lengths.
    """
    dims = sorted({part.dim for part in parts} - {0})
    if len(dims) > 1:
        raise FormatError(f"{run.embeddings}: tiles have {dims[0]} dimensions, others {dims[1]}: run `smalti infer`")
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)  # keeps what is 0
    fates_m2 = np.concatenate([part.fates_m2 for part in parts])
    near, claimed, whole = (np.unique(fates_m2[fates_m2[:, 1] >= least, 0]) for least in (_BY, _PIXELS, _WHOLE))
    counts["features without a pixel"] = len(near) - len(claimed)
    counts["polygons too small to shrink, kept whole"] = len(whole)
    return Chosen(*np.concatenate([part.place_n4 for part in parts]).T), counts, (dims or [0])[0]


@dataclass(frozen=True)
class LabelledTiles:
    """Tiles, and the labels near them."""

    run: Run
    config: Config
    tiles: PlannedTiles
    labels: LabelSet
    _zones: dict[int, shapely.STRtree] = field(default_factory=dict)
    """The labels in the zones that were asked for, with an index."""

    @classmethod
    def of(cls, run: Run, config: Config, tiles: Sequence[PlannedTile]) -> LabelledTiles:
        """Read the labels near some tiles.

        Raises:
            SmaltiError: if the labels are not usable.
        """
        settings = label_settings(run, config)
        labels = read_labels(
            settings.path,
            settings.attribute,
            settings.group,
            settings.layer,
            _zone_bounds(PlannedTiles.of(tiles)),
            encoding=settings.encoding,
            district_attribute=settings.district,
            numeric=settings.value is not None,
        )
        return cls(run, config, PlannedTiles.of(tiles), labels)

    @cached_property
    def class_n(self) -> Pixels:
        """A number per feature's class."""
        return np.unique(self.labels.classes_n.astype(str), return_inverse=True)[1].astype(np.int32)

    @cached_property
    def group_n(self) -> NDArray[Any]:
        """A number per feature's group."""
        return np.unique(self.labels.groups_n.astype(str), return_inverse=True)[1]

    def _zone(self, epsg: int) -> shapely.STRtree:
        if epsg not in self._zones:
            self._zones[epsg] = shapely.STRtree(to_zone(self.labels, epsg))
        return self._zones[epsg]

    def near(self, indices: Sequence[int]) -> tuple[list[int], Pixels, dict[int, Shapes]]:
        """What labels have to do with some tiles: the others need not be looked at.

        Args:
            indices: of the tiles.

        Returns:
            The tiles near features, by their index; the features that touch any; and the features in every zone.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        table, extent = self.tiles.chosen(chosen), self.tiles.size * PIXEL_SIZE
        labelled: list[int] = []
        touching: list[NDArray[Any]] = [np.empty(0, dtype=np.int64)]
        shapes = {}
        for epsg in np.unique(table.column("epsg")).tolist():
            of_zone_n = np.flatnonzero(table.column("epsg") == epsg)
            west, north = table.column("west")[of_zone_n], table.column("north")[of_zone_n]
            tree, boxes = self._zone(epsg), shapely.box(west, north - extent, west + extent, north)
            tile_m, feature_m = tree.query(boxes)
            labelled += chosen[of_zone_n[np.unique(tile_m)]].tolist()
            touching.append(tree.query(boxes, predicate="intersects")[1])
            whole_n = tree.geometries.copy()
            whole_n[np.setdiff1d(np.arange(len(whole_n)), feature_m)] = None
            shapes[epsg] = prepare_shapes(whole_n, self.config.classify.shrink)
        return sorted(labelled), np.unique(np.concatenate(touching)).astype(np.int32), shapes

    def capped(self, tile: PlannedTile, rows: Pixels, cols: Pixels, features: Pixels) -> NDArray[np.bool_]:
        """Which pixels of a tile are kept: of each group at most `max_pixels`."""
        return self._capped(np.full(len(rows), tile.epsg), *centres(tile.west, tile.north, rows, cols), features)

    def capped_over_all(self, found: Chosen) -> NDArray[np.bool_]:
        """The same of pixels of any tiles."""
        epsg_n, west_n, north_n = (self.tiles.column(key)[found.tile_n] for key in ("epsg", "west", "north"))
        return self._capped(epsg_n, *centres(west_n, north_n, found.row_n, found.col_n), found.feature_n)

    def _capped(self, epsg_n: Any, x_n: Any, y_n: Any, feature_n: Pixels) -> NDArray[np.bool_]:
        settings = self.config.classify
        hashes = pixel_hash(settings.seed, epsg_n, x_n, y_n)
        return keep_per_group(self.group_n[feature_n], hashes, settings.max_pixels)

    def pick(self, indices: Sequence[int], *, embedded_only: bool = True) -> Picked:
        """Look at tiles and pick their labelled pixels, several tiles at a time.

        Args:
            indices: of the tiles, ascending.
            embedded_only: leave pixels without an embedding out; otherwise none is looked at, nor has to be there.

        Raises:
            SmaltiError: if an embedding is not what it should be.
        """
        labelled, touching, shapes = self.near(indices)
        counts: Counter[str] = Counter()
        fates = dict.fromkeys(touching.tolist(), _BY)
        places = [np.empty((0, 4), dtype=np.int32)]
        dim = 0
        gaps = embedded_only and self.config.stitch.missing == "nodata"

        def claims() -> Iterator[tuple[int, Claims]]:
            for index in labelled:  # in this thread: prepared outlines are not to be shared
                tile = self.tiles[index]
                found = claim_pixels(tile, shapes[tile.epsg], self.class_n)
                whole_n = shapes[tile.epsg].kept_whole_n
                for feature in np.unique(found.features_m).tolist():
                    fates[feature] = max(fates.get(feature, _BY), _WHOLE if whole_n[feature] else _PIXELS)
                if gaps and lacks_embedding(self.run.embeddings, tile.name):
                    counts["pixels dropped: no embedding there"] += len(found.rows_m)
                    continue
                counts["pixels dropped: labels of different classes"] += found.conflicts
                if len(found.rows_m):
                    yield index, found

        def look(item: tuple[int, Claims]) -> tuple[int, NDArray[np.bool_]]:
            if not embedded_only:
                return 0, np.ones(len(item[1].rows_m), dtype=bool)
            embedding = open_embedding(self.run, self.tiles[item[0]])
            return embedding.shape_hwc[2], _valid(embedding, item[1].rows_m, item[1].cols_m)

        with progress("sample: pixels", len(labelled), "tiles") as bar:
            for (index, found), (numbers, valid) in in_order(claims(), look, worker_count(self.config)):
                tile = self.tiles[index]
                if dim not in (0, numbers):
                    raise FormatError(
                        f"{self.run.embeddings}: {tile.name} has {numbers} dimensions, others {dim}: run `smalti infer`"
                    )
                dim = numbers
                if embedded_only:
                    counts["pixels dropped: no embedding there"] += int((~valid).sum())
                rows, cols, features = found.rows_m[valid], found.cols_m[valid], found.features_m[valid]
                kept = self.capped(tile, rows, cols, features)
                counts["pixels beyond the cap of a group"] += int((~kept).sum())
                tiles = np.full(len(rows), index, dtype=np.int32)
                places.append(np.column_stack([tiles, rows, cols, features])[kept])
                bar.advance(note=tile.name)
        return Picked(
            np.concatenate(places), np.array(sorted(fates.items()), dtype=np.int32).reshape(-1, 2), counts, dim
        )


def centres(west: Any, north: Any, rows: NDArray[Any], cols: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Easting and northing of the centres of pixels, of one tile or, with arrays, of each pixel's tile."""
    return west + (cols + 0.5) * PIXEL_SIZE, north - (rows + 0.5) * PIXEL_SIZE


def _zone_bounds(tiles: PlannedTiles) -> dict[int, tuple[float, float, float, float]]:
    epsg_n, extent = tiles.column("epsg"), tiles.size * PIXEL_SIZE
    found = {}
    for epsg in dict.fromkeys(epsg_n.tolist()):
        west, north = tiles.column("west")[epsg_n == epsg], tiles.column("north")[epsg_n == epsg]
        found[epsg] = float(west.min()), float(north.min() - extent), float(west.max() + extent), float(north.max())
    return found


def _valid(embedding: Embedding, rows: Pixels, cols: Pixels) -> NDArray[np.bool_]:
    whole = np.any if embedding.gappy else np.all
    parts = range(0, len(rows), _TOGETHER)
    found = [embedding.points(rows[start : start + _TOGETHER], cols[start : start + _TOGETHER]) for start in parts]
    return np.concatenate([whole(np.isfinite(vectors), axis=1) for vectors in found])


@dataclass(frozen=True)
class Parts:
    """The parts that the tiles of a run are divided into; they are gone once `smalti sample` has joined them."""

    run: Run
    config: Config
    plan: Plan

    @cached_property
    def tiles(self) -> PlannedTiles:
        """Those of the plan."""
        return PlannedTiles.of(self.plan.tiles)

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.run.logs / "samples"

    def units(self) -> list[tuple[Unit, range]]:
        """Every part, and its tiles by their index."""
        common = {**sampling_inputs(self.run, self.config), "plan": self._plan}
        embeddings = Embeddings.of_run(self.run, self.plan, gaps=self.config.stitch.missing == "nodata")

        def inputs(tiles: range) -> dict[str, Any]:
            own = self.tiles[tiles.start : tiles.stop]
            return {**common, "tiles": [tiles.start, tiles.stop], "embeddings": embeddings.provenance(own).fingerprint}

        names = (f"part-{number:05d}" for number in count())
        return [
            (Unit(name, self.folder / f"{name}.json", SamplesPart.kind, LateInputs(partial(inputs, tiles))), tiles)
            for name, tiles in zip(names, shares_of(self.tiles, self.config.stitch.sheet), strict=False)
        ]

    @property
    def _plan(self) -> str:
        """All tiles, for those decide which labels are read, and so what number a feature has."""
        return hashlib.sha256(self.tiles.rows_n.tobytes()).hexdigest()

    def make(self, labelled: LabelledTiles, tiles: range, unit: Unit) -> None:
        """Pick the pixels of a part and write them and, last, its manifest.

        Raises:
            SmaltiError: if an embedding is not what it should be.
        """
        inputs = dict(unit.inputs)
        unit.manifest.unlink(missing_ok=True)
        picked = labelled.pick(tiles)
        stream = io.BytesIO()
        np.savez(stream, place=picked.place_n4, fates=picked.fates_m2)
        path = unit.manifest.with_suffix(".npz")
        write_bytes(path, stream.getvalue())
        SamplesPart(dim=picked.dim, counts=dict(sorted(picked.counts.items()))).write(
            unit.manifest, inputs=inputs, files=[path]
        )

    def read(self, labelled: LabelledTiles, tiles: range, unit: Unit) -> Picked | None:
        """A part from the disk; None if it is not there, stale or damaged, and has to be picked again."""
        if not unit.manifest.exists() or not unit.state(checksums=True).complete:
            return None
        try:
            about = SamplesPart.read_file(unit.manifest, self.run)
            content = read_regular(unit.manifest.with_suffix(".npz"), _MOST_BYTES)
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                place, fates = stored["place"], stored["fates"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, SmaltiError):
            return None
        first, most = (tiles.start, 0, 0, 0), (tiles.stop, self.tiles.size, self.tiles.size, len(labelled.labels))
        whole = place.dtype == fates.dtype == np.int32 and place.shape[1:] == (4,) and fates.shape[1:] == (2,)
        if not whole or (place < first).any() or (place >= most).any():
            return None
        return Picked(place, fates, Counter(about.counts), about.dim)
