"""Model performance from out-of-fold predictions: counts, scores, intervals that respect groups, distances. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract.classification import ClassEntry
from preproc.classify.accuracy import class_scores, count_matrix, macro_f1, overall, weighted_f1
from preproc.classify.folds import Folds
from preproc.classify.out_of_fold import HELD_OUT, OutOfFold
from preproc.classify.table import Samples

_BOOTSTRAPS = 1000

WHAT = (
    "model performance: grouped cross-validation on labels of convenience. It says how well the classifier tells the "
    "labelled groups apart, not how accurate the map is: that needs a probability sample ([validate] reference)"
)


HELD_OUT_IS = (
    "the finished classifier on labels that were held out: no choice of parameters and no training has seen them, and "
    "this is the one time that they are used. They are labels of convenience as well: not map accuracy"
)


def performance(oof: OutOfFold, classes: Sequence[ClassEntry], seed: int) -> dict[str, Any]:
    """All figures of the folds, as plain JSON values; null where a figure does not exist.

    Args:
        oof: out-of-fold predictions; what was held out is left out of them.
        classes: legend, by ascending code.
        seed: of the bootstrap.
    """
    oof = oof.cross_validated
    codes_k = np.array([entry.code for entry in classes])
    group_i = np.unique(oof.group_n, return_inverse=True)[1]
    units = majority(oof, group_i, codes_k)
    return {
        "what": WHAT,
        "classes": [{"code": e.code, "name": e.name, "color": e.color} for e in classes],
        "pixels": _figures(oof.predicted_n, oof.code_n, group_i, classes, seed),
        "groups": _figures(*units, classes, seed),
        "folds": fold_table(oof, codes_k),
        "distance_m": distances(oof),
    }


def _figures(
    predicted_n: NDArray[Any],
    code_n: NDArray[Any],
    group_i: NDArray[np.intp],
    classes: Sequence[ClassEntry],
    seed: int,
) -> dict[str, Any]:
    codes_k = np.array([entry.code for entry in classes])
    matrix_kk = count_matrix(predicted_n, code_n, codes_k)
    intervals = bootstrap(predicted_n, code_n, group_i, codes_k, seed)
    scores = class_scores(matrix_kk)
    totals = {"overall_accuracy": overall, "macro_f1": macro_f1, "weighted_f1": weighted_f1}
    return {
        "count_matrix": matrix_kk.tolist(),
        "n": len(code_n),
        "n_groups": len(np.unique(group_i)),
        **{name: {"value": score(matrix_kk), "ci95": intervals[name]} for name, score in totals.items()},
        "per_class": [
            {
                "code": entry.code,
                "name": entry.name,
                "users_accuracy": number(scores.users_k[k]),
                "producers_accuracy": number(scores.producers_k[k]),
                "f1": number(scores.f1_k[k]),
                "n": int(matrix_kk[:, k].sum()),
                "n_predicted": int(matrix_kk[k].sum()),
                "n_groups": len(np.unique(group_i[code_n == entry.code])),
            }
            for k, entry in enumerate(classes)
        ],
    }


def number(value: Any) -> float | None:
    """A float, or None for NaN: JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def bootstrap(
    predicted_n: NDArray[Any], code_n: NDArray[Any], group_i: NDArray[np.intp], codes_k: NDArray[Any], seed: int
) -> dict[str, list[float] | None]:
    """95 % percentile intervals, with whole groups drawn with replacement: pixels of a parcel are not independent.

    None with fewer than two groups.
    """
    size = len(codes_k)
    scores: dict[str, Callable[[NDArray[Any]], float]] = {
        "overall_accuracy": overall,
        "macro_f1": macro_f1,
        "weighted_f1": weighted_f1,
    }
    group_i = np.unique(group_i, return_inverse=True)[1]
    groups = int(group_i.max()) + 1
    if groups < 2:
        return dict.fromkeys(scores)
    cells = np.searchsorted(codes_k, predicted_n) * size + np.searchsorted(codes_k, code_n)
    # One entry per group and cell: the replicates need not touch every pixel.
    keys, counts = np.unique(group_i.astype(np.int64) * size * size + cells, return_counts=True)
    group_m, cell_m = np.divmod(keys, size * size)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(_BOOTSTRAPS):
        times_g = np.bincount(generator.integers(0, groups, groups), minlength=groups)
        matrix_kk = np.bincount(cell_m, weights=counts * times_g[group_m], minlength=size * size).reshape(size, size)
        for name, score in scores.items():
            drawn[name].append(score(matrix_kk))
    return {name: [float(v) for v in np.percentile(values, [2.5, 97.5])] for name, values in drawn.items()}


