"""Map accuracy from a probability sample: reference points looked up in the class map, design-based estimates."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, FormatError, Run, SmaltiError
from infer.contract.classification import AssessedMap, ClassEntry
from infer.contract.rasters import MapManifest
from preproc.classify.accuracy import Z95, Estimate, MapAccuracy, count_matrix, olofsson, stehman
from preproc.classify.labels import LabelSet, read_labels, to_zone
from preproc.classify.performance import number
from preproc.run.config import Validate

_REMEDY = "run `smalti predict` again"
WHAT = "map accuracy: design-based estimates from a probability sample, with 95 % confidence intervals"


@dataclass(frozen=True)
class ClassMap:
    """The class map: one raster a zone, and what it holds."""

    files: tuple[Path, ...]
    zones: tuple[int, ...]
    """EPSG code of each file."""
    bounds: tuple[tuple[float, float, float, float], ...]
    """West, south, east, north of each file in metres."""
    pixels: Mapping[int, int]
    """Code -> mapped pixels; nodata (0) is not counted."""


def read_map(run: Run) -> ClassMap:
    """Find the class rasters among the files of RUN/map and count their pixels, a block at a time.

    Class rasters are those with one byte a pixel and a colour table; confidence and the like have none.

    Raises:
        FormatError: if the map is missing, damaged or has no class raster.
    """
    path = run.map_manifest
    manifest = MapManifest.read(run).verify(run)
    files, zones, bounds = [], [], []
    counts = np.zeros(256, dtype=np.int64)
    for name in sorted(manifest.files):
        if not name.lower().endswith((".tif", ".tiff")):
            continue
        try:
            with rasterio.open(run.map / name) as raster:
                if raster.dtypes != ("uint8",) or raster.colorinterp != (ColorInterp.palette,):
                    continue
                for _, window in raster.block_windows(1):
                    counts += np.bincount(raster.read(1, window=window).ravel(), minlength=256)
                zones.append(_zone(run.map / name, raster))
                bounds.append(tuple(raster.bounds))
        except RasterioIOError as error:
            raise FormatError(f"{run.map / name}: not readable ({error}): {_REMEDY}") from error
        files.append(run.map / name)
    if not files:
        raise FormatError(f"{path}: lists no class raster (one byte, with a colour table): {_REMEDY}")
    pixels = {int(code): int(counts[code]) for code in np.flatnonzero(counts) if code != 0}
    return ClassMap(tuple(files), tuple(zones), tuple(bounds), pixels)


def _zone(path: Path, raster: Any) -> int:
    epsg = None if raster.crs is None else raster.crs.to_epsg()
    if epsg is None:
        raise FormatError(f"{path}: its coordinate reference system has no EPSG code: {_REMEDY}")
    return int(epsg)


@dataclass(frozen=True)
class Reference:
    """Reference units (N) on the map."""

    mapped_n: NDArray[np.int32]
    """Class code on the map."""
    names_n: NDArray[Any]
    """Reference class name."""
    strata_n: NDArray[Any] | None
    """Stratum of each unit as text, where the strata are not the map's classes."""
    counts: Mapping[str, int]
    """What was dropped, by reason."""


def read_reference(settings: Validate, class_map: ClassMap) -> Reference:
    """Read the reference points and look them up in the map.

    Raises:
        SmaltiError: if they are not points with classes (and strata), or none lies on the map.
    """
    areas: dict[int, list[tuple[float, float, float, float]]] = {}
    for epsg, bounds in zip(class_map.zones, class_map.bounds, strict=True):
        areas.setdefault(epsg, []).append(bounds)
    zones = {
        epsg: (*np.min(boxes, axis=0)[:2].tolist(), *np.max(boxes, axis=0)[2:].tolist())
        for epsg, boxes in areas.items()
    }
    # The strata take the place of the groups: another attribute of each point, as text.
    points = read_labels(
        settings.reference,
        settings.class_,
        settings.stratum,
        settings.layer,
        zones,
        encoding=settings.encoding,
        section="validate",
    )
    if not (shapely.get_type_id(points.geometries_n) == shapely.GeometryType.POINT).all():
        raise SmaltiError(f"{settings.reference}: a reference sample is of points, one for each unit that was drawn")
    mapped_n = _look_up(points, class_map)
    on = mapped_n > 0
    if not on.any():
        raise SmaltiError(f"{settings.reference}: no reference point lies on the map: check [validate] reference")
    counts = {**points.counts, "dropped: not on the map": int((~on).sum())}
    strata_n = None if settings.stratum is None else points.groups_n[on]
    names_n = np.array([str(value) for value in points.classes_n[on]], dtype=object)
    return Reference(mapped_n[on], names_n, strata_n, counts)


