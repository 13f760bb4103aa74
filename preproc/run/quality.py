"""Is the region observed well enough? The tiles' quality summed up, and said before a GPU is paid for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infer.contract import FormatError, Run, planned_tiles, read_json, read_plan
from preproc.run.text import percent

QUALITY_FILE = "quality.json"
FEW_CLEAR = 10
"""A tile half of whose pixels have fewer clear Sentinel-2 observations is pointed out."""
_NAMED = 5
"""Tiles that a warning names."""
_REMEDY = "fetch this tile again"


@dataclass(frozen=True)
class Observed:
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
    s2_largest_gap: int
    """Days without a Sentinel-2 date, in the worst tile."""
    s1_typical: float
    """Sentinel-1 observations, both orbits, in the same way."""
    s1_without: int
    """Tiles without any Sentinel-1 date."""
    poor: tuple[str, ...]
    """Tiles half of whose pixels have fewer than FEW_CLEAR clear observations."""

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
            names = ", ".join(self.poor[:_NAMED]) + (", ..." if len(self.poor) > _NAMED else "")
            texts.append(
                f"{len(self.poor):,} of {self.tiles:,} tiles have fewer than {FEW_CLEAR} clear Sentinel-2 observations "
                f"on half of their pixels ({names}): widen the window, or expect poor embeddings there"
            )
        if self.s2_without:
            share = percent(self.s2_without, self.pixels)
            texts.append(f"{self.s2_without:,} pixels ({share}) have no clear Sentinel-2 observation at all")
        if self.s1_without:
            texts.append(f"{self.s1_without:,} of {self.tiles:,} tiles have no Sentinel-1 observation")
        return texts


def observed(run: Run) -> Observed:
    """Read quality.json of every planned tile that has been fetched.

    Raises:
        FormatError: if there is no plan, or a quality.json cannot be read.
    """
    planned = planned_tiles(run)
    rows: list[tuple[str, int, dict[str, Any]]] = []
    for tile in planned:
        path = run.tiles / tile.name / QUALITY_FILE
        if path.is_file():
            content = read_json(path, what="the tile's quality record", remedy=_REMEDY)
            try:
                rows.append((tile.name, int(content["region_pixels"]), _figures(content["stacks"])))
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                raise FormatError(f"{path}: cannot be read ({error!r}): {_REMEDY}") from error
    rows = [row for row in rows if row[1]]
    pixels = sum(inside for _, inside, _ in rows)
    return Observed(
        tiles=len(rows),
        planned=len(planned),
        pixels=pixels,
        s2_typical=sum(inside * figures["s2"] for _, inside, figures in rows) / max(1, pixels),
        s2_fewest=min((figures["worst"] for _, _, figures in rows), default=0),
        s2_without=sum(figures["without"] for _, _, figures in rows),
        s2_largest_gap=max((figures["gap"] for _, _, figures in rows), default=0),
        s1_typical=sum(inside * figures["s1"] for _, inside, figures in rows) / max(1, pixels),
        s1_without=sum(figures["s1_dates"] == 0 for _, _, figures in rows),
        poor=tuple(name for name, _, figures in rows if figures["s2"] < FEW_CLEAR),
    )


def _figures(stacks: Any) -> dict[str, int]:
    s2, radar = stacks["s2"], [stacks["s1_ascending"], stacks["s1_descending"]]
    return {
        "s2": int(s2["observations_per_pixel"]["50"]),
        "worst": int(s2["observations_per_pixel"]["0"]),
        "without": int(s2["pixels_without"]),
        "gap": int(s2["largest_gap_days"]),
        "s1": sum(int(stack["observations_per_pixel"]["50"]) for stack in radar),
        "s1_dates": sum(int(stack["dates_kept"]) for stack in radar),
    }


def cautions(run: Run) -> list[str]:
    """What is to be said before a GPU is paid for: of the fetched tiles, or else of the plan's scenes.

    Raises:
        FormatError: if there is no plan, or a quality.json cannot be read.
    """
    now = observed(run)
    said = [] if now.tiles == now.planned else [str(text) for text in read_plan(run).get("warnings", ())]
    return [f"Warning: {text}" for text in [*said, *now.warnings()]]
