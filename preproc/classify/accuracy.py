"""Accuracy figures, pure: count matrices, per-class scores, and design-based estimates with standard errors.

Sources: Olofsson et al. 2014, Remote Sensing of Environment 148, 42-57 (equations are quoted by number); Stehman 2014,
International Journal of Remote Sensing 35, 4923-4939. Throughout, rows are what was mapped or predicted, columns the
reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.96
"""Standard errors in half a 95 % confidence interval."""


def count_matrix(
    mapped_n: NDArray[Any], reference_n: NDArray[Any], codes_k: NDArray[Any], weights_n: NDArray[Any] | None = None
) -> NDArray[Any]:
    """How often each class was mapped (row) where the reference says another or the same (column).

    Args:
        mapped_n: (N,) codes.
        reference_n: (N,) codes.
        codes_k: (K,) all codes, ascending.
        weights_n: (N,) how much each row counts; None: one.

    Returns:
        (K, K) int64 counts, or float64 sums of weights.
    """
    size = len(codes_k)
    cells = np.searchsorted(codes_k, mapped_n) * size + np.searchsorted(codes_k, reference_n)
    return np.bincount(cells, weights=weights_n, minlength=size * size).reshape(size, size)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    result = np.full(np.shape(part), np.nan)
    np.divide(part, whole, out=result, where=whole != 0)
    return result


@dataclass(frozen=True)
class ClassScores:
    """Scores of K classes; NaN where a class was never mapped (user's) or never the reference (producer's, F1)."""

    users_k: NDArray[np.float64]
    """User's accuracy, precision: share of what was mapped as k that is k."""
    producers_k: NDArray[np.float64]
    """Producer's accuracy, recall: share of what is k that was mapped as k."""
    f1_k: NDArray[np.float64]
    """Harmonic mean; 0 for a class that exists and was never mapped right."""


def class_scores(matrix_kk: NDArray[Any]) -> ClassScores:
    """Per-class scores of a matrix of counts or area shares."""
    right, mapped, reference = np.diag(matrix_kk), matrix_kk.sum(axis=1), matrix_kk.sum(axis=0)
    f1 = _ratio(2.0 * right, mapped + reference)
    f1[reference == 0] = np.nan
    return ClassScores(_ratio(right, mapped), _ratio(right, reference), f1)


def overall(matrix_kk: NDArray[Any]) -> float:
    """Overall accuracy of a matrix of counts or area shares."""
    return float(np.trace(matrix_kk) / matrix_kk.sum())


def macro_f1(matrix_kk: NDArray[Any]) -> float:
    """Mean F1 of the classes that occur in the reference."""
    return float(np.nanmean(class_scores(matrix_kk).f1_k))


def weighted_f1(matrix_kk: NDArray[Any]) -> float:
    """Mean F1 of the classes, each weighted by its share of the reference."""
    reference = matrix_kk.sum(axis=0)
    return float(np.nansum(class_scores(matrix_kk).f1_k * reference) / reference.sum())


@dataclass(frozen=True)
class Estimate:
    """A design-based estimate; the error is NaN where a stratum has a single unit."""

    value: float
    error: float
    """Standard error."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of a share, kept within 0..1."""
        return max(0.0, self.value - Z95 * self.error), min(1.0, self.value + Z95 * self.error)


@dataclass(frozen=True)
class MapAccuracy:
    """Design-based accuracy of a map of K classes, and their areas."""

    shares_kk: NDArray[np.float64]
    """(K, K) estimated share of the area in each cell of the error matrix; adds up to 1."""
    overall: Estimate
    users: tuple[Estimate, ...]
    producers: tuple[Estimate, ...]
    areas: tuple[Estimate, ...]
    """Share of the area that each class truly has."""


