"""A simulated archive with known truth: Sentinel-1 and Sentinel-2 over a made-up landscape, for the demo and the tests.

`simulate` writes it, `open_world` gives the truth behind it, `series` has the time series without any raster.
"""

from preproc.simulate.archive import ArchiveSummary, open_world, simulate
from preproc.simulate.options import Climate, SimulationOptions
from preproc.simulate.world import World

__all__ = ["ArchiveSummary", "Climate", "SimulationOptions", "World", "open_world", "simulate"]
