"""Noise as a pure function of position: the same place gives the same value on every grid and in every process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract.mixing import GOLDEN, mix64

Floats = NDArray[np.float64]


def hash_cells(ix: NDArray[np.int64], iy: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """64 random bits for each integer cell; `seed` separates independent fields."""
    start = np.uint64(((seed + 1) * GOLDEN) & 0xFFFFFFFFFFFFFFFF)
    word = mix64(ix.astype(np.uint64) + start)
    return mix64(word + iy.astype(np.uint64) * np.uint64(GOLDEN))


def seed_of(seed: int, *parts: int) -> int:
    """Fold a seed and the numbers that name a field (tag, date, band) into one seed."""
    word = seed & 0xFFFFFFFFFFFFFFFF
    for part in parts:
        word = (word ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xD6E8FEB86659FD93 & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 32
    return word


def white(ix: NDArray[np.int64], iy: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Independent, nearly normal noise per cell (sum of four uniforms), mean 0, standard deviation 1."""
    word = hash_cells(ix, iy, seed)
    low = np.uint64(0xFFFF)
    total = sum(((word >> np.uint64(shift)) & low).astype(np.float32) for shift in (0, 16, 32, 48))
    return np.asarray((np.asarray(total) / 65535.0 - 2.0) * np.sqrt(3.0), np.float32)


def smooth(x: Floats, y: Floats, wavelength: float, seed: int) -> Floats:
    """Gradient noise (Perlin): zero at the lattice points, smooth between them, about unit standard deviation.

    Args:
        x: eastings in metres, any shape.
        y: northings in metres, same shape.
        wavelength: lattice spacing in metres.
        seed: which field.
    """
    u, v = x / wavelength, y / wavelength
    iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fu, fv = u - iu, v - iv

    def corner(du: int, dv: int) -> Floats:
        angle = hash_cells(iu + du, iv + dv, seed).astype(np.float64) * (2 * np.pi / 2**64)
        return np.asarray(np.cos(angle) * (fu - du) + np.sin(angle) * (fv - dv), np.float64)

    su, sv = (f * f * f * (f * (f * 6 - 15) + 10) for f in (fu, fv))
    south = corner(0, 0) * (1 - su) + corner(1, 0) * su
    north = corner(0, 1) * (1 - su) + corner(1, 1) * su
    return np.asarray((south * (1 - sv) + north * sv) * 4.0, np.float64)


def fractal(x: Floats, y: Floats, wavelength: float, seed: int, octaves: int = 3, gain: float = 0.5) -> Floats:
    """Octaves of smooth noise, each turned so that no lattice direction shows; about unit standard deviation."""
    total = np.zeros(np.shape(x))
    power = 0.0
    for octave in range(octaves):
        angle = 0.65 + 1.1 * octave
        turned_x = np.cos(angle) * x - np.sin(angle) * y
        turned_y = np.sin(angle) * x + np.cos(angle) * y
        weight = gain**octave
        total += weight * smooth(turned_x, turned_y, wavelength / 2**octave, seed_of(seed, octave))
        power += weight**2
    return np.asarray(total / np.sqrt(power), np.float64)
