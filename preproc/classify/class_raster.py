"""A class map as those who sample or assess it see it: one or more rasters of codes, their legend, counts and areas.

The map of a run and any other classified GeoTIFF are the same thing here. Rasters are read in strips of whole rows, so
that what is found does not depend on how a file is laid out, and memory does not grow with the map.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import CRS, Geod, Proj, Transformer
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, FormatError, Run, SmaltiError, child, read_regular
from infer.contract.rasters import CleanedMap, MapManifest
from preproc.run.progress import progress

Box = tuple[float, float, float, float]
"""West, south, east, north."""
_REMEDY = "run `smalti predict` again"
_MOST_CODES = 1000
"""More classes than that is no class map but measurements."""
_STRIP = 1 << 24
"""Pixels of a strip, unless a row has more."""
_HIGHEST = 65_535
_LEGEND_BYTES = 1 << 20


@dataclass(frozen=True)
class ClassMap:
    """Rasters with a class code a pixel; -1 here, whatever the file writes, where there is none."""

    files: tuple[Path, ...]
    systems: tuple[CRS, ...]
    """Of each file."""
    bounds: tuple[Box, ...]
    """Of each file, in its CRS."""
    nodata: int
    """What the files write where there is no class."""
    names: Mapping[int, str]
    """The legend; a code of the map that it lacks is named by its number."""
    pixels: Mapping[int, int]
    """Code -> mapped pixels."""
    hectares: Mapping[int, float]
    """Code -> mapped area: of 10 m pixels in a run, on the ellipsoid elsewhere."""
    even: bool
    """Whether all pixels are about as large, to a percent: then a draw of pixels is a draw of places."""

    def strips(self) -> Iterator[tuple[int, int, NDArray[np.int32]]]:
        """Number of the file, first row and codes (rows, width) of every strip, in the order in which pixels count."""
        for index, path in enumerate(self.files):
            with _opened(path) as raster:
                for row, codes_hw in _strips(path, raster, self.nodata):
                    yield index, row, codes_hw

    def centres(self, index: int, rows_n: NDArray[Any], columns_n: NDArray[Any]) -> NDArray[np.float64]:
        """(N, 2) longitude and latitude (WGS 84) of the centres of pixels of a file."""
        with _opened(self.files[index]) as raster:
            place = raster.transform
        x, y = place.c + place.a * (columns_n + 0.5), place.f + place.e * (rows_n + 0.5)
        return np.column_stack(Transformer.from_crs(self.systems[index], 4326, always_xy=True).transform(x, y))

    def codes_at(self, crs: CRS, places_n2: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Code of the pixel that contains each place (-1: none), and (N, 3) file, row and column of that pixel.

        Args:
            crs: of the places.
            places_n2: (N, 2) x and y, longitude and latitude.
        """
        codes_n = np.full(len(places_n2), -1, dtype=np.int32)
        pixels_n3 = np.full((len(places_n2), 3), -1, dtype=np.int64)
        for index, (path, system) in enumerate(zip(self.files, self.systems, strict=True)):
            x, y = Transformer.from_crs(crs, system, always_xy=True).transform(places_n2[:, 0], places_n2[:, 1])
            with _opened(path) as raster:
                seen = np.isfinite(x) & np.isfinite(y) & (codes_n < 0)
                for at in np.flatnonzero(seen):
                    row, column = (int(value) for value in raster.index(x[at], y[at]))
                    if 0 <= column < raster.width and 0 <= row < raster.height:
                        code = int(raster.read(1, window=Window(column, row, 1, 1))[0, 0])
                        if code != self.nodata:
                            codes_n[at], pixels_n3[at] = code, (index, row, column)
        return codes_n, pixels_n3


def read_map(run: Run) -> ClassMap:
    """The class rasters among the files of RUN/map, counted.

    Class rasters are those with one byte a pixel and a colour table; confidence and the like have none.

    Raises:
        FormatError: if the map is missing, damaged or has no class raster.
    """
    manifest = MapManifest.read(run).verify(run)
    files = []
    for name in sorted(manifest.files):
        if name.lower().endswith((".tif", ".tiff")):
            with _opened(run.map / name) as raster:
                if raster.dtypes == ("uint8",) and raster.colorinterp == (ColorInterp.palette,):
                    files.append(run.map / name)
    if not files:
        raise FormatError(f"{run.map_manifest}: lists no class raster (one byte, with a colour table): {_REMEDY}")
    names = {entry.code: entry.name for entry in manifest.classes}
    made = _counted(tuple(files), 0, names)
    hectares = {code: count * PIXEL_SIZE**2 / 10_000 for code, count in made.pixels.items()}
    return ClassMap(**{**vars(made), "hectares": hectares, "even": True})