def paired(
    first_n: NDArray[Any],
    second_n: NDArray[Any],
    code_n: NDArray[Any],
    group_n: NDArray[Any],
    codes_k: NDArray[Any],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """How much better the first of two predictions of the same rows is, with 95 % intervals: the same groups for both.

    Returns:
        "macro_f1" and "overall_accuracy" -> value and ci95 (None with fewer than two groups).
    """
    size = len(codes_k)
    group_i = np.unique(group_n, return_inverse=True)[1].astype(np.int64)
    groups = int(group_i.max()) + 1
    truth_n = np.searchsorted(codes_k, code_n)
    scores: dict[str, Callable[[NDArray[Any]], float]] = {"overall_accuracy": overall, "macro_f1": macro_f1}
    tables = []
    for predicted_n in (first_n, second_n):
        cells = np.searchsorted(codes_k, predicted_n) * size + truth_n
        tables.append(np.unique(group_i * size * size + cells, return_counts=True))

    def differences(times_g: NDArray[Any]) -> dict[str, float]:
        matrices = []
        for keys, counts in tables:
            group_m, cell_m = np.divmod(keys, size * size)
            weights = counts * times_g[group_m]
            matrices.append(np.bincount(cell_m, weights=weights, minlength=size * size).reshape(size, size))
        return {name: score(matrices[0]) - score(matrices[1]) for name, score in scores.items()}

    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(_BOOTSTRAPS if groups > 1 else 0):
        for name, value in differences(np.bincount(generator.integers(0, groups, groups), minlength=groups)).items():
            drawn[name].append(value)
    whole = differences(np.ones(groups, dtype=np.int64))
    return {
        name: {
            "value": value,
            "ci95": [float(v) for v in np.percentile(drawn[name], [2.5, 97.5])] if drawn[name] else None,
        }
        for name, value in whole.items()
    }


def majority(
    oof: OutOfFold, group_i: NDArray[np.intp], codes_k: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.intp]]:
    """One decision per group and class: the class most of its pixels vote for; of equals the more probable.

    Returns:
        (U,) predicted codes, true codes and groups of the U units.
    """
    size = len(codes_k)
    unit_key = group_i.astype(np.int64) * size + np.searchsorted(codes_k, oof.code_n)
    units, unit_n = np.unique(unit_key, return_inverse=True)
    votes_uk = np.zeros((len(units), size))
    np.add.at(votes_uk, (unit_n, np.searchsorted(codes_k, oof.predicted_n)), 1.0)
    trust_uk = np.zeros((len(units), size))
    np.add.at(trust_uk, unit_n, oof.probabilities_nk.astype(np.float64))
    votes_uk += trust_uk / (trust_uk.sum(axis=1, keepdims=True) + 1.0)  # below one vote: decides between equals only
    group_u, class_u = np.divmod(units, size)
    return codes_k[votes_uk.argmax(axis=1)], codes_k[class_u], group_u.astype(np.intp)


def fold_table(oof: OutOfFold, codes_k: NDArray[Any]) -> list[dict[str, Any]]:
    """What each fold tested and how well."""
    table = []
    for fold in np.unique(oof.fold_n):
        test = oof.fold_n == fold
        matrix_kk = count_matrix(oof.predicted_n[test], oof.code_n[test], codes_k)
        table.append(
            {
                "fold": int(fold) + 1,
                "n": int(test.sum()),
                "n_groups": len(np.unique(oof.group_n[test])),
                "overall_accuracy": overall(matrix_kk),
                "macro_f1": macro_f1(matrix_kk),
                "absent_codes": [int(code) for code in codes_k[matrix_kk.sum(axis=0) == 0]],
                "untrained_codes": [int(code) for code in codes_k if not (oof.code_n[~test] == code).any()],
            }
        )
    return table


