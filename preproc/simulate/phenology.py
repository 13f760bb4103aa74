"""Canopies through the year: leaf area, yellowing, harvest, mowing and catch crops, for any array of parcels.

Pure functions of parcel parameters and days; no raster, no files. Arrays broadcast: give fields of shape (N, 1) and
days of shape (T,) to get canopies of shape (N, T).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from preproc.simulate.crops import CROPS, Crop

Floats = NDArray[np.float32]
YEAR = 365.25
_NEVER = 1e6


@dataclass(frozen=True)
class Fields:
    """What sets one parcel (or pixel) apart from others of its kind. All arrays have one shape."""

    kind: NDArray[np.int16]
    """Position in `crops.CROPS`, or in a region's own table of the same kinds."""
    shift: Floats
    """Days by which growth is late."""
    vigour: Floats
    """Factor on leaf area and biomass."""
    harvest: Floats
    """Days by which the harvest or the mowing is late."""
    catch: Floats
    """Leaf area of the catch crop, 0 where none was sown."""
    intensity: Floats
    """0 extensive to 1 intensive: the number of cuts of grass."""
    soil: Floats
    """Factor on the brightness of the soil."""
    rough: Floats
    """Roughness of the soil, dB on the bare soil's backscatter."""
    rows: Floats
    """Angle of the rows seen from the ascending orbit, radians."""

    def take(self, index: NDArray[np.intp]) -> Fields:
        """The fields at these positions of the first axis (parcels to pixels)."""
        return Fields(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def expand(self) -> Fields:
        """With a last axis of one, to broadcast against days."""
        return Fields(**{item.name: getattr(self, item.name)[..., None] for item in fields(self)})

    def scaled(self, vigour: Floats, soil: Floats) -> Fields:
        """With the texture inside parcels as factors."""
        return replace(self, vigour=self.vigour * vigour, soil=self.soil * soil)


def draw_fields(kind: NDArray[np.int16], rng: np.random.Generator) -> Fields:
    """Draw the parameters of independent parcels of the given kinds."""
    shape = kind.shape

    def normal(mean: float, spread: float, low: float, high: float) -> Floats:
        return np.clip(rng.normal(mean, spread, shape), low, high).astype(np.float32)

    sown = rng.random(shape) < 0.45
    return Fields(
        kind=kind.astype(np.int16),
        shift=normal(0, 6, -14, 14),
        vigour=normal(1, 0.11, 0.6, 1.3),
        harvest=normal(0, 5, -12, 12),
        catch=np.where(sown, normal(1.3, 0.4, 0.3, 2.2), 0).astype(np.float32),
        intensity=rng.random(shape, np.float32),
        soil=normal(1, 0.1, 0.7, 1.3),
        rough=normal(0, 0.7, -2, 2),
        rows=(rng.random(shape, np.float32) * np.float32(np.pi)),
    )


@dataclass(frozen=True)
class Canopy:
    """What stands on the ground on one day (or on several, as a last axis)."""

    green: Floats
    """Green leaf area index."""
    dry: Floats
    """Yellow and dead leaf area index, still standing."""
    straw: Floats
    """Part of the soil under residues, 0 to 1."""
    bloom: Floats
    """Strength of yellow flowers, 0 to 1."""
    biomass: Floats
    """Relative water-bearing biomass that radar sees; about 1 per unit of leaf area."""


@dataclass(frozen=True)
class _Table:
    growth: NDArray[np.float32]  # (kinds, phases, 5): start, rise, end, fall, lai
    harvest: Floats
    cover: NDArray[np.float32]  # (kinds, 2)
    straw: Floats
    cuts: NDArray[np.float32]  # (kinds, cuts)
    bloom: NDArray[np.float32]  # (kinds, 3)


@lru_cache(maxsize=2)
def _table(crops: tuple[Crop, ...]) -> _Table:
    phases = max(len(crop.growth) for crop in crops)
    cuts = max(len(crop.cuts) for crop in crops)
    growth = np.zeros((len(crops), phases, 5), np.float32)
    growth[:, :, (1, 3)] = 1.0
    mowing = np.full((len(crops), cuts), _NEVER, np.float32)
    for row, crop in enumerate(crops):
        for column, phase in enumerate(crop.growth):
            growth[row, column] = (phase.start, phase.rise, phase.end, phase.fall, phase.lai)
        mowing[row, : len(crop.cuts)] = crop.cuts
    return _Table(
        growth=growth,
        harvest=np.array([_NEVER if crop.harvest is None else crop.harvest for crop in crops], np.float32),
        cover=np.array([crop.cover or (_NEVER, _NEVER) for crop in crops], np.float32),
        straw=np.array([crop.straw for crop in crops], np.float32),
        cuts=mowing,
        bloom=np.array([crop.leaf.bloom for crop in crops], np.float32),
    )


def _logistic(z: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -30, 30))), np.float32)


