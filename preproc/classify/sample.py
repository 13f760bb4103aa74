"""The `sample` stage: labels and embeddings -> samples.parquet, one row a labelled pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from infer.contract import (
    PIXEL_SIZE,
    Embedding,
    FormatError,
    Inputs,
    Plan,
    PlannedTile,
    PlannedTiles,
    Run,
    SmaltiError,
    Tile,
    array_paths,
    atomic_file,
    embedding_paths,
    is_released,
    planned_tiles,
    read_embedding,
    read_tile,
)
from infer.contract.classification import SampledClass, SamplesManifest
from infer.contract.glance import lacks_embedding
from infer.contract.monthly import MONTHLY_FAMILY
from preproc.classify.labels import LabelSet, assign_codes, read_labels, to_zone
from preproc.classify.medians import MOST_WORK, keep_medians, kept_medians
from preproc.classify.pixels import Claims, Shapes, claim_pixels, prepare_shapes
from preproc.classify.table import Samples, SampleWriter, Source, counted, keep_per_group, pixel_hash
from preproc.raster.provenance import embedded, embeddings_fingerprint, read_provenance
from preproc.region.vector import fingerprint
from preproc.run.config import Config, Labels
from preproc.run.progress import progress, say
from preproc.run.stage import Session, Unit, one_by_one
from preproc.run.workers import in_order, worker_count

_TOGETHER = 1 << 15
"""Pixels of a tile looked at together."""


class SampleStage:
    """`smalti sample`."""

    name = "sample"
    noun = "sample tables"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The one table, and what it is made from."""
        labels = _settings(run, config)
        inputs = {
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
            "embeddings": embeddings_fingerprint(run, gaps=config.stitch.missing == "nodata"),
        }
        unit = Unit("samples", run.samples_manifest, SamplesManifest.kind, inputs)
        return Session([unit], lambda due: one_by_one(due.units, lambda _: write_samples(run, config, inputs)))


def _settings(run: Run, config: Config) -> Labels:
    if config.labels is None:
        raise SmaltiError(
            f"{run.config}: [labels]: missing: add the section with path (points or polygons), class (their attribute) "
            "and, if several belong together, group"
        )
    return config.labels


def _labels(run: Run, config: Config, tiles: Sequence[PlannedTile]) -> LabelSet:
    settings = _settings(run, config)
    return read_labels(
        settings.path,
        settings.attribute,
        settings.group,
        settings.layer,
        _zone_bounds(tiles),
        encoding=settings.encoding,
        district_attribute=settings.district,
        numeric=settings.value is not None,
    )


@dataclass
class _Picked:
    """Labelled pixels with an embedding (rows of all tiles so far), and how many are wanted."""

    group_n: NDArray[Any]
    """A number per feature's group."""
    seed: int
    limit: int
    """Pixels kept a group."""
    tiles: list[NDArray[np.int32]] = field(default_factory=list)
    """Index of the tile in the plan."""
    rows: list[NDArray[np.int32]] = field(default_factory=list)
    cols: list[NDArray[np.int32]] = field(default_factory=list)
    features: list[NDArray[np.int32]] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    dim: int = 0

    def add(
        self,
        index: int,
        tile: PlannedTile,
        rows: NDArray[np.int32],
        cols: NDArray[np.int32],
        features: NDArray[np.int32],
    ) -> None:
        """Keep a tile's pixels, capped by group already, so that memory stays small."""
        x, y = _centres(tile, rows, cols)
        hashes = pixel_hash(self.seed, np.full(len(rows), tile.epsg), x, y)
        kept = keep_per_group(self.group_n[features], hashes, self.limit)
        self.counts["pixels beyond the cap of a group"] += int((~kept).sum())
        self.tiles.append(np.full(int(kept.sum()), index, dtype=np.int32))
        self.rows.append(rows[kept])
        self.cols.append(cols[kept])
        self.features.append(features[kept])
        self.hashes.append(hashes[kept])


@dataclass(frozen=True)
class _Chosen:
    """The pixels of the table (N), in its order."""

    tile_n: NDArray[np.int32]
    row_n: NDArray[np.int32]
    col_n: NDArray[np.int32]
    feature_n: NDArray[np.int32]


