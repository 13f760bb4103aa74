"""`smalti parcels`: a run seen by parcel: one vector a polygon, the map's majority in it, declared against mapped."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from rasterio.windows import Window
from rich.table import Table

from infer.contract import (
    PIXEL_SIZE,
    Plan,
    Run,
    SmaltiError,
    atomic_file,
    output_state,
    read_json,
    sha256_file,
    write_bytes,
    write_manifest,
)
from infer.contract.manifest import kind_of
from preproc.classify.accuracy import count_matrix, macro_f1, overall
from preproc.classify.class_raster import ClassMap, read_map
from preproc.classify.folds import assign_folds
from preproc.classify.labels import class_values
from preproc.classify.methods import fit_any, out_of_fold, parameters, probabilities
from preproc.classify.model import load_classifier
from preproc.mosaic.reader import EmbeddingReader
from preproc.raster.provenance import Embeddings, embeddings_fingerprint, missing_lines, read_provenance
from preproc.raster.zones import ZoneGrid, zone_grids
from preproc.region.grid import zone_epsg
from preproc.region.vector import fingerprint, read_vector
from preproc.run.classifier import model_folder
from preproc.run.config import Config
from preproc.run.progress import progress, say, show
from preproc.survey.cover import covered

KIND = "parcels"
_POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
AGREES, DIFFERS, OPEN = "agrees", "differs", "cannot be told"


@dataclass(frozen=True)
class ParcelWishes:
    """What the command line asks for."""

    polygons: Path
    id: str | None = None
    """Attribute that names a parcel, each once; None: the feature's number."""
    class_: str | None = None
    """Attribute with the declared class; None: nothing is checked."""
    layer: str | None = None
    encoding: str | None = None
    pixels: float = 4.0
    """A parcel of which fewer pixels are covered cannot be told."""
    share: float = 0.5
    """Nor one in which the majority has a smaller share of what is mapped."""
    train: bool = False
    """Train on the means of the parcels with a declared class, and say of each what those of the others say."""


