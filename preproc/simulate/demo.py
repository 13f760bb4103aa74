"""The demonstration: a simulated archive and the run.toml that goes with it."""

from __future__ import annotations

from pathlib import Path

from infer.contract import Run, SmaltiError, read_regular, write_bytes
from preproc.run.progress import progress, say
from preproc.simulate.archive import ArchiveSummary, simulate
from preproc.simulate.options import SimulationOptions
from preproc.simulate.quicklook import write_quicklook
from preproc.simulate.schedule import s1_passes, s2_passes

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
