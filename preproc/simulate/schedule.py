"""When the satellites pass: acquisitions of a season with their names, baselines and skies. Pure.

Sentinel-2 passes every five days on each relative orbit (two satellites); in orbit 008 the swath covers the whole
place, in orbit 051 its eastern edge runs through it. Sentinel-1A passes every twelve days in each direction,
Sentinel-1B six days later until it failed on 23 December 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Literal

import numpy as np

from preproc.simulate.noise import seed_of
from preproc.simulate.options import Climate, SimulationOptions
from preproc.simulate.sensors import ORBITS, Orbit

OFFSET_DAY = date(2022, 1, 25)
"""Acquisitions after this day carry 1000 added to every DN (processing baseline 04.00)."""
OFFSET = 1000
_CLOUDS = 21
_S2_EPOCH = date(2022, 4, 19)
_S1B_END = date(2021, 12, 23)

Quirk = Literal["duplicate", "missing asset", "split datastrip"]
Neighbour = Literal["none", "also", "only"]


@dataclass(frozen=True)
class S2Pass:
    """One pass of Sentinel-2 over the place."""

    moment: datetime
    """Start of the datatake, UTC."""
    platform: Literal["A", "B"]
    orbit: int
    """Relative orbit: 8 or 51."""
    cloud: float
    """Part of the landscape under cloud, 0 to 1."""
    quirk: Quirk | None = None
    neighbour: Neighbour = "none"
    """Whether the neighbouring zone has a granule too."""

    @property
    def offset(self) -> int:
        """What was added to every DN."""
        return OFFSET if self.moment.date() > OFFSET_DAY else 0

    @property
    def baseline(self) -> str:
        """Processing baseline of the first processing."""
        day = self.moment.date()
        for start, name in ((date(2022, 1, 26), "04.00"), (date(2021, 7, 1), "03.01"), (date(2021, 2, 2), "02.14")):
            if day >= start:
                return name
        return "02.13"

    @property
    def absolute_orbit(self) -> int:
        """A plausible absolute orbit number."""
        days = (self.moment.date() - date(2017, 7, 1)).days
        return (1500 if self.platform == "B" else 10500) + round(days * 14.3)

    @property
    def edge(self) -> bool:
        """Whether the swath's edge runs through the place."""
        return self.orbit == 51


@dataclass(frozen=True)
class S1Pass:
    """One pass of Sentinel-1 over the place."""

    moment: datetime
    platform: Literal["A", "B"]
    orbit: Orbit
    slices: int = 1
    """2: the frame boundary runs through the place, and two products overlap there."""
    zone: Literal["home", "neighbour"] = "home"
    """UTM zone of the product."""
    polarisations: tuple[str, ...] = ("VV", "VH")

    @property
    def relative_orbit(self) -> int:
        """88 evenings (ascending), 37 mornings (descending)."""
        return 88 if self.orbit == "ascending" else 37

    @property
    def absolute_orbit(self) -> int:
        """A plausible absolute orbit number."""
        days = (self.moment.date() - date(2016, 4, 25)).days
        return (11000 if self.platform == "A" else 1) + round(days * 14.6)


def _days(start: date, end: date, first: date, step: int) -> list[date]:
    """Days from `start` to `end` that lie a multiple of `step` from `first`."""
    day = start + timedelta(days=(first - start).days % step)
    return [day + timedelta(days=number) for number in range(0, (end - day).days + 1, step)]


def _spread(items: list[date], count: int) -> list[date]:
    """`count` of the items, evenly; all if there are fewer."""
    if count >= len(items):
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, count).round()] if count else []


def cloud_fraction(day: date, climate: Climate, seed: int) -> float:
    """Cloud over the landscape: clear and overcast days, and broken skies between; winters are cloudier."""
    rng = np.random.default_rng(seed_of(seed, _CLOUDS, day.toordinal()))
    season = np.cos(2 * np.pi * (day.timetuple().tm_yday - 15 - climate.phase) / 365.25)
    mean = float(np.clip(climate.cloudiness * (1 + 0.3 * season), 0, 1))
    clear, overcast = 0.6 * (1 - mean), 0.6 * mean
    draw, broken = rng.random(), rng.beta(1.1 + mean, 2.1 - mean)
    if draw < clear or mean == 0:
        return 0.0
    return 1.0 if draw > 1 - overcast else float(np.clip(broken, 0.03, 0.97))


