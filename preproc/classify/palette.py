"""Colours of classes on maps: conventional for well-known covers, otherwise well apart; the same for the same names."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence

_KNOWN = (
    # (words that must all occur, colour); the first that fits counts, so the special stands before the general
    (("wheat", "spring"), "#d8b56b"),
    (("wheat", "durum"), "#b8862b"),
    (("wheat",), "#a87000"),
    (("barley", "spring"), "#e6a8e0"),
    (("barley", "winter"), "#b04fc0"),
    (("barley",), "#d87ce0"),
    (("rye",), "#8a6a3a"),
    (("triticale",), "#c9a36b"),
    (("oat",), "#a05989"),
    (("oats",), "#a05989"),
    (("sorghum",), "#ff9e0f"),
    (("sweet", "corn"), "#e8e070"),
    (("maize", "silage"), "#ffe566"),
    (("maize",), "#ffd300"),
    (("corn",), "#ffd300"),
    (("rapeseed",), "#d6ff00"),
    (("rape",), "#d6ff00"),
    (("canola",), "#d6ff00"),
    (("colza",), "#d6ff00"),
    (("sunflower",), "#ffb300"),
    (("soybean",), "#267000"),
    (("soybeans",), "#267000"),
    (("soy",), "#267000"),
    (("soya",), "#267000"),
    (("rice",), "#00a8e5"),
    (("cotton",), "#ff2626"),
    (("sugar", "cane"), "#7a3b8f"),
    (("sugarcane",), "#7a3b8f"),
    (("sugar", "beet"), "#c2185b"),
    (("sugarbeet",), "#c2185b"),
    (("beet",), "#a8003b"),
    (("potato",), "#702600"),
    (("potatoes",), "#702600"),
    (("pea",), "#54ff00"),
    (("peas",), "#54ff00"),
    (("bean",), "#a80000"),
    (("beans",), "#a80000"),
    (("lentil",), "#00bf7d"),
    (("lentils",), "#00bf7d"),
    (("alfalfa",), "#ffa5e3"),
    (("lucerne",), "#ffa5e3"),
    (("clover",), "#e8bfff"),
    (("flax",), "#7ab8f5"),
    (("onion",), "#ff6666"),
    (("onions",), "#ff6666"),
    (("carrot",), "#ff6f00"),
    (("vegetables",), "#ff6666"),
    (("orchard",), "#ff8fab"),
    (("orchards",), "#ff8fab"),
    (("vineyard",), "#704489"),
    (("vineyards",), "#704489"),
    (("vines",), "#704489"),
    (("olive",), "#5a7d2a"),
    (("grassland",), "#93cc93"),
    (("grass",), "#93cc93"),
    (("meadow",), "#b2df8a"),
    (("pasture",), "#b2df8a"),
    (("shrubland",), "#c6d69e"),
    (("forest",), "#1b7837"),
    (("woodland",), "#1b7837"),
    (("wood",), "#1b7837"),
    (("trees",), "#1b7837"),
    (("tree",), "#1b7837"),
    (("wetland",), "#7fb2b2"),
    (("water",), "#1f6fd0"),
    (("built",), "#7a7a7a"),
    (("urban",), "#7a7a7a"),
    (("buildings",), "#7a7a7a"),
    (("settlement",), "#7a7a7a"),
    (("bare",), "#cfc0a8"),
    (("fallow",), "#bfbf7a"),
    (("snow",), "#f0f8ff"),
    (("other",), "#b0b0b0"),
)
_OTHERS = (
    # Kelly (1965), twenty-two colours of maximum contrast, without white, black and the greys
    "#f3c300", "#875692", "#f38400", "#a1caf1", "#be0032", "#c2b280", "#008856", "#e68fac", "#0067a5", "#f99379",
    "#604e97", "#f6a600", "#b3446c", "#dcd300", "#882d17", "#8db600", "#654522", "#e25822", "#2b3d26",
)  # fmt: skip
_TOO_CLOSE = 24.0
"""Distance in 0..255 RGB below which two colours on one map are taken for one."""


def palette(names: Sequence[str]) -> list[str]:
    """A colour '#rrggbb' for each class name; no two are alike.

    Known crops and covers have priority over the others for their conventional colours.
    """
    chosen: dict[int, str] = {}
    known = {index: _known(name) for index, name in enumerate(names)}
    for index, colour in known.items():
        if colour is not None:
            chosen[index] = _apart(colour, list(chosen.values()))
    spare = iter([*_OTHERS, *_endless(len(names))])
    for index, colour in known.items():
        if colour is None:
            chosen[index] = _apart(next(spare), list(chosen.values()))
    return [chosen[index] for index in range(len(names))]


def _known(name: str) -> str | None:
    words = set(re.findall(r"[a-z]+", name.lower()))
    return next((colour for needed, colour in _KNOWN if words.issuperset(needed)), None)


def _endless(count: int) -> list[str]:
    """Hues at the golden angle, in three lightnesses."""
    return [
        _hex(*colorsys.hls_to_rgb((index * 0.618034) % 1.0, (0.45, 0.65, 0.3)[index % 3], 0.7))
        for index in range(count)
    ]


def _hex(red: float, green: float, blue: float) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in (red, green, blue))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _apart(colour: str, taken: Sequence[str]) -> str:
    """The colour, or the nearest shade of it (lighter, darker, then another hue) that differs from those taken."""

    def free(candidate: str, distance: float) -> bool:
        return all(
            sum((a - b) ** 2 for a, b in zip(_rgb(candidate), _rgb(other), strict=True)) >= distance**2
            for other in taken
        )

    hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in _rgb(colour)))
    shades = [colour] + [
        _hex(*colorsys.hls_to_rgb((hue + turn) % 1.0, min(0.9, max(0.15, light + shift)), max(saturation, 0.3)))
        for turn in (0.0, 0.07, 0.14, 0.21, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
        for shift in (0.0, 0.15, -0.15, 0.28, -0.28, 0.08, -0.08)
    ]
    for distance in (_TOO_CLOSE, _TOO_CLOSE / 2, _TOO_CLOSE / 4, 1.0):
        for shade in shades:
            if free(shade, distance):
                return shade
    return next(_hex(v / 255, v / 255, v / 255) for v in range(256) if free(_hex(v / 255, v / 255, v / 255), 1.0))