@dataclass(frozen=True)
class Drawn:
    """What the table will hold."""

    tiles: Sequence[PlannedTile]
    labels: LabelSet
    chosen: _Chosen
    codes: Mapping[Any, int]
    """Class -> code."""
    counts: Mapping[str, int]
    """What was dropped, repaired or kept in spite of something, by reason."""
    dim: int
    """Numbers of an embedding."""


def draw_samples(run: Run, config: Config, *, embedded_only: bool = True) -> Drawn:
    """Read the labels and choose the pixels.

    Args:
        run: the run.
        config: its settings.
        embedded_only: leave pixels without an embedding out; otherwise no embedding is looked at, nor has to be there.

    Raises:
        SmaltiError: if the labels are not usable, lie outside the region, or name one class only.
    """
    settings = _settings(run, config)
    tiles = planned_tiles(run)
    labels = _labels(run, config, tiles)
    picked = _pick(run, config, tiles, labels, embedded_only)
    chosen = _cap(picked, labels)
    codes = _codes(labels, chosen, settings)
    return Drawn(tiles, labels, chosen, codes, {**labels.counts, **dict(sorted(picked.counts.items()))}, picked.dim)


def write_samples(run: Run, config: Config, inputs: Inputs) -> None:
    """Write RUN/samples.parquet and its manifest."""
    drawn = draw_samples(run, config)
    value = _settings(run, config).value
    with atomic_file(run.samples) as temporary:
        writer = SampleWriter(
            temporary, drawn.dim, district=drawn.labels.districts_n is not None, value=value is not None
        )
        try:
            _write_rows(writer, run, drawn, value, worker_count(config))
        finally:
            writer.close()
        run.samples_manifest.unlink(missing_ok=True)  # from here on the old table is no longer whole
    about = SamplesManifest(
        rows=len(drawn.chosen.tile_n),
        dim=drawn.dim,
        classes=tuple(_legend(drawn) if value is None else _one_entry(drawn, value)),
        value=value,
        counts=drawn.counts,
        embedded=embedded(read_provenance(run, gaps=config.stitch.missing == "nodata"), Plan.read(run)),
    )
    about.write(run.samples_manifest, inputs=inputs, files=[run.samples])
    _tell(about)
    if value is None:
        _keep_medians(run, config, drawn)


def _keep_medians(run: Run, config: Config, drawn: Drawn) -> None:
    """While arrays are there: `validate` compares with them, also when they were let go meanwhile."""
    work = len(drawn.chosen.tile_n) * len(set(drawn.codes.values()))
    if not _compared(config) or (config.classify.baseline == "auto" and work > MOST_WORK):
        return
    chosen = drawn.chosen
    for index in np.unique(chosen.tile_n):
        here = chosen.tile_n == index
        folder, rows, cols = run.tiles / drawn.tiles[index].name, chosen.row_n[here], chosen.col_n[here]
        there = all(path.is_file() for path in array_paths(folder)) and not is_released(folder)
        if there and kept_medians(folder, rows, cols) is None:
            keep_medians(folder, read_tile(folder, need_manifest=True, checksums=False), rows, cols)


def _compared(config: Config) -> bool:
    """Whether `validate` may compare with monthly medians."""
    classes = config.labels is not None and config.labels.value is None
    return classes and config.classify.baseline is not False and config.model.name != MONTHLY_FAMILY


def median_keeper(run: Run, config: Config, tiles: Sequence[PlannedTile]) -> Callable[[Path, PlannedTile], None] | None:
    """What keeps the medians of a tile's labelled pixels where its arrays will go before `sample` can see them.

    Args:
        run: the run.
        config: its settings.
        tiles: that it will be asked to look at.

    Returns:
        A function of a folder with a whole tile, and of its place; None where nothing is compared, or labels cannot be
        read: `sample` will say why.
    """
    if not _compared(config) or not tiles:
        return None
    try:
        labels = _labels(run, config, tiles)
    except SmaltiError as error:
        say(f"fetch: no monthly medians of labelled pixels are kept: {error}")
        return None
    class_n = np.unique(labels.classes_n.astype(str), return_inverse=True)[1].astype(np.int32)
    group_n = np.unique(labels.groups_n.astype(str), return_inverse=True)[1]
    zones, alone = _prepared(labels, tiles, config), Lock()  # prepared outlines are not to be shared by threads

    def keep(folder: Path, planned: PlannedTile) -> None:
        with alone:
            claims = claim_pixels(planned, zones[planned.epsg], class_n)
        rows, cols, features = claims.rows_m, claims.cols_m, claims.features_m
        if not len(rows):
            return
        tile = read_tile(folder, need_manifest=True, checksums=False)
        counts = _observations(tile, rows, cols)
        seen = counts.any(axis=1) & (counts[:, 0] >= config.model.min_clear_s2)
        picked = _Picked(group_n, config.classify.seed, config.classify.max_pixels)
        picked.add(0, planned, rows[seen], cols[seen], features[seen])
        if len(picked.rows[0]):
            keep_medians(folder, tile, picked.rows[0], picked.cols[0])

    return keep


