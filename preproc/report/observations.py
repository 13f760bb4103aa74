"""How well the region was observed, summed up over the tiles: dates a month, clear observations a pixel, gaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from infer.contract import TILE_MANIFEST, FormatError, Run, planned_tiles
from infer.contract.tile import TileSeason
from preproc.run.quality import STACKS, StackSummary, poor_tiles, summarise, tile_qualities, unseen_pixels

_REMEDY = "fetch this tile again"


@dataclass(frozen=True)
class Observations:
    """Everything the report says about the scenes."""

    stacks: Mapping[str, StackSummary]
    months: Sequence[str]
    """YYYY-MM of the window."""
    per_month: Mapping[str, Sequence[int]]
    """Stack -> dates kept in each month, by at least one tile."""
    tiles: int
    """Tiles whose time series are still here."""
    planned: int
    unseen: int | None
    """Pixels without any observation, optical or radar; None if a tile was fetched before this was counted."""
    poor_tiles: Sequence[str]
    """Tiles with a median below FEW_CLEAR clear observations."""


def observe(run: Run, window: tuple[str, str]) -> Observations:
    """Read quality.json and the dates of every tile that is still there.

    Raises:
        FormatError: if one of them is damaged.
    """
    planned = planned_tiles(run)
    tiles = tile_qualities(run, planned)  # people remove the time series once the embeddings are made
    days: dict[str, set[date]] = {name: set() for name in STACKS}
    for tile in tiles:
        for name, dates in _dates(run.tiles / tile.name).items():
            days[name].update(dates)
    months = list(_months(*window))
    per_month = {name: [sum(f"{day:%Y-%m}" == month for day in days[name]) for month in months] for name in STACKS}
    return Observations(
        summarise(tiles), months, per_month, len(tiles), len(planned), unseen_pixels(tiles), poor_tiles(tiles)
    )


def _dates(folder: Path) -> Mapping[str, Sequence[date]]:
    dates = TileSeason.of_folder(folder).dates or {}
    missing = [stack for stack in STACKS if stack not in dates]
    if missing:
        raise FormatError(f"{folder / TILE_MANIFEST}: dates.{missing[0]} is missing: {_REMEDY}")
    return {stack: dates[stack] for stack in STACKS}


def _months(start: str, end: str) -> Iterator[str]:
    day, last = date.fromisoformat(start).replace(day=1), date.fromisoformat(end)
    while day <= last:
        yield f"{day:%Y-%m}"
        day = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1)
