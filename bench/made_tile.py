"""A made tile with patchy clouds, for benchmarks and tests: realistic counts and values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract import Tile


def _patchy(rng: np.random.Generator, dates: int, side: int, clear: float) -> NDArray[np.bool_]:
    """(T, side, side) masks: every date has its own share of clear sky, in patches of about a sixth of the tile."""
    shares = rng.beta(1.2 * clear, 1.2 * (1 - clear), dates)
    coarse = rng.random((dates, 8, 8))
    steps = np.linspace(0, 7, side)
    low = np.floor(steps).astype(int).clip(0, 6)
    part = (steps - low)[None, :]
    rows = coarse[:, low] * (1 - part[..., None]) + coarse[:, low + 1] * part[..., None]
    field = rows[:, :, low] * (1 - part[:, None]) + rows[:, :, low + 1] * part[:, None]
    clear_thw = np.zeros((dates, side, side), dtype=bool)
    for index, share in enumerate(shares):
        clear_thw[index] = field[index] <= np.quantile(field[index], share)
    return clear_thw


def made_tile(side: int = 64, s2_dates: int = 70, s1_dates: int = 60, clear: float = 0.5, seed: int = 0) -> Tile:
    """Make a tile of side x side pixels; S1 dates are divided between the orbits, parts of their swaths are missing."""
    rng = np.random.default_rng(seed)
    masks = np.ascontiguousarray(_patchy(rng, s2_dates, side, clear), dtype=np.uint8)
    bands = rng.normal(2500, 1500, (s2_dates, side, side, 10)).clip(0, 15000).astype(np.uint16)
    split = s1_dates // 2
    stacks = []
    for dates in (split, s1_dates - split):
        stack = rng.normal(4500, 1500, (dates, side, side, 2)).clip(1, 32000).astype(np.int16)
        for index in np.flatnonzero(rng.random(dates) < 0.15):
            stack[index, :, : int(rng.integers(side // 4, side))] = 0
        stacks.append(stack)
    days = [np.sort(rng.choice(365, n, replace=n > 365) + 1) for n in (s2_dates, split, s1_dates - split)]
    return Tile(
        "made",
        bands,
        masks,
        days[0].astype(np.uint16),
        stacks[0],
        days[1].astype(np.int16),
        stacks[1],
        days[2].astype(np.int16),
    )