def _observations(tile: Tile, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> NDArray[np.int64]:
    """(N, 2) clear Sentinel-2 and Sentinel-1 observations of some pixels."""
    clear = (tile.masks_thw[:, rows, cols] == 1).sum(axis=0)
    radar = [(stack[:, rows, cols] != 0).any(axis=-1).sum(axis=0) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)]
    return np.column_stack([clear, radar[0] + radar[1]])


def _zone_bounds(tiles: Sequence[PlannedTile]) -> dict[int, tuple[float, float, float, float]]:
    zones: dict[int, list[tuple[int, int, int, int]]] = {}
    for tile in tiles:
        zones.setdefault(tile.epsg, []).append(tile.bounds)
    corners = {epsg: np.array(bounds, dtype=float) for epsg, bounds in zones.items()}
    return {
        epsg: (float(b[:, 0].min()), float(b[:, 1].min()), float(b[:, 2].max()), float(b[:, 3].max()))
        for epsg, b in corners.items()
    }


def _pick(run: Run, config: Config, tiles: Sequence[PlannedTile], labels: LabelSet, embedded_only: bool) -> _Picked:
    """Labelled pixels (that have an embedding), at most `max_pixels` a group and tile."""
    class_n = np.unique(labels.classes_n.astype(str), return_inverse=True)[1].astype(np.int32)
    group_n = np.unique(labels.groups_n.astype(str), return_inverse=True)[1]
    picked = _Picked(group_n, config.classify.seed, config.classify.max_pixels)
    zones = _prepared(labels, tiles, config)
    gaps = config.stitch.missing == "nodata"
    near, labelled = _labelled_tiles(tiles, zones)
    claimed: set[int] = set()

    def claims() -> Iterator[tuple[int, Claims]]:
        for index in labelled:  # in this thread: prepared outlines are not to be shared
            found = claim_pixels(tiles[index], zones[tiles[index].epsg], class_n)
            claimed.update(np.unique(found.features_m).tolist())
            if embedded_only and gaps and lacks_embedding(run.embeddings, tiles[index].name):
                picked.counts["pixels dropped: no embedding there"] += len(found.rows_m)
                continue
            picked.counts["pixels dropped: labels of different classes"] += found.conflicts
            if len(found.rows_m):
                yield index, found

    def look(item: tuple[int, Claims]) -> tuple[int, NDArray[np.bool_]]:
        if not embedded_only:
            return picked.dim, np.ones(len(item[1].rows_m), dtype=bool)
        embedding = _open(run, tiles[item[0]])
        return embedding.shape_hwc[2], _valid(embedding, item[1].rows_m, item[1].cols_m)

    with progress("sample: pixels", len(labelled), "tiles") as bar:
        for (index, found), (dim, valid) in in_order(claims(), look, worker_count(config)):
            if picked.dim not in (0, dim):
                raise FormatError(
                    f"{run.embeddings}: {tiles[index].name} has {dim} dimensions, others {picked.dim}: "
                    "run `smalti infer`"
                )
            picked.dim = dim
            if embedded_only:
                picked.counts["pixels dropped: no embedding there"] += int((~valid).sum())
            picked.add(index, tiles[index], found.rows_m[valid], found.cols_m[valid], found.features_m[valid])
            bar.advance(note=tiles[index].name)
    if not near:
        raise SmaltiError(f"{labels.path}: no label lies in the region: check [labels] path, its CRS and [region]")
    small = {i for shapes in zones.values() for i in np.flatnonzero(shapes.kept_whole_n).tolist()}
    picked.counts["features without a pixel"] = len(near - claimed)
    picked.counts["polygons too small to shrink, kept whole"] = len(small & claimed)
    return picked


