"""From the observations of a pixel to the sequence that a TESSERA family was trained on. Pure numpy.

A modality of a pixel has n observations. The reference repeats some of them to fill a bin of 8, 16 ... 256. A token
that is repeated m times equals one token whose key carries +log(m) in every softmax, so the engine computes each
observation once: `unique_form` gives which observations, how often each, and (for the recurrent poolings, where order
and repeats matter) the full sequence as positions among the unique ones.

For v1.0 the sequence is 40 observations drawn at random, which the reference does unseeded. Here the draw depends on
nothing but the pixel's place (row and column in its tile, and the tile's grid), the modality and the number of
candidates: a counter-based generator (SplitMix64's mixing function) gives every (pixel, k) its own number, whatever the
batch, shard or device.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infer.contract.mixing import GOLDEN, mix64
from infer.contract.provenance import TileGrid
from infer.contract.record import to_json

Rule = Literal["v2", "v1.1"]

MAX_BIN = 256
"""Longest sequence."""
BIN_STEP = 8
"""Sequences are as long as a multiple of this."""
DRAWN = 40
"""Observations per modality in v1.0."""
SEED_RULE = (
    "splitmix64 of (tile seed, modality, row, column, k); tile seed = first 8 bytes of SHA-256 of the tile's grid, or "
    "of its name where it has none; 40 smallest keys without replacement when n >= 40, "
    "key mod n with replacement when n < 40; sorted"
)
"""How v1.0's observations are drawn, for manifests."""
_STEP = np.uint64(GOLDEN)


def bin_length(n: int) -> int:
    """Length of the sequence for n observations: the smallest of 8, 16 ... 256 that is >= n (256 at most)."""
    if n < 0:
        raise ValueError(f"{n} observations")
    return min(MAX_BIN, max(BIN_STEP, -(-n // BIN_STEP) * BIN_STEP))


def _middles(n: int, parts: int) -> NDArray[np.int64]:
    """Middle element of each of `parts` near-equal groups of 0..n-1 (parts <= n)."""
    return np.array([group[len(group) // 2] for group in np.array_split(np.arange(n), parts)], dtype=np.int64)


def _sequence_v2(n: int, length: int) -> NDArray[np.int64]:
    if n >= length:
        return np.linspace(0, n - 1, length).astype(np.int64)
    fill = length - n
    extra = _middles(n, fill) if fill <= n else np.arange(fill) % n
    return np.concatenate([np.arange(n), extra])


def _sequence_v11(n: int, length: int) -> NDArray[np.int64]:
    if n > length:
        return _middles(n, length)
    if n == length:
        return np.arange(n)
    fill = length - n
    extra = np.rint(np.linspace(0, n - 1, fill + 2)[1:-1]).astype(np.int64)
    return np.concatenate([np.arange(n), extra])


def sequence(rule: Rule, n: int) -> NDArray[np.int64]:
    """Indices into the n observations of a pixel, in the order in which the reference feeds them.

    Args:
        rule: "v2" (students and teacher) or "v1.1".
        n: number of observations, at least 1.

    Returns:
        (bin_length(n),) indices.
    """
    if n < 1:
        raise ValueError("a pixel without observations has no sequence: see `empty_multiplicity`")
    length = bin_length(n)
    return _sequence_v2(n, length) if rule == "v2" else _sequence_v11(n, length)


def empty_multiplicity(rule: Rule) -> int:
    """How many all-zero tokens stand for a modality without observations: one in v2, eight in v1.1."""
    return 1 if rule == "v2" else BIN_STEP


def padded_rows(tokens: int, budget: int) -> int:
    """Rows of a batch of `tokens`: one of few sizes, because kernels are prepared anew for every size they meet.

    Nearly full batches (the rule) are rounded up to 16 rows, others to an eighth of the budget.
    """
    step = 16 if tokens > budget - budget // 8 else max(16, budget // 8)
    return -(-tokens // step) * step


@dataclass(frozen=True)
class UniqueForm:
    """A sequence of n observations, each distinct one named once."""

    select_u: NDArray[np.int64]
    """(U,) distinct indices into the observations, ascending; one 0 where there are none (the zero token)."""
    multiplicity_u: NDArray[np.int64]
    """(U,) how often the sequence holds each."""
    expand_b: NDArray[np.int64]
    """(B,) the sequence as positions in `select_u`, in the reference's order."""

    @property
    def identity(self) -> bool:
        """Whether the distinct observations are simply all of them."""
        return bool(np.array_equal(self.select_u, np.arange(len(self.select_u))))


@lru_cache(maxsize=4096)
def unique_form(rule: Rule, n: int) -> UniqueForm:
    """The unique form of the sequence for n observations; n = 0 gives the zero token."""
    indices = sequence(rule, n) if n else np.zeros(empty_multiplicity(rule), dtype=np.int64)
    select, inverse, counts = np.unique(indices, return_inverse=True, return_counts=True)
    return UniqueForm(select, counts.astype(np.int64), inverse.astype(np.int64).reshape(-1))


def encoding_table(width: int, days: int = 367) -> NDArray[np.float32]:
    """Sinusoidal encodings of the raw day of year, one row a day (0 = the zero token).

    Even channels sin(day * f_i), odd channels cos(day * f_i), f_i = exp(-2i ln(10000) / width).

    Returns:
        (days, width) float32.
    """
    frequencies = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-(np.log(10000.0) / width)))
    angles = np.arange(days, dtype=np.float32)[:, None] * frequencies[None, :]
    table = np.empty((days, width), dtype=np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : width // 2])
    return table


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
