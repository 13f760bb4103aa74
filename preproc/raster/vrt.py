"""GDAL's virtual rasters: the sheets of a zone as one, without a copy: a VRT, and a tile index (GTI) for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import shapely
from rasterio.crs import CRS

from infer.contract import write_bytes
from preproc.raster.cog import Layer
from preproc.raster.zones import Sheet, ZoneGrid
from preproc.region.geopackage import geopackage

INDEX = ".gti.gpkg"
"""Ending of a tile index, by which GDAL 3.9 and later know it."""
MOST_SOURCES = 20_000
"""Sheets times bands of a VRT: GDAL reads all of them whenever it is opened, however little of it is wanted."""
_TYPES = {"float32": "Float32", "int8": "Int8", "uint8": "Byte"}


def write_vrt(path: Path, grid: ZoneGrid, layer: Layer, parts: Sequence[tuple[Sheet, Path]]) -> None:
    """Write a virtual raster of GeoTIFFs.

    Args:
        path: of the .vrt.
        grid: what it covers.
        layer: what they hold.
        parts: sheets with their files, which lie in the folder of the .vrt or below it.
    """
    root = Xml.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    Xml.SubElement(root, "SRS").text = CRS.from_epsg(grid.epsg).to_wkt()
    Xml.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in grid.transform.to_gdal())
    metadata = Xml.SubElement(root, "Metadata")
    for key, value in sorted(layer.tags.items()):
        Xml.SubElement(metadata, "MDI", key=key).text = value
    nodata = "nan" if np.isnan(layer.nodata) else str(int(layer.nodata))
    for number, name in enumerate(layer.bands, start=1):
        band = Xml.SubElement(
            root,
            "VRTRasterBand",
            dataType=_TYPES[layer.dtype],
            band=str(number),
            blockXSize=str(layer.block),
            blockYSize=str(layer.block),
        )
        Xml.SubElement(band, "Description").text = name
        Xml.SubElement(band, "NoDataValue").text = nodata
        for sheet, file in parts:
            _add_source(band, number, sheet, file.relative_to(path.parent).as_posix(), layer)
    if factors := _factors(grid, layer):  # each of them is read from the sheets' own
        coarser = Xml.SubElement(root, "OverviewList", resampling="nearest")
        coarser.text = " ".join(map(str, factors))
    Xml.indent(root, space="")
    write_bytes(path, Xml.tostring(root) + b"\n")


def write_index(path: Path, grid: ZoneGrid, layer: Layer, parts: Sequence[tuple[Sheet, Path]]) -> None:
    """Write a tile index: a GeoPackage of the sheets' squares, of which GDAL opens those that are looked at.

    Args:
        path: of the index, which ends in INDEX.
        grid: what it covers.
        layer: what the files hold.
        parts: sheets with their files, which lie in the folder of the index or below it.
    """
    west, south, east, north = grid.bounds
    about = {
        "LOCATION_FIELD": "location",
        "RESX": repr(float(grid.transform.a)),
        "RESY": repr(float(-grid.transform.e)),
        "MINX": repr(float(west)),
        "MINY": repr(float(south)),
        "MAXX": repr(float(east)),
        "MAXY": repr(float(north)),
        "BAND_COUNT": str(len(layer.bands)),
        "DATA_TYPE": _TYPES[layer.dtype],
        "NODATA": "nan" if np.isnan(layer.nodata) else str(int(layer.nodata)),
        "BLOCKXSIZE": str(layer.block),
        "BLOCKYSIZE": str(layer.block),
        **layer.tags,
    }
    boxes = shapely.box(*np.array([sheet.grid.bounds for sheet, _ in parts], dtype=float).T)
    files = [file.relative_to(path.parent).as_posix() for _, file in parts]
    write_bytes(path, geopackage("sheets", boxes, {"location": files}, kind="Polygon", epsg=grid.epsg, about=about))


def _factors(grid: ZoneGrid, layer: Layer) -> list[int]:
    """By what the overviews are coarser: down to one block, as of a GeoTIFF."""
    halvings = math.ceil(math.log2(max(grid.width, grid.height) / layer.block))
    return [2**level for level in range(1, halvings + 1)]


def _add_source(band: Xml.Element, number: int, sheet: Sheet, name: str, layer: Layer) -> None:
    width, height = str(sheet.grid.width), str(sheet.grid.height)
    source = Xml.SubElement(band, "SimpleSource")
    Xml.SubElement(source, "SourceFilename", relativeToVRT="1").text = name
    Xml.SubElement(source, "SourceBand").text = str(number)
    Xml.SubElement(
        source,
        "SourceProperties",
        RasterXSize=width,
        RasterYSize=height,
        DataType=_TYPES[layer.dtype],
        BlockXSize=str(layer.block),
        BlockYSize=str(layer.block),
    )
    Xml.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
    Xml.SubElement(source, "DstRect", xOff=str(sheet.left), yOff=str(sheet.top), xSize=width, ySize=height)
