"""Items of the live services, as recorded: what each becomes, or why it is refused."""

from __future__ import annotations

import copy
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyproj
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.recorded import STAC_ITEMS

from infer.contract import BANDS, SmaltiError
from preproc.catalogue.declared import epsg_of
from preproc.catalogue.items import SceneIndex, parse_items, stored, within
from preproc.catalogue.offset import contradicts_date
from preproc.catalogue.scene import OffsetBasis, OffsetPolicy, Scene
from preproc.catalogue.sources import CATALOGUES, EARTH_SEARCH_S2, MPC_S1, MPC_S2, Rejected, parse_item
from preproc.reader.hrefs import absolute, unsigned
from preproc.region.region import Region
from preproc.run.config import Archive, Config
from preproc.tile.recipe import scene_record

STATIC = Archive(source="static", href="/archive/items.json")
REMOTE = Archive(source="static", href="https://x.org/a.json")
MPC = Archive(source="mpc")
EARTH_SEARCH = Archive(source="earth-search")
SUBTRACT, NONE, BY_PIXELS = OffsetPolicy.SUBTRACT_1000, OffsetPolicy.NONE, OffsetPolicy.BY_PIXELS

S2_BANDS = {*BANDS, "SCL"}
EARTH_SEARCH_FILES = {
    "red": "B04",
    "blue": "B02",
    "green": "B03",
    "nir": "B08",
    "nir08": "B8A",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "swir16": "B11",
    "swir22": "B12",
    "scl": "SCL",
}


def features() -> list[tuple[str, dict[str, Any]]]:
    """Every recorded item with assets, and the file that it is in."""
    found = []
    for path in sorted(STAC_ITEMS.rglob("*.json")):
        content = json.loads(path.read_text())
        content = content.get("response", content) if isinstance(content, dict) else content
        items = content.get("features", [content]) if isinstance(content, dict) else content
        found += [
            (path.relative_to(STAC_ITEMS).as_posix(), item)
            for item in items
            if isinstance(item, dict) and item.get("type") == "Feature" and item.get("id")
        ]
    return found


ITEMS = features()


def of_collection(name: str) -> list[Any]:
    return [
        pytest.param(item, id=f"{number}-{item['id']}")
        for number, (_, item) in enumerate(ITEMS)
        if item.get("collection") == name and item.get("assets")
    ]


def is_mpc(item: dict[str, Any]) -> bool:
    return "B02" in item["assets"]


@pytest.mark.parametrize("item", [p for p in of_collection("sentinel-2-l2a") if is_mpc(p.values[0])])
@pytest.mark.parametrize("archive", [MPC, STATIC], ids=["api", "static"])
def test_planetary_computer_sentinel_2(item: dict[str, Any], archive: Archive) -> None:
    scene = parse_item(item, "/archive/items.json", archive)
    assert isinstance(scene, Scene)
    assert scene.modality == "s2"
    assert set(scene.assets) == S2_BANDS
    for band, href in scene.assets.items():
        assert f"_{band}_" in href, "a band must not be taken for another"
    assert scene.acquired.strftime("%Y%m%dT%H%M%S") == item["id"].split("_")[2]
    assert scene.offset is (SUBTRACT if float(item["properties"]["s2:processing_baseline"]) >= 4 else NONE)
    assert scene.orbit is None
    assert scene.data_source == "mpc"
    assert scene.epsg == 32600 + int(item["properties"]["s2:mgrs_tile"][:2])
    assert shapely.from_wkt(scene.footprint).area > 0


