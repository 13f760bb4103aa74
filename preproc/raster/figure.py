"""A map for a page or a README: the picture, its legend, a scale bar and where north is. The same bytes every time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from infer.contract.classification import ClassEntry
from preproc.raster.preview import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
