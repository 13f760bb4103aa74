"""How well a tile is observed: counts per pixel, dates, the largest gap; a small JSON and a picture in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from infer.contract import QUALITY_FILE, write_json
from preproc.tile.same_day import STACKS, StackName, StackRecord

PICTURE_FILE = "quality.png"
FULL_SCALE = 60
"""Clear observations at the bright end of the picture's colours, the same for all tiles."""
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Dark violet to yellow, evenly spaced, legible to the colour-blind."""
_OUTSIDE = 255
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


class QualityCounter:
    """Counts observations per pixel while the stacks are written."""

    def __init__(self, shape_hw: tuple[int, int]) -> None:
        self.counts_hw: dict[StackName, NDArray[np.uint16]] = {name: np.zeros(shape_hw, np.uint16) for name in STACKS}
        """Stack -> (H, W) number of dates with a value."""

    def add(self, name: StackName, has_value_hw: NDArray[np.uint8]) -> None:
        """Count one date."""
        self.counts_hw[name] += has_value_hw


def largest_gap(days: Sequence[date], start: str, end: str) -> int:
    """Longest stretch of days without a date: between neighbours, from the first day and to the last."""
    edges = [date.fromordinal(date.fromisoformat(start).toordinal() - 1), *days]
    edges.append(date.fromordinal(date.fromisoformat(end).toordinal() + 1))
    return max((later - earlier).days - 1 for earlier, later in pairwise(edges))


def summary(
    counter: QualityCounter,
    inside_hw: NDArray[np.uint8],
    records: Mapping[StackName, StackRecord],
    window: tuple[str, str],
    offset_gone: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of quality.json.

    Args:
        counter: observations per pixel.
        inside_hw: the region.
        records: the stacks' dates.
        window: first and last day.
        offset_gone: Sentinel-2 items whose catalogue does not say so, but whose offset has been removed.
    """
    inside = inside_hw > 0
    stacks: dict[str, Any] = {}
    for name in STACKS:
        record, counts = records[name], counter.counts_hw[name][inside]
        percentiles = np.percentile(counts, _PERCENTILES, method="lower") if counts.size else np.zeros(7)
        stacks[name] = {
            "dates_kept": len(record.kept),
            "dates_dropped": len(record.dropped),
            "dropped_for": _reasons(record),
            "observations_per_pixel": {str(p): int(v) for p, v in zip(_PERCENTILES, percentiles, strict=True)},
            "pixels_without": int(np.count_nonzero(counts == 0)),
            "largest_gap_days": largest_gap(record.kept, *window),
        }
    unseen_hw = inside & np.all([counts_hw == 0 for counts_hw in counter.counts_hw.values()], axis=0)
    warnings = {"offset_gone": list(offset_gone)} if offset_gone else {}
    return {
        "region_pixels": int(inside.sum()),
        "pixels_unseen": int(unseen_hw.sum()),
        "window": {"start": window[0], "end": window[1]},
        "stacks": stacks,
        **warnings,
    }


def _reasons(record: StackRecord) -> dict[str, int]:
    failed = {read.item for read in record.failed}
    tally: dict[str, int] = {}
    for entry in record.dropped:
        reason = entry.reason if failed.isdisjoint(entry.items) else "unreadable"
        tally[reason] = tally.get(reason, 0) + 1
    return tally


def picture(counter: QualityCounter, inside_hw: NDArray[np.uint8]) -> bytes:
    """PNG of the clear Sentinel-2 observations per pixel: dark = none, bright = FULL_SCALE or more, clear = outside.

    A palette gives the colours: the value of a pixel is its count (at most 254; 255 = outside the region).
    """
    counts_hw = np.minimum(counter.counts_hw["s2"], _OUTSIDE - 1).astype(np.uint8)
    counts_hw[inside_hw == 0] = _OUTSIDE
    shares = np.minimum(np.arange(_OUTSIDE) / FULL_SCALE, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = np.round([np.interp(shares, stops, colour) for colour in np.array(_COLOURS).T]).astype(int)
    palette = {count: (*channels[:, count].tolist(), 255) for count in range(_OUTSIDE)}
    height, width = inside_hw.shape
    with MemoryFile() as memory:
        options = {"dtype": "uint8", "count": 1, "height": height, "width": width, "transform": Affine.scale(10, -10)}
        with memory.open(driver="PNG", **options) as dataset:
            dataset.write(counts_hw, 1)
            dataset.write_colormap(1, palette | {_OUTSIDE: (0, 0, 0, 0)})
        return bytes(memory.read())


def write_quality(
    folder: Path,
    counter: QualityCounter,
    inside_hw: NDArray[np.uint8],
    records: Mapping[StackName, StackRecord],
    window: tuple[str, str],
    offset_gone: Sequence[str] = (),
) -> None:
    """Write quality.json and quality.png into a tile's (temporary) folder; see `summary`."""
    write_json(folder / QUALITY_FILE, summary(counter, inside_hw, records, window, offset_gone))
    (folder / PICTURE_FILE).write_bytes(picture(counter, inside_hw))
