"""How many tasks an array has, and lists of task numbers as Slurm writes them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from infer.contract import SmaltiError
from preproc.cluster.profile import Job, Limits

REFERENCE_PIXELS = 512 * 512
"""tile_minutes are for a tile of this many pixels."""
_GATHERING_JOBS = 2
"""stitch and classify."""
_USABLE = 0.8
"""Share of the time limit that expected work may fill."""


def tile_minutes(job: Job, tile_size: int) -> float:
    """Expected minutes of one task for one tile: processes (GPUs) of a task share its tiles."""
    return job.tile_minutes * (tile_size**2 / REFERENCE_PIXELS) / max(1, job.gpus)


def choose_tasks(tiles: int, tile_size: int, jobs: Sequence[Job], limits: Limits) -> int:
    """Number of tasks that the tiles are divided among, the same for fetch and infer so that their tasks pair.

    Tasks take pack_minutes or more, unless that would not fit the time limit; never more than arrays may have.

    Args:
        tiles: number of tiles.
        tile_size: width in pixels.
        jobs: fetch and infer, those of them that are batch jobs.
        limits: of the site.
    """
    share = (limits.max_jobs - _GATHERING_JOBS) // max(1, len(jobs))  # all arrays of the chain wait at the same time
    most = max(1, min(tiles, limits.max_array, share))
    if limits.tasks:
        return min(limits.tasks, most)
    packed = [tiles * tile_minutes(job, tile_size) / limits.pack_minutes for job in jobs]
    fitting = [tiles * tile_minutes(job, tile_size) * 60 / (_USABLE * job.seconds) for job in jobs]
    wanted = max(min(packed, default=1), max(fitting, default=1))
    return max(1, min(most, math.ceil(wanted)))


def compress(indices: Iterable[int]) -> str:
    """[3, 7, 12, 13, 14, 15] -> "3,7,12-15". Every N-th of a range becomes "0-8:4", as Slurm understands it."""
    numbers = sorted(set(indices))
    parts: list[str] = []
    start = 0
    while start < len(numbers):
        step = numbers[start + 1] - numbers[start] if start + 1 < len(numbers) else 1
        end = start + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        if end - start >= 3 or (step == 1 and end - start == 2):
            stride = "" if step == 1 else f":{step}"
            parts.append(f"{numbers[start]}-{numbers[end - 1]}{stride}")
            start = end
        else:
            parts.append(str(numbers[start]))
            start += 1
    return ",".join(parts)


def expand(text: str) -> list[int]:
    """The inverse of `compress`; a throttle (%K) is left out.

    Raises:
        SmaltiError: if the text is not a list of task numbers.
    """
    numbers: set[int] = set()
    for part in text.split("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if match is None:
            raise SmaltiError(f"{text!r}: not a list of task numbers like 3,7,12-15")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        numbers.update(range(first, last + 1, max(1, step)))
    return sorted(numbers)