def held_out_figures(
    oof: OutOfFold, classes: Sequence[ClassEntry], parts: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """What the finished classifier says of samples that nothing has seen; None where none were held out."""
    held = oof.fold_n == HELD_OUT
    if not held.any():
        return None
    test = oof.take(held)
    group_i = np.unique(test.group_n, return_inverse=True)[1]
    return {
        "what": HELD_OUT_IS,
        "parts": list(parts),
        "pixels": _figures(test.predicted_n, test.code_n, group_i, classes, seed),
        "distance_m": summary(nearest_m(points_of(oof), held)),
    }


def transfer_rows(
    by: str, samples: Samples, folds: Folds, predicted_n: NDArray[Any], codes_k: NDArray[Any], seed: int
) -> list[dict[str, Any]]:
    """A row a year or region: how a classifier trained on all others does there.

    Args:
        by: "year" or "region".
        samples: (N) that were predicted.
        folds: one a year or region, with names.
        predicted_n: (N,) codes, each from the classifier that did not see its part.
        codes_k: (K,) all codes, ascending.
        seed: of the bootstrap.
    """
    rows = []
    for test, part in tested_parts(by, samples, folds):
        code_n, group_i = samples.code_n[test], np.unique(samples.group_n[test], return_inverse=True)[1]
        matrix_kk = count_matrix(predicted_n[test], code_n, codes_k)
        intervals = bootstrap(predicted_n[test], code_n, group_i, codes_k, seed)
        scores = {"overall_accuracy": overall(matrix_kk), "macro_f1": macro_f1(matrix_kk)}
        rows.append(
            {
                **part,
                "n": int(test.sum()),
                "n_groups": len(np.unique(group_i)),
                **{key: {"value": value, "ci95": intervals[key]} for key, value in scores.items()},
                "absent_codes": [int(code) for code in codes_k[matrix_kk.sum(axis=0) == 0]],
                "untrained_codes": [int(code) for code in codes_k if not (samples.code_n[~test] == code).any()],
            }
        )
    return rows


def tested_parts(by: str, places: Places, folds: Folds) -> Iterator[tuple[NDArray[np.bool_], dict[str, Any]]]:
    """Of each year or region (N,) which rows are of it, and what its row says, whatever is learned."""
    points_n2 = points_of(places)
    for fold, name in enumerate(folds.names):
        test = folds.fold_n == fold
        others = [other for other in folds.names if other != name]
        far = summary(nearest_m(points_n2, test))
        yield test, {"by": by, "tests": name, "trained_on": others, "distance_m": far}


def distances(oof: OutOfFold) -> dict[str, Any]:
    """How far test samples lie from the nearest sample trained on: see `summary`."""
    points_n2 = points_of(oof)
    nearest = np.empty(len(points_n2))
    for fold in np.unique(oof.fold_n):
        test = oof.fold_n == fold
        nearest[test] = nearest_m(points_n2, test)
    return summary(nearest)


def nearest_m(points_n2: NDArray[np.float64], test_n: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Metres from each test point to the nearest of the others."""
    from sklearn.neighbors import KDTree  # here: most who ask for a figure ask for no distance

    found: NDArray[np.float64] = KDTree(points_n2[~test_n]).query(points_n2[test_n])[0][:, 0]
    return found


def summary(metres_n: NDArray[np.float64]) -> dict[str, Any]:
    """Minimum, 5, 50 and 95 % of distances in metres, and a histogram whose bars double in width."""
    low, median, high = np.percentile(metres_n, [5, 50, 95])
    below = [10.0]
    while below[-1] <= metres_n.max():
        below.append(below[-1] * 2)
    counts = np.bincount(np.searchsorted(below, metres_n, side="right"), minlength=len(below))
    return {
        "minimum": float(metres_n.min()),
        "p05": float(low),
        "median": float(median),
        "p95": float(high),
        "below_m": below,
        "counts": counts.tolist(),
    }


class Places(Protocol):
    """Whatever has places (N) in zones."""

    @property
    def x_n(self) -> NDArray[np.float64]:
        """Easting in metres."""

    @property
    def y_n(self) -> NDArray[np.float64]:
        """Northing in metres."""

    @property
    def epsg_n(self) -> NDArray[np.int32]:
        """Zone."""


def points_of(rows: Places) -> NDArray[np.float64]:
    """(N, 2) metres, all in the first zone's where there are several."""
    points_n2 = np.column_stack([rows.x_n, rows.y_n])
    zones = np.unique(rows.epsg_n)
    for epsg in zones[1:]:
        here = rows.epsg_n == epsg
        move = Transformer.from_crs(int(epsg), int(zones[0]), always_xy=True)
        points_n2[here] = np.column_stack(move.transform(points_n2[here, 0], points_n2[here, 1]))
    return points_n2
