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
