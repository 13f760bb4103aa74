"""Map accuracy from a probability sample: reference points looked up in the class map, design-based estimates."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from infer.contract import SmaltiError
from infer.contract.classification import AssessedMap
from preproc.classify.accuracy import Z95, Estimate, MapAccuracy, count_matrix, olofsson, stehman
from preproc.classify.class_raster import Box, ClassMap
from preproc.classify.labels import LabelSet, read_labels
from preproc.classify.performance import number
from preproc.run.config import Validate

UNMAPPED = 1 << 17
"""Codes from here on stand for classes that only the reference has."""
WHAT = "map accuracy: design-based estimates from a probability sample, with 95 % confidence intervals"


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
    crs: CRS
    place_n2: NDArray[np.float64]
    """(N, 2) where the units are."""


def read_reference(settings: Validate, class_map: ClassMap) -> Reference:
    """Read the reference points and look them up in the map.

    Raises:
        SmaltiError: if they are not points with classes (and strata), or none lies on the map.
    """
    zones: dict[int, Box] = {}
    for system, box in zip(class_map.systems, class_map.bounds, strict=True):
        epsg = system.to_epsg()
        if epsg is None:
            zones = {}  # everything is read
            break
        west, south, east, north = zones.get(epsg, box)
        zones[epsg] = (min(west, box[0]), min(south, box[1]), max(east, box[2]), max(north, box[3]))
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
    mapped_n, pixels_n3 = class_map.codes_at(points.crs, shapely.get_coordinates(points.geometries_n))
    on = mapped_n >= 0
    if not on.any():
        raise SmaltiError(f"{settings.reference}: no reference point lies on the map: check [validate] reference")
    counts = {**points.counts, "dropped: not on the map": int((~on).sum())}
    again = on.copy()
    again[on] = ~_once(settings.reference, pixels_n3[on], points.select(on))
    if again.any():
        counts["dropped: another point lies in the same pixel"] = int(again.sum())
        on &= ~again
    strata_n = None if settings.stratum is None else points.groups_n[on]
    names_n = np.array([str(value) for value in points.classes_n[on]], dtype=object)
    place_n2 = shapely.get_coordinates(points.geometries_n)[on]
    return Reference(mapped_n[on], names_n, strata_n, counts, points.crs, place_n2)


def _once(path: Path, pixels_n3: NDArray[Any], points: LabelSet) -> NDArray[np.bool_]:
    """Which points count: a pixel is one sample unit, however often it was written down.

    Raises:
        SmaltiError: if two points of one pixel (or of one stratum of it) say different things.
    """
    first: dict[tuple[int, ...], int] = {}
    counts_n = np.ones(len(points), dtype=bool)
    for at, pixel in enumerate(map(tuple, pixels_n3.tolist())):
        before = first.setdefault(pixel, at)
        counts_n[at] = before == at
        if str(points.classes_n[before]) != str(points.classes_n[at]):
            raise SmaltiError(
                f"{path}: features {points.fids_n[before]} and {points.fids_n[at]} lie in one pixel, and one says "
                f"{str(points.classes_n[before])!r}, the other {str(points.classes_n[at])!r}: keep one"
            )
    return counts_n


def map_accuracy(
    reference: Reference, class_map: ClassMap, legend: Mapping[int, str], settings: Validate
) -> dict[str, Any]:
    """Design-based estimates as plain JSON values; null where a figure does not exist.

    Args:
        reference: the sample.
        class_map: what is assessed.
        legend: code -> name of the map's classes.
        settings: design and, if the strata are not the map's classes, their sizes.

    Raises:
        SmaltiError: if the sample does not allow an estimate.
    """
    code_of = {unicodedata.normalize("NFC", name): code for code, name in sorted(legend.items())}
    names = list(code_of)
    names += sorted({str(name) for name in reference.names_n} - set(names))  # in the field, never on the map
    if not any(str(name) in code_of for name in reference.names_n):
        seen = ", ".join(map(repr, list(dict.fromkeys(map(str, reference.names_n)))[:10]))
        mapped = ", ".join(map(repr, list(code_of)[:10]))
        raise SmaltiError(
            f"{settings.reference}: none of its classes ({seen}) is one of the map's ({mapped}): [validate] class must "
            "name an attribute whose values are written as in the labels"
        )
    unmapped = [name for name in names if name not in code_of]
    codes = [code_of.get(name, UNMAPPED + index) for index, name in enumerate(names)]
    codes_k = np.array(codes)
    reference_n = np.array([codes[names.index(str(name))] for name in reference.names_n])
    counts_kk = count_matrix(reference.mapped_n, reference_n, codes_k)
    area_k = np.array([class_map.hectares.get(code, 0.0) for code in codes], dtype=float)
    estimates, estimator = _estimate(reference, reference_n, counts_kk, codes_k, area_k, names, settings)
    hectares = float(area_k.sum())
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
                "mapped_ha": float(area_k[k]),
                "area_ha": _area(estimates.areas[k], hectares),
            }
            for k in range(len(names))
        ],
        "mapped_ha": hectares,
    }


def cleaned_accuracy(
    reference: Reference, class_map: ClassMap, cleaned: ClassMap, legend: Mapping[int, str], settings: Validate
) -> dict[str, Any]:
    """The same of the map after cleaning, by the same sample: its strata stay the classes of the map it was drawn from.

    Raises:
        SmaltiError: if the sample does not allow an estimate.
    """
    codes_n, _ = cleaned.codes_at(reference.crs, reference.place_n2)
    moved = replace(reference, mapped_n=codes_n)
    if settings.design == "random" or reference.strata_n is not None:
        return map_accuracy(moved, cleaned, legend, settings)
    strata = {str(code): hectares for code, hectares in class_map.hectares.items()}
    moved = replace(moved, strata_n=np.array([str(code) for code in reference.mapped_n], dtype=object))
    own = settings.model_copy(update={"stratum": "class before cleaning", "strata": strata})
    return map_accuracy(moved, cleaned, legend, own)


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
