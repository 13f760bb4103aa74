"""The classes of a map: their colours, and their legend for the programs people open it with. Pure.

Legends are a colour table, a QGIS style, GDAL categories and CSV. Colours are conventional for well-known covers,
otherwise well apart, and the same for the same names.
"""

from __future__ import annotations

import colorsys
import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from numpy.typing import NDArray

from infer.contract.classification import ClassEntry

NODATA_NAME = "no data"


def colour_table(entries: Sequence[ClassEntry]) -> dict[int, tuple[int, int, int, int]]:
    """Value -> red, green, blue, alpha of a GeoTIFF's colour table; nodata is transparent."""
    table = {0: (0, 0, 0, 0)}
    table.update({entry.code: (*entry.rgb, 255) for entry in entries})
    return table


def class_colours(codes_hw: NDArray[np.uint8], entries: Sequence[ClassEntry]) -> NDArray[np.uint8]:
    """(H, W, 4) red, green, blue and alpha of class codes; nodata is transparent."""
    table = np.zeros((256, 4), dtype=np.uint8)
    for code, colour in colour_table(entries).items():
        table[code] = colour
    colours: NDArray[np.uint8] = table[codes_hw]
    return colours


def legend_csv(entries: Sequence[ClassEntry]) -> bytes:
    """code,name,color with a header line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("code", "name", "color"))
    writer.writerows((entry.code, entry.name, entry.color) for entry in entries)
    return stream.getvalue().encode()


def legend_tags(entries: Sequence[ClassEntry]) -> dict[str, str]:
    """GeoTIFF tags SMALTI_CLASS_<code> with the names."""
    return {f"SMALTI_CLASS_{entry.code}": entry.name for entry in entries}


def qgis_style(entries: Sequence[ClassEntry]) -> bytes:
    """A .qml file: QGIS applies it by itself when it stands beside the raster with the same name."""
    root = Element("qgis", version="3.22.0", styleCategories="AllStyleCategories")
    renderer = SubElement(
        SubElement(root, "pipe"), "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
    )
    palette = SubElement(renderer, "colorPalette")
    for entry in entries:
        SubElement(
            palette, "paletteEntry", value=str(entry.code), color=entry.color, alpha="255", label=_xml(entry.name)
        )
    return b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + _text(root)


def gdal_categories(entries: Sequence[ClassEntry]) -> bytes:
    """A .aux.xml file: category names and a raster attribute table, as GDAL, R's terra and ArcGIS read them."""
    root = Element("PAMDataset")
    band = SubElement(root, "PAMRasterBand", band="1")
    names = {entry.code: entry.name for entry in entries} | {0: NODATA_NAME}
    categories = SubElement(band, "CategoryNames")
    for code in range(max(names) + 1):
        SubElement(categories, "Category").text = _xml(names.get(code, ""))
    table = SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    # name, type (0 whole number, 2 text), usage (5 value, 2 name, 6..8 red, green, blue): GDAL's RAT model
    fields = (("Value", 0, 5), ("Class_Name", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    for index, (name, kind, usage) in enumerate(fields):
        field = SubElement(table, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            SubElement(field, key).text = str(value)
    for index, entry in enumerate(entries):
        row = SubElement(table, "Row", index=str(index))
        for value in (entry.code, _xml(entry.name), *entry.rgb):
            SubElement(row, "F").text = str(value)
    return _text(root)


def slugs(entries: Sequence[ClassEntry]) -> list[str]:
    """The names as STAC's classification extension allows them: ASCII letters, digits, - and _, no two alike.

    Accents are dropped ("Blé" is "Ble"); a name without a Latin letter or digit is named by its code.
    """
    made: list[str] = []
    taken: set[str] = set()
    for entry in entries:
        plain = unicodedata.normalize("NFKD", entry.name.translate(_LATIN))
        plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
        slug = re.sub(r"[^0-9A-Za-z_-]+", "-", plain).strip("-") or f"class-{entry.code}"
        while slug.casefold() in taken:
            slug = f"{slug}-{entry.code}"
        taken.add(slug.casefold())
        made.append(slug)
    return made


_LATIN = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L"})
"""Latin letters that have no accent to drop."""
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


def _xml(name: str) -> str:
    """A name as XML can hold it."""
    return _NOT_XML.sub("\ufffd", name)


def _text(root: Element) -> bytes:
    indent(root, " ")
    text: bytes = tostring(root, encoding="utf-8")
    return text + b"\n"


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