def s2_passes(options: SimulationOptions) -> list[S2Pass]:
    """The Sentinel-2 passes of the season, in order of time, quirks dealt out."""
    start, end = options.start, options.end
    full = _days(start, end, _S2_EPOCH, 5)
    edge = _days(start, end, _S2_EPOCH + timedelta(days=3), 5) if options.quirks else []
    edges = min(len(edge), options.s2_dates // 8, max(0, options.s2_dates - 1))
    chosen = [(day, 8) for day in _spread(full, options.s2_dates - edges)]
    chosen += [(day, 51) for day in _spread(edge[len(edge) // 6 :], edges)]
    passes = []
    for day, orbit in sorted(chosen):
        clock = time(10, 46, 19) if orbit == 8 else time(10, 56, 21)
        epoch = _S2_EPOCH if orbit == 8 else _S2_EPOCH + timedelta(days=3)
        platform: Literal["A", "B"] = "B" if (day - epoch).days % 10 == 0 else "A"
        cloud = cloud_fraction(day, options.climate, options.seed)
        passes.append(S2Pass(datetime.combine(day, clock), platform, orbit, cloud))
    return _deal_quirks(passes, options)


def _deal_quirks(passes: list[S2Pass], options: SimulationOptions) -> list[S2Pass]:
    """Give quirks to the clearest dates, where they show, and granules in the neighbouring zone to others."""
    clear = sorted(
        (place for place, item in enumerate(passes) if not item.edge), key=lambda place: (passes[place].cloud, place)
    )
    before = [place for place in clear if not passes[place].offset]
    after = [place for place in clear if passes[place].offset]
    quirks: dict[int, Quirk] = {}
    if options.quirks:
        wanted: tuple[tuple[list[int], Quirk], ...] = (
            (before[:1], "duplicate"),
            (after[:1], "duplicate"),
            (after[1:2], "missing asset"),
            (after[2:3], "split datastrip"),
        )
        quirks = {place: quirk for places, quirk in wanted for place in places}
    beside = [place for place in clear if place not in quirks][: options.neighbour_dates]
    neighbours: dict[int, Neighbour] = dict.fromkeys(beside, "also")
    neighbours.update((place, "only") for place in beside[:2] if len(beside) > 2)
    return [
        replace(item, quirk=quirks.get(place), neighbour=neighbours.get(place, "none"))
        for place, item in enumerate(passes)
    ]


def s1_passes(options: SimulationOptions) -> list[S1Pass]:
    """The Sentinel-1 passes of the season, in order of time."""
    passes: list[S1Pass] = []
    for orbit in ORBITS:
        first = date(2022, 4, 14) if orbit == "ascending" else date(2022, 4, 10)
        clock = time(17, 24, 31) if orbit == "ascending" else time(5, 49, 52)
        days = _days(options.start, options.end, first, 12)
        days += [d for d in _days(options.start, options.end, first + timedelta(days=6), 12) if d <= _S1B_END]
        kept = _spread(sorted(days), options.s1_dates)
        for number, day in enumerate(kept):
            platform: Literal["A", "B"] = "A" if (day - first).days % 12 == 0 else "B"
            twice = options.quirks and orbit == "ascending" and number % 9 == 4
            abroad = options.quirks and orbit == "descending" and number == len(kept) // 2
            passes.append(
                S1Pass(
                    datetime.combine(day, clock),
                    platform,
                    orbit,
                    slices=2 if twice else 1,
                    zone="neighbour" if abroad and options.neighbour_dates else "home",
                )
            )
    return sorted([*passes, *_single(passes, options)], key=lambda item: item.moment)


def _single(passes: list[S1Pass], options: SimulationOptions) -> list[S1Pass]:
    """Two products with VV only, one on a date of its own and one beside a whole product: both must be ignored."""
    ascending = [item for item in passes if item.orbit == "ascending"]
    if not (options.quirks and ascending):
        return []
    whole = ascending[len(ascending) // 3]
    alone = whole.moment + timedelta(days=1)
    result = [S1Pass(whole.moment - timedelta(seconds=25), whole.platform, "ascending", polarisations=("VV",))]
    if options.start <= alone.date() <= options.end:
        result.append(S1Pass(alone, whole.platform, "ascending", polarisations=("VV",)))
    return result