def _prepared(labels: LabelSet, tiles: Sequence[PlannedTile], config: Config) -> dict[int, Shapes]:
    """The labels in every zone."""
    return {
        epsg: prepare_shapes(to_zone(labels, epsg), config.classify.shrink)
        for epsg in dict.fromkeys(tile.epsg for tile in tiles)
    }


def _labelled_tiles(tiles: Sequence[PlannedTile], zones: Mapping[int, Shapes]) -> tuple[set[int], list[int]]:
    """The features that touch tiles, and the tiles near features: the others need not be looked at."""
    table = PlannedTiles.of(tiles)
    near: set[int] = set()
    labelled: set[int] = set()
    for epsg, shapes in zones.items():
        of_zone_n = np.flatnonzero(table.column("epsg") == epsg)
        west, north = table.column("west")[of_zone_n], table.column("north")[of_zone_n]
        extent = table.size * PIXEL_SIZE
        boxes = shapely.box(west, north - extent, west + extent, north)
        labelled.update(of_zone_n[np.unique(shapes.tree.query(boxes)[0])].tolist())
        near.update(np.unique(shapes.tree.query(boxes, predicate="intersects")[1]).tolist())
    return near, sorted(labelled)


def _open(run: Run, tile: PlannedTile) -> Embedding:
    embedding = read_embedding(run.embeddings, tile.name)
    height, width, _ = embedding.shape_hwc
    if (height, width) != (tile.size, tile.size):
        raise FormatError(
            f"{embedding_paths(run.embeddings, tile.name)[0]}: {height} x {width} pixels, the plan says "
            f"{tile.size} x {tile.size}: run `smalti infer` again"
        )
    return embedding


