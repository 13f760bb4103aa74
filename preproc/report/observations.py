"""How well the region was observed, summed up over the tiles: dates a month, clear observations a pixel, gaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from infer.contract import TILE_MANIFEST, FormatError, Run, planned_tiles, read_json, read_manifest
from preproc.report.inputs import QUALITY_FILE
from preproc.run.quality import FEW_CLEAR

STACKS = {
    "s2": "Sentinel-2, clear",
    "s1_ascending": "Sentinel-1, ascending",
    "s1_descending": "Sentinel-1, descending",
}
_REMEDY = "fetch this tile again"


@dataclass
class StackSummary:
    """One stack over all tiles; observations are counted per pixel of the region."""

    label: str
    dates: set[str] = field(default_factory=set)
    """Days that at least one tile kept."""
    fewest: int | None = None
    """Observations of the worst pixel."""
    typical: float | None = None
    """Median pixel, averaged over tiles by their pixels in the region."""
    most: int | None = None
    least_dates: int | None = None
    """Dates kept by the tile that kept the fewest."""
    most_dates: int | None = None
    dropped: int = 0
    """Dates left out by the tile that left out the most."""
    largest_gap: int | None = None
    """Longest stretch of days without a date, in any tile."""
    pixels_without: int = 0
    """Pixels without a single observation."""


@dataclass(frozen=True)
class Observations:
    """Everything the report says about the scenes."""

    stacks: Mapping[str, StackSummary]
    months: Sequence[str]
    """YYYY-MM of the window."""
    per_month: Mapping[str, Sequence[int]]
    """Stack -> dates kept in each month."""
    tiles: int
    """Tiles whose time series are still here."""
    planned: int
    region_pixels: int
    poor_tiles: Sequence[str]
    """Tiles with a median below FEW_CLEAR clear observations."""


def observe(run: Run, window: tuple[str, str]) -> Observations:
    """Read quality.json and the dates of every tile that is still there.

    Raises:
        FormatError: if one of them is damaged.
    """
    stacks = {name: StackSummary(label) for name, label in STACKS.items()}
    planned = planned_tiles(run)
    tiles, pixels, poor = 0, 0, []
    weights: dict[str, float] = dict.fromkeys(STACKS, 0.0)
    for name, quality, manifest in _tiles(run, [tile.name for tile in planned]):
        try:
            tiles += 1
            inside = int(quality["region_pixels"])
            pixels += inside
            for stack, summary in stacks.items():
                summary.dates.update(date.fromisoformat(day).isoformat() for day in manifest["dates"][stack])
                _add(summary, quality["stacks"][stack])
                weights[stack] += inside * float(quality["stacks"][stack]["observations_per_pixel"]["50"])
            if int(quality["stacks"]["s2"]["observations_per_pixel"]["50"]) < FEW_CLEAR:
                poor.append(name)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            where = run.tiles / name
            raise FormatError(f"{where}: its dates or quality cannot be read ({error!r}): {_REMEDY}") from error
    for stack, summary in stacks.items():
        summary.typical = weights[stack] / pixels if pixels else None
    months = list(_months(*window))
    per_month = {
        name: [sum(day.startswith(month) for day in summary.dates) for month in months]
        for name, summary in stacks.items()
    }
    return Observations(stacks, months, per_month, tiles, len(planned), pixels, poor)


def _tiles(run: Run, names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    for name in names:
        folder = run.tiles / name
        if not (folder / TILE_MANIFEST).is_file():
            continue  # people remove the time series once the embeddings are made; the report says how many are left
        manifest = read_manifest(folder / TILE_MANIFEST, "tile", remedy=_REMEDY)
        quality = read_json(folder / QUALITY_FILE, what="the tile's quality record", remedy=_REMEDY)
        yield name, quality, manifest


def _add(summary: StackSummary, stack: Mapping[str, Any]) -> None:
    counts = stack["observations_per_pixel"]
    low, high, kept = int(counts["0"]), int(counts["100"]), int(stack["dates_kept"])
    gap = int(stack["largest_gap_days"])
    summary.fewest = low if summary.fewest is None else min(summary.fewest, low)
    summary.most = high if summary.most is None else max(summary.most, high)
    summary.least_dates = kept if summary.least_dates is None else min(summary.least_dates, kept)
    summary.most_dates = kept if summary.most_dates is None else max(summary.most_dates, kept)
    summary.dropped = max(summary.dropped, int(stack["dates_dropped"]))
    summary.largest_gap = gap if summary.largest_gap is None else max(summary.largest_gap, gap)
    summary.pixels_without += int(stack["pixels_without"])


def _months(start: str, end: str) -> Iterator[str]:
    day, last = date.fromisoformat(start).replace(day=1), date.fromisoformat(end)
    while day <= last:
        yield f"{day:%Y-%m}"
        day = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1)
