"""Kinds of land: what grows when, how it looks and how it scatters. One row a kind, one legend for all.

Days are days of the year at 51 degrees north; negative ones fall in the year before the harvest. Curves follow the
double logistic of Beck et al. (2006, doi:10.1016/j.rse.2005.10.021) on green leaf area; radar figures the C-band
signatures of Veloso et al. (2017, doi:10.1016/j.rse.2017.07.015).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from infer.contract import SmaltiError


@dataclass(frozen=True)
class Growth:
    """One rise and fall of green leaf area."""

    start: float
    """Day when half of the leaf area is there."""
    rise: float
    """Time scale of the rise in days."""
    end: float
    """Day when half of it has gone yellow or died."""
    fall: float
    """Time scale of the fall in days."""
    lai: float
    """Green leaf area index at the top, m2/m2."""


@dataclass(frozen=True)
class Leaf:
    """How a closed canopy differs from a standard one."""

    chlorophyll: float = 1.0
    """Relative; more darkens green, red and the red edge."""
    nir: float = 1.0
    """Relative plateau in the near infrared."""
    water: float = 1.0
    """Relative; more darkens the short-wave infrared."""
    bloom: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """First day, last day and strength of yellow flowers."""


@dataclass(frozen=True)
class Radar:
    """C-band behaviour of the canopy (a water-cloud model)."""

    vv: float = -11.0
    """Gamma nought of a closed canopy, VV, dB."""
    vh: float = -17.0
    """The same for VH."""
    depth: float = 0.35
    """Attenuation per unit of biomass."""
    woody: float = 0.0
    """Biomass that stays all year."""
    rough: float = 0.0
    """Roughness of the bare soil relative to a seedbed, dB."""


@dataclass(frozen=True)
class Crop:
    """One kind of land."""

    name: str
    code: int
    """Value in the truth map."""
    colour: tuple[int, int, int]
    """Red, green, blue."""
    growth: tuple[Growth, ...] = ()
    harvest: float | None = None
    """Day when the canopy is removed."""
    cover: tuple[float, float] | None = None
    """Start and end of a catch crop, which some parcels have."""
    straw: float = 0.3
    """Part of the soil under residues after the harvest."""
    cuts: tuple[float, ...] = ()
    """Days of mowing."""
    leaf: Leaf = Leaf()
    radar: Radar = Radar()
    ground: str = "soil"
    """What lies below: soil, water, built, road or litter."""
    farmed: bool = True
    """Whether it is a crop that parcels declare."""


def _cereal(start: float, end: float, lai: float, sown: float | None = None, winter: float = 0.0) -> tuple[Growth, ...]:
    main = Growth(start, 11, end, 6, lai)
    return (main,) if sown is None else (main, Growth(sown, 12, end, 6, winter))


_STALKS = Radar(vv=-17.0, vh=-20.5, depth=0.42)
_BROAD = Radar(vv=-8.8, vh=-14.6, depth=0.38)

CROPS: tuple[Crop, ...] = (
    Crop(
        "winter wheat",
        1,
        (217, 170, 60),
        growth=_cereal(96, 179, 4.9, sown=-50, winter=0.8),
        harvest=206,
        cover=(248, 345),
        straw=0.55,
        leaf=Leaf(chlorophyll=1.1),
        radar=_STALKS,
    ),
    Crop(
        "winter barley",
        2,
        (240, 217, 120),
        growth=_cereal(84, 159, 4.4, sown=-72, winter=1.3),
        harvest=183,
        cover=(248, 345),
        straw=0.55,
        leaf=Leaf(chlorophyll=0.92, nir=0.97),
        radar=Radar(vv=-16.3, vh=-19.0, depth=0.4),
    ),
    Crop(
        "maize",
        3,
        (236, 112, 20),
        growth=(Growth(173, 8, 263, 8, 4.6),),
        harvest=272,
        cover=(302, 450),
        straw=0.35,
        leaf=Leaf(nir=0.97, water=1.05),
        radar=Radar(vv=-9.6, vh=-15.4, depth=0.33, rough=0.3),
    ),
    Crop(
        "sugar beet",
        4,
        (178, 70, 150),
        growth=(Growth(161, 9, 320, 22, 4.9),),
        harvest=306,
        straw=0.15,
        leaf=Leaf(chlorophyll=1.05, nir=1.18, water=1.3),
        radar=_BROAD,
    ),
    Crop(
        "potato",
        5,
        (128, 82, 44),
        growth=(Growth(159, 6, 236, 8, 4.4),),
        harvest=266,
        cover=(300, 440),
        straw=0.1,
        leaf=Leaf(chlorophyll=0.95, nir=1.12, water=1.2),
        radar=Radar(vv=-9.0, vh=-15.2, depth=0.38, rough=2.0),
    ),
    Crop(
        "rapeseed",
        6,
        (250, 230, 0),
        growth=(Growth(76, 9, 172, 8, 4.8), Growth(-97, 9, 60, 20, 2.0)),
        harvest=199,
        cover=(250, 340),
        straw=0.45,
        leaf=Leaf(chlorophyll=0.95, nir=1.1, water=1.15, bloom=(112, 138, 0.8)),
        radar=Radar(vv=-9.4, vh=-12.9, depth=0.16),
    ),
    Crop(
        "grassland",
        7,
        (140, 198, 90),
        growth=(Growth(90, 13, 305, 22, 2.9), Growth(-150, 60, 420, 60, 0.75)),
        cuts=(136, 178, 222, 268),
        straw=0.1,
        leaf=Leaf(nir=0.94),
        radar=Radar(vv=-12.4, vh=-18.8, depth=0.3, rough=-0.5),
    ),
    Crop(
        "spring barley",
        8,
        (255, 236, 160),
        growth=_cereal(128, 184, 4.0),
        harvest=214,
        cover=(248, 345),
        straw=0.55,
        leaf=Leaf(chlorophyll=0.9, nir=0.97),
        radar=Radar(vv=-15.2, vh=-18.8, depth=0.4),
    ),
    Crop(
        "winter rye",
        9,
        (200, 150, 90),
        growth=_cereal(88, 172, 4.2, sown=-60, winter=1.0),
        harvest=208,
        cover=(248, 345),
        straw=0.55,
        leaf=Leaf(chlorophyll=0.88, nir=0.95),
        radar=Radar(vv=-17.5, vh=-19.8, depth=0.44),
    ),
    Crop(
        "sunflower",
        10,
        (255, 190, 0),
        growth=(Growth(161, 8, 226, 8, 3.8),),
        harvest=258,
        straw=0.3,
        leaf=Leaf(nir=1.05, bloom=(188, 206, 0.4)),
        radar=Radar(vv=-8.4, vh=-14.2, depth=0.4),
    ),
    Crop(
        "soybean",
        11,
        (90, 160, 120),
        growth=(Growth(178, 9, 254, 7, 4.8),),
        harvest=272,
        straw=0.25,
        leaf=Leaf(chlorophyll=0.9, nir=1.15, water=1.1),
        radar=Radar(vv=-9.8, vh=-16.0, depth=0.36),
    ),
    Crop(
        "alfalfa",
        12,
        (60, 150, 70),
        growth=(Growth(90, 12, 310, 20, 3.6), Growth(-150, 60, 420, 60, 0.7)),
        cuts=(138, 172, 206, 246),
        straw=0.1,
        leaf=Leaf(chlorophyll=1.05, nir=1.08),
        radar=Radar(vv=-11.0, vh=-17.2, depth=0.48, rough=-0.5),
    ),
    Crop(
        "peas",
        13,
        (150, 220, 160),
        growth=(Growth(119, 8, 174, 6, 4.2),),
        harvest=193,
        cover=(230, 330),
        straw=0.2,
        leaf=Leaf(chlorophyll=0.9, nir=1.05, water=1.1),
        radar=Radar(vv=-10.2, vh=-16.4, depth=0.4),
    ),
    Crop(
        "onion",
        14,
        (200, 190, 210),
        growth=(Growth(155, 11, 222, 7, 2.4),),
        harvest=245,
        straw=0.05,
        leaf=Leaf(chlorophyll=1.0, nir=0.95, water=1.25),
        radar=Radar(vv=-11.2, vh=-18.0, depth=0.38),
    ),
    Crop(
        "flax",
        15,
        (130, 170, 220),
        growth=(Growth(122, 8, 180, 6, 3.6),),
        harvest=200,
        cover=(240, 340),
        straw=0.5,
        leaf=Leaf(chlorophyll=0.85, nir=1.0),
        radar=Radar(vv=-13.2, vh=-18.4, depth=0.42),
    ),
    Crop(
        "vineyard",
        16,
        (120, 40, 90),
        growth=(Growth(142, 9, 285, 10, 2.0),),
        straw=0.25,
        leaf=Leaf(nir=0.95),
        radar=Radar(vv=-10.6, vh=-16.8, depth=0.3, woody=0.6, rough=1.0),
    ),
    Crop(
        "orchard",
        17,
        (170, 110, 110),
        growth=(Growth(118, 8, 300, 12, 2.6), Growth(-150, 60, 420, 60, 0.9)),
        straw=0.15,
        leaf=Leaf(nir=0.92),
        radar=Radar(vv=-9.6, vh=-14.9, depth=0.35, woody=1.5),
    ),
    Crop(
        "fallow",
        18,
        (190, 180, 150),
        growth=(Growth(130, 22, 270, 30, 1.3),),
        straw=0.3,
        leaf=Leaf(chlorophyll=0.8),
        radar=Radar(vv=-12.6, vh=-18.8, depth=0.4, rough=0.5),
    ),
    Crop(
        "deciduous forest",
        50,
        (30, 100, 40),
        growth=(Growth(118, 6, 300, 8, 5.2), Growth(-150, 60, 420, 60, 0.5)),
        leaf=Leaf(chlorophyll=1.15, nir=0.9, water=1.1),
        radar=Radar(vv=-8.6, vh=-13.6, depth=0.25, woody=2.5),
        ground="litter",
        farmed=False,
    ),
    Crop(
        "coniferous forest",
        51,
        (10, 70, 50),
        growth=(Growth(-200, 60, 500, 60, 3.6), Growth(140, 15, 280, 20, 0.6)),
        leaf=Leaf(chlorophyll=1.5, nir=0.62, water=1.5),
        radar=Radar(vv=-8.9, vh=-14.0, depth=0.25, woody=2.5),
        ground="litter",
        farmed=False,
    ),
    Crop("water", 52, (50, 110, 200), ground="water", farmed=False),
    Crop(
        "built-up",
        53,
        (170, 60, 60),
        growth=(Growth(105, 12, 300, 15, 0.35), Growth(-150, 60, 420, 60, 0.15)),
        ground="built",
        farmed=False,
    ),
    Crop("road", 54, (120, 120, 120), ground="road", farmed=False),
    Crop(
        "margin",
        55,
        (175, 205, 150),
        growth=(Growth(100, 16, 300, 25, 2.0), Growth(-150, 60, 420, 60, 1.2)),
        leaf=Leaf(nir=0.9),
        radar=Radar(vv=-11.6, vh=-17.4, depth=0.45, woody=0.8),
        farmed=False,
    ),
)
"""All kinds; elsewhere a kind is its position here (the code is what maps show)."""


@cache
def _positions() -> dict[str, int]:
    return {crop.name: position for position, crop in enumerate(CROPS)}


def crop_index(name: str) -> int:
    """Position of a kind in `CROPS`.

    Raises:
        SmaltiError: if there is no such kind.
    """
    try:
        return _positions()[name]
    except KeyError:
        raise SmaltiError(f"no kind of land called {name!r}: choose from {', '.join(_positions())}") from None
