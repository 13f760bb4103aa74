"""The classes of a map for the programs people open it with: colour table, QGIS style, GDAL categories, CSV. Pure."""

from __future__ import annotations

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