def _mowing(table: _Table, fields: Fields, day: Floats) -> Floats:
    """Factor on the leaf area of grass: drops within two days of a cut, grows back in about four weeks."""
    factor = np.ones(np.broadcast_shapes(day.shape, fields.kind.shape), np.float32)
    wanted = 1.0 + fields.intensity * (table.cuts.shape[1] - 1e-3)
    for number in range(table.cuts.shape[1]):
        since = day - table.cuts[fields.kind, number] - 2 * fields.harvest
        since = np.mod(since, YEAR)
        depth = np.where((number < wanted) & (table.cuts[fields.kind, number] < _NEVER), 0.7, 0.0)
        fresh = np.exp(-since / 14.0) * np.minimum(since / 2.0, 1.0)
        factor *= (1 - depth * fresh).astype(np.float32)
    return factor


def canopy(fields: Fields, day: Floats, crops: tuple[Crop, ...] = CROPS) -> Canopy:
    """The canopy of parcels on days.

    Args:
        fields: parcels, any shape.
        day: day of year at the reference climate (`Climate.phase` already subtracted), broadcastable to `fields`;
            the season repeats every year.
        crops: what `fields.kind` counts.

    Returns:
        Arrays of the broadcast shape.
    """
    table = _table(crops)
    shape = np.broadcast_shapes(day.shape, fields.kind.shape)
    green, dry, straw = (np.zeros(shape, np.float32) for _ in range(3))
    late = fields.shift
    cut_day = table.harvest[fields.kind] + fields.harvest
    for turn in (-YEAR, 0.0, YEAR):
        local = (day + turn).astype(np.float32)
        standing = _logistic((cut_day - local) / 1.2)
        for phase in range(table.growth.shape[1]):
            start, rise, end, fall, lai = np.moveaxis(table.growth[fields.kind, phase], -1, 0)
            risen = lai * _logistic((local - start - late) / rise)
            alive = _logistic((end + 0.6 * late - local) / fall)
            green += risen * alive * standing
            dry += np.where(cut_day < _NEVER / 2, 0.75 * risen * (1 - alive) * standing, 0)
        straw += np.where(local > cut_day - 1, np.exp(-np.clip(local - cut_day, 0, None) / 30.0), 0)
        start, end = table.cover[fields.kind, 0], table.cover[fields.kind, 1]
        green += fields.catch * _logistic((local - start - late) / 9) * _logistic((end - local) / 9)
    scale = fields.vigour * _mowing(table, fields, day)
    green, dry = green * scale, dry * fields.vigour
    first, last, strength = np.moveaxis(table.bloom[fields.kind], -1, 0)
    today = np.mod(day - 0.6 * late, YEAR)
    bloom = strength * _logistic((today - first) / 3) * _logistic((last - today) / 3)
    return Canopy(
        green=green.astype(np.float32),
        dry=dry.astype(np.float32),
        straw=np.clip(table.straw[fields.kind] * straw, 0, 0.9).astype(np.float32),
        bloom=bloom.astype(np.float32),
        biomass=(green + 0.45 * dry).astype(np.float32),
    )