def _look_up(points: LabelSet, class_map: ClassMap) -> NDArray[np.int32]:
    """Code of the pixel that contains each point; 0 where there is none."""
    codes_n = np.zeros(len(points), dtype=np.int32)
    for path, epsg in zip(class_map.files, class_map.zones, strict=True):
        moved = to_zone(points, epsg)
        with rasterio.open(path) as raster:
            for index in np.flatnonzero((codes_n == 0) & ~shapely.is_missing(moved)):
                row, column = (int(value) for value in raster.index(moved[index].x, moved[index].y))
                if 0 <= column < raster.width and 0 <= row < raster.height:
                    codes_n[index] = raster.read(1, window=Window(column, row, 1, 1))[0, 0]
    return codes_n


def map_accuracy(
    reference: Reference, class_map: ClassMap, classes: Sequence[ClassEntry], settings: Validate
) -> dict[str, Any]:
    """Design-based estimates as plain JSON values; null where a figure does not exist.

    Args:
        reference: the sample.
        class_map: what is assessed.
        classes: legend of the map.
        settings: design and, if the strata are not the map's classes, their sizes.

    Raises:
        SmaltiError: if the sample does not allow an estimate.
    """
    classes = [replace(entry, name=unicodedata.normalize("NFC", entry.name)) for entry in classes]
    names = [entry.name for entry in classes]
    names += sorted({str(name) for name in reference.names_n} - set(names))  # in the field, never on the map
    code_of = {entry.name: entry.code for entry in classes}
    if not any(str(name) in code_of for name in reference.names_n):
        seen = ", ".join(map(repr, list(dict.fromkeys(map(str, reference.names_n)))[:10]))
        mapped = ", ".join(repr(entry.name) for entry in classes[:10])
        raise SmaltiError(
            f"{settings.reference}: none of its classes ({seen}) is one of the map's ({mapped}): [validate] class must "
            "name an attribute whose values are written as in the labels"
        )
    unmapped = [name for name in names if name not in code_of]
    codes = [code_of.get(name, 256 + index) for index, name in enumerate(names)]
    codes_k = np.array(codes)
    reference_n = np.array([codes[names.index(str(name))] for name in reference.names_n])
    counts_kk = count_matrix(reference.mapped_n, reference_n, codes_k)
    area_k = np.array([class_map.pixels.get(code, 0) for code in codes], dtype=float)
    estimates, estimator = _estimate(reference, reference_n, counts_kk, codes_k, area_k, names, settings)
    hectares = float(area_k.sum()) * PIXEL_SIZE**2 / 10_000
    return {
        "what": WHAT,
        "design": settings.design,
        "estimator": estimator,
        "n": len(reference_n),
        "dropped": dict(reference.counts),
        "classes_not_on_the_map": unmapped,
        "class_names": names,
        "count_matrix": counts_kk.tolist(),
        "area_share_matrix": estimates.shares_kk.tolist(),
        "overall_accuracy": _share(estimates.overall),
        "per_class": [
            {
                "name": names[k],
                "users_accuracy": _share(estimates.users[k]),
                "producers_accuracy": _share(estimates.producers[k]),
                "f1": _f1(estimates.users[k].value, estimates.producers[k].value),
                "n_mapped": int(counts_kk[k].sum()),
                "n_reference": int(counts_kk[:, k].sum()),
                "mapped_ha": float(area_k[k]) * PIXEL_SIZE**2 / 10_000,
                "area_ha": _area(estimates.areas[k], hectares),
            }
            for k in range(len(names))
        ],
        "mapped_ha": hectares,
    }


