"""Codes of one grid onto the pixels of another: whole pixels where the grids agree, the nearest one elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import PIXEL_SIZE, PlannedTile, SmaltiError
from infer.contract.embedding import MOST_OBSERVED, OBSERVED

SOUTH = 10_000_000
"""False northing of the southern hemisphere's zones in metres."""
MAX_SCALE = 1.0
"""Scales from here on are taken for damage, as geotessera does."""

Read = Callable[[slice, slice], tuple[NDArray[np.int8], NDArray[np.float32]]]
"""Rows and columns -> codes (h, w, C) and scales (h, w): NaN no data for good, +inf not published, finite data."""


@dataclass(frozen=True)
class Patch:
    """A published raster of 10 m pixels, north up, in the northern CRS of a UTM zone (rows may lie south of 0)."""

    name: str
    zone: int
    """1..60."""
    west: float
    """Easting of the left edge in metres."""
    north: float
    """Northing of the upper edge in metres, counted on below 0 south of the equator."""
    shape_hw: tuple[int, int]
    read: Read
    observed: Callable[[slice, slice], NDArray[np.uint8]] | None = None
    """Rows and columns -> observations (h, w, 2) in the order of OBSERVED, beyond MOST_OBSERVED where nobody knows.

    None where the source does not count them.
    """


@dataclass(frozen=True)
class Frame:
    """The pixels that are to be filled: 10 m, north up, in the CRS of a UTM zone of either hemisphere."""

    epsg: int
    west: float
    north: float
    shape_hw: tuple[int, int]

    @classmethod
    def of(cls, tile: PlannedTile) -> Frame:
        """Those of a run's tile."""
        return cls(tile.epsg, tile.west, tile.north, (tile.size, tile.size))


@dataclass
class Taken:
    """What a frame got."""

    codes_hwc: NDArray[np.int8]
    scales_hw: NDArray[np.float32]
    """NaN = nodata."""
    absent: int
    """Pixels of the region that nobody has published."""
    no_data: int = 0
    """Pixels of the region that are published as having no data (water)."""
    damaged: int = 0
    """Pixels of the region whose scale cannot be believed: no data here."""
    shift_m: float = 0.0
    """Largest distance between the centre of a pixel and that of the published one it was given."""
    few: int = 0
    """Pixels of the region with too few clear observations: no data here."""
    observations_hwm: NDArray[np.uint8] | None = None
    """(H, W, 2) of the pixels that were given, 0 elsewhere; None where nobody counted them."""
    parts: list[str] = field(default_factory=list)
    """Patches that gave pixels."""


def take(
    frame: Frame, inside_hw: NDArray[np.bool_], patches: Sequence[Patch], dim: int, *, min_clear_s2: int = 0
) -> Taken:
    """Fill a frame from patches; of those that have a pixel the first gives it.

    Args:
        frame: where to.
        inside_hw: (H, W) pixels of the region: the others stay nodata, as the engine leaves them.
        patches: in order of preference.
        dim: numbers a pixel.
        min_clear_s2: pixels that were seen less often are left out.

    Raises:
        SmaltiError: if a patch does not say how often its pixels were seen, and that is asked.
    """
    codes_hwc, scales_hw = np.zeros((*frame.shape_hw, dim), np.int8), np.full(frame.shape_hw, np.nan, np.float32)
    open_hw = np.array(inside_hw, dtype=bool)
    taken = Taken(codes_hwc, scales_hw, 0)
    for patch in patches:
        if not open_hw.any():
            break
        rows_hw, columns_hw, shift_hw = _pixels(frame, patch)
        height, width = patch.shape_hw
        here_hw = open_hw & (rows_hw >= 0) & (rows_hw < height) & (columns_hw >= 0) & (columns_hw < width)
        if not here_hw.any():
            continue
        rows_n, columns_n = rows_hw[here_hw], columns_hw[here_hw]
        top, left = int(rows_n.min()), int(columns_n.min())
        codes, scales = patch.read(slice(top, int(rows_n.max()) + 1), slice(left, int(columns_n.max()) + 1))
        scales_n = scales[rows_n - top, columns_n - left]
        published_n = ~np.isposinf(scales_n)
        if not published_n.any():
            continue
        believed_n = np.isfinite(scales_n) & (scales_n > 0) & (scales_n < MAX_SCALE)
        good_n = published_n & believed_n
        places = np.flatnonzero(here_hw)
        if min_clear_s2 and patch.observed is None:
            raise SmaltiError(
                f"the source's {patch.name} does not say how often its pixels were seen: set [model] min_clear_s2 to 0"
            )
        if patch.observed is not None:
            seen = patch.observed(slice(top, int(rows_n.max()) + 1), slice(left, int(columns_n.max()) + 1))
            seen_nm = seen[rows_n - top, columns_n - left]
            few_n = good_n & (seen_nm[:, 0] < min_clear_s2)
            taken.few += int(few_n.sum())
            good_n &= ~few_n
            told_n = published_n & (seen_nm[:, 0] <= MOST_OBSERVED)
            if told_n.any():
                if taken.observations_hwm is None:
                    taken.observations_hwm = np.zeros((*frame.shape_hw, len(OBSERVED)), np.uint8)
                taken.observations_hwm.reshape(-1, len(OBSERVED))[places[told_n]] = seen_nm[told_n]
        codes_hwc.reshape(-1, dim)[places[good_n]] = codes[rows_n[good_n] - top, columns_n[good_n] - left]
        scales_hw.reshape(-1)[places[good_n]] = scales_n[good_n]
        open_hw.reshape(-1)[places[published_n]] = False
        taken.no_data += int(np.isnan(scales_n).sum())
        taken.damaged += int((published_n & ~believed_n & ~np.isnan(scales_n)).sum())
        taken.shift_m = max(taken.shift_m, float(shift_hw.reshape(-1)[places[published_n]].max()))
        taken.parts.append(patch.name)
    taken.absent = int(open_hw.sum())
    taken.shift_m = round(taken.shift_m, 2)
    return taken


def _pixels(frame: Frame, patch: Patch) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Row and column (H, W) of the patch's pixel around each centre of the frame, and how far off its own is."""
    height, width = frame.shape_hw
    x_hw, y_hw = np.meshgrid(
        frame.west + (np.arange(width) + 0.5) * PIXEL_SIZE, frame.north - (np.arange(height) + 0.5) * PIXEL_SIZE
    )
    if frame.epsg % 100 == patch.zone:
        y_hw = y_hw - (SOUTH if frame.epsg > 32700 else 0)
    else:
        move = Transformer.from_crs(frame.epsg, 32600 + patch.zone, always_xy=True)
        x_hw, y_hw = (np.asarray(values) for values in move.transform(x_hw, y_hw))
    across_hw, down_hw = (x_hw - patch.west) / PIXEL_SIZE, (patch.north - y_hw) / PIXEL_SIZE
    columns_hw, rows_hw = np.floor(across_hw), np.floor(down_hw)
    off_hw = np.hypot(across_hw - columns_hw - 0.5, down_hw - rows_hw - 0.5) * PIXEL_SIZE
    return rows_hw.astype(np.int64), columns_hw.astype(np.int64), off_hw