def read_cleaned(run: Run) -> ClassMap:
    """The cleaned map of a run, counted; see `read_map`.

    Raises:
        FormatError: if it is missing or damaged.
    """
    manifest = CleanedMap.read(run).verify(run)
    files = tuple(child(CleanedMap.path(run).parent, manifest.zones[label]) for label in sorted(manifest.zones))
    made = _counted(files, 0, {entry.code: entry.name for entry in manifest.classes})
    hectares = {code: count * PIXEL_SIZE**2 / 10_000 for code, count in made.pixels.items()}
    return ClassMap(**{**vars(made), "hectares": hectares, "even": True})


def open_map(path: Path, legend: Path | None = None) -> ClassMap:
    """Any classified GeoTIFF: whole numbers in one band, north up.

    Its names are those of the legend file (CSV with code and name), else of the tags that smalti writes, else the
    codes. No data is what the file declares; one that declares nothing means 0, unless the legend names 0.

    Raises:
        SmaltiError: if it is no such raster, or the legend no such file.
    """
    if not path.is_file():
        raise SmaltiError(f"{path}: no such file: give a classified GeoTIFF")
    named = None if legend is None else read_legend(legend)
    with _opened(path) as raster:
        if raster.count != 1 or not np.issubdtype(np.dtype(raster.dtypes[0]), np.integer):
            raise SmaltiError(
                f"{path}: has {raster.count} band(s) of {raster.dtypes[0]}: a class map is one band of whole numbers "
                "(gdal_translate -b 1 -ot Byte)"
            )
        if raster.crs is None:
            raise SmaltiError(f"{path}: has no coordinate reference system: declare it (gdal_edit.py -a_srs EPSG:...)")
        if raster.transform.b or raster.transform.d or raster.transform.e >= 0:
            raise SmaltiError(f"{path}: is turned or upside down: bring it to north up (gdalwarp)")
        tags = {
            int(match[1]): value
            for key, value in raster.tags().items()
            if (match := re.fullmatch(r"SMALTI_CLASS_(\d{1,5})", key))
        }
        nodata = raster.nodata
    if nodata is None:
        nodata = -1 if named is not None and 0 in named else 0
    return _counted((path,), int(nodata), named if named is not None else tags)


def read_legend(path: Path) -> dict[int, str]:
    """Code -> name from a CSV with columns code and name, as beside every map of smalti.

    Raises:
        SmaltiError: if it has no such columns, a code that is no whole number, or one twice.
    """
    try:
        text = read_regular(path, limit=_LEGEND_BYTES).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SmaltiError(f"{path}: the legend cannot be read ({error}): give a CSV with code and name") from error
    names: dict[int, str] = {}
    for number, row in enumerate(rows, start=2):
        code, name = str(row.get("code") or "").strip(), str(row.get("name") or "").strip()
        if not re.fullmatch(r"\d{1,5}", code, re.ASCII) or not name or int(code) > _HIGHEST:
            raise SmaltiError(f"{path}: line {number} has code {code[:20]!r} and name {name[:40]!r}: both are needed")
        name = unicodedata.normalize("NFC", name)
        if int(code) in names or name in names.values():
            raise SmaltiError(f"{path}: line {number}: code {code} or name {name[:40]!r} is there twice")
        names[int(code)] = name
    if not names:
        raise SmaltiError(f"{path}: names no class: give a CSV with code and name")
    return names


def _opened(path: Path) -> Any:
    try:
        return rasterio.open(path, driver="GTiff")
    except RasterioError as error:
        raise FormatError(f"{path}: not readable as GeoTIFF ({error}): {_REMEDY}, or give another file") from error