@pytest.mark.parametrize("item", of_collection("sentinel-1-rtc"))
@pytest.mark.parametrize("archive", [MPC, STATIC], ids=["api", "static"])
def test_planetary_computer_sentinel_1(item: dict[str, Any], archive: Archive) -> None:
    scene = parse_item(item, "/archive/items.json", archive)
    assert isinstance(scene, Scene)
    assert scene.modality == "s1"
    assert {band: href.rpartition("/")[2] for band, href in scene.assets.items()} == {
        "VV": "iw-vv.rtc.tiff",
        "VH": "iw-vh.rtc.tiff",
    }
    assert scene.orbit == item["properties"]["sat:orbit_state"]
    assert scene.offset is NONE
    assert f"{scene.day:%Y%m%d}" in scene.id
    assert scene.epsg == item["properties"]["proj:epsg"]
    assert scene.data_source == "mpc"


@pytest.mark.parametrize(
    "item", [p for p in of_collection("sentinel-2-l2a") if not is_mpc(p.values[0])] + of_collection("sentinel-2-c1-l2a")
)
@pytest.mark.parametrize("archive", [EARTH_SEARCH, STATIC], ids=["api", "static"])
def test_earth_search_sentinel_2(item: dict[str, Any], archive: Archive) -> None:
    """All of them declare offset -0.1; in sentinel-2-l2a it is applied already (the double-offset trap)."""
    assert item["assets"]["red"]["raster:bands"][0]["offset"] == -0.1
    scene = parse_item(item, "/archive/items.json", archive)
    assert isinstance(scene, Scene)
    assert set(scene.assets) == S2_BANDS
    for key, band in EARTH_SEARCH_FILES.items():
        assert scene.assets[band] == item["assets"][key]["href"]
        assert scene.assets[band].endswith(f"/{band}.tif")
    assert scene.offset is (NONE if item["collection"] == "sentinel-2-l2a" else SUBTRACT)
    assert scene.data_source == "aws"
    assert scene.epsg == item["properties"]["proj:epsg"]


REFUSED = {
    "landsat-c2-l2": "Landsat is not used",
    "sentinel-2-l1c": "level 1C is not corrected for the atmosphere",
    "sentinel-1-grd": "GRD is not terrain-corrected",
    "sentinel1-grd": "GRD is not terrain-corrected",
    "sentinel1-slc": "SLC is not terrain-corrected",
    "sentinel-s2-l2a-cogs": "Earth Search v0 is retired",
    "sentinel1-rtc-aws": "assets smalti does not know",
}


@pytest.mark.parametrize("item", [p for name in REFUSED for p in of_collection(name)])
def test_what_tessera_cannot_use_is_refused_with_a_reason(item: dict[str, Any]) -> None:
    rejected = parse_item(item, "", STATIC)
    assert isinstance(rejected, Rejected)
    assert REFUSED[item["collection"]] in rejected.reason


def test_every_recorded_item_is_covered_by_one_of_these_tests() -> None:
    known = {"sentinel-2-l2a", "sentinel-1-rtc", "sentinel-2-c1-l2a", *REFUSED}
    assert known <= {item.get("collection") for _, item in ITEMS if item.get("assets")}, "a test above has no items"
    others = {(path, item["id"]) for path, item in ITEMS if item.get("collection") not in known}
    assert {path for path, _ in others} <= {"planetary-computer-tasks/sentinel-1-grd_sentinel-1-grd-item-raw.json"}
    for path, item in ITEMS:
        if path.endswith("grd-item-raw.json") or not item.get("assets"):
            assert isinstance(parse_item(item, "", STATIC), Rejected)


def s2_item(**properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": "S2A_MSIL2A_20230108T105421_R051_T31UES_20230109T000000",
        "collection": "sentinel-2-l2a",
        "bbox": [4, 50, 5, 51],
        "properties": {"datetime": "2023-01-08T10:54:21Z", **properties},
        "assets": {name: {"href": f"https://x.org/{name}.tif"} for name in MPC_S2.assets.values()},
    }


