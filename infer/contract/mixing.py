"""The finaliser of SplitMix64: every bit of a 64-bit number reaches every bit of another, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, odd: what SplitMix64 counts by. Where it is added is each caller's own rule."""


def mix64(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64-bit numbers (Steele, Lea and Flood 2014), element by element.

    Args:
        word: any shape, at least one dimension: numpy warns of the wrap-around of single numbers.
    """
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
