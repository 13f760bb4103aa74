"""GDAL's virtual rasters: the sheets of a zone as one raster, without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
from rasterio.crs import CRS

from infer.contract import write_bytes
from preproc.raster.cog import Layer
from preproc.raster.zones import Sheet, ZoneGrid

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
    Xml.indent(root, space="")
    write_bytes(path, Xml.tostring(root) + b"\n")


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
