"""Cleaning a class map: smoothed probabilities, a majority of neighbours, a minimum mapping unit. Pure.

Every function takes a window with a margin and is right inside of it, so that a map of any size is cleaned block by
block with the same outcome, wherever the blocks lie. 0 is nodata: it is no neighbour, and stays what it is.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

FRACTION = 0.5
"""Of the neighbours, by falling probability, that count in smoothing: across an edge there are others."""
_ROWS = 32
"""Smoothed at a time: 49 neighbours of a block of 1024 take 6 MiB a class."""
_ALL, _FIRST, _LAST = slice(None), slice(None, -1), slice(1, None)
_SIDES = (
    ((_FIRST, _ALL), (_LAST, _ALL)),
    ((_LAST, _ALL), (_FIRST, _ALL)),
    ((_ALL, _FIRST), (_ALL, _LAST)),
    ((_ALL, _LAST), (_ALL, _FIRST)),
)
"""Pixels and their neighbours, in four directions."""


def smoothed(percent_khw: NDArray[np.uint8], side: int, smoothness: float, nodata: int) -> NDArray[np.intp]:
    """The likeliest class after Bayesian smoothing (Camara et al. 2024, R package sits: sits_smooth), margin side // 2.

    The logit x of a pixel's probability is drawn towards the mean m of its neighbourhood: with their variance s2 it
    becomes (s2 x + smoothness m) / (s2 + smoothness), class by class.

    Args:
        percent_khw: (K, H, W) probabilities in percent.
        side: of the square neighbourhood, odd.
        smoothness: variance that a pixel's own logit is believed to have; larger is smoother.
        nodata: of percent_khw.

    Returns:
        (H, W) index of the class; meaningless where there is no data.
    """
    half = side // 2
    best_hw = np.full(percent_khw.shape[1:], -np.inf, dtype=np.float32)
    index_hw = np.zeros(percent_khw.shape[1:], dtype=np.intp)
    for k, percent_hw in enumerate(percent_khw):
        share_hw = np.clip(percent_hw.astype(np.float32) / 100, 0.005, 0.995)
        logit_hw = np.log(share_hw / (1 - share_hw))
        logit_hw[percent_hw == nodata] = np.nan
        padded = np.pad(logit_hw, half, constant_values=np.nan)
        for top in range(0, len(logit_hw), _ROWS):
            own_hw = logit_hw[top : top + _ROWS]
            around = sliding_window_view(padded[top : top + len(own_hw) + 2 * half], (side, side))
            # the largest first, what is missing last
            ordered = -np.sort(-around.reshape(*own_hw.shape, side * side), axis=2)
            count_hw = np.rint(FRACTION * (~np.isnan(ordered)).sum(axis=2))
            used = np.arange(side * side) < count_hw[..., None]
            with np.errstate(divide="ignore", invalid="ignore"):
                mean_hw = np.where(used, ordered, 0).sum(axis=2) / count_hw
                variance_hw = np.where(used, (ordered - mean_hw[..., None]) ** 2, 0).sum(axis=2) / (count_hw - 1)
                drawn_hw = (variance_hw * own_hw + smoothness * mean_hw) / (variance_hw + smoothness)
            drawn_hw = np.where(count_hw >= 2, drawn_hw, own_hw)
            better = drawn_hw > best_hw[top : top + _ROWS]
            best_hw[top : top + _ROWS][better] = drawn_hw[better]
            index_hw[top : top + _ROWS][better] = k
    return index_hw


def majority(codes_hw: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The commonest class of a square around each pixel, margin side // 2; its own wins a tie, then the lower."""
    present = np.unique(codes_hw[codes_hw > 0])
    most_hw = np.zeros(codes_hw.shape, dtype=np.int32)
    for code in present:
        own = codes_hw == code
        most_hw[own] = _around(own, side)[own]
    made = codes_hw.copy()
    for code in present:
        count_hw = _around(codes_hw == code, side)
        better = (count_hw > most_hw) & (codes_hw > 0)
        made[better] = code
        most_hw[better] = count_hw[better]
    return made


def _around(is_hw: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """How many pixels of a square around each are."""
    half = side // 2
    sums = np.pad(is_hw, ((half + 1, half), (half + 1, half))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side], np.int32)


def unit_margin(pixels: int) -> int:
    """Margin that `minimum_unit` needs: a patch of fewer pixels and the patches beside it are seen whole, or large."""
    return 2 * pixels + 1


def minimum_unit(codes_hw: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """One round of giving patches of fewer pixels to their neighbours; see `unit_margin`.

    A patch (pixels of one class that touch by their sides) takes the class that most of its border is shared with, of
    patches that are large enough; where it has none of them, it waits for the next round. Of equal ones the lower wins.
    """
    from scipy import ndimage  # here: few maps are cleaned

    patch_hw = np.zeros(codes_hw.shape, dtype=np.int32)
    count = 0
    for code in np.unique(codes_hw[codes_hw > 0]):
        labels_hw, found = ndimage.label(codes_hw == code)
        here = labels_hw > 0
        patch_hw[here] = labels_hw[here] + count
        count += found
    small_p = np.bincount(patch_hw.ravel(), minlength=count + 1) < pixels
    small_p[0] = False
    small_hw = small_p[patch_hw]
    large_hw = (codes_hw > 0) & ~small_hw
    keys = []
    for here, there in _SIDES:
        touching = small_hw[here] & large_hw[there]
        keys.append(patch_hw[here][touching].astype(np.int64) * 256 + codes_hw[there][touching])
    pairs, lengths = np.unique(np.concatenate(keys), return_counts=True)
    order = np.lexsort((-(pairs % 256), lengths, pairs // 256))  # the last of a patch is what it becomes
    becomes_p = np.zeros(count + 1, dtype=np.uint8)
    becomes_p[pairs[order] // 256] = pairs[order] % 256
    new_hw = becomes_p[patch_hw]
    return np.where(small_hw & (new_hw > 0), new_hw, codes_hw)
