"""Reproducible draws for v1.0, whose sequences are 40 observations drawn at random per modality.

The reference draws unseeded. Here the draw depends on nothing but the pixel's place (row and column in its tile, and
the tile's grid), the modality and the number of candidates: a counter-based generator (SplitMix64's mixing function)
gives every (pixel, k) its own number, whatever the batch, shard or device.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from infer.contract.mixing import GOLDEN, mix64
from infer.contract.provenance import TileGrid
from infer.contract.record import to_json

DRAWN = 40
"""Observations per modality in v1.0."""
SEED_RULE = (
    "splitmix64 of (tile seed, modality, row, column, k); tile seed = first 8 bytes of SHA-256 of the tile's grid, or "
    "of its name where it has none; 40 smallest keys without replacement when n >= 40, "
    "key mod n with replacement when n < 40; sorted"
)
"""How v1.0's observations are drawn, for manifests."""

_STEP = np.uint64(GOLDEN)


def tile_seed(name: str, grid: TileGrid | None) -> int:
    """Seed of a tile: from its grid, so that the same ground has the same draw whatever the run calls it."""
    text = json.dumps(to_json(grid), sort_keys=True, separators=(",", ":")) if grid is not None else name
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def keys(
    seed: int, modality: int, rows_p: NDArray[np.int64], columns_p: NDArray[np.int64], count: int
) -> NDArray[np.uint64]:
    """(P, count) pseudo-random 64-bit numbers, a function of the arguments only."""
    base = np.uint64(seed ^ ((modality + 1) * 0xD1342543DE82EF95 & 0xFFFFFFFFFFFFFFFF))
    place = (rows_p.astype(np.uint64) << np.uint64(32)) | columns_p.astype(np.uint64)
    state_p = mix64(mix64(place + _STEP) ^ base)
    return mix64(state_p[:, None] + _STEP * (np.arange(count, dtype=np.uint64) + np.uint64(1))[None, :])


def draw(
    seed: int, modality: int, rows_p: NDArray[np.int64], columns_p: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """Draw 40 of n candidates for each pixel, sorted.

    Args:
        seed: of the tile.
        modality: 0 for Sentinel-2, 1 for Sentinel-1.
        rows_p, columns_p: (P,) pixel positions in the tile.
        n: number of candidates, the same for these pixels, at least 1.

    Returns:
        (P, 40) indices into the candidates, ascending; distinct when n >= 40.
    """
    if n < 1:
        raise ValueError("nothing to draw from")
    if n < DRAWN:
        drawn = (keys(seed, modality, rows_p, columns_p, DRAWN) % np.uint64(n)).astype(np.int64)
    else:
        drawn = np.argsort(keys(seed, modality, rows_p, columns_p, n), axis=1, kind="stable")[:, :DRAWN]
    return np.sort(drawn, axis=1)
