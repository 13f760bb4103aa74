"""Monthly composites: what a pixel looked like, month by month, without any network. Pure; numpy only.

Twelve calendar months from the first month of the season, twelve numbers each: the median of the clear values of the
ten Sentinel-2 bands as reflectance (DN / 10000), and of VV and VH of both orbits as (dB + 25) / 25, where dB =
(v / 200 - 50) / 2 of the tile's scaled value. A month without an observation is NaN. Months go by the dates that a tile
states, and by its days of year where it states none. The engine, the baseline of `validate` and the probe take them
from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infer.contract.provenance import Window

if TYPE_CHECKING:
    from infer.contract.tile import Tile, TileSeason  # which needs, by way of the plan, what reads embeddings

MONTHS = 12
MONTHLY_FAMILY = "monthly"
_FEATURES = 12
"""The ten bands, VV and VH."""
MONTHLY_DIM = MONTHS * _FEATURES
"""Numbers a pixel, month by month, each in the order of BANDS and then VV, VH."""
_STACKS = ("s2", "s1_ascending", "s1_descending")
"""As tile.json calls them."""
_ABSENT = np.iinfo(np.int32).max
"""Sorts behind every observation."""
_PLAIN_YEAR = date(2023, 1, 1)
"""Of a tile that does not state its season: a calendar year."""


def has_gaps(family: str) -> bool:
    """Whether single numbers of a family, or of several side by side, may be missing."""
    return MONTHLY_FAMILY in family.split("+")


def season_start(window: Window | None) -> date:
    """First day of a tile's season; 1 January where its manifest states none."""
    return _PLAIN_YEAR if window is None else window.start


def month_index(doys_t: NDArray[Any], start: date, days: Sequence[date] | None = None) -> NDArray[np.int64]:
    """Month 0 to 11 of observations, 0 being the calendar month that the season begins in.

    Args:
        doys_t: (T,) day of year, 1..366.
        start: first day of the season; a day of year before it is one of the following year.
        days: their dates, where they are known. A day of year alone may be two: of a season from 1 July 2023 on, 182 is
            that day and 30 June 2024.

    Returns:
        (T,) of a season that ends in the calendar month it began in, those last days count to month 11. Of a window
        longer than a year, the months of further years count to those of the first.
    """
    if days is None:
        first = start.timetuple().tm_yday
        years = [start.year + (doy < first) for doy in np.asarray(doys_t).tolist()]
        days = [date(y, 1, 1) + timedelta(days=int(d) - 1) for y, d in zip(years, np.asarray(doys_t), strict=True)]
    months = []
    for day in days:
        whole_years = day.year - start.year - ((day.month, day.day) < (start.month, start.day))
        months.append((day.year - whole_years - start.year) * MONTHS + day.month - start.month)
    return np.clip(np.array(months, dtype=np.int64), 0, MONTHS - 1)


def stated_days(
    dates: Mapping[str, Sequence[date]] | None, stack: str, doys_t: NDArray[Any] | None = None
) -> Sequence[date] | None:
    """Dates of a tile's stack, from its manifest; None where it states none, or others than the days of year say."""
    days = (dates or {}).get(stack, ())
    fits = doys_t is None or [day.timetuple().tm_yday for day in days] == doys_t.tolist()
    return days if days and fits else None


def months_go_by_date(season: TileSeason) -> bool:
    """Whether a tile's dates are of other months than its days of year make them, by which months once went.

    What was made of such a tile's months then is made again.
    """
    start = season_start(season.window)
    for stack in _STACKS:
        days = stated_days(season.dates, stack) or []
        doys_t = np.array([day.timetuple().tm_yday for day in days], dtype=np.int64)
        if (month_index(doys_t, start) != month_index(doys_t, start, days)).any():
            return True
    return False


