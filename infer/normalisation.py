"""Normalisation statistics: they belong to the checkpoint, never to the tile. z = (x - mean) / (std + 1e-9).

Source: ucam-eo/tessera (`ssl_dataset.py` of each inference folder, and the v2 package), November 2026. The order of
channels is `infer.contract.BANDS`, and VV VH.
"""

from __future__ import annotations

from dataclasses import dataclass

EPSILON = 1e-9


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per channel, in the units of the tile's arrays."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Normalisation:
    """What standardises Sentinel-2 digital numbers and the scaled dB of both Sentinel-1 stacks."""

    s2: Statistics
    asc: Statistics
    desc: Statistics


def _statistics(mean: str, std: str) -> Statistics:
    return Statistics(tuple(map(float, mean.split())), tuple(map(float, std.split())))


_V2_S2 = _statistics(
    "1633.0042 1341.1090 1539.5536 3054.8269 3117.4658 2004.1648 2694.7275 2945.1504 2266.6079 1657.3094",
    "1999.4603 2014.7549 1929.2201 1754.2493 1649.9807 1936.8988 1748.6041 1708.6991 1207.5250 1108.6046",
)
_V2_POOLED = _statistics("5862.7652 3341.3949", "1531.8051 1540.2014")
_V10_POOLED = _statistics("5484.0407 3003.7812", "1871.2334 1726.0670")

NORMALISATIONS: dict[str, Normalisation] = {
    "v2-student": Normalisation(
        _V2_S2,
        _statistics("5909.3921 3405.0322", "1507.1750 1531.2615"),
        _statistics("5816.1382 3277.7576", "1554.6475 1546.4733"),
    ),
    "v2-teacher": Normalisation(_V2_S2, _V2_POOLED, _V2_POOLED),
    "v1.1-mpc": Normalisation(
        _statistics(
            "2683.4553 2223.3630 2432.0950 3633.1970 3602.1755 3006.4324 3400.2710 3515.6392 2456.9163 1983.8783",
            "2739.5217 2846.2993 2690.8250 2290.0439 2088.8970 2673.1106 2381.4521 2229.5225 1601.0942 1495.3545",
        ),
        _statistics("5588.3291 3025.6270", "1713.4646 1693.0471"),
        _statistics("5552.9683 2955.0520", "1685.5857 1677.6414"),
    ),
    "v1.1-aws": Normalisation(
        _statistics(
            "2793.6589 2356.7776 2551.0496 3741.9229 3713.7844 3120.1997 3516.3342 3637.0342 2501.0283 2038.1504",
            "2810.0093 2933.8835 2755.6360 2344.5027 2145.7986 2743.9019 2438.8601 2286.5977 1680.7367 1585.5529",
        ),
        _statistics("5697.0859 2838.6687", "1671.3737 1789.4116"),
        _statistics("5759.1367 2873.2854", "1583.2858 1747.8390"),
    ),
    "v1.0": Normalisation(
        _statistics(
            "1711.0938 1308.8511 1546.4543 3010.1293 3106.5083 2068.3044 2685.0845 2931.5889 2514.6928 1899.4922",
            "1926.1026 1862.9751 1803.1792 1741.7837 1677.4543 1888.7862 1736.3090 1715.8104 1514.5199 1398.4779",
        ),
        _V10_POOLED,
        _V10_POOLED,
    ),
}
"""Key (see `RegisteredModel.normalisation`) -> statistics."""