def olofsson(counts_kk: NDArray[Any], area_k: NDArray[Any]) -> MapAccuracy:
    """Estimates from a sample stratified by the map's classes (Olofsson et al. 2014, equations 1-3, 5-7, 9, 10).

    The same serves a simple random or systematic sample, post-stratified by the map's classes.

    Args:
        counts_kk: (K, K) sample counts; rows are map classes, columns reference classes.
        area_k: (K,) mapped area of each class, in any unit. A class that is not mapped has 0 and an empty row.

    Raises:
        ValueError: if a mapped class has no sample, for nothing can be said of that part of the map.
    """
    size_i = counts_kk.sum(axis=1)
    if ((area_k > 0) & (size_i == 0)).any() or ((area_k <= 0) & (size_i > 0)).any():
        raise ValueError("every mapped class needs sample units, and sample units a mapped class")
    weight_i = area_k / area_k.sum()
    within_kk = _ratio(counts_kk, np.broadcast_to(size_i[:, None], counts_kk.shape))
    within_kk[size_i == 0] = 0.0
    shares_kk = weight_i[:, None] * within_kk
    freedom_i = np.where(size_i > 1, size_i - 1.0, np.nan)
    freedom_i[size_i == 0] = 1.0  # not mapped: weight 0, contributes nothing
    users_k, area_share_k = _ratio(np.diag(shares_kk), shares_kk.sum(axis=1)), shares_kk.sum(axis=0)
    producers_k = _ratio(np.diag(shares_kk), area_share_k)
    users_variance = users_k * (1 - users_k) / freedom_i
    cell_variance_kk = weight_i[:, None] ** 2 * within_kk * (1 - within_kk) / freedom_i[:, None]
    own, others = np.diag(cell_variance_kk), cell_variance_kk.sum(axis=0) - np.diag(cell_variance_kk)
    producers_variance = _ratio((1 - producers_k) ** 2 * own + producers_k**2 * others, area_share_k**2)
    return MapAccuracy(
        shares_kk,
        Estimate(float(np.trace(shares_kk)), float(np.sqrt(own.sum()))),
        _estimates(users_k, users_variance),
        _estimates(producers_k, producers_variance),
        _estimates(area_share_k, cell_variance_kk.sum(axis=0)),
    )


def _estimates(values_k: NDArray[Any], variances_k: NDArray[Any]) -> tuple[Estimate, ...]:
    return tuple(
        Estimate(float(value), float(np.sqrt(variance))) for value, variance in zip(values_k, variances_k, strict=True)
    )


def stehman(
    stratum_n: NDArray[Any],
    mapped_n: NDArray[Any],
    reference_n: NDArray[Any],
    codes_k: NDArray[Any],
    sizes: dict[Any, float],
) -> MapAccuracy:
    """Estimates from a stratified sample whose strata are not the map's classes (Stehman 2014, equations 3-5, 27-28).

    With a single stratum these are the estimators of simple random sampling. The finite population correction is left
    out, as sample units are few among the pixels of a map.

    Args:
        stratum_n: (N,) stratum of each unit.
        mapped_n: (N,) class code on the map.
        reference_n: (N,) class code of the reference.
        codes_k: (K,) all codes, ascending.
        sizes: size of each stratum, in any unit.

    Raises:
        ValueError: if a stratum of the sample has no size, or one with a size has no sample.
    """
    strata = sorted(sizes)
    if {*np.unique(stratum_n).tolist()} != set(strata) or min(sizes.values()) <= 0:
        raise ValueError("the strata of the sample are not those whose sizes are given")
    size_h = np.array([sizes[stratum] for stratum in strata], dtype=float)
    rows_h = [np.flatnonzero(stratum_n == stratum) for stratum in strata]
    is_mapped_nk = mapped_n[:, None] == codes_k
    is_reference_nk = reference_n[:, None] == codes_k
    right_nk = is_mapped_nk & is_reference_nk
    every = np.ones(len(stratum_n), dtype=bool)

    def ratio(part_n: NDArray[np.bool_], whole_n: NDArray[np.bool_]) -> Estimate:
        """Combined ratio estimator and its standard error by Taylor's expansion."""
        whole = sum(size * whole_n[rows].mean() for size, rows in zip(size_h, rows_h, strict=True))
        if whole == 0:
            return Estimate(np.nan, np.nan)
        value = sum(size * part_n[rows].mean() for size, rows in zip(size_h, rows_h, strict=True)) / whole
        residual_n = part_n - value * whole_n
        variances = [residual_n[rows].var(ddof=1) / len(rows) if len(rows) > 1 else np.nan for rows in rows_h]
        return Estimate(float(value), float(np.sqrt((size_h**2 * variances).sum()) / whole))

    shares_kk = np.array(
        [[ratio(mapped & reference, every).value for reference in is_reference_nk.T] for mapped in is_mapped_nk.T]
    )
    classes = range(len(codes_k))
    return MapAccuracy(
        shares_kk,
        ratio(right_nk.any(axis=1), every),
        tuple(ratio(right_nk[:, k], is_mapped_nk[:, k]) for k in classes),
        tuple(ratio(right_nk[:, k], is_reference_nk[:, k]) for k in classes),
        tuple(ratio(is_reference_nk[:, k], every) for k in classes),
    )
