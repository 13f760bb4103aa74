"""From the observations of a pixel to the sequence that a TESSERA family was trained on. Pure numpy.

A modality of a pixel has n observations. The reference repeats some of them to fill a bin of 8, 16 ... 256. A token
that is repeated m times equals one token whose key carries +log(m) in every softmax, so the engine computes each
observation once: `unique_form` gives which observations, how often each, and (for the recurrent poolings, where order
and repeats matter) the full sequence as positions among the unique ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["v2", "v1.1"]

MAX_BIN = 256
"""Longest sequence."""
BIN_STEP = 8
"""Sequences are as long as a multiple of this."""


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


def unique_length(n: int) -> int:
    """Number of distinct tokens for n observations, the same for v2 and v1.1."""
    return min(max(n, 1), MAX_BIN)


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
