"""Where embeddings come from: grid, season, archive and encoder, as tiles and all that is made of them state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

_UTM = re.compile(r"EPSG:32([67])(0[1-9]|[1-5]\d|60)")
_FARTHEST = 1e8
"""Metres from the origin of a zone: nothing on the globe is."""


@dataclass(frozen=True)
class TileGrid:
    """Where a tile's pixels are."""

    crs: str
    """EPSG:326xx or 327xx, of smalti's tiles."""
    transform: tuple[float, float, float, float, float, float]
    """Affine coefficients (a, b, c, d, e, f) as rasterio writes them, from columns and rows to metres."""
    height: int | None = None
    width: int | None = None
    """In pixels; smalti's tiles say so."""

    @property
    def utm_epsg(self) -> int | None:
        """EPSG code of the UTM zone; None where the grid is not in one."""
        zone = _UTM.fullmatch(self.crs)
        if zone is None or max(map(abs, self.transform)) >= _FARTHEST:
            return None
        return 32000 + 100 * int(zone[1]) + int(zone[2])


@dataclass(frozen=True)
class Encoder:
    """The model that made the embeddings."""

    name: str
    """Registered name or file name."""
    label: str
    """What to call it in front of people."""
    trained: bool
    """False for a model whose weights were never trained: its embeddings mean nothing."""
    family: str
    checkpoint: str
    """SHA-256 of its file."""
    licence: str | None = None
    """Of its weights (SPDX); None where it is not known: a file of the user's own."""
    citation: str | None = None
    """What its publisher asks to be cited."""


@dataclass(frozen=True)
class Window:
    """First and last day, inclusive."""

    start: date
    end: date

    @property
    def days(self) -> int:
        """Its length."""
        return (self.end - self.start).days + 1

    @property
    def middle(self) -> date:
        """The day in its middle: a season from October to September is that of the year it ends in."""
        return self.start + timedelta(days=self.days // 2)


@dataclass(frozen=True)
class Embedded:
    """The embeddings that labelled pixels were looked up in."""

    region: str
    """Its name."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north in degrees."""
    model: Encoder
    embeddings_as: Literal["float32", "int8"]
    data_sources: tuple[str, ...]
    """Archives that the tiles' scenes come from (mpc, aws, other), sorted."""
    archive: str
    """[archive] source of the plan."""
    window: Window
    min_clear_s2: int = 0
    """Pixels with fewer clear Sentinel-2 observations have no embedding."""

    @property
    def year(self) -> str:
        """The year of the season: that of the window's middle."""
        return str(self.window.middle.year)
