"""One picture of an archive: the true map with its legend, and the same fields through the year in both sensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import atomic_file
from preproc.simulate.archive import open_world
from preproc.simulate.crops import CROPS
from preproc.simulate.radar import decibels
from preproc.simulate.schedule import S2Pass, s1_passes, s2_passes
from preproc.simulate.world import Granule, World

_SHOWN = 7


def write_quicklook(folder: Path, target: Path) -> None:
    """Draw an archive.

    Args:
        folder: the archive.
        target: a PNG file; replaced if it is there.

    Raises:
        SmaltiError: if the folder is no simulated archive, or the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    world = open_world(folder)
    figure = Figure(figsize=(18, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 5).ravel()
    codes = world.codes(world.home)
    axes[0].imshow(_coloured(codes))
    axes[0].set_title("what grows there")
    passes = _telling(world)
    for axis, item in zip(axes[1:], passes, strict=False):
        axis.imshow(true_colour(world, item))
        axis.set_title(f"Sentinel-2{item.platform}, {item.moment:%d %b %Y}")
    radar = s1_passes(world.options)
    for axis, sweep in zip(axes[1 + len(passes) :], radar[len(radar) // 2 :: 7], strict=False):
        axis.imshow(_stretched(decibels(world.s1_product(sweep))))
        axis.set_title(f"Sentinel-1{sweep.platform} {sweep.orbit}, {sweep.moment:%d %b %Y}")
    for axis in axes:
        axis.set_axis_off()
    present = [crop for crop in CROPS if (codes == crop.code).any()]
    handles = [Patch(color=f"#{bytes(crop.colour).hex()}", label=crop.name) for crop in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(f"Simulated archive, {world.options.start} to {world.options.end}, seed {world.options.seed}")
    with atomic_file(target) as temporary:
        figure.savefig(temporary, format="png", dpi=80, metadata={"Software": None})


def _telling(world: World) -> list[S2Pass]:
    """Dates through the season, rather clear ones, and one of each kind of sky."""
    passes = s2_passes(world.options)
    clear = [item for item in passes if item.cloud < 0.6 and item.neighbour != "only"]
    chosen = clear or passes
    return [chosen[int(place)] for place in sorted(set(np.linspace(0, len(chosen) - 1, _SHOWN).round()))]


def true_colour(world: World, item: S2Pass) -> NDArray[np.float64]:
    """Red, green and blue of a whole date, 0 to 1, (H, W, 3)."""
    stored, _ = world.s2_product(item, Granule(world.home, world.tiles[0]))
    bands = [np.clip(stored[name].astype(np.float64) - item.offset, 0, None) / 10000 for name in ("B04", "B03", "B02")]
    return np.asarray(np.clip(np.stack(bands, axis=-1) / 0.24, 0, 1) ** 0.75, np.float64)


def _stretched(power: NDArray[np.float32]) -> NDArray[np.float64]:
    vv, vh = power[..., 0].astype(np.float64), power[..., 1].astype(np.float64)
    return np.asarray(np.clip(np.stack([(vv + 20) / 18, (vh + 27) / 18, (vv - vh - 1) / 12], axis=-1), 0, 1))


def _coloured(codes: NDArray[np.uint8]) -> NDArray[Any]:
    table = np.full((256, 3), 255, np.uint8)
    for crop in CROPS:
        table[crop.code] = crop.colour
    return table[codes]
