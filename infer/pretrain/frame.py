"""What an embedding's numbers should be, as a linear function of a pixel's months: a frame to look at months in.

Months are standardised, then weighted so that directions in which pixels of one kind of land differ (or in which sun,
sensor and the year's calendar move them) count for less: relevant component analysis (Shental et al. 2002,
doi:10.1007/3-540-47979-1_52), where "of one kind" means near each other. A turn at random deals every direction out to
all numbers, so that they spread alike and a prefix tells as much as its length allows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract.monthly import MONTHLY_DIM, MONTHS

Floats = NDArray[np.float64]

_LEAST_SPREAD = 0.005
"""Of a month's number (reflectance; 25 dB of backscatter): less is noise."""
_SHRINK = 0.05
"""Part of the mean variance that is added to every direction before it is divided by."""
_SPREAD = 0.4
"""Root mean square of the embedding's numbers within a tile."""
_GAIN, _BAND_GAIN, _DECIBEL, _DAYS = 0.06, 0.04, 1.0, 8.0
"""Standard deviations of what moves whole seasons: sun and sensor, each band, each polarisation, the calendar."""


def moved_seasons(months_nf: Floats, rng: np.random.Generator) -> Floats:
    """The months (N, 144) as another year or sensor would have them."""
    months = months_nf.reshape(-1, MONTHS, MONTHLY_DIM // MONTHS).copy()
    count, _, numbers = months.shape
    bands = numbers - 2
    months[..., :bands] *= 1 + rng.normal(0, _GAIN, (count, 1, 1)) + rng.normal(0, _BAND_GAIN, (count, 1, bands))
    months[..., bands:] += rng.normal(0, _DECIBEL / 25, (count, 1, 2))
    whole, part = np.divmod(rng.normal(0, _DAYS * MONTHS / 365.25, count), 1)
    month_nm = (np.arange(MONTHS) + whole[:, None].astype(np.int64)) % MONTHS
    row = np.arange(count)[:, None]
    earlier, later = months[row, month_nm], months[row, (month_nm + 1) % MONTHS]
    moved: Floats = (earlier + (later - earlier) * part[:, None, None]).reshape(count, MONTHLY_DIM)
    return moved


def random_turn(size: int, rng: np.random.Generator) -> Floats:
    """(144, size) that deals every direction out to `size` numbers, distances kept but for what is left out."""
    most = max(size, MONTHLY_DIM)
    turn: Floats = np.linalg.qr(rng.normal(size=(most, most)))[0][:MONTHLY_DIM, :size]
    return turn


def months_frame(
    one_gpf: Floats, two_gpf: Floats, size: int, power: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The frame, (144, size) float32: months times it are what the embedding's numbers should be, but for a constant.

    Args:
        one_gpf: (tiles, P, 144) months of pixels, missing ones filled.
        two_gpf: of pixels near them, one each.
        size: numbers of the embedding.
        power: 0 leaves the standardised months as they are, 0.5 makes all differences of one kind of land alike.
        rng: of the turn, and of the seasons' moves.
    """
    within = (one_gpf - one_gpf.mean(axis=1, keepdims=True)).reshape(-1, MONTHLY_DIM)
    spread_f = np.sqrt(within.var(axis=0) + _LEAST_SPREAD**2)
    one, two = (months.reshape(-1, MONTHLY_DIM) for months in (one_gpf, two_gpf))
    unlike = (one - two) / (np.sqrt(2) * spread_f)
    moved = (moved_seasons(one, rng) - one) / spread_f
    nuisance = (unlike.T @ unlike + moved.T @ moved) / len(one)
    value, vector = np.linalg.eigh(nuisance)
    value = np.maximum(value, 0) + _SHRINK * value.mean()
    weighted = (vector * value**-power) @ vector.T / spread_f[:, None]
    frame = weighted @ random_turn(size, rng)
    frame *= _SPREAD / np.sqrt(np.square(within @ frame).mean())
    return np.asarray(frame, np.float32)