@dataclass(frozen=True)
class _Parcels:
    """Polygons (N)."""

    id_n: NDArray[Any]
    outline_n: NDArray[Any]
    """As in their file."""
    crs: CRS
    """Of the file."""
    declared_n: NDArray[Any] | None
    """Declared class as text, None where there is none."""
    _known: dict[CRS, NDArray[Any]] = field(default_factory=dict)
    """What was asked for of `in_crs`."""

    def __len__(self) -> int:
        return len(self.id_n)

    def in_crs(self, crs: CRS) -> NDArray[Any]:
        """(N,) outlines in a CRS, that of a UTM zone, empty where that cannot express them."""
        if crs not in self._known:
            moved_n = _moved(self.outline_n, self.crs, crs)
            moved_n[~np.isfinite(shapely.bounds(moved_n)).all(axis=1)] = shapely.Polygon()
            shapely.prepare(moved_n)
            self._known[crs] = moved_n
        return self._known[crs]

    def on(self, grid: ZoneGrid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(M,) parcels near tiles of a zone, and the tiles, by their index, in pairs in the order of the tiles."""
        row_t, column_t = grid.places().T * PIXEL_SIZE
        west_t, north_t, side = grid.west + column_t, grid.north - row_t, grid.tiles[0].size * PIXEL_SIZE
        boxes = shapely.box(west_t, north_t - side, west_t + side, north_t)
        tile_m, parcel_m = shapely.STRtree(self.in_crs(CRS.from_epsg(grid.epsg))).query(boxes)
        order = np.lexsort((parcel_m, tile_m))
        return parcel_m[order], tile_m[order]

    @cached_property
    def degrees_n(self) -> NDArray[Any]:
        """In WGS 84."""
        return _moved(self.outline_n, self.crs, CRS.from_epsg(4326))

    @cached_property
    def area_n(self) -> NDArray[np.float64]:
        """Square metres, in the zone of each one's middle."""
        middles = shapely.get_coordinates(shapely.centroid(self.degrees_n))
        epsg_n = np.array([zone_epsg(float(np.clip(x, -180, 179.999)), float(y)) for x, y in middles])
        area_n = np.zeros(len(self))
        for epsg in np.unique(epsg_n).tolist():
            here = epsg_n == epsg
            area_n[here] = shapely.area(_moved(self.outline_n[here], self.crs, CRS.from_epsg(epsg)))
        return area_n


@dataclass
class _Sums:
    """Over the pixels of each parcel (N), weighted by cover."""

    weight_n: NDArray[np.float64]
    sum_nc: NDArray[np.float64]
    square_nc: NDArray[np.float64]


def parcels(run: Run, config: Config, asked: ParcelWishes) -> Path:
    """Write RUN/parcels/<name>.parquet (and <name>_check.csv where a class is declared); the table's path.

    Raises:
        SmaltiError: if the polygons, the embeddings or, for a check, the map are not what they should be.
    """
    if not (0 <= asked.share <= 1) or not asked.pixels >= 0:
        raise SmaltiError("--share, --min-pixels: a share between 0 and 1, and 0 pixels or more")
    if asked.train and asked.class_ is None:
        raise SmaltiError("--train: learns the class of parcels: say which attribute has it, --class ATTRIBUTE")
    stem = asked.polygons.stem
    table_path = run.root / "parcels" / f"{stem}.parquet"
    manifest, check_path = table_path.with_suffix(".json"), table_path.with_name(f"{stem}_check.csv")
    # a map or a model of numbers says nothing of classes, and is left to those who ask for none
    with_map = run.map_manifest.exists() and (asked.class_ is not None or kind_of(run.map_manifest) != "value-map")
    with_model = _says_of_vectors(model_folder(run, config) / "model.json")
    if asked.class_ is not None and not with_map and not asked.train:
        raise SmaltiError(
            f"{run.map_manifest}: missing: what is declared is checked by a map: run `smalti predict {run.quoted}`"
        )
    class_map = read_map(run) if with_map else None
    gaps = config.stitch.missing == "nodata"
    inputs: dict[str, Any] = {
        "polygons": fingerprint(asked.polygons),
        "asked": [asked.id, asked.class_, asked.layer, asked.encoding, asked.pixels, asked.share],
        "embeddings": embeddings_fingerprint(run, gaps=gaps),
        "map": None if class_map is None else [sha256_file(path) for path in class_map.files],
        "model": sha256_file(model_folder(run, config) / "model.json") if with_model else None,
    }
    if asked.train:
        inputs["train"] = [config.classify.method, config.classify.folds, config.classify.seed]
    if output_state(manifest, KIND, inputs).complete:
        say(f"{table_path}: complete")
        return table_path
    plan = Plan.read(run)
    found = _read(asked, plan)
    sums, missing = _embedded(run, plan, found, gaps=gaps)
    columns = _columns(found, sums)
    if class_map is not None:
        shares_nk, codes = _mapped(class_map, found)
        columns |= _majority(shares_nk, [class_map.names[code] for code in codes])
    if with_model:
        columns |= _predicted(run, config, columns["mean"])
    fields: dict[str, Any] = {"parcels": len(found), "missing": missing}
    if asked.train and found.declared_n is not None:
        taught, fields["trained"] = _taught(config, asked, found, columns["mean"])
        columns |= taught
    check = None
    if found.declared_n is not None and class_map is not None:
        columns["declared"] = found.declared_n
        columns["check"] = _verdicts(asked, columns)
        check = _check_table(columns)
    files = [table_path]
    _write_table(table_path, found, columns, read_provenance(run, gaps=gaps).tags())
    check_path.unlink(missing_ok=True)  # of an earlier table
    if check is not None:
        files.append(check_path)
        write_bytes(check_path, check.encode())
    write_manifest(manifest, KIND, inputs=inputs, files=files, fields=fields)
    _tell(table_path, columns)
    for line in missing_lines("parcels", run, missing):
        say(line)
    return table_path


def _says_of_vectors(manifest: Path) -> bool:
    """Whether there is a classifier that can be asked of a parcel's mean: a segmentation head cannot."""
    if not manifest.exists() or kind_of(manifest) == "regressor":
        return False
    content = read_json(manifest, what="the manifest of the classifier", remedy="run `smalti train`")
    return not (isinstance(content, dict) and content.get("method") == "segment")


def _read(asked: ParcelWishes, plan: Plan) -> _Parcels:
    attributes = [name for name in (asked.id, asked.class_) if name is not None]
    vector = read_vector(
        asked.polygons, key="POLYGONS", layer=asked.layer, encoding=asked.encoding, attributes=attributes
    )
    geometries = vector.geometries_n.copy()
    there = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    geometries[there] = shapely.make_valid(geometries[there])
    odd = there & ~np.isin(shapely.get_type_id(geometries), _POLYGONS)
    if odd.any():
        kind = shapely.GeometryType(shapely.get_type_id(geometries[odd][0])).name.lower()
        raise SmaltiError(f"{asked.polygons}: feature {vector.fids_n[odd][0]} is a {kind}: parcels are polygons")
    if not there.any():
        raise SmaltiError(f"{asked.polygons}: holds no polygon")
    ids = np.array([str(fid) for fid in vector.fids_n], dtype=object)
    if asked.id is not None:
        ids, named = class_values(asked.polygons, asked.id, vector.columns[asked.id])
        if not named[there].all():
            fid = vector.fids_n[there & ~named][0]
            raise SmaltiError(f"{asked.polygons}: feature {fid} has no {asked.id!r}: every parcel needs one")
        ids = np.array([str(value) for value in ids], dtype=object)
        known, counts = np.unique(ids[there].astype(str), return_counts=True)
        if (counts > 1).any():
            raise SmaltiError(
                f"{asked.polygons}: {asked.id} {str(known[counts > 1][0])[:60]!r} is there {counts.max()} times: "
                "ids name one parcel each"
            )
    declared = None
    if asked.class_ is not None:
        values, has = class_values(asked.polygons, asked.class_, vector.columns[asked.class_])
        if not has[there].any():
            raise SmaltiError(f"{asked.polygons}: attribute {asked.class_!r} is empty in all parcels")
        declared = np.array([str(value) if ok else None for value, ok in zip(values, has, strict=True)], dtype=object)
        declared = declared[there]
    if not there.all():
        say(f"{asked.polygons}: {int((~there).sum())} features without a geometry are left out")
    return _placed(asked.polygons, plan, vector.crs, geometries[there], ids[there], declared)


def _placed(
    path: Path, plan: Plan, crs: CRS, geometries: NDArray[Any], ids: NDArray[Any], declared: NDArray[Any] | None
) -> _Parcels:
    """The parcels near the run's tiles."""
    found = _Parcels(ids, geometries, crs, declared)
    near = np.zeros(len(found), dtype=bool)
    for grid in zone_grids(plan.tiles):
        near[found.on(grid)[0]] = True
    if not near.any():
        raise SmaltiError(f"{path}: no parcel lies in the run's region")
    if not near.all():
        say(f"{path}: {int((~near).sum())} of {len(near)} parcels lie outside the run's tiles and are left out")
    return _Parcels(ids[near], geometries[near], crs, None if declared is None else declared[near])


def _moved(geometries: NDArray[Any], source: CRS, target: CRS) -> NDArray[Any]:
    move = Transformer.from_crs(source, target, always_xy=True)
    made = shapely.transform(geometries, lambda c: np.column_stack(move.transform(c[:, 0], c[:, 1])))
    return np.array(made, dtype=object)


def _embedded(run: Run, plan: Plan, found: _Parcels, *, gaps: bool) -> tuple[_Sums, list[str]]:
    """Sums over the embeddings of each parcel's pixels; tiles that parcels touch and that lack one, where they may.

    A parcel is looked at in every zone: of a pixel near their seam only its own zone's tile has an embedding.
    """
    reader = EmbeddingReader(run, plan, gaps=gaps, source="tiles")
    if not reader.dim:
        raise SmaltiError(f"{run.embeddings}: no tile has an embedding: run `smalti infer {run.quoted}`")
    sums = _Sums(np.zeros(len(found)), np.zeros((len(found), reader.dim)), np.zeros((len(found), reader.dim)))
    embeddings, missing = Embeddings.of_run(run, plan, gaps=gaps), list[str]()
    pairs = {grid.epsg: found.on(grid) for grid in reader.grids}
    with progress("parcels", sum(len(np.unique(parcel_m)) for parcel_m, _ in pairs.values()), "parcels") as bar:
        for grid in reader.grids:
            parcel_m, tile_m = pairs[grid.epsg]
            if gaps:
                tiles = [grid.tiles[index] for index in np.unique(tile_m).tolist()]
                missing += [tile.name for tile in tiles if embeddings.lacks(tile)]
            outline_n = found.in_crs(CRS.from_epsg(grid.epsg))
            for at in dict.fromkeys(parcel_m.tolist()):  # those of a tile together
                for rows, columns, share_hw in covered(outline_n[at], grid.west, grid.north, grid.width, grid.height):
                    values_hwc = reader.window(grid, rows.start, columns.start, *share_hw.shape)
                    inside = (share_hw > 0) & np.isfinite(values_hwc).all(axis=2)
                    values_mc, weight_m = values_hwc[inside].astype(np.float64), share_hw[inside]
                    sums.weight_n[at] += weight_m.sum()
                    sums.sum_nc[at] += weight_m @ values_mc
                    sums.square_nc[at] += weight_m @ values_mc**2
                bar.advance()
    return sums, sorted(missing)


def _columns(found: _Parcels, sums: _Sums) -> dict[str, Any]:
    weight_n1 = np.where(sums.weight_n > 0, sums.weight_n, np.nan)[:, None]
    mean_nc = sums.sum_nc / weight_n1
    spread_nc = np.sqrt(np.maximum(sums.square_nc / weight_n1 - mean_nc**2, 0))
    area_n = found.area_n
    return {
        "hectares": area_n / 10_000,
        "pixels": sums.weight_n,
        "observed": np.divide(sums.weight_n * 100, area_n, out=np.zeros(len(found)), where=area_n > 0),
        "mean": mean_nc.astype(np.float32),
        "spread": spread_nc.astype(np.float32),
    }


def _mapped(class_map: ClassMap, found: _Parcels) -> tuple[NDArray[np.float64], list[int]]:
    """(N, K) pixels of each class in each parcel, weighted by cover, and the K codes."""
    codes = list(class_map.pixels)
    place = np.full(max(codes) + 1, -1)
    place[codes] = np.arange(len(codes))
    shares_nk = np.zeros((len(found), len(codes)))
    for path, system, box in zip(class_map.files, class_map.systems, class_map.bounds, strict=True):
        outline_n = found.in_crs(system)
        x0_n, y0_n, x1_n, y1_n = shapely.bounds(outline_n).T  # NaN of empty ones
        near_n = (x0_n < box[2]) & (x1_n > box[0]) & (y0_n < box[3]) & (y1_n > box[1])
        with rasterio.open(path, driver="GTiff") as raster:
            west, north = raster.transform.c, raster.transform.f
            for at in np.flatnonzero(near_n).tolist():  # of a country a hundredth are in a file
                for rows, columns, share_hw in covered(outline_n[at], west, north, raster.width, raster.height):
                    window = Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
                    codes_hw = raster.read(1, window=window)
                    valid_hw = (codes_hw != class_map.nodata) & (share_hw > 0)
                    shares_nk[at] += np.bincount(
                        place[codes_hw[valid_hw]], weights=share_hw[valid_hw], minlength=len(codes)
                    )
    return shares_nk, codes


def _majority(shares_nk: NDArray[np.float64], names: list[str]) -> dict[str, Any]:
    """The class with most of each parcel; of equal ones the lower code."""
    total_n = shares_nk.sum(axis=1)
    best_n = shares_nk.argmax(axis=1)
    share_n = np.divide(shares_nk.max(axis=1), total_n, out=np.zeros(len(total_n)), where=total_n > 0)
    mapped = np.array([names[k] if total > 0 else None for k, total in zip(best_n, total_n, strict=True)], dtype=object)
    return {"mapped": mapped, "mapped_share": share_n, "mapped_pixels": total_n}


def _predicted(run: Run, config: Config, mean_nc: NDArray[np.float32]) -> dict[str, Any]:
    """What the classifier says of each parcel's mean."""
    classifier = load_classifier(model_folder(run, config))
    seen = np.isfinite(mean_nc).all(axis=1)
    names, shares = np.full(len(mean_nc), None, dtype=object), np.full(len(mean_nc), np.nan, dtype=np.float32)
    if seen.any():
        found_nk = classifier.predict_proba(mean_nc[seen])
        names[seen] = [classifier.classes[k].name for k in found_nk.argmax(axis=1)]
        shares[seen] = found_nk.max(axis=1)
    return {"predicted": names, "probability": shares}


def _taught(
    config: Config, asked: ParcelWishes, found: _Parcels, mean_nc: NDArray[np.float32]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a classifier of parcels says: of those with a declared class, one that has not seen them; and its scores."""
    assert found.declared_n is not None
    seen = np.isfinite(mean_nc).all(axis=1)
    known = seen & np.array([name is not None for name in found.declared_n])
    names, counts = np.unique(found.declared_n[known].astype(str), return_counts=True)
    for name in names[counts < 2]:
        say(f"{asked.polygons}: {name} is declared of one parcel only: it is left out of training")
    names = names[counts > 1]
    if len(names) < 2:
        raise SmaltiError(
            f"{asked.polygons}: {len(names)} classes are declared of two parcels or more with embeddings: training "
            "needs two such classes"
        )
    known &= np.isin(found.declared_n.astype(str), names)
    code_n, codes_k = np.searchsorted(names, found.declared_n[known].astype(str)) + 1, np.arange(len(names)) + 1
    method, seed = config.classify.method, config.classify.seed
    chosen = parameters("catboost" if method == "best" or method == "segment" else method)
    folds = assign_folds(code_n, found.id_n[known], config.classify.folds, seed)
    shares_nk = np.full((len(found), len(names)), np.nan, dtype=np.float32)
    with progress("train on parcels", folds.count + 1, "classifiers") as bar:
        workers = len(os.sched_getaffinity(0))
        shares_nk[known] = out_of_fold(mean_nc[known], code_n, codes_k, folds, chosen, seed=seed, workers=workers)
        bar.advance(folds.count)
        others = seen & ~known
        if others.any():
            model = fit_any(mean_nc[known], code_n, chosen, seed)
            shares_nk[others] = probabilities(model, mean_nc[others], threads=1)
        bar.advance()
    matrix = count_matrix(codes_k[shares_nk[known].argmax(axis=1)], code_n, codes_k)
    scores = {"parcels": int(known.sum()), "overall_accuracy": overall(matrix), "macro_f1": macro_f1(matrix)}
    say(
        f"trained on {scores['parcels']} parcels, each told by those of other folds: macro-F1 {scores['macro_f1']:.2f}"
        f", overall {scores['overall_accuracy']:.2f}"
    )
    told = np.full(len(found), None, dtype=object)
    told[seen] = names[shares_nk[seen].argmax(axis=1)]
    best_n = np.full(len(found), np.nan, dtype=np.float32)
    best_n[seen] = shares_nk[seen].max(axis=1)
    return {"by_parcels": told, "by_parcels_probability": best_n}, scores


def _verdicts(asked: ParcelWishes, columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """agrees, differs or cannot be told, of each parcel with a declared class; None of the others."""
    made: list[str | None] = []
    for declared, mapped, share, pixels in zip(
        *(columns[name] for name in ("declared", "mapped", "mapped_share", "mapped_pixels")), strict=True
    ):
        if declared is None:
            made.append(None)
        elif mapped is None or pixels < asked.pixels or share < asked.share:
            made.append(OPEN)
        else:
            made.append(AGREES if declared == mapped else DIFFERS)
    return np.array(made, dtype=object)


def _check_table(columns: Mapping[str, NDArray[Any]]) -> str:
    """Parcels and hectares by declared and mapped class, as CSV."""
    cells: dict[tuple[str, str, str], list[float]] = {}
    rows = zip(*(columns[name] for name in ("declared", "mapped", "check", "hectares")), strict=True)
    for declared, mapped, verdict, hectares in rows:
        if declared is not None:
            cell = cells.setdefault((declared, mapped or "", verdict), [0, 0.0])
            cell[0] += 1
            cell[1] += float(hectares)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("declared", "mapped", "check", "parcels", "hectares"))
    for key, (count, hectares) in sorted(cells.items()):
        writer.writerow((*key, count, round(hectares, 2)))
    return stream.getvalue()


def _write_table(path: Path, found: _Parcels, columns: Mapping[str, NDArray[Any]], tags: Mapping[str, str]) -> None:
    arrays: dict[str, Any] = {"id": pa.array(found.id_n.tolist(), pa.string())}
    for name, values in columns.items():
        if name in ("mean", "spread"):
            seen = np.isfinite(values).all(axis=1)
            arrays[name] = pa.array(
                [row if ok else None for row, ok in zip(values.tolist(), seen, strict=True)],
                pa.list_(pa.float32(), values.shape[1]),
            )
        elif values.dtype == object:
            arrays[name] = pa.array(values.tolist(), pa.string())
        else:
            arrays[name] = pa.array(values.astype(np.float32), pa.float32(), from_pandas=True)
    arrays["geometry"] = pa.array(shapely.to_wkb(found.degrees_n).tolist(), pa.binary())
    west, south, east, north = shapely.total_bounds(found.degrees_n).tolist()
    column = {"encoding": "WKB", "geometry_types": ["MultiPolygon", "Polygon"], "bbox": [west, south, east, north]}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = pa.table(arrays).replace_schema_metadata({"geo": json.dumps(geo, sort_keys=True), **tags})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _tell(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    count, seen = len(columns["pixels"]), int((columns["pixels"] > 0).sum())
    say(f"{path}: {count} parcels, {count - seen} of them without an embedding")
    if "check" not in columns:
        return
    shown = Table(title="Declared against mapped", title_justify="left", box=None, pad_edge=False)
    shown.add_column("check")
    for name in ("parcels", "hectares"):
        shown.add_column(name, justify="right")
    for verdict in (AGREES, DIFFERS, OPEN):
        here = columns["check"] == verdict
        shown.add_row(verdict, str(int(here.sum())), f"{float(columns['hectares'][here].sum()):,.1f}")
    show(shown)