def _valid(embedding: Embedding, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> NDArray[np.bool_]:
    whole = np.any if embedding.gappy else np.all
    parts = range(0, len(rows), _TOGETHER)
    found = [embedding.points(rows[start : start + _TOGETHER], cols[start : start + _TOGETHER]) for start in parts]
    return np.concatenate([whole(np.isfinite(vectors), axis=1) for vectors in found])


def _centres(tile: PlannedTile, rows: NDArray[Any], cols: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    return tile.west + (cols + 0.5) * PIXEL_SIZE, tile.north - (rows + 0.5) * PIXEL_SIZE


def _cap(picked: _Picked, labels: LabelSet) -> _Chosen:
    """The table's pixels: at most `limit` a group over all tiles."""
    if not any(len(rows) for rows in picked.rows):
        conflicts = picked.counts["pixels dropped: labels of different classes"]
        if conflicts and not picked.counts["pixels dropped: no embedding there"]:
            raise SmaltiError(
                f"{labels.path}: labels of different classes lie on all {conflicts} labelled pixels: correct them so "
                "that they do not overlap"
            )
        raise SmaltiError(
            f"{labels.path}: no label covers a pixel that has an embedding: they lie outside the region, or where "
            "neither Sentinel-1 nor Sentinel-2 saw anything"
        )
    features = np.concatenate(picked.features)
    kept = keep_per_group(picked.group_n[features], np.concatenate(picked.hashes), picked.limit)
    picked.counts["pixels beyond the cap of a group"] += int((~kept).sum())
    tile_n, row_n, col_n = (np.concatenate(parts)[kept] for parts in (picked.tiles, picked.rows, picked.cols))
    return _Chosen(tile_n, row_n, col_n, features[kept])


def _codes(labels: LabelSet, chosen: _Chosen, settings: Labels) -> dict[Any, int]:
    classes = set(labels.classes_n[chosen.feature_n].tolist())
    if settings.value is not None:
        if len(classes) < 2:
            raise SmaltiError(
                f"{labels.path}: all labels in the region have the same number ({settings.value} = "
                f"{next(iter(classes))}): there is nothing to learn"
            )
        return dict.fromkeys(classes, 1)
    if len(classes) < 2:
        raise SmaltiError(
            f"{labels.path}: all labels in the region are of one class ({settings.attribute} = {next(iter(classes))}): "
            "a classifier needs two or more"
        )
    return assign_codes(classes)


def _write_rows(writer: SampleWriter, run: Run, drawn: Drawn, value: str | None, workers: int) -> None:
    """One row group a tile."""

    def vectors(item: tuple[dict[str, Any], PlannedTile]) -> NDArray[np.float32]:
        place, tile = item
        embedding = read_embedding(run.embeddings, tile.name, checksums=False)  # verified when the pixels were picked
        return embedding.points(place["row"], place["col"])

    for (place, _), vectors_nc in in_order(_places(drawn, value), vectors, workers):
        writer.write(place, vectors_nc)


def places_of(drawn: Drawn) -> Samples:
    """The labelled pixels with their classes, as a table without an embedding."""
    parts: dict[str, list[Any]] = {}
    for place, _tile in _places(drawn, None):
        for name, values in place.items():
            parts.setdefault(name, []).append(np.asarray(values))
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    count = len(columns["row"])
    return Samples(
        tile_n=columns["tile"],
        row_n=columns["row"],
        col_n=columns["col"],
        x_n=columns["x"],
        y_n=columns["y"],
        epsg_n=columns["epsg"],
        code_n=columns["code"].astype(np.int32),
        group_n=columns["group"],
        feature_n=columns["feature"],
        district_n=columns.get("district", np.full(count, "")),
        run_n=np.zeros(count, dtype=np.int16),
        value_n=np.full(count, np.nan),
        values_nc=np.zeros((count, 0), dtype=np.float32),
        legend={entry.code: entry.name for entry in _legend(drawn)},
        sources=(Source("this run", None, ""),),
    )


def _places(drawn: Drawn, value: str | None) -> Iterator[tuple[dict[str, Any], PlannedTile]]:
    """The columns before the embedding, tile by tile."""
    chosen, labels = drawn.chosen, drawn.labels
    ends = np.flatnonzero(np.diff(chosen.tile_n)) + 1  # the table is in the order of the tiles
    for here in np.split(np.arange(len(chosen.tile_n)), ends):
        tile = drawn.tiles[int(chosen.tile_n[here[0]])]
        rows, cols, features = chosen.row_n[here], chosen.col_n[here], chosen.feature_n[here]
        x, y = _centres(tile, rows, cols)
        place: dict[str, Any] = {
            "tile": [tile.name] * len(rows),
            "row": rows,
            "col": cols,
            "x": x,
            "y": y,
            "epsg": np.full(len(rows), tile.epsg, dtype=np.int32),
            "class": [str(name) if value is None else value for name in labels.classes_n[features]],
            "code": [drawn.codes[name] for name in labels.classes_n[features]],
            "group": [str(name) for name in labels.groups_n[features]],
            "feature": labels.fids_n[features],
        }
        if value is not None:
            place["value"] = labels.classes_n[features].astype(np.float64)
        if labels.districts_n is not None:
            place["district"] = labels.districts_n[features].tolist()
        yield place, tile


def _one_entry(drawn: Drawn, value: str) -> list[SampledClass]:
    groups = len(set(drawn.labels.groups_n[drawn.chosen.feature_n].tolist()))
    return [SampledClass(1, value, len(drawn.chosen.feature_n), groups)]


def _legend(drawn: Drawn) -> list[SampledClass]:
    classes = drawn.labels.classes_n[drawn.chosen.feature_n].tolist()
    groups = drawn.labels.groups_n[drawn.chosen.feature_n].tolist()
    pixels = Counter(classes)
    groups_of = Counter(value for value, _ in set(zip(classes, groups, strict=True)))
    return [
        SampledClass(code, str(value), pixels[value], groups_of[value])
        for value, code in sorted(drawn.codes.items(), key=lambda item: item[1])
    ]


def _tell(about: SamplesManifest) -> None:
    for reason, count in about.counts.items():
        if count and reason != "features read":
            say(f"sample: {count} {reason}")
    for entry in about.classes:
        pixels, groups = counted(entry.pixels, "pixel"), counted(entry.groups, "group")
        say(f"sample: {entry.name} (code {entry.code}): {pixels} in {groups}")
