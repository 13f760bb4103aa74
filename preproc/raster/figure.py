"""A map for a page or a README: the picture, its legend, a scale bar and where north is. The same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from preproc.raster.legend import LegendEntry
from preproc.raster.zones import ZoneGrid

_DPI = 150
_WIDTH_IN = 8.0
"""Width of the picture itself."""
_LEGEND_IN = 2.6
_INK = "#222222"


def scale_length(metres: float) -> int:
    """A round length (1, 2 or 5 times a power of ten, in metres) of about a quarter of the given width."""
    magnitude = 10 ** int(np.floor(np.log10(metres / 4)))
    return int(max(step * magnitude for step in (1, 2, 5) if step * magnitude <= metres / 4) or magnitude)


def length_text(metres: int) -> str:
    """For example 500 m or 2 km."""
    return f"{metres // 1000} km" if metres % 1000 == 0 else f"{metres} m"


def class_figure(
    rgba_hwc: NDArray[np.uint8], grid: ZoneGrid, entries: Sequence[LegendEntry], title: str, note: str
) -> bytes:
    """PNG of a class map.

    Args:
        rgba_hwc: the picture, of the whole grid.
        grid: extent in metres.
        entries: what to show in the legend.
        title: above the map.
        note: below it.
    """
    west, south, east, north = grid.bounds
    height_in = min(max(_WIDTH_IN * (north - south) / (east - west), 3.0), 14.0)
    figure = Figure(figsize=(_WIDTH_IN + _LEGEND_IN, height_in + 0.9), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total_w, total_h = figure.get_size_inches()
    axes = figure.add_axes((0.02, 0.45 / total_h, _WIDTH_IN / total_w - 0.02, height_in / total_h))
    axes.imshow(rgba_hwc, extent=(west, east, south, north), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#999999")
    axes.set_title(title, loc="left", fontsize=12, color=_INK, fontweight="bold")
    _scale_bar(axes, grid)
    handles = [Patch(facecolor=entry.color, edgecolor="#666666", linewidth=0.5, label=entry.name) for entry in entries]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(_WIDTH_IN / total_w + 0.01, 1 - 0.4 / total_h),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )
    figure.text(0.02, 0.15 / total_h, note, fontsize=8, color="#555555")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _scale_bar(axes: Axes, grid: ZoneGrid) -> None:
    west, south, east, north = grid.bounds
    width, height = east - west, north - south
    length = scale_length(width)
    left, low = west + 0.03 * width, south + 0.03 * height
    box = Rectangle(
        (left - 0.012 * width, low - 0.015 * height),
        length + 0.024 * width,
        0.065 * height,
        facecolor="white",
        edgecolor="none",
        alpha=0.85,
    )
    axes.add_patch(box)
    axes.add_patch(Rectangle((left, low), length / 2, 0.01 * height, facecolor=_INK, edgecolor=_INK, linewidth=0.6))
    half = left + length / 2
    axes.add_patch(Rectangle((half, low), length / 2, 0.01 * height, facecolor="white", edgecolor=_INK, linewidth=0.6))
    axes.text(left + length / 2, low + 0.016 * height, length_text(length), ha="center", fontsize=8, color=_INK)
    axes.annotate(
        "N",
        xy=(0.965, 0.97),
        xytext=(0.965, 0.90),
        xycoords="axes fraction",
        ha="center",
        fontsize=9,
        color=_INK,
        arrowprops={"arrowstyle": "-|>", "color": _INK, "linewidth": 1.2},
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
