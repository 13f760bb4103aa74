"""How many tasks an array has. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from preproc.run.profile import Job, Limits

REFERENCE_PIXELS = 512 * 512
"""tile_minutes are for a tile of this many pixels."""
_USABLE = 0.8
"""Share of the time limit that expected work may fill."""


def tile_minutes(job: Job, tile_size: int) -> float:
    """Expected minutes of one task for one tile: processes (GPUs) of a task share its tiles."""
    return job.tile_minutes * (tile_size**2 / REFERENCE_PIXELS) / max(1, job.gpus)


def choose_tasks(tiles: int, tile_size: int, jobs: Sequence[Job], limits: Limits, gathering: int = 2) -> int:
    """Number of tasks that the tiles are divided among, the same for fetch and infer so that their tasks pair.

    Tasks take pack_minutes or more, unless that would not fit the time limit; never more than arrays may have.

    Args:
        tiles: number of tiles.
        tile_size: width in pixels.
        jobs: fetch and infer, those of them that are batch jobs.
        limits: of the site.
        gathering: jobs and tasks that come after them: stitch and classify, or more where they are divided too.
    """
    share = (limits.max_jobs - gathering) // max(1, len(jobs))  # all arrays of the chain wait at the same time
    most = max(1, min(tiles, limits.max_array, share))
    if limits.tasks:
        return min(limits.tasks, most)
    packed = [tiles * tile_minutes(job, tile_size) / limits.pack_minutes for job in jobs]
    fitting = [tiles * tile_minutes(job, tile_size) * 60 / (_USABLE * job.seconds) for job in jobs]
    wanted = max(min(packed, default=1), max(fitting, default=1))
    return max(1, min(most, math.ceil(wanted)))
