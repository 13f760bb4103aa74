"""Is the region observed well enough? The tiles' quality summed up, and said before a GPU is paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infer.contract import (
    QUALITY_FILE,
    FormatError,
    JsonObject,
    Plan,
    PlannedTile,
    Run,
    file_mark,
    planned_tiles,
    read_json,
)
from preproc.run.text import percent, some

STACKS = {
    "s2": "Sentinel-2, clear",
    "s1_ascending": "Sentinel-1, ascending",
    "s1_descending": "Sentinel-1, descending",
}
"""Stack -> what it counts, for people."""
FEW_CLEAR = 10
"""A tile half of whose pixels have fewer clear Sentinel-2 observations is pointed out."""
_REMEDY = "fetch this tile again"


@dataclass(frozen=True, slots=True)
class StackQuality:
    """One stack of one tile; observations are counted per pixel of the region."""

    kept: int
    """Dates."""
    dropped: int
    fewest: int
    """Observations of the worst pixel."""
    median: int
    most: int
    without: int
    """Pixels without any."""
    gap: int
    """Longest stretch of days without a date."""


@dataclass(frozen=True, slots=True)
class TileQuality:
    """quality.json of a tile."""

    name: str
    pixels: int
    """Of the region."""
    unseen: int | None
    """Pixels without any observation, optical or radar; None in records from before this was counted."""
    stacks: Mapping[str, StackQuality]
    offset_gone: tuple[str, ...] = ()
    """Sentinel-2 items whose pixels lack the offset that the catalogue says is in them."""


@dataclass(frozen=True)
class StackSummary:
    """One stack over all tiles that hold pixels of the region."""

    label: str
    fewest: int
    """Observations of the worst pixel."""
    typical: float
    """Median pixel, averaged over tiles by their pixels in the region."""
    most: int
    least_dates: int
    """Dates kept by the tile that kept the fewest."""
    most_dates: int
    dropped: int
    """Dates left out by the tile that left out the most."""
    largest_gap: int
    """Longest stretch of days without a date, in any tile."""
    pixels_without: int
    """Pixels without a single observation."""


@dataclass(frozen=True)
class QualitySummary:
    """The fetched tiles of a run, summed up; observations are counted per pixel of the region."""

    tiles: int
    """That are fetched and hold pixels of the region."""
    planned: int
    pixels: int
    s2_typical: float
    """Clear Sentinel-2 observations of the median pixel, averaged over tiles by their pixels."""
    s2_fewest: int
    """Of the worst pixel."""
    s2_without: int
    """Pixels without any."""
    unseen: int | None
    """Pixels that no radar saw either; None if a tile was fetched before this was counted."""
    s2_largest_gap: int
    """Days without a Sentinel-2 date, in the worst tile."""
    s1_typical: float
    """Sentinel-1 observations, both orbits, in the same way."""
    s1_without: int
    """Tiles without any Sentinel-1 date."""
    poor: tuple[str, ...]
    """Tiles half of whose pixels have fewer than FEW_CLEAR clear observations."""
    offset_gone: tuple[str, ...]
    """Sentinel-2 items whose pixels lack the offset that the catalogue says is in them."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: a summary, then warnings."""
        if not self.tiles:
            return []
        of = "" if self.tiles == self.planned else f" of {self.planned:,}"
        text = (
            f"observed: {self.s2_typical:.0f} clear Sentinel-2 and {self.s1_typical:.0f} Sentinel-1 observations of a "
            f"typical pixel, {self.s2_fewest} clear of the worst, at most {self.s2_largest_gap} days without a "
            f"Sentinel-2 date ({self.tiles:,}{of} tiles)"
        )
        return [text, *(f"Warning: {warning}" for warning in self.warnings())]

    def warnings(self) -> list[str]:
        """What speaks against embedding these tiles as they are."""
        texts = []
        if self.poor:
            texts.append(
                f"{len(self.poor):,} of {self.tiles:,} tiles have fewer than {FEW_CLEAR} clear Sentinel-2 observations "
                f"on half of their pixels ({some(self.poor)}): widen the window, or expect poor embeddings there"
            )
        if self.s2_without:
            share = percent(self.s2_without, self.pixels)
            rest = blind_spots(self.s2_without, self.unseen)
            texts.append(f"{self.s2_without:,} pixels ({share}) have no clear Sentinel-2 observation at all: {rest}")
        if self.s1_without:
            texts.append(f"{self.s1_without:,} of {self.tiles:,} tiles have no Sentinel-1 observation")
        if self.offset_gone:
            texts.append(
                f"{len(self.offset_gone):,} Sentinel-2 items have clear pixels below 1000 although the catalogue does "
                "not say that baseline 04.00's offset was removed from them: nothing was subtracted, for example "
                f"{self.offset_gone[0]}"
            )
        return texts


Qualities = dict[str, tuple[tuple[int, ...], TileQuality]]
"""Tile -> which file its quality was read from, and the quality: for whoever will ask again."""


