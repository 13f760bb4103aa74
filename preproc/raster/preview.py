"""Small pictures of mosaics and maps: read from a COG's overviews, strip by strip; equal bytes each time.

A figure is a map for a page or a README: the picture, its legend, a scale bar and where north is.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, write_bytes
from infer.contract.classification import ClassEntry
from preproc.raster.zones import ZoneGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LONGEST_SIDE = 1600
"""Pixels of a picture's longer side at most."""
_SMALL_SIDE = 640
"""A smaller picture is enlarged by a whole factor up to about this."""
_MARGIN = 0.02
"""Of the longer side, kept transparent around what is shown."""


def picture_step(width: int, height: int, longest: int = LONGEST_SIDE) -> int:
    """The power of two of pixels that become one, so that a picture of a raster is not larger than that."""
    step = 1
    while -(-max(width, height) // step) > longest:
        step *= 2
    return step


def preview_level(path: Path, longest: int = LONGEST_SIDE) -> int:
    """Overview level (0: full size) of a COG that fits a picture of that size, or its coarsest.

    Args:
        path: the COG.
        longest: pixels of the picture's longer side at most.
    """
    with rasterio.open(path) as source:
        side = max(source.width, source.height)
        levels = [1, *source.overviews(1)]
    return next((index for index, factor in enumerate(levels) if -(-side // factor) <= longest), len(levels) - 1)


def read_strips(paths: list[Path], level: int) -> Iterator[list[NDArray[Any]]]:
    """Strips (h, W, C) of one overview level of COGs on the same grid, from north to south.

    Args:
        paths: files of equal size.
        level: 0 for full size.
    """
    options = {} if level == 0 else {"overview_level": level - 1}
    sources = [rasterio.open(path, **options) for path in paths]
    try:
        height, width, step = sources[0].height, sources[0].width, int(sources[0].block_shapes[0][0])
        for row in range(0, height, step):
            window = Window(0, row, width, min(step, height - row))
            yield [np.moveaxis(source.read(window=window), 0, 2) for source in sources]
    finally:
        for source in sources:
            source.close()


@dataclass(frozen=True)
class Picture:
    """A picture and where it is, cut to what is not transparent."""

    rgba_hwc: NDArray[np.uint8]
    west: float
    """Easting of the left edge in metres."""
    north: float
    """Northing of the upper edge in metres."""
    pixel: float
    """Ground size of a pixel in metres."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in metres."""
        height, width, _ = self.rgba_hwc.shape
        return self.west, self.north - height * self.pixel, self.west + width * self.pixel, self.north


def picture(paths: list[Path], grid: ZoneGrid, colours: Callable[[list[NDArray[Any]]], NDArray[np.uint8]]) -> Picture:
    """A picture of COGs, with at most LONGEST_SIDE pixels a side; small ones are enlarged.

    Args:
        paths: files on the grid.
        grid: where they are.
        colours: strips (h, W, C), one a file -> (h, W, 4).
    """
    level = preview_level(paths[0])
    return framed(np.concatenate([colours(strips) for strips in read_strips(paths, level)]), grid, 2**level)


def framed(rgba_hwc: NDArray[np.uint8], grid: ZoneGrid, step: int) -> Picture:
    """A picture cut to what is not transparent, and enlarged if it is small.

    Args:
        rgba_hwc: (H, W, 4) of the whole grid.
        grid: where it is.
        step: pixels of the grid along one of the picture's.
    """
    top, bottom, left, right = _opaque_box(rgba_hwc)
    size = float(PIXEL_SIZE * step)
    factor = max(1, _SMALL_SIDE // max(bottom - top, right - left))
    cut_hwc = rgba_hwc[top:bottom, left:right].repeat(factor, axis=0).repeat(factor, axis=1)
    return Picture(cut_hwc, grid.west + left * size, grid.north - top * size, size / factor)


def _opaque_box(rgba_hwc: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First and last + 1 row and column that are not transparent, with a margin; everything if nothing is opaque."""
    height, width, _ = rgba_hwc.shape
    rows, columns = (np.flatnonzero(rgba_hwc[..., 3].any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, height, 0, width
    margin = max(1, round(_MARGIN * max(rows[-1] - rows[0], columns[-1] - columns[0])))
    return (
        max(0, int(rows[0]) - margin),
        min(height, int(rows[-1]) + 1 + margin),
        max(0, int(columns[0]) - margin),
        min(width, int(columns[-1]) + 1 + margin),
    )


def png_bytes(rgba_hwc: NDArray[np.uint8]) -> bytes:
    """A PNG without versions or dates in it."""
    from matplotlib.image import imsave  # here: tasks that make sheets draw nothing

    stream = io.BytesIO()
    imsave(stream, rgba_hwc, format="png", metadata={"Software": None})  # type: ignore[dict-item]  # None is documented: leaves the version out
    return stream.getvalue()


def write_png(path: Path, rgba_hwc: NDArray[np.uint8]) -> None:
    """Write a picture atomically."""
    write_bytes(path, png_bytes(rgba_hwc))


_DPI = 150
_WIDTH_IN = 8.0
"""Width of the picture itself."""
_LEGEND_IN = 2.6
_INK = "#222222"
_MANY = 30
"""Classes from which on the legend is set smaller."""


def scale_length(metres: float) -> int:
    """A round length (1, 2 or 5 times a power of ten, in metres) of about a quarter of the given width."""
    magnitude = 10 ** int(np.floor(np.log10(metres / 4)))
    return int(max(step * magnitude for step in (1, 2, 5) if step * magnitude <= metres / 4) or magnitude)


def length_text(metres: int) -> str:
    """For example 500 m or 2 km."""
    return f"{metres // 1000} km" if metres % 1000 == 0 else f"{metres} m"


def class_figure(shown: Picture, entries: Sequence[ClassEntry], title: str, note: str) -> bytes:
    """PNG of a class map.

    Args:
        shown: the picture and where it is.
        entries: what to show in the legend.
        title: above the map.
        note: below it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: tasks that make sheets draw nothing
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    west, south, east, north = shown.bounds
    height_in = min(max(_WIDTH_IN * (north - south) / (east - west), 3.0), 14.0)
    figure = Figure(figsize=(_WIDTH_IN + _LEGEND_IN, height_in + 1.1), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total_w, total_h = figure.get_size_inches()
    left, width = 0.02, _WIDTH_IN / total_w - 0.02
    axes = figure.add_axes((left, 0.6 / total_h, width, height_in / total_h))
    axes.imshow(shown.rgba_hwc, extent=(west, east, south, north), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#999999")
    axes.set_title(title, loc="left", fontsize=12, color=_INK, fontweight="bold")
    _scale_bar(figure, shown, left, 0.42 / total_h, width)
    handles = [Patch(facecolor=entry.color, edgecolor="#666666", linewidth=0.5) for entry in entries]
    legend = figure.legend(
        handles,
        [_label(entry.name) for entry in entries],
        loc="upper left",
        bbox_to_anchor=(_WIDTH_IN / total_w + 0.01, 1 - 0.4 / total_h),
        frameon=False,
        fontsize=9 if len(entries) <= _MANY else 6,
        labelcolor=_INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called "$$"
    figure.text(left, 0.15 / total_h, note, fontsize=8, color="#555555", parse_math=False)
    stream = io.BytesIO()
    with warnings.catch_warnings():  # a script that the font lacks shows as boxes; legend.csv has the names
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _label(name: str) -> str:
    """A class name as the drawing library shows it: one that begins with an underscore would be left out."""
    return f" {name}" if name.startswith("_") else name


def _scale_bar(figure: Figure, shown: Picture, left: float, bottom: float, width: float) -> None:
    """A two-part bar beside the note, under the map, where it hides nothing; and where north is.

    Args:
        figure: to draw on.
        shown: the map.
        left: of the map's axes, in parts of the figure's width.
        bottom: where the bar stands, in parts of the figure's height.
        width: of the map's axes, in parts of the figure's width.
    """
    from matplotlib.patches import Rectangle

    west, _, east, _ = shown.bounds
    length = scale_length(east - west)
    half, height = width * length / (east - west) / 2, 0.07 / figure.get_size_inches()[1]
    for start, colour in ((left, _INK), (left + half, "white")):
        bar = Rectangle((start, bottom), half, height, facecolor=colour, edgecolor=_INK, linewidth=0.7)
        figure.add_artist(bar)
    figure.text(left + 2 * half + 0.01, bottom + height / 2, length_text(length), fontsize=9, color=_INK, va="center")
    figure.text(left + width, bottom + height / 2, "north is up", fontsize=9, color=_INK, va="center", ha="right")