def unmatched(assessed: AssessedMap) -> str | None:
    """What to say of reference classes that the map does not have: they may be the same, written otherwise."""
    odd = assessed.classes_not_on_the_map
    if not odd:
        return None
    alike = {_loose(name): name for name in assessed.class_names if name not in odd}
    named = [f"{name!r}" + (f" (the map has {alike[_loose(name)]!r})" if _loose(name) in alike else "") for name in odd]
    points = sum(entry.n_reference for entry in assessed.per_class if entry.name in odd)
    return (
        f"{points} of {assessed.n} reference points are of classes that the map does not have, which counts them as "
        f"wrong: {', '.join(named)}"
    )


def _loose(name: str) -> str:
    """A name without what people write differently: capitals, blanks, 1.0 for 1, 0 and 1 for false and true."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split()).removesuffix(".0")
    return {"true": "1", "false": "0"}.get(text, text)


def _estimate(
    reference: Reference,
    reference_n: NDArray[Any],
    counts_kk: NDArray[Any],
    codes_k: NDArray[Any],
    area_k: NDArray[np.float64],
    names: Sequence[str],
    settings: Validate,
) -> tuple[MapAccuracy, str]:
    """The estimator that the design calls for."""
    if reference.strata_n is not None:
        sizes = dict(settings.strata or {})
        try:
            made = stehman(reference.strata_n, reference.mapped_n, reference_n, codes_k, sizes)
        except ValueError as error:
            found = ", ".join(sorted({str(value) for value in reference.strata_n}))
            raise SmaltiError(
                f"{settings.reference}: {error}: the sample on the map has {found}; [validate.strata] has "
                f"{', '.join(sorted(sizes))}"
            ) from error
        return made, "Stehman 2014, strata other than the map's classes"
    sizes_k = counts_kk.sum(axis=1)
    empty = [name for name, area, size in zip(names, area_k, sizes_k, strict=True) if area > 0 and size < 2]
    if not empty:
        how = (
            "strata are the map's classes"
            if settings.design == "stratified"
            else "post-stratified by the map's classes"
        )
        return olofsson(counts_kk, area_k), f"Olofsson et al. 2014, {how}"
    if settings.design == "random":
        one = np.zeros(len(reference_n), dtype=np.int64)
        return stehman(one, reference.mapped_n, reference_n, codes_k, {0: 1.0}), "simple random sampling"
    raise SmaltiError(
        f"{settings.reference}: fewer than two reference points lie on the map's {', '.join(empty)}: a sample "
        "stratified by the map's classes needs two or more of each (or name its strata: [validate] stratum, strata)"
    )


def _share(estimate: Estimate) -> dict[str, Any] | None:
    """A share with its standard error and interval, or None if it does not exist."""
    if np.isnan(estimate.value):
        return None
    interval = None if np.isnan(estimate.error) else list(estimate.interval)
    return {"value": estimate.value, "standard_error": number(estimate.error), "ci95": interval}


def _area(estimate: Estimate, hectares: float) -> dict[str, Any]:
    """An area in hectares with its standard error and interval."""
    value, error = estimate.value * hectares, estimate.error * hectares
    interval = None if np.isnan(error) else [max(0.0, value - Z95 * error), value + Z95 * error]
    return {"value": value, "standard_error": number(error), "ci95": interval}


def _f1(users: float, producers: float) -> float | None:
    if np.isnan(producers):
        return None
    if np.isnan(users) or users + producers == 0:
        return 0.0  # it exists and was never mapped right
    return 2 * users * producers / (users + producers)
