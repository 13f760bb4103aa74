"""The pictures of the report as data URIs, with the length of their scale bars."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, child, planned_tiles
from infer.contract.rasters import MapManifest, MosaicManifest, ValueMapManifest
from preproc.raster.legend import class_colours
from preproc.raster.preview import Picture, length_text, picture, png_bytes, preview_level, read_strips, scale_length
from preproc.raster.zones import ZoneGrid, zone_grids

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

CONFIDENCE_COLOURS = "cividis"
"""Even in lightness, and the same to people who do not tell red from green."""


VALUE_COLOURS = "viridis"


def _colours(name: str) -> Colormap:
    from matplotlib import colormaps  # here: whoever looks at a run draws nothing

    return colormaps[name]


@dataclass(frozen=True)
class Shown:
    """One picture on the page."""

    zone: str
    uri: str
    width: int
    height: int
    scale_text: str
    scale_percent: float
    """Length of the scale bar in percent of the picture's width."""


def class_pictures(run: Run, made: MapManifest) -> list[Shown]:
    """The class map of each zone."""

    def colours(strips: list[NDArray[Any]]) -> NDArray[np.uint8]:
        return class_colours(strips[0][..., 0], made.classes)

    return [
        _shown(grid, picture([child(run.map, made.zones[grid.label].classes)], grid, colours))
        for grid in zone_grids(planned_tiles(run))
    ]


def confidence_pictures(run: Run, made: MapManifest) -> list[Shown]:
    """The confidence of each zone: dark 0 %, bright 100 %."""
    table = (_colours(CONFIDENCE_COLOURS)(np.arange(256) / 100, bytes=True)).astype(np.uint8)
    table[0] = 0

    def colours(strips: list[NDArray[Any]]) -> NDArray[np.uint8]:
        shaded: NDArray[np.uint8] = table[strips[0][..., 0]]
        return shaded

    return [
        _shown(grid, picture([child(run.map, made.zones[grid.label].confidence)], grid, colours))
        for grid in zone_grids(planned_tiles(run))
    ]


def confidence_gradient(steps: int = 11) -> str:
    """The colours of the confidence picture as a CSS gradient."""
    rgba = _colours(CONFIDENCE_COLOURS)(np.linspace(0, 1, steps), bytes=True)
    return ", ".join(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in rgba)


def value_pictures(run: Run, made: ValueMapManifest) -> tuple[list[Shown], float, float]:
    """The map of a number of each zone, dark to bright, and the numbers that are darkest and brightest: all but the two
    hundredths at either end lie between them."""
    paths = {label: child(run.map, zone.values) for label, zone in made.zones.items()}
    seen = [
        strips[0][..., 0][np.isfinite(strips[0][..., 0])]
        for path in paths.values()
        for strips in read_strips([path], preview_level(path))
    ]
    values = np.concatenate(seen) if seen else np.zeros(0)
    low, high = np.percentile(values, [2, 98]).tolist() if len(values) else (0.0, 0.0)

    def colours(strips: list[NDArray[Any]]) -> NDArray[np.uint8]:
        shade = (strips[0][..., 0] - low) / ((high - low) or 1.0)
        rgba: NDArray[np.uint8] = _colours(VALUE_COLOURS)(np.nan_to_num(shade, nan=0.0), bytes=True)
        rgba[np.isnan(shade)] = 0
        return rgba

    grids = zone_grids(planned_tiles(run))
    return [_shown(grid, picture([paths[grid.label]], grid, colours)) for grid in grids], low, high


def embedding_pictures(run: Run, mosaic: MosaicManifest) -> list[tuple[str, str]]:
    """Zone and data URI of the previews that `stitch` made."""
    return [
        (label, data_uri(child(run.mosaic, zone.preview).read_bytes())) for label, zone in sorted(mosaic.zones.items())
    ]


def _shown(grid: ZoneGrid, made: Picture) -> Shown:
    west, _, east, _ = made.bounds
    length = scale_length(east - west)
    height, width, _ = made.rgba_hwc.shape
    return Shown(
        zone=grid.label,
        uri=data_uri(png_bytes(made.rgba_hwc)),
        width=width,
        height=height,
        scale_text=length_text(length),
        scale_percent=round(100 * length / (east - west), 2),
    )


def data_uri(png: bytes) -> str:
    """A PNG as an address that needs no file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
