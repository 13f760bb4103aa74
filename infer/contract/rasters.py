"""mosaic.json and map.json: what the rasters of a run hold, of which model and season, and their files a zone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from infer.contract.classification import ClassEntry
from infer.contract.provenance import Encoder as Encoder
from infer.contract.provenance import Window as Window
from infer.contract.record import Record
from infer.contract.run import Run


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """What mosaics and maps state of the embeddings they are made of."""

    model: Encoder
    dim: int
    """Numbers a pixel."""
    embeddings_as: Literal["float32", "int8"]
    data_sources: tuple[str, ...]
    """Archives that the tiles' scenes come from (mpc, aws, other), sorted."""
    archive: str
    """[archive] source of the plan."""
    window: Window
    min_clear_s2: int = 0
    """Pixels with fewer clear Sentinel-2 observations have no embedding; 0: all that were seen have one."""
    origins: Mapping[str, int] = field(default_factory=dict)
    """Where imported embeddings came from -> tiles; the others were computed in this run."""
    without: Mapping[str, int] = field(default_factory=dict)
    """Why pixels of the tiles have no embedding -> how many; empty where that was not counted."""
    missing: tuple[str, ...] = ()
    """Tiles without an embedding, which [stitch] missing = "nodata" left out."""


@dataclass(frozen=True)
class MosaicZone:
    """The mosaic of one UTM zone; files are named relative to the manifest."""

    epsg: int
    width: int
    height: int
    bounds: tuple[float, float, float, float]
    """West, south, east, north in metres."""
    tiles: int
    raster: str | None
    """GeoTIFF, or a VRT or tile index (.gti.gpkg) of the sheets'; None where the store is all there is."""
    scales: str | None
    """Of int8 codes, likewise."""
    item: str
    """STAC item of the zone, or the collection of its sheets' items."""
    preview: str
    observations: str | None = None
    """Observations a pixel, likewise; None in mosaics of older versions."""
    group: str | None = None
    """Of the store; None without one."""
    sheets: Mapping[str, str] = field(default_factory=dict)
    """Name -> manifest of each sheet."""


@dataclass(frozen=True, kw_only=True)
class MosaicSheet(Provenance):
    """sheet_<name>.json: one sheet of a zone's mosaic, a shard of the store."""

    kind = "mosaic-sheet"
    stage = "stitch"

    zone: str
    """Label of its zone."""
    row: int
    """Of the zone's sheets, from the north."""
    column: int
    epsg: int
    bounds: tuple[float, float, float, float]
    """West, south, east, north in metres."""
    pixels: int
    """With an embedding."""
    codes_clipped: int
    """Codes moved by one in the GeoTIFF, for theirs means nodata there."""
    tiles: tuple[str, ...]
    """That touch it."""
    embeddings: Mapping[str, str] = field(default_factory=dict)
    """Tile -> SHA-256 of the files of the embedding that it was made of; empty in sheets of older versions."""


@dataclass(frozen=True)
class PreviewColours:
    """How the previews were coloured."""

    variance_explained: tuple[float, ...]
    """Shares of the three components."""


@dataclass(frozen=True, kw_only=True)
class MosaicManifest(Provenance):
    """mosaic.json: all zones together."""

    kind = "mosaic"
    stage = "stitch"

    pixels: int
    """With an embedding."""
    codes_clipped: int
    """Codes moved by one, for theirs means nodata here."""
    dtype: Literal["float32", "int8"]
    zones: Mapping[str, MosaicZone]
    """Label such as 31N -> its files."""
    preview: PreviewColours
    store: str | None = None
    """Folder of the Zarr store; None without one."""
    depths: tuple[int, ...] = ()
    """Leading numbers that the store has as arrays of their own, besides all of them."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/mosaic/mosaic.json."""
        return run.mosaic_manifest


@dataclass(frozen=True, kw_only=True)
class MapSheet(Provenance):
    """map/sheet_<name>.json: one sheet of a zone's map."""

    kind = "map-sheet"
    stage = "predict"

    zone: str
    """Label of its zone."""
    row: int
    """Of the zone's sheets, from the north."""
    column: int
    epsg: int
    bounds: tuple[float, float, float, float]
    """West, south, east, north in metres."""
    confidence: Mapping[str, tuple[int, ...]]
    """Class code -> pixels by confidence, (101,) index: percent; empty where a number is mapped."""
    pixels: int | None = None
    """With a number, where one is mapped."""
    total: float | None = None
    """Sum of these numbers."""


@dataclass(frozen=True)
class MapZone:
    """The map of one UTM zone; files are named relative to the manifest."""

    epsg: int
    width: int
    height: int
    bounds: tuple[float, float, float, float]
    """West, south, east, north in metres."""
    classes: str
    confidence: str
    style: str
    item: str
    picture: str
    reasons: str | None = None
    """Why a pixel is not mapped, where [model] min_clear_s2 refused any; None elsewhere."""
    probabilities: str | None = None
    """Of every class; None unless [predict] probabilities asks for them."""
    sheets: Mapping[str, str] = field(default_factory=dict)
    """Name -> manifest of each sheet."""


@dataclass(frozen=True)
class MappedClass(ClassEntry):
    """A class and how much of the map it has."""

    pixels: int
    hectares: float
    """A count of pixels, not an estimate of the area."""
    pixels_by_confidence: tuple[int, ...]
    """(101,) index: percent."""


@dataclass(frozen=True, kw_only=True)
class MapManifest(Provenance):
    """map.json: all zones together."""

    kind = "map"
    stage = "predict"
    instead = MappingProxyType(
        {"value-map": "a map of numbers ([labels] value), and this is for maps of classes: see `smalti report`"}
    )

    classes: tuple[MappedClass, ...]
    """By ascending code."""
    pixels: int
    hectares: float
    areas_are: str
    """What the areas are, for people."""
    confidence_is: str
    zones: Mapping[str, MapZone]
    """Label such as 31N -> its files."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/map/map.json."""
        return run.map_manifest


@dataclass(frozen=True)
class ValueZone:
    """The map of numbers of one UTM zone; files are named relative to the manifest."""

    epsg: int
    width: int
    height: int
    bounds: tuple[float, float, float, float]
    """West, south, east, north in metres."""
    values: str
    """float32, three bands: the number, and the ends of its 90 % interval."""
    item: str
    sheets: Mapping[str, str]
    """Name -> manifest of each sheet."""


@dataclass(frozen=True, kw_only=True)
class ValueMapManifest(Provenance):
    """map.json of a run that learns a number."""

    kind = "value-map"
    stage = "predict"

    value: str
    """What is mapped."""
    pixels: int
    mean: float | None
    """Of all mapped pixels; not corrected for the regressor's bias."""
    zones: Mapping[str, ValueZone]
    """Label such as 31N -> its files."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/map/map.json."""
        return run.map_manifest


@dataclass(frozen=True)
class CleanedClass(ClassEntry):
    """A class and how much of the cleaned map it has."""

    pixels: int
    hectares: float
    """A count of pixels, not an estimate of the area."""


@dataclass(frozen=True, kw_only=True)
class CleanedMap(Record):
    """map/cleaned/cleaned.json: the map after the steps of [clean]."""

    kind = "map-cleaned"
    stage = "predict"

    steps: tuple[str, ...]
    """What was done, in order, for people."""
    pixels: int
    changed: int
    """Pixels that are of another class than in the map."""
    classes: tuple[CleanedClass, ...]
    """By ascending code."""
    zones: Mapping[str, str]
    """Label such as 31N -> raster of classes, relative to the manifest."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/map/cleaned/cleaned.json."""
        return run.map / "cleaned" / "cleaned.json"