def declaring(asset: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """An item like Planetary Computer's, every asset of which says more."""
    item = s2_item(**properties)
    return {**item, "assets": {key: {**known, **asset} for key, known in item["assets"].items()}}


def earth_search_item(
    collection: str = "sentinel-2-l2a", offset: float | None = -0.1, at: str = "https://x.org", **properties: Any
) -> dict[str, Any]:
    bands = {} if offset is None else {"raster:bands": [{"scale": 0.0001, "offset": offset}]}
    assets = {name: {"href": f"{at}/{name}.tif", **bands} for name in EARTH_SEARCH_S2.assets.values()}
    return {**s2_item(**properties), "collection": collection, "assets": assets}


def s1_item(*assets: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": "S1A_IW_GRDH_1SDV_20240419T045904_20240419T045916_053498_067DF2_rtc",
        "collection": "sentinel-1-rtc",
        "bbox": [4, 50, 5, 51],
        "properties": {"datetime": "2024-04-19T04:59:10Z", "sat:orbit_state": "descending", **properties},
        "assets": {name: {"href": f"https://x.org/{name}.tif"} for name in assets},
    }


@pytest.mark.parametrize(
    ("item", "archive", "expected"),
    [
        (s2_item(datetime="2022-01-25T23:59:59Z"), MPC, NONE),
        (s2_item(datetime="2022-01-26T00:00:00Z"), MPC, SUBTRACT),
        # what an item states counts more than its date, which decides where it states nothing
        (s2_item(datetime="2021-06-01T00:00:00Z", **{"s2:processing_baseline": "05.00"}), MPC, SUBTRACT),
        (s2_item(datetime="2021-06-01T00:00:00Z", **{"s2:processing_baseline": 5}), STATIC, SUBTRACT),
        (s2_item(datetime="2022-01-25T10:00:00Z", **{"s2:processing_baseline": "04.00"}), MPC, SUBTRACT),
        (s2_item(datetime="2022-02-03T10:00:00Z", **{"s2:processing_baseline": "03.01"}), MPC, NONE),
        (s2_item(datetime="2022-02-03T10:00:00Z", **{"s2:processing_baseline": "N0301"}), MPC, NONE),
        (s2_item(datetime="2022-02-03T10:00:00Z", **{"processing:version": "03.01"}), MPC, NONE),
        (s2_item(datetime="2022-02-03T10:00:00Z", **{"processing:version": "1.2"}), MPC, SUBTRACT),
        (s2_item(**{"s2:product_uri": "S2A_MSIL2A_20230108T105421_N0301_R051_T31UES_X.SAFE"}), MPC, NONE),
        (s2_item(datetime="2021-06-01T00:00:00Z", **{"s2:processing_baseline": None}), MPC, NONE),
        (s2_item(datetime="2021-06-01T00:00:00Z", **{"s2:processing_baseline": True}), MPC, NONE),
        (s2_item(datetime="2021-06-01T00:00:00Z", **{"s2:processing_baseline": ["05.00"]}), MPC, NONE),
        # STAC 1.1: on the asset, or in its bands
        (declaring({"raster:offset": 0}), MPC, NONE),
        (declaring({"raster:offset": "-0.1"}, datetime="2021-06-01T00:00:00Z"), MPC, SUBTRACT),
        (declaring({"bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}]}, datetime="2021-06-01"), MPC, SUBTRACT),
        (declaring({"bands": [{"raster:offset": 0}], "raster:bands": 3}), MPC, NONE),
        (declaring({"raster:offset": -0.1}, **{"s2:processing_baseline": "02.14"}), MPC, NONE),
        (declaring({"raster:offset": None, "bands": [None, {"raster:offset": "x"}]}), MPC, SUBTRACT),
        (s2_item(datetime="2022-01-26T00:30:00+01:00"), MPC, NONE),
        (earth_search_item(**{"earthsearch:boa_offset_applied": True}), EARTH_SEARCH, NONE),
        (
            earth_search_item(**{"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}),
            STATIC,
            NONE,
        ),
        (
            earth_search_item(**{"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "05.09"}),
            EARTH_SEARCH,
            BY_PIXELS,
        ),
        (earth_search_item(**{"sentinel:boa_offset_applied": "True"}), EARTH_SEARCH, NONE),
        # the flag is missing on ESA's originals, in whose numbers the offset is; Element 84's own copies are without
        (earth_search_item(**{"s2:processing_baseline": "05.09"}), EARTH_SEARCH, BY_PIXELS),
        (earth_search_item(**{"earthsearch:s3_path": "s3://sentinel-cogs/a"}), EARTH_SEARCH, NONE),
        (earth_search_item(at="https://sentinel-cogs.s3.us-west-2.amazonaws.com/a"), EARTH_SEARCH, NONE),
        (earth_search_item(at="http://127.0.0.1:8000/sentinel-cogs/sentinel-s2-l2a-cogs/1"), EARTH_SEARCH, NONE),
        (earth_search_item(at="http://["), EARTH_SEARCH, None),
        (earth_search_item(at="s3://sentinel-s2-l2a/tiles/1/C/DH"), EARTH_SEARCH, SUBTRACT),
        (earth_search_item(at="https://s3.eu-central-1.amazonaws.com/sentinel-s2-l2a/x"), EARTH_SEARCH, SUBTRACT),
        (
            earth_search_item(at="s3://sentinel-s2-l2a/tiles/1", **{"earthsearch:boa_offset_applied": True}),
            EARTH_SEARCH,
            BY_PIXELS,
        ),
        (
            earth_search_item(**{"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "03.01"}),
            EARTH_SEARCH,
            NONE,
        ),
        (
            earth_search_item(offset=0, **{"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "02.14"}),
            EARTH_SEARCH,
            NONE,
        ),
        (earth_search_item("sentinel-2-c1-l2a", **{"s2:processing_baseline": "05.11"}), EARTH_SEARCH, SUBTRACT),
        (
            earth_search_item(
                "sentinel-2-c1-l2a", datetime="2018-07-01T00:00:00Z", **{"s2:processing_baseline": "05.00"}
            ),
            EARTH_SEARCH,
            SUBTRACT,
        ),
        (earth_search_item("sentinel-2-c1-l2a", offset=0), EARTH_SEARCH, NONE),
        (earth_search_item(datetime="2019-07-01T00:00:00Z"), EARTH_SEARCH, NONE),
        (earth_search_item(), Archive(source="static", href="x", data_source="mpc"), SUBTRACT),
        (
            earth_search_item(**{"earthsearch:boa_offset_applied": True}),
            Archive(source="static", href="x", data_source="mpc"),
            NONE,
        ),
        (
            earth_search_item(**{"earthsearch:boa_offset_applied": True}),
            Archive(source="static", href="x", data_source="other"),
            NONE,
        ),
    ],
)
def test_the_offset_policy(item: dict[str, Any], archive: Archive, expected: OffsetPolicy | None) -> None:
    scene = parse_item(item, "/a/items.json", archive)
    assert (scene.offset if isinstance(scene, Scene) else None) is expected


def test_what_the_offset_rests_on_is_named_and_dates_that_disagree_are_found() -> None:
    for properties, basis, doubtful in (
        ({"s2:processing_baseline": "05.00", "datetime": "2021-06-01"}, OffsetBasis.BASELINE, True),
        ({"s2:processing_baseline": "05.00", "datetime": "2023-06-01"}, OffsetBasis.BASELINE, False),
        ({"s2:processing_baseline": "03.01", "datetime": "2022-02-03"}, OffsetBasis.BASELINE, True),
        ({"datetime": "2022-02-03"}, OffsetBasis.DATE, False),
    ):
        scene = parse_item(s2_item(**properties), "", MPC)
        assert isinstance(scene, Scene)
        assert (scene.offset_basis, contradicts_date(scene)) == (basis, doubtful)


@pytest.mark.parametrize(
    "declared",
    [
        {"proj:epsg": 32631},
        {"proj:epsg": 32631.0},
        {"proj:epsg": "32631"},
        {"proj:epsg": "epsg:32631"},
        {"proj:code": "epsg:32631"},
        {"proj:code": "urn:ogc:def:crs:EPSG::32631"},
        {"proj:epsg": None, "proj:wkt2": pyproj.CRS.from_epsg(32631).to_wkt()},
        {"proj:epsg": None, "proj:projjson": pyproj.CRS.from_epsg(32631).to_json_dict()},
    ],
    ids=str,
)
def test_a_crs_is_understood_in_any_form(declared: dict[str, Any]) -> None:
    assert epsg_of(declared) == 32631
    scene = parse_item(s1_item("vv", "vh", **declared), "", MPC)
    assert isinstance(scene, Scene)
    assert scene.epsg == 32631


@pytest.mark.parametrize(
    ("declared", "epsg"),
    [({}, 32631), ({"proj:epsg": 32632}, 32631), ({"proj:epsg": 3035}, 3035), ({"proj:wkt2": "no"}, 32631)],
)
def test_the_mgrs_tile_tells_the_zone_of_a_granule(declared: dict[str, Any], epsg: int) -> None:
    scene = parse_item(s2_item(**declared), "", MPC)
    assert isinstance(scene, Scene)
    assert scene.epsg == epsg


def test_data_source_of_the_settings_overrides_that_of_the_item() -> None:
    for source in ("mpc", "aws", "other"):
        archive = Archive(source="static", href="x", data_source=source)
        item = earth_search_item(**{"earthsearch:boa_offset_applied": True})
        scene = parse_item(item, "", archive)
        assert isinstance(scene, Scene)
        assert scene.data_source == source


@pytest.mark.parametrize("assets", [("vv",), ("hh", "hv"), ("vh",), ("hh",)])
def test_single_and_other_polarisations_are_rejected(assets: tuple[str, ...]) -> None:
    rejected = parse_item(s1_item(*assets), "", MPC)
    assert isinstance(rejected, Rejected)
    assert "lacks VV or VH" in rejected.reason


@pytest.mark.parametrize("orbit", [None, "unknown", ""])
def test_sentinel_1_without_an_orbit_is_rejected(orbit: str | None) -> None:
    rejected = parse_item(s1_item("vv", "vh", **{"sat:orbit_state": orbit}), "", MPC)
    assert isinstance(rejected, Rejected)
    assert "sat:orbit_state is" in rejected.reason


def test_a_missing_band_leaves_the_scene_with_fewer_assets() -> None:
    item = s2_item()
    del item["assets"]["B11"]
    scene = parse_item(item, "/a/items.json", MPC)
    assert isinstance(scene, Scene)
    assert set(scene.assets) == S2_BANDS - {"B11"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"properties": {}}, "has no readable datetime"),
        ({"properties": {"datetime": "yesterday"}}, "has no readable datetime"),
        ({"bbox": None}, "neither a geometry nor a bbox"),
        ({"bbox": None, "geometry": {"type": "Polygon", "coordinates": "no"}}, "neither a geometry nor a bbox"),
        ({"assets": {}}, "has no assets"),
        ({"assets": {"thumbnail": {"href": "x.png"}}}, "none of the Sentinel-2 bands"),
        ({"collection": "modis", "assets": {"lst": {"href": "x.tif"}}}, "assets smalti does not know"),
    ],
)
def test_broken_items_are_rejected_with_a_reason(change: dict[str, Any], reason: str) -> None:
    rejected = parse_item({**s2_item(), **change}, "", STATIC)
    assert isinstance(rejected, Rejected)
    assert reason in rejected.reason


def test_lower_case_times_are_times() -> None:
    scene = parse_item(s2_item(datetime="2023-01-08t10:54:21z"), "", MPC)
    assert isinstance(scene, Scene)
    assert scene.acquired.isoformat() == "2023-01-08T10:54:21+00:00"


def test_start_datetime_stands_in_for_a_null_datetime() -> None:
    item = s2_item(datetime=None, start_datetime="2023-01-08 10:54:21.024000+00:00")
    scene = parse_item(item, "", MPC)
    assert isinstance(scene, Scene)
    assert scene.acquired.isoformat() == "2023-01-08T10:54:21.024000+00:00"


def test_a_footprint_across_the_antimeridian_is_cut() -> None:
    ring = [[179.5, -17], [-179.5, -17], [-179.5, -16], [179.5, -16], [179.5, -17]]
    item = {**s2_item(), "geometry": {"type": "Polygon", "coordinates": [ring]}}
    scene = parse_item(item, "", MPC)
    assert isinstance(scene, Scene)
    assert shapely.from_wkt(scene.footprint).area == pytest.approx(1.0)


SQUARE = [[4, 50], [5, 50], [5, 51], [4, 51], [4, 50]]


@pytest.mark.parametrize(
    "geometry",
    [
        None,
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]},
        {"type": "Polygon", "coordinates": [[[4, 50], [5, 51], [4, 50]]]},
        {"type": "Polygon", "coordinates": [[[1e9, 50], [5, 51], [4, 50], [1e9, 50]]]},
        {"type": "Polygon", "coordinates": [[[float("nan"), 50], [5, 51], [4, 50], [float("nan"), 50]]]},
        {"type": "LineString", "coordinates": [[4, 50], [5, 51]]},
        {"type": "Polygon"},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE]}]},
        "POLYGON EMPTY",
    ],
    ids=lambda geometry: str(geometry)[:60],
)
def test_where_the_geometry_tells_no_place_the_bbox_does(geometry: Any) -> None:
    scene = parse_item({**s2_item(), "geometry": geometry}, "", MPC)
    assert isinstance(scene, Scene)
    assert shapely.from_wkt(scene.footprint).bounds == (4, 50, 5, 51)


def test_of_alternate_hrefs_the_first_that_can_be_read_is_taken() -> None:
    item = s2_item()
    for asset in item["assets"].values():
        asset["alternate"] = {"no": {"href": None}, "ftp": {"href": "ftp://x/y.tif"}, "s3": {"href": "s3://b/y.tif"}}
    item["assets"]["B02"]["href"] = "sftp://x/B02.tif"
    del item["assets"]["B03"]["href"]
    scene = parse_item(item, "", MPC)
    assert isinstance(scene, Scene)
    assert (scene.assets["B02"], scene.assets["B03"]) == ("s3://b/y.tif", "s3://b/y.tif")
    assert scene.assets["B04"] == "https://x.org/B04.tif"


@pytest.mark.parametrize(
    ("href", "base", "archive", "reason"),
    [
        (
            "file:///etc/shadow",
            "https://x.org/a.json",
            REMOTE,
            "a file of this machine, named by a catalogue that came",
        ),
        ("FILE:///etc/shadow", "https://x.org/a.json", MPC, "a file of this machine"),
        ("/vsizip//etc/shadow", "s3://x/a.json", REMOTE, "a file of this machine"),
        ("/etc/shadow", "", MPC, "a file of this machine"),
        ("ftp://x.org/B02.tif", "https://x.org/a.json", REMOTE, "smalti does not read ftp: addresses"),
        ("file:///archive/B02.tif", "https://x.org/a.json", STATIC, "a file of this machine"),
        ("/etc/shadow", "/archive/items.json", STATIC, "it lies outside /archive: name its folder in [archive] also"),
        ("../archive2/B02.tif", "/archive/items.json", STATIC, "it lies outside /archive"),
        ("/archive/../etc/shadow", "/archive/items.json", STATIC, "it lies outside /archive"),
        ("file:///archive/%2e%2e/etc/shadow", "/archive/items.json", STATIC, "it lies outside /archive"),
        ("/vsicurl/http://x.org/a.tif", "/archive/items.json", STATIC, "it lies outside /archive"),
    ],
)
def test_an_item_names_files_where_it_came_from_only(href: str, base: str, archive: Archive, reason: str) -> None:
    item = s2_item()
    item["assets"]["B02"] = {"href": href}
    rejected = parse_item(item, base, archive)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("its B02 may not be read: ")
    assert reason in rejected.reason


@pytest.mark.parametrize(
    ("href", "base", "archive"),
    [
        ("/etc/shadow", "https://x.org/a.json", REMOTE),  # of the server
        ("./x/../B02.tif", "/archive/items.json", STATIC),
        ("file:///archive/x/B02.tif", "/archive/items.json", STATIC),
        ("https://x.org/B02.tif", "/archive/items.json", STATIC),
        ("../other/B02.tif", "/archive/items.json", STATIC.model_copy(update={"also": (Path("/other"),)})),
    ],
)
def test_an_item_may_name_what_lies_beside_it(href: str, base: str, archive: Archive) -> None:
    item = s2_item()
    item["assets"]["B02"] = {"href": href}
    assert isinstance(parse_item(item, base, archive), Scene)


def test_an_unknown_collection_is_taken_for_what_its_assets_are() -> None:
    item = {**s2_item(), "collection": "my-mirror"}
    assert isinstance(parse_item(item, "", STATIC), Scene)
    radar = {**s1_item("vv", "vh"), "collection": "my-mirror"}
    assert isinstance(parse_item(radar, "", STATIC), Scene)
    radar["id"] = "S1A_IW_GRDH_1SDV_20240419T045904"  # nothing says that it is terrain-corrected
    assert isinstance(parse_item(radar, "", STATIC), Rejected)


def test_a_signature_that_came_with_the_item_is_not_kept() -> None:
    item = copy.deepcopy(s2_item())
    plain = "https://account.blob.core.windows.net/container/B02.tif"
    item["assets"]["B02"]["href"] = f"{plain}?st=2023&se=2024&sp=rl&sv=2021-06-08&sr=c&sig=abc%3D"
    scene = parse_item(item, "", MPC)
    assert isinstance(scene, Scene)
    assert scene.assets["B02"] == plain


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("./a/B02.tif", "/data/items.json", "/data/a/B02.tif"),
        ("../B02.tif", "/data/x/item.json", "/data/B02.tif"),
        ("/abs/B02.tif", "/data/items.json", "/abs/B02.tif"),
        ("./a/B02.tif", "http://h:1/d/items.json", "http://h:1/d/a/B02.tif"),
        ("/a/B02.tif", "http://h:1/d/items.json", "http://h:1/a/B02.tif"),
        ("https://o.org/B02.tif?x=1", "http://h:1/d/items.json", "https://o.org/B02.tif?x=1"),
        ("file:///data/my%20files/B02.tif", "/a/items.json", "/data/my files/B02.tif"),
        ("file:///data/x/../B02.tif", "/a/items.json", "/data/B02.tif"),
        ("file:///data/B02.tif", "http://h/", "file:///data/B02.tif"),
        ("s3://bucket/B02.tif", "/data/items.json", "s3://bucket/B02.tif"),
        ("/vsizip/a.zip/B02.tif", "/data/items.json", "/vsizip/a.zip/B02.tif"),
    ],
)
def test_hrefs_are_made_absolute(href: str, base: str, expected: str) -> None:
    assert absolute(href, base) == expected


def test_only_signatures_are_taken_off() -> None:
    assert unsigned("https://h/a.tif?versionId=3") == "https://h/a.tif?versionId=3"
    assert unsigned("https://h/a.tif?versionId=3&se=1&sig=2") == "https://h/a.tif?versionId=3"
    assert unsigned("/data/what?sig=1&se=2.tif") == "/data/what?sig=1&se=2.tif"


def test_the_table_names_all_bands_of_every_product() -> None:
    for catalogue in CATALOGUES.values():
        for product in catalogue.products:
            assert set(product.assets) == (S2_BANDS if product.modality == "s2" else {"VV", "VH"})


@pytest.mark.parametrize("identifier", ["a\nb", "a\0b", "x" * 2000, "\x1b[31m"])
def test_an_id_that_no_message_can_hold_is_refused_in_one_short_line(identifier: str) -> None:
    item = {**dict(ITEMS[0][1]), "id": identifier}
    refused = parse_item(item, "", STATIC)
    assert isinstance(refused, Rejected)
    assert refused.id.isprintable()
    assert len(refused.id) < 100


# --- items with anything in them

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            "NaN",
            "2020-01-01t00:00:00z",
            "9999-12-31T23:59:59-14:00",
            "EPSG:99999",
            "http://[",
            "file:///etc",
            "//x",
            "\0",
        ]
    ),
    st.lists(st.one_of(st.none(), st.floats(), st.text(max_size=3)), max_size=6),
    st.dictionaries(st.sampled_from(["href", "offset", "type", "coordinates", "x"]), st.none() | st.text(max_size=5)),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON value; of long lists the first entries."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [place for key in value for place in _places(value[key], (*path, key))]
    elif isinstance(value, list):
        found += [place for key in range(min(2, len(value))) for place in _places(value[key], (*path, key))]
    return found


