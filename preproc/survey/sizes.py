"""How many reference points, and how they are shared among strata: the arithmetic of Olofsson et al. 2014 and Neyman.

Pure. W is a stratum's share of the map, S = sqrt(U (1 - U)) the spread of "mapped right" within it, where U is the
user's accuracy that is expected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ALLOCATIONS = ("proportional", "neyman", "equal")
LEAST = 2
"""Points a stratum needs for a standard error."""


def total(share_h: NDArray[Any], users_h: NDArray[Any], standard_error: float, units: int) -> int:
    """Points for a standard error of overall accuracy (Olofsson et al. 2014, equation 13; Cochran 1977, 5.25).

    Args:
        share_h: (H,) shares of the map, which add up to 1.
        users_h: (H,) expected user's accuracies.
        standard_error: wished.
        units: pixels of the map.
    """
    spread_h = np.sqrt(users_h * (1 - users_h))
    mean = float((share_h * spread_h).sum())
    return max(1, int(np.ceil(mean**2 / (standard_error**2 + float((share_h * spread_h**2).sum()) / units) - 1e-9)))


def allocate(
    count: int,
    share_h: NDArray[Any],
    users_h: NDArray[Any],
    units_h: NDArray[np.int64],
    *,
    how: str,
    minimum: int,
) -> NDArray[np.int64]:
    """(H,) points of each stratum.

    Strata that would have fewer than `minimum` get that many, and the others share the rest; none gets more than it has
    pixels. The sum is `count`, unless the minima alone are more.

    Args:
        count: of all points.
        share_h: (H,) shares of the map.
        users_h: (H,) expected user's accuracies.
        units_h: (H,) pixels.
        how: one of ALLOCATIONS.
        minimum: points of a stratum, at the least.
    """
    weight_h = {
        "proportional": np.asarray(share_h, dtype=float),
        "neyman": share_h * np.sqrt(users_h * (1 - users_h)),
        "equal": np.ones(len(share_h)),
    }[how]
    if weight_h.sum() == 0:
        weight_h = np.asarray(share_h, dtype=float)
    floor_h = np.minimum(np.maximum(minimum, LEAST), units_h)
    low_h, high_h = np.zeros(len(share_h), dtype=bool), np.zeros(len(share_h), dtype=bool)
    while True:  # each round settles a stratum more, or is the last
        free_h = ~(low_h | high_h)
        rest = count - floor_h[low_h].sum() - units_h[high_h].sum()
        wished_h = np.where(low_h, floor_h, np.where(high_h, units_h, 0)).astype(float)
        if free_h.any() and weight_h[free_h].sum() > 0:
            wished_h[free_h] = max(rest, 0) * weight_h[free_h] / weight_h[free_h].sum()
        under_h, over_h = free_h & (wished_h < floor_h), free_h & (wished_h > units_h)
        if not (under_h.any() or over_h.any()):
            return _whole(wished_h, free_h)
        if under_h.any():
            low_h |= under_h
        else:
            high_h |= over_h


def _whole(wished_h: NDArray[np.float64], free_h: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Whole numbers with the same sum, by the largest remainders of the strata that are free."""
    made_h = np.floor(wished_h + 1e-9).astype(np.int64)
    short = round(float(wished_h.sum())) - int(made_h.sum())
    order = np.argsort(-np.where(free_h, wished_h - made_h, -1.0), kind="stable")
    made_h[order[:short]] += 1
    return made_h


def smoothed(count_h: NDArray[Any], all_h: NDArray[Any], kinds: int) -> NDArray[np.float64]:
    """Shares of a sample, drawn towards 1 / kinds by the weight of one unit: no stratum is taken for free of errors.

    (Where a sample of 50 has no error the next one may have; S = 0 would say that a stratum needs no points at all.)
    """
    return np.asarray((count_h + 1 / kinds) / (all_h + 1), dtype=np.float64)


def more(
    share_h: NDArray[Any], spread_h: NDArray[Any], have_h: NDArray[np.int64], standard_error: float
) -> NDArray[np.int64]:
    """(H,) fewest further points with which sum(W^2 S^2 / n) is at most the square of a wished standard error.

    Neyman's shares n = k W S minimise the sum of points; strata that have more than that keep theirs.

    Args:
        share_h: (H,) shares of the map.
        spread_h: (H,) S, the standard deviation within each stratum of what is estimated.
        have_h: (H,) points so far, one or more.
        standard_error: wished, above 0.
    """
    product_h = share_h * spread_h

    def with_scale(k: float) -> NDArray[np.float64]:
        return np.asarray(np.maximum(have_h, k * product_h), dtype=np.float64)

    def variance(k: float) -> float:
        return float((product_h**2 / with_scale(k)).sum())

    if variance(0.0) <= standard_error**2:
        return np.zeros(len(have_h), dtype=np.int64)
    low, high = 0.0, float(product_h.sum()) / standard_error**2  # the scale if there were no points yet
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if variance(middle) > standard_error**2 else (low, middle)
    return np.asarray(np.ceil(with_scale(high) - 1e-6), dtype=np.int64) - have_h
