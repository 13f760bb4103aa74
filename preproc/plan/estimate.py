"""What a run will cost: bytes, files, memory and time of each stage, before anything is downloaded. Pure.

These are orders of magnitude, from the constants below and the scenes that were found. The first tiles of a run tell
better: `smalti status`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infer.contract.plan import Cost
from preproc.catalogue.scene import Scene
from preproc.run.config import Config
from preproc.run.waves import mosaic_bytes

CLEAR_SHARE = 0.6
"""Share of Sentinel-2 dates that pass `min_clear` on a tile; the others cost their SCL only."""
S2_SAMPLES = 4 + 6 / 4
"""Reflectance samples a 10 m pixel: four bands at 10 m, six at 20 m."""
S2_BYTES = 1.6
"""Compressed bytes a sample of reflectance (uint16, DEFLATE)."""
SCL_BYTES = 0.05
"""Compressed bytes of SCL a 10 m pixel."""
S1_BYTES = 3.4
"""Compressed bytes a sample of backscatter (float32, DEFLATE, predictor 3), two a pixel."""
BLOCK = 512
"""Pixels along a COG's block: blocks that a tile's edge cuts are read as a whole."""
SHARED_BLOCKS = 0.5
"""Share of those extra pixels that is read anew for each tile (the rest is shared with neighbours)."""
STREAM_BYTES_S = 8e6
"""Bytes a second of one connection to an object store."""
REQUEST_S = 0.15
"""Seconds from a request to its first byte."""
TOKEN_FLOP = 1.0
"""Floating point operations a token and parameter (two a parameter, and a token passes half of the network)."""
CPU_FLOP_S = 3e10
"""Operations a second of one CPU core, float32, as the engine gets them."""
GPU_FLOP_S = 4e13
"""Operations a second of one data-centre GPU, bfloat16, as the engine gets them."""
BASE_MEMORY = 400e6
"""Bytes of a process with its libraries."""


@dataclass(frozen=True)
class SeasonCounts:
    """How often a tile is seen: means over the tiles looked at."""

    s2_days: float
    s2_scenes: float
    s1_days: float
    """Dates of both orbits."""
    s1_scenes: float
    least_s2_days: int
    """Of the tile with the fewest."""
    least_tile: str
    tiles: int = 0
    """Looked at."""
    unseen: int = 0
    """Of them those without any Sentinel-2 scene."""


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    tiles: int
    size: int
    """Pixels along a tile."""
    pixels: int
    """Pixels inside the region."""
    season: SeasonCounts
    parameters: int
    """Of the model."""
    cpus: int
    """Of one local process group."""


def count_season(scenes_by_tile: Mapping[str, Sequence[Scene]]) -> SeasonCounts:
    """Mean numbers of dates and scenes over some tiles."""
    rows: list[tuple[int, int, int, int]] = []
    for scenes in scenes_by_tile.values():
        s2 = [scene.day for scene in scenes if scene.modality == "s2"]
        s1 = [(scene.orbit, scene.day) for scene in scenes if scene.modality == "s1"]
        rows.append((len(set(s2)), len(s2), len(set(s1)), len(s1)))
    days, least = min((row[0], name) for name, row in zip(scenes_by_tile, rows, strict=True))
    means = [sum(row[k] for row in rows) / len(rows) for k in range(4)]
    unseen = sum(row[0] == 0 for row in rows)
    return SeasonCounts(means[0], means[1], means[2], means[3], days, least, len(rows), unseen)


def estimate(work: Work, config: Config) -> dict[str, Cost]:
    """What each stage costs, rounded to two digits."""
    stages = {"fetch": _fetch(work, config), "infer": _infer(work, config), "stitch": _stitch(work, config)}
    return {stage: Cost(**{key: _round(value) for key, value in costs.items()}) for stage, costs in stages.items()}


def _fetch(work: Work, config: Config) -> dict[str, float]:
    season, size = work.season, work.size
    kept = season.s2_days * CLEAR_SHARE
    read = (size + SHARED_BLOCKS * BLOCK) ** 2  # pixels read for a tile and band at 10 m
    s2 = season.s2_scenes * (SCL_BYTES + CLEAR_SHARE * S2_SAMPLES * S2_BYTES)
    s1 = season.s1_scenes * 2 * S1_BYTES
    files = season.s2_scenes * (1 + 10 * CLEAR_SHARE) + season.s1_scenes * 2
    blocks = max(1.0, read / BLOCK**2)
    requests = files * (1 + math.ceil(blocks / 4))
    received = work.tiles * read * (s2 + s1)
    seconds = received / (STREAM_BYTES_S * config.archive.workers)
    seconds += work.tiles * requests * REQUEST_S / config.archive.workers
    return {
        "read_bytes": received,
        "written_bytes": work.tiles * size**2 * (kept * 21 + season.s1_days * 4),
        "files": work.tiles * 11,
        "memory_bytes": BASE_MEMORY + size**2 * (21 * 4 + config.archive.workers * 8),
        "seconds": seconds,
    }


def _infer(work: Work, config: Config) -> dict[str, float]:
    season, dim = work.season, config.model.dim
    int8 = config.model.output == "int8"
    tokens = season.s2_days * CLEAR_SHARE * CLEAR_SHARE + season.s1_days  # of a kept date, some pixels are cloudy
    operations = work.pixels * tokens * work.parameters * TOKEN_FLOP
    return {
        "read_bytes": work.tiles * work.size**2 * (season.s2_days * CLEAR_SHARE * 21 + season.s1_days * 4),
        "written_bytes": work.tiles * work.size**2 * (dim + 4 if int8 else 4 * dim),
        "files": work.tiles * (3 if int8 else 2),
        "memory_bytes": BASE_MEMORY + 4 * work.parameters * 2 + work.size**2 * 4 * dim,
        "seconds": operations / (CPU_FLOP_S * work.cpus),
        "gpu_seconds": operations / GPU_FLOP_S,
    }


def _stitch(work: Work, config: Config) -> dict[str, float]:
    dim, settings = config.model.dim, config.stitch
    sheets = max(1.0, work.tiles * work.size**2 / settings.sheet**2)
    store, cog = "zarr" in settings.formats, "cog" in settings.formats
    floats = settings.dtype == "float32"
    written = sum(mosaic_bytes(work.pixels, config))
    return {
        "read_bytes": work.tiles * work.size**2 * (dim + 4 if config.model.output == "int8" else 4 * dim),
        "written_bytes": written,
        "files": sheets * (3 + 4 * store + (2 if floats else 3) * cog) + 20,
        "memory_bytes": BASE_MEMORY + 128 * settings.sheet * dim * (8 if floats else 3),
        "seconds": written / (34e6 * work.cpus),
    }


def _round(value: float) -> int:
    """Two significant digits: what an estimate is worth."""
    if value <= 0:
        return 0
    digits = max(math.floor(math.log10(value)) - 1, 0)
    return int(round(value / 10**digits) * 10**digits)
