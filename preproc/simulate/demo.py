"""The demonstration: a simulated archive, the run.toml that goes with it, and a picture of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, SmaltiError, atomic_file, read_regular, write_bytes
from preproc.run.progress import progress, say
from preproc.simulate.archive import ArchiveSummary, open_world, simulate
from preproc.simulate.crops import CROPS
from preproc.simulate.options import SimulationOptions
from preproc.simulate.schedule import S2Pass, s1_passes, s2_passes
from preproc.simulate.sensors import decibels
from preproc.simulate.world import Granule, World

ARCHIVE = "archive"
"""Folder of the archive inside the run directory."""
PICTURE = "archive.png"
"""What the archive looks like, beside it."""

MARK = "# The demonstration of smalti:"
"""How a run.toml that was written here begins, whatever people changed below."""

RUN_TOML = """\
# The demonstration of smalti: a made-up landscape of {extent:g} km x {extent:g} km, seen by made-up satellites.
# Everything here is simulated (seed {seed}); archive/truth.tif has the true map. Paths are relative to this file.

[region]
geometry = "archive/region.geojson"
start = "{start}"         # a growing season, from autumn to harvest, both days included
end = "{end}"

[archive]
source = "static"            # STAC items in a file instead of a live catalogue
href = "archive/items.json"
on_missing = "fail"          # a file that stays unreadable fails its tiles

[tiles]
size = 128                   # pixels of 10 m; small, so that there are several

[model]
name = "demo"                # a small encoder that comes with smalti
output = "int8"

[labels]
path = "archive/landcover.geojson"   # declared parcels, and woods, water and houses outlined by hand
class = "crop"               # attribute with the class
group = "parcel"             # pixels of one parcel stay on one side of a fold

[classify]
folds = 4
trials = 12
seed = 0

[report]
truth = "archive/truth.tif"  # the report compares the map with it; a real run has no such thing

[site]
profile = "local"            # everything on this machine
"""


def demo_toml(options: SimulationOptions) -> str:
    """The text of the demonstration's run.toml."""
    return RUN_TOML.format(extent=options.extent_km, seed=options.seed, start=options.start, end=options.end)


def write_demo_run(run_root: Path, options: SimulationOptions | None = None) -> ArchiveSummary:
    """Make RUN/archive, its picture and RUN/run.toml, unless they are there; edited settings are left alone.

    Args:
        run_root: the run directory; made if needed.
        options: what to simulate; the default is a season near Maastricht.

    Raises:
        SmaltiError: if the folder holds something else, somebody's run for example, or cannot be written.
    """
    chosen = options or SimulationOptions()
    run = Run(run_root)
    if run.config.exists() and MARK not in read_regular(run.config).decode(errors="replace"):
        raise SmaltiError(
            f"{run.config}: not the demonstration's: name another folder for it, "
            f"or go on with `smalti run {run.quoted}`"
        )
    summary = simulate_archive(run_root / ARCHIVE, chosen)
    picture = run_root / PICTURE
    if summary.written or not picture.exists():
        write_quicklook(summary.folder, picture)
    if not run.config.exists():
        write_bytes(run.config, demo_toml(chosen).encode())
    return summary


def simulate_archive(folder: Path, options: SimulationOptions) -> ArchiveSummary:
    """Make an archive and say so, with progress.

    Raises:
        SmaltiError: if the folder holds something else, or cannot be written.
    """
    total = len(s2_passes(options)) + len(s1_passes(options))
    with progress("simulate", total, "passes") as bar:
        summary = simulate(folder, options, progress=lambda _done, _total: bar.advance())
    if summary.written:
        size = summary.size / 1e6
        say(f"simulated {summary.items} scenes and {summary.parcels} parcels ({size:.0f} MB) in {summary.folder}")
    return summary


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