def _strips(path: Path, raster: Any, nodata: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    step = max(1, min(512, _STRIP // raster.width))
    for row in range(0, raster.height, step):
        window = Window(0, row, raster.width, min(step, raster.height - row))
        try:
            codes_hw = raster.read(1, window=window).astype(np.int64)
        except RasterioError as error:
            raise FormatError(f"{path}: row {row} and on cannot be read ({error}): {_REMEDY}") from error
        codes_hw[codes_hw == nodata] = -1
        if codes_hw.max() > _HIGHEST or codes_hw.min() < -1:
            odd = codes_hw.max() if codes_hw.max() > _HIGHEST else codes_hw.min()
            raise SmaltiError(f"{path}: holds {odd}: codes of classes are 0 to {_HIGHEST}")
        yield row, codes_hw.astype(np.int32)


def _counted(files: tuple[Path, ...], nodata: int, names: Mapping[int, str]) -> ClassMap:
    systems, bounds = [], []
    pixels: dict[int, int] = {}
    hectares: dict[int, float] = {}
    sizes: list[float] = []
    with progress("map", None, "strips") as bar:
        for path in files:
            with _opened(path) as raster:
                system = _system(path, raster)
                systems.append(system)
                bounds.append(tuple(raster.bounds))
                size_r = _row_hectares(path, raster, system)
                sizes += [float(size_r.min()), float(size_r.max())]
                for row, codes_hw in _strips(path, raster, nodata):
                    _add(codes_hw, size_r[row : row + len(codes_hw)], pixels, hectares)
                    if len(pixels) > _MOST_CODES:
                        raise SmaltiError(f"{path}: holds more than {_MOST_CODES} codes: it is no class map")
                    bar.advance()
    if not pixels:
        raise SmaltiError(f"{files[0]}: no pixel has a class (no data is {nodata}): give a map, or its legend")
    order = sorted(pixels)
    return ClassMap(
        files,
        tuple(systems),
        tuple(bounds),
        nodata,
        {**{code: str(code) for code in order if code not in names}, **names},
        {code: pixels[code] for code in order},
        {code: hectares[code] for code in order},
        max(sizes) <= 1.01 * min(sizes),
    )


def _add(
    codes_hw: NDArray[np.int32], size_r: NDArray[np.float64], pixels: dict[int, int], hectares: dict[int, float]
) -> None:
    width = int(codes_hw.max()) + 1
    if width == 0:
        return
    if size_r.min() == size_r.max():
        counts_c = np.bincount(codes_hw[codes_hw >= 0], minlength=width)
        areas_c = counts_c * size_r[0]
    else:
        rows = [np.bincount(codes[codes >= 0], minlength=width) for codes in codes_hw]
        counts_c = np.sum(rows, axis=0)
        areas_c = np.sum([row * size for row, size in zip(rows, size_r, strict=True)], axis=0)
    for code in np.flatnonzero(counts_c).tolist():
        pixels[code] = pixels.get(code, 0) + int(counts_c[code])
        hectares[code] = hectares.get(code, 0.0) + float(areas_c[code])


def _system(path: Path, raster: Any) -> CRS:
    try:
        system = CRS.from_user_input(raster.crs)
        Transformer.from_crs(4326, system, always_xy=True)
    except (ProjError, ValueError) as error:
        raise SmaltiError(f"{path}: its coordinate reference system is not understood ({error}): {_REMEDY}") from error
    if not (system.is_projected or system.is_geographic):
        raise SmaltiError(f"{path}: its coordinate reference system, {system.name!r}, is not one of places on Earth")
    return system


def _row_hectares(path: Path, raster: Any, system: CRS) -> NDArray[np.float64]:
    """(rows,) hectares of a pixel of each row."""
    height, step = raster.height, abs(raster.transform.a * raster.transform.e)
    epsg = system.to_epsg() or 0
    unit = system.axis_info[0].unit_conversion_factor or 1.0
    if system.is_projected and (epsg // 100 in (326, 327)):
        return np.full(height, step / 10_000)
    if system.is_geographic:
        top = raster.transform.f + raster.transform.e * np.arange(height + 1)
        zonal = np.diff(-_zonal(np.sin(top * unit), system))
        return np.asarray(zonal * abs(raster.transform.a) * unit / 10_000, dtype=np.float64)
    place = raster.transform
    x = np.full(height, place.c + place.a * raster.width / 2)
    y = place.f + place.e * (np.arange(height) + 0.5)
    longitude, latitude = Transformer.from_crs(system, system.geodetic_crs, always_xy=True).transform(x, y)
    scale = np.asarray(Proj(system).get_factors(longitude, latitude).areal_scale)
    if not np.isfinite(scale).all():
        raise SmaltiError(f"{path}: reaches beyond what its coordinate reference system can express: cut it")
    return np.asarray(step * unit**2 / scale / 10_000, dtype=np.float64)


def _zonal(sine: NDArray[np.float64], system: CRS) -> NDArray[np.float64]:
    """Square metres between the equator and a latitude, a radian wide (Snyder 1987, equation 3-12)."""
    geod = system.get_geod() or Geod(ellps="WGS84")
    e = float(np.sqrt(geod.es))
    whole = sine if e == 0 else sine / (1 - geod.es * sine**2) + np.arctanh(e * sine) / e
    scale = geod.a**2 if e == 0 else geod.b**2 / 2
    return np.asarray(scale * whole, dtype=np.float64)
