"""Curves for a page that nobody but a file server answers: the seasons of every so many-th pixel, a file a tile.

All pixels would be as many bytes as the time series themselves; of labelled ones the places would be published, which
are often not the user's to publish. So a lattice is kept, and the page says how far away its pixel is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Plan, PlannedTile, Run, Tile, is_released, write_bytes
from preproc.survey.looks import read_curves, series

STEPS = (8, 16, 32)
"""Pixels from one that is kept to the next, in both directions."""
MOST = 1 << 18
"""Curves of an atlas: some 400 bytes each before compression."""
FOLDER = "curves"


def step_of(tiles: Sequence[PlannedTile]) -> int | None:
    """How thinly pixels of so many tiles are kept; None of a country, where the nearest would lie in another field."""
    pixels = len(tiles) * tiles[0].size ** 2
    return next((step for step in STEPS if pixels <= MOST * step**2), None)


def kept(size: int, step: int) -> slice:
    """Rows, or columns, of a tile whose pixels are kept."""
    return slice(min(step, size) // 2, size, step)


def write_curves(run: Run, plan: Plan, folder: Path, step: int, done: Callable[[], None]) -> tuple[list[str], int]:
    """Write curves/{tile}.bin of each tile whose time series is here.

    Args:
        run: the run directory.
        plan: of the run.
        folder: of the atlas.
        step: from `step_of`.
        done: called after each tile.

    Returns:
        The tiles that have one, and the bytes written.
    """
    names, written = [], 0
    for tile in plan.tiles:
        released = is_released(run.tiles / tile.name)
        arrays = None if released else series(run, tile)
        if arrays is not None:
            content = _packed(arrays, kept(tile.size, step), plan.window[0])
            write_bytes(folder / FOLDER / f"{tile.name}.bin", content)
            names.append(tile.name)
            written += len(content)
        done()
    return names, written


def _packed(tile: Tile, lattice: slice, start: date) -> bytes:
    """Deflated: a line of JSON with the days, then a byte a value, 0 where nothing was seen.

    NDVI of each day, then VV and then VH of each day; of a day the kept pixels, row by row.
    """
    found = read_curves(tile, lattice, lattice, start)
    head = json.dumps({"ndvi": found.days_t.tolist(), "radar": found.radar_days_u.tolist()}, separators=(",", ":"))
    parts = [_bytes(found.ndvi_thw, -1, 1), *(_bytes(found.db_uhwp[..., p], -40, 10) for p in (0, 1))]
    return zlib.compress(b"\n".join([head.encode(), b"".join(part.tobytes() for part in parts)]), 9)


def _bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """1 to 255 from low to high."""
    codes = 1 + np.rint((np.clip(values, low, high) - low) / (high - low) * 254)
    packed: NDArray[np.uint8] = np.where(np.isnan(values), 0, codes).astype(np.uint8)
    return packed