def tile_qualities(run: Run, planned: Sequence[PlannedTile], known: Qualities | None = None) -> list[TileQuality]:
    """quality.json of those tiles of the plan that are fetched and hold pixels of the region.

    Args:
        run: the run directory.
        planned: tiles of its plan.
        known: of earlier calls; files that have not changed are not read again.

    Raises:
        FormatError: if a quality.json cannot be read.
    """
    found, folder = [], run.tiles
    for tile in planned:
        path = f"{folder}/{tile.name}/{QUALITY_FILE}"
        mark = file_mark(path)
        if not mark:
            continue
        before = None if known is None else known.get(tile.name)
        quality = before[1] if before is not None and before[0] == mark else _read(tile.name, path)
        if known is not None:
            known[tile.name] = mark, quality
        if quality.pixels:
            found.append(quality)
    return found


def _read(name: str, path: str) -> TileQuality:
    content = read_json(path, what="the tile's quality record", remedy=_REMEDY)
    try:
        return _parse(name, content)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(f"{path}: cannot be read ({error!r}): {_REMEDY}") from error


def _parse(name: str, content: Any) -> TileQuality:
    unseen = content.get("pixels_unseen")
    stacks = {stack: _parse_stack(content["stacks"][stack]) for stack in STACKS}
    gone = tuple(map(str, content.get("offset_gone", ())))
    return TileQuality(name, int(content["region_pixels"]), None if unseen is None else int(unseen), stacks, gone)


def _parse_stack(stack: JsonObject) -> StackQuality:
    counts = stack["observations_per_pixel"]
    return StackQuality(
        kept=int(stack["dates_kept"]),
        dropped=int(stack["dates_dropped"]),
        fewest=int(counts["0"]),
        median=int(counts["50"]),
        most=int(counts["100"]),
        without=int(stack["pixels_without"]),
        gap=int(stack["largest_gap_days"]),
    )


def summarise(tiles: Sequence[TileQuality]) -> dict[str, StackSummary]:
    """Each stack over some tiles; nothing and zero where there are none. Pure."""
    pixels = sum(tile.pixels for tile in tiles)
    found = {}
    for name, label in STACKS.items():
        stacks = [tile.stacks[name] for tile in tiles]
        typical = sum(tile.pixels * tile.stacks[name].median for tile in tiles) / max(1, pixels)
        found[name] = StackSummary(
            label=label,
            fewest=min((stack.fewest for stack in stacks), default=0),
            typical=typical,
            most=max((stack.most for stack in stacks), default=0),
            least_dates=min((stack.kept for stack in stacks), default=0),
            most_dates=max((stack.kept for stack in stacks), default=0),
            dropped=max((stack.dropped for stack in stacks), default=0),
            largest_gap=max((stack.gap for stack in stacks), default=0),
            pixels_without=sum(stack.without for stack in stacks),
        )
    return found


def unseen_pixels(tiles: Sequence[TileQuality]) -> int | None:
    """Pixels without any observation, optical or radar; None if one of the records does not say. Pure."""
    counts = [tile.unseen for tile in tiles]
    return None if None in counts else sum(count or 0 for count in counts)


def blind_spots(without: int, unseen: int | None) -> str:
    """What pixels without a clear Sentinel-2 observation rest on, in words. Pure.

    Args:
        without: so many there are.
        unseen: and so many of them no radar saw either; None where that was not counted.
    """
    if unseen is None:
        return "they rest on radar alone, or on nothing"
    if unseen == 0:
        return "they rest on radar alone"
    if unseen >= without:
        return "no radar saw them either"
    return f"{without - unseen:,} of them rest on radar alone, {unseen:,} were not seen by radar either"


def poor_tiles(tiles: Sequence[TileQuality]) -> tuple[str, ...]:
    """Names of those half of whose pixels have fewer than FEW_CLEAR clear observations. Pure."""
    return tuple(tile.name for tile in tiles if tile.stacks["s2"].median < FEW_CLEAR)


def summarise_quality(run: Run, known: Qualities | None = None) -> QualitySummary:
    """Sum up what is fetched.

    Args:
        run: the run directory.
        known: see `tile_qualities`.

    Raises:
        FormatError: if there is no plan, or a quality.json cannot be read.
    """
    planned = planned_tiles(run)
    tiles = tile_qualities(run, planned, known)
    stacks = summarise(tiles)
    s2, *radar = stacks.values()
    return QualitySummary(
        tiles=len(tiles),
        planned=len(planned),
        pixels=sum(tile.pixels for tile in tiles),
        s2_typical=s2.typical,
        s2_fewest=s2.fewest,
        s2_without=s2.pixels_without,
        unseen=unseen_pixels(tiles),
        s2_largest_gap=s2.largest_gap,
        s1_typical=sum(stack.typical for stack in radar),
        s1_without=sum(not any(tile.stacks[name].kept for name in STACKS if name != "s2") for tile in tiles),
        poor=poor_tiles(tiles),
        offset_gone=tuple(sorted({item for tile in tiles for item in tile.offset_gone})),
    )


def quality_warnings(run: Run) -> list[str]:
    """What is to be said before a GPU is paid for: of the fetched tiles, or else of the plan's scenes.

    Raises:
        FormatError: if there is no plan, or a quality.json cannot be read.
    """
    now = summarise_quality(run)
    said = [] if now.tiles == now.planned else Plan.read(run).warnings
    return [f"Warning: {text}" for text in [*said, *now.warnings()]]