def _change(item: dict[str, Any], place: tuple[Any, ...], action: str, odd: Any) -> None:
    inner: Any = item
    try:
        for key in place[:-1]:
            inner = inner[key]
        if action == "remove":
            del inner[place[-1]]
        else:
            inner[place[-1]] = None if action == "null" else odd
    except (KeyError, IndexError, TypeError):
        return  # an earlier change has taken it away


USED_KEYS = {key for product in (MPC_S2, MPC_S1, EARTH_SEARCH_S2) for key in product.assets.values()}
USABLE = [
    {**item, "links": [], "assets": {key: asset for key, asset in item["assets"].items() if key in USED_KEYS}}
    for _, item in ITEMS
    if item.get("assets") and item.get("collection") in ("sentinel-2-l2a", "sentinel-1-rtc", "sentinel-2-c1-l2a")
]
WORLD_START, WORLD_END = date(1, 1, 1), date(9999, 12, 31)
WORLD = Region(shapely.MultiPolygon([shapely.box(-180, -79, 180, 83)]), "", "world")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_an_item_holds_it_becomes_a_scene_or_is_rejected_with_a_reason(data: st.DataObject) -> None:
    original = USABLE[data.draw(st.integers(0, len(USABLE) - 1))]
    changed = copy.deepcopy(original)
    for place in data.draw(st.lists(st.sampled_from(_places(original)), min_size=1, max_size=4)):
        _change(changed, place, data.draw(st.sampled_from(["remove", "null", "odd"])), data.draw(_ODD))
    config = Config.model_validate(
        {
            "region": {"bbox": (4.0, 50.0, 5.0, 51.0), "start": "2020-01-01", "end": "2020-12-31"},
            "archive": {
                "source": "static",
                "href": data.draw(st.sampled_from(["/x/items.json", "https://x.org/i.json"])),
            },
        }
    )
    try:
        if not within(changed, WORLD, WORLD_START, WORLD_END):
            return
        saved = stored(changed, config.archive.href or "", config.archive.folders)
        found = parse_items([saved, stored(original, config.archive.href or "", config.archive.folders)], config)
    except SmaltiError:
        return  # two scenes of one id, say
    SceneIndex(found.scenes)
    for scene in found.scenes:
        assert json.dumps(scene_record(scene, str), allow_nan=False)
        assert shapely.from_wkt(scene.footprint).area > 0
    assert all(reason for reason in found.rejected.values())
    assert len({scene.id for scene in found.scenes} | found.rejected.keys() | found.duplicates.keys()) >= 1
