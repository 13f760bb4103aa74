"""Rain, topsoil moisture, snow and good and bad years: one series for the whole landscape, seeded by calendar year.

A day's weather depends on the seed and the climate, never on the window that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS
from preproc.simulate.noise import seed_of
from preproc.simulate.options import Climate

Floats = NDArray[np.float32]
Days = NDArray[np.datetime64]

_RAIN, _SEASON, _SKY, _SNOW = 11, 12, 13, 14


@dataclass(frozen=True)
class Weather:
    """Conditions on days (all arrays of shape (T,) unless said otherwise)."""

    day: Floats
    """Day of the reference season: day of year less the climate's phase and the year's earliness."""
    moisture: Floats
    """Water in the topsoil, 0 to 1."""
    snow: Floats
    """Part of the ground under snow, 0 to 1."""
    lushness: Floats
    """Factor on leaf area in that year."""
    gain: Floats
    """(T, 10) what is left of the atmosphere and the sun's angle after correction: factor on reflectance."""
    haze: Floats
    """(T, 10) and addition to it."""

    def at(self, position: int) -> Weather:
        """One day, keeping an axis of one."""
        keep = slice(position, position + 1)
        return Weather(
            self.day[keep], self.moisture[keep], self.snow[keep], self.lushness[keep], self.gain[keep], self.haze[keep]
        )


def _rain(seed: int, year: int, climate: Climate) -> Floats:
    rng = np.random.default_rng(seed_of(seed, _RAIN, year))
    chance = 0.42 - 0.3 * climate.dryness
    wet = rng.random(366) < chance
    return np.where(wet, rng.exponential(0.32, 366), 0).astype(np.float32)


def _moisture_of_year(seed: int, year: int, climate: Climate) -> Floats:
    """Topsoil moisture on the 366 days of a year, spun up over the year before."""
    rain = np.concatenate([_rain(seed, year - 1, climate), _rain(seed, year, climate)])
    level, levels = 0.5, np.empty(rain.size, np.float32)
    for index, water in enumerate(rain):
        summer = 0.5 - 0.5 * np.cos(2 * np.pi * (index % 366 - 15 - climate.phase) / 365.25)
        days = 11.0 - 7.0 * summer * (0.6 + climate.dryness)
        level = min(1.0, level * np.exp(-1 / max(days, 1.5)) + float(water))
        levels[index] = level
    return levels[366:]


def weather(days: Days, climate: Climate, seed: int) -> Weather:
    """The weather on days.

    Args:
        days: (T,) datetime64[D].
        climate: regional conditions.
        seed: of the whole simulation.
    """
    years = days.astype("datetime64[Y]").astype(int) + 1970
    of_year = (days - days.astype("datetime64[Y]")).astype(int)
    moisture = {int(year): _moisture_of_year(seed, int(year), climate) for year in np.unique(years)}
    early, lush, snow, gain, haze = ([] for _ in range(5))
    for year, number in zip(years, days.astype("datetime64[D]").astype(int), strict=True):
        season = np.random.default_rng(seed_of(seed, _SEASON, int(year)))
        early.append(season.normal(0, 3.5))
        lush.append(np.clip(season.normal(1 - 0.25 * climate.dryness, 0.05), 0.5, 1.2))
        sky = np.random.default_rng(seed_of(seed, _SKY, int(number)))
        gain.append(1 + sky.normal(0, 0.015) + sky.normal(0, 0.006, len(BANDS)))
        haze.append(np.abs(sky.normal(0, 0.004)) * _BLUE + sky.normal(0, 0.0008, len(BANDS)))
        cold = np.random.default_rng(seed_of(seed, _SNOW, int(number)))
        snow.append(cold.random() < climate.snow and 0.35 + 0.6 * cold.random())
    day = of_year + 1 - climate.phase - np.array(early)
    winter = np.cos(2 * np.pi * (np.array(of_year) - 18 - climate.phase) / 365.25) > 0.62
    return Weather(
        day=day.astype(np.float32),
        moisture=np.array([moisture[int(y)][d] for y, d in zip(years, of_year, strict=True)], np.float32),
        snow=np.where(winter, np.array(snow, np.float32), 0).astype(np.float32),
        lushness=np.array(lush, np.float32),
        gain=np.array(gain, np.float32),
        haze=np.array(haze, np.float32),
    )


_BLUE = np.array([{"B02": 1.0, "B03": 0.7, "B04": 0.5, "B05": 0.4}.get(band, 0.15) for band in BANDS], np.float32)
