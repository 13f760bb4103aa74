"""A stratified random sample: how many points there are, how strata share them, and which pixels are drawn.

Sizes are the arithmetic of Olofsson et al. 2014 and Neyman, pure: W is a stratum's share of the map, S =
sqrt(U (1 - U)) the spread of "mapped right" within it, where U is the user's accuracy that is expected. A draw is a
sequence: more points of the same seed begin with those that were drawn before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import SmaltiError
from preproc.classify.class_raster import ClassMap
from preproc.run.progress import progress

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


_SHUFFLED = 1 << 17
"""Strata up to that size are shuffled whole; larger ones are drawn number by number."""


@dataclass(frozen=True)
class Units:
    """Sample units (N), in the order in which they are numbered."""

    id_n: NDArray[np.int64]
    """From 1 on, in random order: the number tells nothing of the stratum."""
    code_n: NDArray[np.int32]
    """Stratum: the class on the map."""
    pixel_n3: NDArray[np.int64]
    """(N, 3) file, row and column."""
    place_n2: NDArray[np.float64]
    """(N, 2) longitude and latitude of the pixel's centre."""

    def __len__(self) -> int:
        return len(self.id_n)


def ranks(pixels: int, count: int, seed: int, code: int) -> NDArray[np.int64]:
    """(count,) different numbers of 0..pixels-1, each set equally likely; fewer of a seed are the first of more."""
    rng = np.random.Generator(np.random.PCG64([seed, code]))
    if pixels <= _SHUFFLED:
        return rng.permutation(pixels)[:count]
    taken: dict[int, None] = {}
    while len(taken) < count:
        taken.setdefault(int(rng.integers(0, pixels)))
    return np.fromiter(taken, dtype=np.int64, count=count)


def draw(class_map: ClassMap, sizes: Mapping[int, int], seed: int, have: Mapping[int, int] | None = None) -> Units:
    """Draw a simple random sample without replacement in each stratum.

    Args:
        class_map: what is sampled.
        sizes: code -> points.
        seed: another seed is another sample.
        have: code -> points drawn before with this seed, which are left out; their ids come first.

    Raises:
        SmaltiError: if a stratum has too few pixels.
    """
    before = dict(have or {})
    wanted: dict[int, NDArray[np.int64]] = {}
    for code, count in sizes.items():
        pixels, all_of_it = class_map.pixels.get(code, 0), count + before.get(code, 0)
        if all_of_it > pixels or (pixels > _SHUFFLED and all_of_it > pixels // 2):
            raise SmaltiError(
                f"{class_map.files[0]}: class {class_map.names[code]!r} has {pixels} pixels: {all_of_it} points cannot "
                "be drawn from it: ask for fewer"
            )
        wanted[code] = ranks(pixels, all_of_it, seed, code)[before.get(code, 0) :]
    codes, pixels_n3 = _locate(class_map, wanted)
    order = np.random.Generator(np.random.PCG64([seed, 1 << 20, sum(before.values())])).permutation(len(codes))
    codes, pixels_n3 = codes[order], pixels_n3[order]
    places = np.empty((len(codes), 2))
    for index in range(len(class_map.files)):
        here = pixels_n3[:, 0] == index
        places[here] = class_map.centres(index, pixels_n3[here, 1], pixels_n3[here, 2])
    return Units(np.arange(len(codes)) + 1 + sum(before.values()), codes, pixels_n3, places)


def draw_rounds(class_map: ClassMap, rounds: Sequence[Mapping[int, int]], seed: int) -> Units:
    """A sample that grew: the first round's units, then those that each further round added, numbered on."""
    have: dict[int, int] = {}
    drawn = []
    for sizes in rounds:
        drawn.append(draw(class_map, sizes, seed, {**dict.fromkeys(sizes, 0), **have}))
        have = {code: have.get(code, 0) + sizes.get(code, 0) for code in {*have, *sizes}}
    return Units(*(np.concatenate([getattr(one, name) for one in drawn]) for name in vars(drawn[0])))


def _locate(
    class_map: ClassMap, wanted: Mapping[int, NDArray[np.int64]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The pixels that have these numbers among those of their class, in the order of the strips; then as drawn."""
    ordered = {code: np.argsort(numbers, kind="stable") for code, numbers in wanted.items()}
    found = {code: np.full((len(numbers), 3), -1, dtype=np.int64) for code, numbers in wanted.items()}
    seen = dict.fromkeys(wanted, 0)
    with progress("draw", None, "strips") as bar:
        for index, top, codes_hw in class_map.strips():
            counts_c = np.bincount(codes_hw[codes_hw >= 0], minlength=max(wanted, default=0) + 1)
            for code, numbers in wanted.items():
                count = int(counts_c[code])
                first, last = np.searchsorted(numbers[ordered[code]], [seen[code], seen[code] + count])
                if last > first:
                    which = ordered[code][first:last]
                    flat = np.flatnonzero(codes_hw == code)[numbers[which] - seen[code]]
                    rows, columns = np.unravel_index(flat, codes_hw.shape)
                    found[code][which] = np.column_stack([np.full(len(which), index), rows + top, columns])
                seen[code] += count
            bar.advance()
    codes = np.concatenate([np.full(len(found[code]), code, dtype=np.int32) for code in wanted])
    return codes, np.concatenate(list(found.values()))
