"""Archives of a few small scenes whose every pixel a test can reckon by hand, and runs on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine

from infer.contract import BANDS, Run, Tile, planned_tiles, read_tile
from preproc.plan.stage import PlanStage
from preproc.run.config import Config, load_config
from preproc.run.stage import run_stage
from preproc.tile.stage import FetchStage

SIZE = 32
"""Pixels along a tile."""
WEST, NORTH = 1788 * SIZE * 10, 17580 * SIZE * 10
"""Upper left corner of the tile that the runs look at, in zone 31N."""
EPSG = 32631
TEN_METRES = ("B02", "B03", "B04", "B08")


def write_raster(
    path: Path,
    values: NDArray[Any],
    *,
    pixel: float,
    west: float = WEST,
    north: float = NORTH,
    epsg: int | None = EPSG,
    nodata: float | None = None,
) -> Path:
    """One band as a tiled, compressed GeoTIFF with its corner at (west, north)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=values.dtype,
        count=1,
        height=values.shape[0],
        width=values.shape[1],
        crs=None if epsg is None else f"EPSG:{epsg}",
        transform=Affine(pixel, 0, west, 0, -pixel, north),
        nodata=nodata,
        tiled=True,
        blockxsize=16,
        blockysize=16,
        compress="deflate",
    ) as dataset:
        dataset.write(values, 1)
    return path


def outline(west: float, north: float, width: float, height: float, epsg: int) -> dict[str, Any]:
    """A rectangle in metres as GeoJSON in degrees."""
    back = Transformer.from_crs(epsg, 4326, always_xy=True)
    box = shapely.box(west, north - height, west + width, north)
    degrees = shapely.transform(box, lambda xy: np.column_stack(back.transform(xy[:, 0], xy[:, 1])))
    return dict(shapely.geometry.mapping(degrees))


class TinyArchive:
    """A static archive that grows scene by scene."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: list[dict[str, Any]] = []

    def s2(
        self,
        name: str,
        when: str,
        *,
        scl: NDArray[np.uint8] | int = 4,
        bands: Mapping[str, NDArray[np.uint16] | int] | int = 3000,
        west: int = WEST,
        north: int = NORTH,
        extent: int = SIZE * 10,
        epsg: int = EPSG,
        without: Sequence[str] = (),
    ) -> Path:
        """A granule of `extent` metres; values are arrays at the band's own resolution or one number for all pixels.

        Returns:
            Its folder.
        """
        place = self.folder / name
        assets = {}
        for band in (*BANDS, "SCL"):
            if band in without:
                continue
            pixel = 10 if band in TEN_METRES else 20
            dtype = np.uint8 if band == "SCL" else np.uint16
            value = scl if band == "SCL" else bands.get(band, 3000) if isinstance(bands, Mapping) else bands
            shape = (extent // pixel, extent // pixel)
            values = np.broadcast_to(np.asarray(value, dtype), shape)
            write_raster(place / f"{band}.tif", values, pixel=pixel, west=west, north=north, epsg=epsg, nodata=0)
            assets[band] = {"href": f"./{name}/{band}.tif"}
        self._item(name, "sentinel-2-l2a", when, assets, outline(west, north, extent, extent, epsg), epsg, {})
        return place

    def s1(
        self,
        name: str,
        when: str,
        *,
        vv: NDArray[np.float32] | float = 0.1,
        vh: NDArray[np.float32] | float = 0.02,
        orbit: str = "ascending",
        west: int = WEST,
        north: int = NORTH,
        extent: int = SIZE * 10,
        epsg: int = EPSG,
    ) -> Path:
        """A Sentinel-1 RTC scene at 10 m.

        Returns:
            Its folder.
        """
        place = self.folder / name
        assets = {}
        for band, value in (("vv", vv), ("vh", vh)):
            values = np.broadcast_to(np.asarray(value, np.float32), (extent // 10, extent // 10))
            write_raster(place / f"{band}.tif", values, pixel=10, west=west, north=north, epsg=epsg, nodata=-32768)
            assets[band] = {"href": f"./{name}/{band}.tif"}
        where = outline(west, north, extent, extent, epsg)
        self._item(name, "sentinel-1-rtc", when, assets, where, epsg, {"sat:orbit_state": orbit})
        return place

    def _item(
        self, name: str, collection: str, when: str, assets: Any, geometry: Any, epsg: int, more: Mapping[str, Any]
    ) -> None:
        self.items.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": name,
                "collection": collection,
                "geometry": geometry,
                "bbox": list(shapely.geometry.shape(geometry).bounds),
                "properties": {
                    "datetime": f"{when}Z" if "T" in when else f"{when}T10:30:00Z",
                    "proj:epsg": epsg,
                    **more,
                },
                "assets": assets,
                "links": [],
            }
        )

    def save(self, base: str = "") -> Path:
        """Write items.json; `base` is put before every href (the address of a server, say)."""
        text = json.dumps({"type": "FeatureCollection", "features": self.items}, indent=1)
        path = self.folder / "items.json"
        path.write_text(text.replace('"./', f'"{base}/') if base else text)
        return path

    def run(
        self,
        root: Path,
        *,
        shrink: int = 15,
        tiles: tuple[int, int] = (1, 1),
        start: date = date(2021, 6, 1),
        end: date = date(2022, 6, 30),
        base: str = "",
        archive: str = "",
        min_clear: float = 0.05,
    ) -> tuple[Run, Config]:
        """A planned run on `tiles` (down, across) tiles from the corner on.

        Args:
            root: where.
            shrink: metres that the region stays within the tiles' outer edge.
            tiles: how many.
            start: first day.
            end: last day.
            base: see `save`.
            archive: more lines for section [archive].
            min_clear: see docs.
        """
        items = self.save(base)
        root.mkdir(parents=True, exist_ok=True)
        down, across = tiles
        region = outline(
            WEST + shrink, NORTH - shrink, across * SIZE * 10 - 2 * shrink, down * SIZE * 10 - 2 * shrink, EPSG
        )
        (root / "region.geojson").write_text(
            json.dumps(
                {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": region}]}
            )
        )
        (root / "run.toml").write_text(
            f'[region]\ngeometry = "region.geojson"\nstart = "{start}"\nend = "{end}"\n'
            f'[archive]\nsource = "static"\nhref = "{items}"\n{archive}\n'
            f"[tiles]\nsize = {SIZE}\nmin_clear = {min_clear}\n"
        )
        run = Run(root)
        config = load_config(run)
        run_stage(PlanStage(), run, config)
        return run, config


def fetch(run: Run, config: Config) -> Tile:
    """Fetch all tiles and open the first."""
    run_stage(FetchStage(), run, config)
    return read_tile(run.tiles / planned_tiles(run)[0].name, need_manifest=True)
