"""How far labels resemble each other: beyond it two fields are of one class no oftener than by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preproc.classify.table import Samples
from preproc.run.progress import say

_POINTS = 1500
"""Groups looked at: their pairs are counted."""
_BARS = 24
_CHANCE = 0.1
"""Share of the likeness at no distance at all below which it is taken for chance."""
_LEAST = 100.0
"""Metres; squares smaller than fields would divide nothing from anything."""


def label_reach(samples: Samples, folds: int, seed: int) -> float:
    """Side in metres of the squares for folds by block, in steps of 10 m.

    Join counts: the share of pairs of groups at some distance that are of one class, less what chance gives. Where it
    first falls below a tenth (twice in a row) labels are no longer alike. The squares are not made so large that there
    would be fewer than four a fold.
    """
    x_g, y_g, zone_g, code_g = _groups(samples)
    order = np.random.default_rng(seed).permutation(len(x_g))[:_POINTS]
    x_g, y_g, zone_g, code_g = x_g[order], y_g[order], zone_g[order], code_g[order]
    reach = _reach(x_g, y_g, zone_g, code_g)
    area = sum(np.ptp(x_g[zone_g == zone]) * np.ptp(y_g[zone_g == zone]) for zone in np.unique(zone_g))
    most = float(np.sqrt(max(area, _LEAST**2) / (4 * folds)))
    side = max(_LEAST, min(reach, most))
    side = float(np.ceil(side / 10) * 10)
    tail = f"; not {reach:.0f} m, for there would be too few squares" if most < reach else ""
    say(f"train: labels are alike up to {reach:.0f} m: folds of squares of {side:.0f} m{tail}")
    return side


def _groups(samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Middle, zone and class of every group; one of several classes counts once for each."""
    _, group_i = np.unique(samples.group_n, return_inverse=True)
    codes, code_i = np.unique(samples.code_n, return_inverse=True)
    units, first, unit_i = np.unique(group_i * len(codes) + code_i, return_index=True, return_inverse=True)
    sizes = np.bincount(unit_i)
    x, y = np.bincount(unit_i, samples.x_n) / sizes, np.bincount(unit_i, samples.y_n) / sizes
    return x, y, samples.epsg_n[first], codes[units % len(codes)]


def _reach(
    x_g: NDArray[np.float64], y_g: NDArray[np.float64], zone_g: NDArray[np.int32], code_g: NDArray[np.int32]
) -> float:
    one, other = np.triu_indices(len(x_g), 1)
    near = zone_g[one] == zone_g[other]
    one, other = one[near], other[near]
    if not len(one):
        return _LEAST
    distance = np.hypot(x_g[one] - x_g[other], y_g[one] - y_g[other])
    alike = code_g[one] == code_g[other]
    chance = float(alike.mean())
    if chance in (0.0, 1.0):
        return _LEAST
    # Bars of equal numbers of pairs are narrow where fields are near each other, which is where likeness falls.
    edges = np.unique(np.quantile(distance, np.linspace(0, 1, _BARS + 1) ** 2))
    if len(edges) < 2:  # all pairs are equally far apart, or in one place
        return _LEAST
    bar = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bar, minlength=len(edges) - 1)
    share = np.bincount(bar, alike, minlength=len(edges) - 1) / np.maximum(counts, 1)
    likeness = (share - chance) / (1 - chance)
    for index in range(len(likeness)):
        if (likeness[index : index + 2] < _CHANCE).all():
            return float(edges[index]) if index else float(edges[1])
    return float(edges[-1])
