"""STAC items shaped like Planetary Computer's. Pure: from passes and statistics to JSON.

Modelled on recorded items of the collections `sentinel-2-l2a` and `sentinel-1-rtc`; hrefs are relative and unsigned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import mapping, shape

from infer.contract import JsonObject
from preproc.simulate import clouds
from preproc.simulate.grid import Grid
from preproc.simulate.schedule import S1Pass, S2Pass

S2_COLLECTION = "sentinel-2-l2a"
S1_COLLECTION = "sentinel-1-rtc"
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"

_S2_BANDS: dict[str, tuple[str, str, float, float, int]] = {
    "B02": ("Band 2 - Blue - 10m", "blue", 0.49, 0.098, 10),
    "B03": ("Band 3 - Green - 10m", "green", 0.56, 0.045, 10),
    "B04": ("Band 4 - Red - 10m", "red", 0.665, 0.038, 10),
    "B05": ("Band 5 - Vegetation red edge 1 - 20m", "rededge", 0.704, 0.019, 20),
    "B06": ("Band 6 - Vegetation red edge 2 - 20m", "rededge", 0.74, 0.018, 20),
    "B07": ("Band 7 - Vegetation red edge 3 - 20m", "rededge", 0.783, 0.028, 20),
    "B08": ("Band 8 - NIR - 10m", "nir", 0.842, 0.145, 10),
    "B8A": ("Band 8A - Vegetation red edge 4 - 20m", "rededge", 0.865, 0.033, 20),
    "B11": ("Band 11 - SWIR (1.6) - 20m", "swir16", 1.61, 0.143, 20),
    "B12": ("Band 12 - SWIR (2.2) - 20m", "swir22", 2.19, 0.242, 20),
}
S2_ASSETS = (*_S2_BANDS, "SCL")
_POLARISATION = {"V": "vertical", "H": "horizontal"}


@dataclass(frozen=True)
class Processing:
    """One processing of a Sentinel-2 granule."""

    baseline: str
    """For example 04.00."""
    moment: datetime
    """Generation time."""
    strip: int = 0
    """Number of the datastrip within the datatake."""


def first_processing(item: S2Pass, strip: int = 0) -> Processing:
    """The processing within hours of the pass; a second datastrip comes a little later."""
    later = timedelta(hours=9, minutes=13, seconds=41) + strip * timedelta(minutes=47, seconds=13)
    return Processing(item.baseline, item.moment + later, strip)


def second_processing(item: S2Pass) -> Processing:
    """A reprocessing months later. Before 2022 by a baseline that still adds no offset, so that the date decides."""
    baseline = item.baseline if item.offset else "03.01"
    return Processing(baseline, item.moment + timedelta(days=171, hours=3, minutes=8))


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%S}"


def s2_id(item: S2Pass, tile: str, processing: Processing) -> str:
    """For example S2B_MSIL2A_20220419T104619_R008_T31UFS_20220419T200000."""
    return f"S2{item.platform}_MSIL2A_{_stamp(item.moment)}_R{item.orbit:03d}_T{tile}_{_stamp(processing.moment)}"


def s1_id(item: S1Pass, part: int) -> str:
    """For example S1A_IW_GRDH_1SDV_20220414T172431_20220414T172456_042777_051AC2_rtc."""
    start, end = s1_times(item, part)
    mode = "1SDV" if len(item.polarisations) == 2 else "1SSV"
    take = (item.absolute_orbit * 7919 + part) % 0x100000
    return f"S1{item.platform}_IW_GRDH_{mode}_{_stamp(start)}_{_stamp(end)}_{item.absolute_orbit:06d}_{take:06X}_rtc"


def s1_times(item: S1Pass, part: int) -> tuple[datetime, datetime]:
    """Start and end of a slice; slices are 25 s long and follow one another."""
    start = item.moment + part * timedelta(seconds=25)
    return start, start + timedelta(seconds=25)


def _item(
    identity: str, collection: str, outline: Any, properties: JsonObject, assets: Any, extensions: Sequence[str]
) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [_EXTENSION.format(name) for name in extensions],
        "id": identity,
        "collection": collection,
        "geometry": _rounded(mapping(outline)),
        "bbox": [round(value, 7) for value in outline.bounds],
        "properties": dict(properties),
        "links": [{"rel": "collection", "type": "application/json", "href": f"./{collection}/collection.json"}],
        "assets": assets,
    }


def _rounded(geometry: JsonObject) -> dict[str, Any]:
    rings = [[[round(x, 7), round(y, 7)] for x, y in ring] for ring in geometry["coordinates"]]
    return {"type": geometry["type"], "coordinates": rings}


def _projection(grid: Grid, pixel: int) -> dict[str, Any]:
    return {
        "proj:bbox": [float(value) for value in grid.bounds],
        "proj:shape": [grid.height * 10 // pixel, grid.width * 10 // pixel],
        "proj:transform": list(grid.transform(pixel)),
    }


def percentages(scl: NDArray[np.uint8]) -> dict[str, float]:
    """The `s2:*_percentage` properties and the cloud cover, from a scene classification."""
    counts = np.bincount(scl.ravel(), minlength=12)
    seen = max(int(counts[1:].sum()), 1)

    def share(*classes: int) -> float:
        return round(100 * float(sum(int(counts[c]) for c in classes)) / seen, 6)

    return {
        "eo:cloud_cover": share(clouds.MEDIUM, clouds.HIGH, clouds.CIRRUS),
        "s2:nodata_pixel_percentage": round(100 * float(counts[0]) / scl.size, 6),
        "s2:saturated_defective_pixel_percentage": share(clouds.SATURATED),
        "s2:dark_features_percentage": share(clouds.DARK),
        "s2:cloud_shadow_percentage": share(clouds.SHADOW),
        "s2:vegetation_percentage": share(clouds.VEGETATION),
        "s2:not_vegetated_percentage": share(clouds.BARE),
        "s2:water_percentage": share(clouds.WATER),
        "s2:unclassified_percentage": share(clouds.UNCLASSIFIED),
        "s2:medium_proba_clouds_percentage": share(clouds.MEDIUM),
        "s2:high_proba_clouds_percentage": share(clouds.HIGH),
        "s2:thin_cirrus_percentage": share(clouds.CIRRUS),
        "s2:snow_ice_percentage": share(clouds.SNOW),
    }


def s2_item(
    item: S2Pass,
    grid: Grid,
    tile: str,
    processing: Processing,
    *,
    outline: Any,
    scl: NDArray[np.uint8],
    sun: tuple[float, float],
    assets: Sequence[str],
) -> dict[str, Any]:
    """The item of one granule.

    Args:
        item: the pass.
        grid: the granule's grid.
        tile: its MGRS name.
        processing: which processing.
        outline: shapely polygon of what was seen, degrees.
        scl: its scene classification, from which the percentages come.
        sun: zenith and azimuth in degrees.
        assets: names of the assets that exist.

    Returns:
        A STAC item with hrefs relative to the archive's folder.
    """
    identity = s2_id(item, tile, processing)
    stamp, made = _stamp(item.moment), _stamp(processing.moment)
    number, suffix = f"{item.absolute_orbit:06d}", f"N{processing.baseline}"
    sensed = item.moment + timedelta(seconds=2 + 17 * processing.strip)
    station = "2BPS" if processing.strip == 0 else "VGS4"
    folder = f"S2{item.platform}_OPER_MSI_L2A"
    properties: dict[str, Any] = {
        "datetime": f"{item.moment:%Y-%m-%dT%H:%M:%S}.024000Z",
        "platform": f"Sentinel-2{item.platform}",
        "smalti:simulated": True,
        "constellation": "Sentinel 2",
        "instruments": ["msi"],
        "proj:epsg": grid.epsg,
        "sat:orbit_state": "descending",
        "sat:relative_orbit": item.orbit,
        "s2:mgrs_tile": tile,
        "s2:datatake_id": f"GS2{item.platform}_{stamp}_{number}_{suffix}",
        "s2:datastrip_id": f"{folder}_DS_{station}_{made}_S{_stamp(sensed)}_{suffix}",
        "s2:granule_id": f"{folder}_TL_{station}_{made}_A{number}_T{tile}_{suffix}",
        "s2:product_uri": (
            f"S2{item.platform}_MSIL2A_{stamp}_N{processing.baseline.replace('.', '')}"
            f"_R{item.orbit:03d}_T{tile}_{made}.SAFE"
        ),
        "s2:product_type": "S2MSI2A",
        "s2:datatake_type": "INS-NOBS",
        "s2:processing_baseline": processing.baseline,
        "s2:generation_time": f"{processing.moment:%Y-%m-%dT%H:%M:%S}.000000Z",
        "s2:mean_solar_zenith": round(sun[0], 6),
        "s2:mean_solar_azimuth": round(sun[1], 6),
        "s2:degraded_msi_data_percentage": 0.0,
        **percentages(scl),
    }
    described = {name: _s2_asset(identity, name, grid) for name in assets}
    return _item(
        identity, S2_COLLECTION, outline, properties, described, ("eo/v1.0.0", "sat/v1.0.0", "projection/v1.0.0")
    )


def _s2_asset(identity: str, name: str, grid: Grid) -> dict[str, Any]:
    title, common, centre, width, pixel = _S2_BANDS.get(name, ("Scene classfication map (SCL)", "", 0.0, 0.0, 20))
    asset: dict[str, Any] = {
        "href": f"./{S2_COLLECTION}/{identity}/{name}.tif",
        "type": COG_TYPE,
        "roles": ["data"],
        "title": title,
        "gsd": float(pixel),
        **_projection(grid, pixel),
    }
    if common:
        description = title.rsplit(" - ", 1)[0]
        asset["eo:bands"] = [
            {
                "name": name,
                "common_name": common,
                "description": description,
                "center_wavelength": centre,
                "full_width_half_max": width,
            }
        ]
    return asset


def s1_item(item: S1Pass, part: int, grid: Grid, *, outline: Any) -> dict[str, Any]:
    """The item of one radar product (slice `part` of the pass)."""
    identity = s1_id(item, part)
    start, end = s1_times(item, part)
    middle = start + (end - start) / 2
    projection = _projection(grid, 10)
    properties: dict[str, Any] = {
        "datetime": f"{middle:%Y-%m-%dT%H:%M:%S.%f}Z",
        "start_datetime": f"{start:%Y-%m-%d %H:%M:%S}.000001+00:00",
        "end_datetime": f"{end:%Y-%m-%d %H:%M:%S}.000001+00:00",
        "platform": f"SENTINEL-1{item.platform}",
        "smalti:simulated": True,
        "constellation": "Sentinel-1",
        "sat:orbit_state": item.orbit,
        "sat:relative_orbit": item.relative_orbit,
        "sat:absolute_orbit": item.absolute_orbit,
        "sar:polarizations": list(item.polarisations),
        "sar:instrument_mode": "IW",
        "sar:product_type": "GRD",
        "sar:frequency_band": "C",
        "sar:center_frequency": 5.405,
        "sar:looks_range": 5,
        "sar:looks_azimuth": 1,
        "sar:looks_equivalent_number": 4.4,
        "sar:pixel_spacing_range": 10,
        "sar:pixel_spacing_azimuth": 10,
        "sar:resolution_range": 20,
        "sar:resolution_azimuth": 22,
        "sar:observation_direction": "right",
        "s1:shape": [grid.width, grid.height],
        "s1:resolution": "high",
        "s1:processing_level": "1",
        "s1:product_timeliness": "NRT-3h",
        "s1:orbit_source": "PREORB",
        "s1:slice_number": str(10 + part),
        "s1:instrument_configuration_ID": "7",
        "s1:datatake_id": str(item.absolute_orbit * 8 + 1),
        "proj:epsg": grid.epsg,
        **projection,
        "proj:transform": [*projection["proj:transform"], 0.0, 0.0, 1.0],
    }
    assets = {name.lower(): _s1_asset(identity, name) for name in item.polarisations}
    extensions = ("sar/v1.0.0", "sat/v1.0.0", "projection/v1.1.0", "raster/v1.1.0")
    return _item(identity, S1_COLLECTION, outline, properties, assets, extensions)


def _s1_asset(identity: str, name: str) -> dict[str, Any]:
    sent, received = (_POLARISATION[letter] for letter in name)
    return {
        "href": f"./{S1_COLLECTION}/{identity}/{name.lower()}.tif",
        "type": COG_TYPE,
        "roles": ["data"],
        "title": f"{name}: {sent} transmit, {received} receive",
        "description": (
            f"Terrain-corrected gamma naught values of signal transmitted with {sent} polarization and received with "
            f"{received} polarization with radiometric terrain correction applied."
        ),
        "raster:bands": [{"nodata": -32768, "data_type": "float32", "spatial_resolution": 10.0}],
    }


def item_collection(items: Sequence[JsonObject]) -> dict[str, Any]:
    """A STAC item collection, by date and then name."""
    ordered = sorted(items, key=lambda item: (item["properties"]["datetime"], item["id"]))
    return {"type": "FeatureCollection", "features": list(ordered)}


def collections(items: Sequence[JsonObject]) -> list[dict[str, Any]]:
    """The STAC collections of these items, without links."""
    described = {
        S2_COLLECTION: ("Sentinel-2 Level-2A (simulated)", "Surface reflectance of a made-up landscape."),
        S1_COLLECTION: ("Sentinel-1 RTC (simulated)", "Terrain-corrected backscatter of a made-up landscape."),
    }
    result = []
    for name, (title, description) in described.items():
        own = [item for item in items if item["collection"] == name]
        if not own:
            continue
        bounds = np.array([shape(item["geometry"]).bounds for item in own])
        times = sorted(item["properties"]["datetime"] for item in own)
        result.append(
            {
                "type": "Collection",
                "id": name,
                "stac_version": "1.0.0",
                "title": title,
                "description": description + " Not measured by any satellite.",
                "license": "CC0-1.0",
                "extent": {
                    "spatial": {"bbox": [[*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()]]},
                    "temporal": {"interval": [[times[0], times[-1]]]},
                },
                "links": [],
            }
        )
    return result
