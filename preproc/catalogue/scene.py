"""One scene as the rest of smalti sees it, whatever catalogue it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Literal

from infer.contract.registry import DataSource
from preproc.reader.whereabouts import Whereabouts


class OffsetPolicy(StrEnum):
    """What is done to Sentinel-2 digital numbers before they are stored; named in every tile's manifest."""

    SUBTRACT_1000 = "subtract-1000-where-dn>=1000"
    """Processing baseline 04.00 and later, offset still in the file."""
    NONE = "none"
    """No offset in the file: an older baseline, or the provider has removed it."""
    BY_PIXELS = "subtract-1000-unless-pixels-lie-below"
    """As SUBTRACT_1000, but the catalogue is not to be relied on: dark clear pixels show that it is removed."""


class OffsetBasis(StrEnum):
    """What an offset policy rests on; named in every tile's manifest."""

    BASELINE = "processing baseline"
    FLAG = "boa_offset_applied"
    BUCKET = "bucket that the files lie in"
    COLLECTION = "collection"
    DECLARED = "raster:offset"
    DATE = "acquisition date"
    """The item says nothing: the rule that the models were trained with."""


@dataclass(frozen=True)
class Copy:
    """Which of several processings of one granule a scene is, where more than one is used."""

    granule: str
    """Tile and datatake, equal for all of them."""
    acquired: datetime
    """UTC, of the newest one: among the scenes of a day all of them stand where that one does."""
    number: int
    """0 is the newest. An older one gives only pixels of which the newer ones have no data."""


@dataclass(frozen=True)
class Scene:
    """A Sentinel-2 granule or a Sentinel-1 RTC scene."""

    id: str
    modality: Literal["s2", "s1"]
    acquired: datetime
    """UTC."""
    assets: Mapping[str, str]
    """Band name (B04 ... B12, SCL; VV, VH) -> href as it is opened, unsigned; absolute path or URL."""
    footprint: str
    """WKT polygon in longitude and latitude (WGS 84)."""
    epsg: int | None = None
    """CRS of the rasters where the catalogue says it."""
    orbit: Literal["ascending", "descending"] | None = None
    """s1 only."""
    offset: OffsetPolicy = OffsetPolicy.NONE
    """s2 only."""
    offset_basis: OffsetBasis | None = None
    """s2 only."""
    copy: Copy | None = None
    """None: no other processing of the granule is used."""
    data_source: DataSource = "other"
    """Which archive the pixels belong to; must fit the checkpoint."""
    places: Mapping[str, Whereabouts] = field(default_factory=dict)
    """Band name -> where the item says that its raster lies; the file's header must agree."""

    @property
    def day(self) -> date:
        """UTC date: scenes of one date (and orbit) form one observation."""
        return self.acquired.date()