def _medians(values_tnc: NDArray[Any], valid_tn: NDArray[np.bool_], month_t: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N, 12, C) median of each month's valid values; NaN for an empty month."""
    _, pixels, channels = values_tnc.shape
    result = np.full((pixels, MONTHS, channels), np.nan, dtype=np.float32)
    for month in np.unique(month_t):
        here = month_t == month
        valid = valid_tn[here]
        count_n = valid.sum(axis=0)
        seen = np.flatnonzero(count_n)
        if not len(seen):
            continue
        # Widened first: beside int16 numpy turns the mark into -1, which sorts before everything.
        ordered = np.where(valid[..., None], values_tnc[here].astype(np.int32), np.int32(_ABSENT))
        ordered.sort(axis=0)
        counts = count_n[seen]
        low, high = ordered[(counts - 1) // 2, seen], ordered[counts // 2, seen]
        result[seen, month] = (low + high).astype(np.float32) / np.float32(2)
    return result


def monthly_composites(tile: Tile, rows: Any, columns: Any) -> NDArray[np.float32]:
    """Monthly composites of some pixels of a tile.

    Args:
        tile: whose manifest may state its season (`window`) and the dates of its observations (`dates`).
        rows: their rows: (N,) numbers, or a slice.
        columns: likewise.

    Returns:
        (N, 144) float32, NaN for months without an observation; of slices, the window's pixels row by row.
    """
    start, dates = season_start(tile.manifest.window), tile.manifest.dates
    months = [
        month_index(doys_t, start, stated_days(dates, stack, doys_t))
        for stack, doys_t in zip(_STACKS, (tile.doys_t, tile.sar_asc_doys_t, tile.sar_desc_doys_t), strict=True)
    ]

    def taken(array_thwc: NDArray[Any]) -> NDArray[Any]:
        part = array_thwc[:, rows, columns]
        return part.reshape(part.shape[0], math.prod(part.shape[1:-1]), part.shape[-1])

    bands = taken(tile.bands_thwb)
    clear = taken(tile.masks_thw[..., None])[..., 0] == 1
    radar = np.concatenate([taken(tile.sar_asc_thwp), taken(tile.sar_desc_thwp)])
    optical = _medians(bands, clear, months[0]) / np.float32(10_000)
    scaled = _medians(radar, (radar != 0).any(axis=-1), np.concatenate(months[1:]))
    decibel = (scaled / np.float32(200) - np.float32(50)) / np.float32(2)
    both = [optical, (decibel + np.float32(25)) / np.float32(25)]
    return np.concatenate(both, axis=2).reshape(-1, MONTHLY_DIM)


def without_gaps(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Missing months filled, for what cannot do with gaps (previews, codes, linear models, groups of like pixels).

    A band's missing month lies on the line between the nearest months before and after that have it; at the ends it is
    as the nearest one; a band that was never observed is 0. Pixels without any observation stay NaN.

    Args:
        values: (..., 144) float32 as `monthly_composites` gives them.

    Returns:
        A new array of the same shape.
    """
    shape = values.shape
    cube = values.reshape(-1, MONTHS, _FEATURES)
    there = ~np.isnan(cube)
    nowhere = ~there.any(axis=(1, 2))
    months = np.arange(MONTHS)[None, :, None]
    before = np.maximum.accumulate(np.where(there, months, -1), axis=1)
    after = np.minimum.accumulate(np.where(there, months, MONTHS)[:, ::-1], axis=1)[:, ::-1]
    before, after = np.where(before < 0, after, before), np.where(after == MONTHS, before, after)
    never = before == MONTHS  # and so is `after`, or it is -1
    last, following = np.where(never, 0, before), np.where(never, 0, after)
    one = np.take_along_axis(cube, last, axis=1)
    other = np.take_along_axis(cube, following, axis=1)
    share = (months - last) / np.maximum(following - last, 1)
    filled = np.where(there, cube, one + (other - one) * share.astype(np.float32))
    filled = np.where(never, np.float32(0), filled)
    filled[nowhere] = np.nan
    result: NDArray[np.float32] = filled.astype(np.float32).reshape(shape)
    return result
