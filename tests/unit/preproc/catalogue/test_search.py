"""One search, complete: against a real STAC API, with faults in front of it, and in static archives of every kind."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rustac
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recorded import STAC_ITEMS
from support.service import Answer, Request, json_answer, serve, serve_folder, stac_api
from support.stac import ELSEWHERE, SEASON, Api, collection, item, page, write

from infer.contract import EXIT_TRY_AGAIN, Run, SmaltiError
from preproc.catalogue.items import SceneIndex, parse_items, save_items, search_scenes
from preproc.catalogue.scene import Scene
from preproc.catalogue.search import MAX_VERTICES, search_geometry
from preproc.catalogue.sources import MPC_S1, MPC_S2, footprint
from preproc.catalogue.static import read_static
from preproc.reader import transport
from preproc.reader.transport import ServiceError
from preproc.region.grid import plan_tiles
from preproc.region.region import load_region, make_region
from preproc.run.config import Config

ROOT = Path(__file__).parents[4]
BBOX = (4.05, 50.74, 4.07, 50.75)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACKOFF_S", 0.01)


def config_for(**archive: Any) -> Config:
    return Config.model_validate(
        {"region": {"bbox": BBOX, "start": "2021-06-01", "end": "2021-06-30"}, "archive": archive}
    )


def found(config: Config) -> list[str]:
    return [str(entry["id"]) for entry in search_scenes(config, load_region(config.region))]


EXPECTED = sorted(entry["id"] for entry in SEASON)


# --- a real STAC API


def paged(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    from dataclasses import replace

    from preproc.catalogue import items as catalogue

    changed = {name: replace(entry, page_size=size) for name, entry in catalogue.CATALOGUES.items()}
    monkeypatch.setattr(catalogue, "CATALOGUES", changed)


@pytest.mark.parametrize("size", [1, 7, 38, 250])
def test_a_real_api_is_searched_to_its_last_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    paged(monkeypatch, size)
    with stac_api(write(tmp_path / "items.json", collection(*SEASON, *ELSEWHERE))) as url:
        items = search_scenes(config_for(source="mpc", url=url), load_region(config_for(source="mpc").region))
    assert sorted(entry["id"] for entry in items) == EXPECTED
    assert items == sorted(items, key=lambda entry: (entry["collection"], entry["properties"]["datetime"], entry["id"]))
    assert {asset["href"][: len(url)] for entry in items for asset in entry["assets"].values()} == {url}


def forward(url: str, request: Request) -> Answer:
    """What the server behind says, its own address replaced by that of the front."""
    front = f"http://{request.headers['Host']}"
    message = urllib.request.Request(
        url + request.path,
        data=request.body or None,
        method=request.method,
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(message, timeout=30) as answer:
            kind = answer.headers["Content-Type"]
            return Answer(answer.status, answer.read().replace(url.encode(), front.encode()), {"Content-Type": kind})
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read())


@pytest.mark.parametrize(
    "fault",
    [
        Answer(503),
        Answer(504, b"upstream timed out"),
        Answer(429, b"", {"Retry-After": "0"}),
        Answer(429, b"slow down"),
        Answer(502, b"<html>bad gateway</html>"),
        Answer(200, b"", {"Content-Length": "100", "Connection": "close"}),
    ],
    ids=["503", "504", "429 with Retry-After", "429", "502", "truncated"],
)
def test_faults_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Answer) -> None:
    paged(monkeypatch, 10)
    seen: dict[bytes, int] = {}

    with stac_api(write(tmp_path / "items.json", collection(*SEASON, *ELSEWHERE))) as url:

        def answer(request: Request) -> Answer:
            key = request.method.encode() + request.path.encode() + request.body
            seen[key] = seen.get(key, 0) + 1
            return fault if seen[key] <= 2 else forward(url, request)

        with serve(answer) as front:
            assert sorted(found(config_for(source="mpc", url=front.url))) == EXPECTED
    searches = {key: count for key, count in seen.items() if key.startswith(b"POST")}
    assert len(searches) == 4
    assert set(searches.values()) == {3}


def _crossing(identifier: str, day: int, coordinates: list[Any], kind: str = "Polygon") -> dict[str, Any]:
    entry = item(identifier, f"2021-06-{day:02d}T10:00:00Z")
    del entry["properties"]["s2:mgrs_tile"]
    return {**entry, "geometry": {"type": kind, "coordinates": coordinates}}


def _square(west: float, east: float) -> list[list[float]]:
    return [[west, -17], [east, -17], [east, -16], [west, -16], [west, -17]]


CROSSING = [
    _crossing("cut in two", 1, [[_square(179.5, 180)], [_square(-180, -179.5)]], "MultiPolygon"),
    _crossing("beyond 180", 2, [_square(179.5, 180.5)]),
    _crossing("beyond -180", 3, [_square(-180.5, -179.5)]),
    _crossing("jumps", 4, [_square(179.5, -179.5)]),
]
BESIDE = [_crossing("beside", 5, [_square(-179.4, -178.5)]), _crossing("opposite", 6, [_square(-1, 1)])]


@pytest.mark.parametrize(("west", "east"), [(179.7, 179.8), (-179.8, -179.7), (179.9, -179.9)])
def test_scenes_across_longitude_180_are_found_however_they_are_written(west: float, east: float) -> None:
    def planar(request: Request) -> Answer:
        if request.path == "/":
            return Api(lambda number, root: {})(request)
        asked = shapely.from_geojson(json.dumps(json.loads(request.body)["intersects"]))
        outlines = {entry["id"]: shapely.from_geojson(json.dumps(entry["geometry"])) for entry in [*CROSSING, *BESIDE]}
        hits = [entry for entry in [*CROSSING, *BESIDE] if asked.intersects(outlines[entry["id"]])]
        return json_answer(page(hits, f"http://{request.headers['Host']}", None))

    with serve(planar) as service:
        config = config_for(source="mpc", url=service.url)
        region = config.region.model_copy(update={"bbox": (west, -16.6, east, -16.5)})
        items = search_scenes(config, load_region(region))
    assert sorted(entry["id"] for entry in items) == sorted(entry["id"] for entry in CROSSING)


def test_far_from_longitude_180_nothing_else_is_asked_for() -> None:
    region = make_region(shapely.box(*BBOX), "x", source="x")
    assert search_geometry(region).bounds == pytest.approx((4.04, 50.73, 4.08, 50.76))


# --- what an API may do wrong


def test_an_empty_page_in_the_middle_does_not_end_the_search() -> None:
    def pages(number: int, root: str) -> dict[str, Any]:
        parts = [SEASON[:10], [], SEASON[10:]]
        return page(parts[number], root, number + 1 if number < 2 else None)

    with serve(Api(pages)) as service:
        assert sorted(found(config_for(source="mpc", url=service.url))) == EXPECTED


@pytest.mark.parametrize("key", ["numberMatched", "context"])
def test_fewer_items_than_announced_are_an_error(key: str) -> None:
    more: dict[str, Any] = {"context": {"matched": len(SEASON)}} if key == "context" else {key: len(SEASON)}
    api = Api(lambda number, root: page(SEASON[:-1], root, None, **more))
    with serve(api) as service, pytest.raises(ServiceError, match=r"announced 38 items and gave 37.*, twice") as caught:
        found(config_for(source="mpc", url=service.url))
    assert caught.value.exit_code == EXIT_TRY_AGAIN
    assert api.searches == 2


def test_a_page_that_is_short_once_is_healed_by_the_second_search() -> None:
    api = Api(lambda number, root: page(SEASON[: None if api.searches > 1 else 5], root, None, numberMatched=38))
    with serve(api) as service:
        assert sorted(found(config_for(source="mpc", url=service.url))) == EXPECTED


def test_items_that_come_twice_are_an_error() -> None:
    def pages(number: int, root: str) -> dict[str, Any]:
        return page(SEASON[:20] if number == 0 else SEASON[19:], root, 1 if number == 0 else None)

    with serve(Api(pages)) as service, pytest.raises(ServiceError, match="1 of 39 items came twice"):
        found(config_for(source="mpc", url=service.url))


def test_pages_that_run_in_a_circle_do_not_hang() -> None:
    with (
        serve(Api(lambda number, root: page(SEASON[:5], root, 0))) as service,
        pytest.raises(ServiceError, match="run in a circle"),
    ):
        found(config_for(source="mpc", url=service.url))


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(404, b"nothing here"), SmaltiError, r"\(404\): is it the address of a STAC API"),
        (Answer(403, b"forbidden"), SmaltiError, r"refuses the search \(403\): forbidden"),
        (Answer(400, b"bad geometry"), SmaltiError, r"refuses the search \(400\): bad geometry"),
        (Answer(200, b"<html>welcome</html>"), SmaltiError, "does not answer like a STAC API"),
        (json_answer({"hello": "world"}), SmaltiError, "does not answer like a STAC API"),
        (json_answer([1, 2]), SmaltiError, "does not answer like a STAC API"),
        (Answer(503, b"down"), ServiceError, "cannot be searched: .*503.*: try again later"),
    ],
)
def test_what_is_not_a_stac_api_is_said(answer: Answer, kind: type[SmaltiError], words: str) -> None:
    with serve(lambda request: answer) as service, pytest.raises(kind, match=words) as caught:
        found(config_for(source="mpc", url=service.url))
    assert str(caught.value).startswith(service.url)
    assert "\n" not in str(caught.value)


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match=r"http://127.0.0.1:9: the catalogue cannot be searched: .*refused"):
        found(config_for(source="mpc", url="http://127.0.0.1:9"))


# --- what is asked


def test_the_geometry_sent_covers_the_region_with_few_vertices() -> None:
    angle = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
    radius = 2 + 0.3 * np.sin(40 * angle) + 0.05 * np.sin(900 * angle)
    region = make_region(
        shapely.Polygon(np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])), "x", source="x"
    )
    sent = search_geometry(region)
    assert sent.contains(region.geometry)
    assert shapely.get_num_coordinates(sent) <= MAX_VERTICES
    assert sent.area < 1.2 * region.geometry.area


def test_the_geometry_sent_stays_in_the_world() -> None:
    region = make_region(shapely.box(179.995, 83.995, 180.5, 84), "x", source="x")
    west, _, east, north = search_geometry(region).bounds
    assert (west, east) == (-180, 180)
    assert north < 84.1


def test_the_window_is_in_utc_days_inclusive(tmp_path: Path) -> None:
    edge = [
        item("first", "2021-06-01T00:00:00Z"),
        item("last", "2021-06-30T23:59:59.999Z"),
        item("zone", "2021-07-01T01:30:00+02:00"),
        item("before", "2021-06-01T01:30:00+02:00"),
    ]
    path = write(tmp_path / "items.json", collection(*edge, *ELSEWHERE))
    expected = ["first", "last", "zone"]
    assert sorted(found(config_for(source="static", href=str(path)))) == expected
    with stac_api(path) as url:
        assert sorted(found(config_for(source="mpc", url=url))) == expected


# --- static archives


def static_catalogue(folder: Path, items: list[dict[str, Any]]) -> Path:
    """A self-contained catalogue with a collection of each kind; each item in a folder with its assets."""
    catalogue = pystac.Catalog("archive", "an archive")
    extent = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
    for name in sorted({entry["collection"] for entry in items}):
        child = pystac.Collection(name, name, extent)
        catalogue.add_child(child)
        for entry in items:
            if entry["collection"] == name:
                plain = copy.deepcopy(entry)
                for asset in plain["assets"].values():
                    asset["href"] = "./" + asset["href"].rpartition("/")[2]
                child.add_item(pystac.Item.from_dict(plain))
    catalogue.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def archives(folder: Path) -> dict[str, Path]:
    everything = [*SEASON, *ELSEWHERE]
    rustac.write_sync(str(folder / "items.parquet"), everything)
    return {
        "item collection": write(folder / "items.json", collection(*everything)),
        "catalogue": static_catalogue(folder / "catalogue", everything),
        "geoparquet": folder / "items.parquet",
    }


@pytest.mark.parametrize("kind", ["item collection", "catalogue", "geoparquet"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "http"])
def test_every_kind_of_static_archive_gives_the_same_scenes(tmp_path: Path, kind: str, remote: bool) -> None:
    path = archives(tmp_path)[kind]
    with serve_folder(tmp_path) as service:
        base = service.url if remote else str(tmp_path)
        config = config_for(source="static", href=f"{base}/{path.relative_to(tmp_path).as_posix()}")
        items = search_scenes(config, load_region(config.region))
    assert sorted(str(entry["id"]) for entry in items) == EXPECTED
    scenes = {scene.id: scene for scene in parse_items(items, config).scenes}
    inside = {"catalogue": "catalogue/{collection}/{id}/{key}.tif"}.get(kind, "{id}/{key}.tif")
    for entry in SEASON:
        scene = scenes[entry["id"]]
        product = MPC_S2 if scene.modality == "s2" else MPC_S1
        for band, key in product.assets.items():
            where = inside.format(collection=entry["collection"], id=entry["id"], key=key)
            assert scene.assets[band] == f"{base}/{where}"
        assert scene.acquired.isoformat()[:19] == entry["properties"]["datetime"][:19]
        assert scene.epsg == 32631
        assert shapely.from_wkt(scene.footprint).equals(shapely.box(4, 50, 5, 51))


def test_the_recorded_items_of_planetary_computer_survive_geoparquet(tmp_path: Path) -> None:
    folder = STAC_ITEMS / "stac-geoparquet"
    items = [*json.loads((folder / "sentinel-1-rtc-pc.json").read_text())]
    items += json.loads((folder / "sentinel-2-l2a-pc.json").read_text())
    rustac.write_sync(str(tmp_path / "items.parquet"), items)
    write(tmp_path / "items.json", collection(*items))
    outlines = [outline for outline in map(footprint, items) if outline is not None]
    region = make_region(shapely.box(*shapely.total_bounds(outlines)), "x", source="x")
    results = []
    for name in ("items.parquet", "items.json"):
        config = Config.model_validate(
            {
                "region": {"bbox": BBOX, "start": "2024-04-01", "end": "2024-04-30"},
                "archive": {"source": "static", "href": str(tmp_path / name)},
            }
        )
        scenes = parse_items(search_scenes(config, region), config).scenes
        results.append([(s.id, s.acquired.replace(microsecond=0), s.assets, s.offset, s.orbit, s.epsg) for s in scenes])
    assert results[0] == results[1]
    assert len(results[0]) == len(items)


def test_a_single_item_is_an_archive_too(tmp_path: Path) -> None:
    assert found(config_for(source="static", href=str(write(tmp_path / "item.json", SEASON[0])))) == ["S2_01"]


BAD_ARCHIVES = {
    "missing": (None, "no such file: .archive. href names it"),
    "not json": (b"hello", "is not valid JSON"),
    "another json": (b'{"a": 1}', "must be a STAC item collection"),
    "a list": (b"[]", "must be a STAC item collection"),
    "no features": (b'{"type": "FeatureCollection", "features": 3}', "must be a STAC item collection"),
    "broken catalogue": (b'{"type": "Catalog", "id": "x"}', "cannot be read to its end"),
    "dead link": (
        b'{"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x", '
        b'"links": [{"rel": "item", "href": "./gone.json"}]}',
        "cannot be read to its end: .*gone.json: a file of the catalogue cannot be read: No such file",
    ),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_static_archives_that_cannot_be_read(tmp_path: Path, case: str) -> None:
    content, words = BAD_ARCHIVES[case]
    path = tmp_path / "items.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SmaltiError, match=words) as caught:
        found(config_for(source="static", href=str(path)))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_parquet_that_is_not_stac(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "items.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(SmaltiError, match=r"items.parquet: .archive. href cannot be read as parquet"):
        found(config_for(source="static", href=str(path)))
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), path)
    with pytest.raises(SmaltiError, match="is not stac-geoparquet: it has no column assets, geometry"):
        found(config_for(source="static", href=str(path)))


def test_a_folder_and_other_schemes(tmp_path: Path) -> None:
    with pytest.raises(
        SmaltiError,
        match=r"is a folder without catalog.json, items .\*.json. or OPERA RTC-S1 files: .*own. writes items",
    ):
        found(config_for(source="static", href=str(tmp_path)))
    with pytest.raises(SmaltiError, match="can be a path, or an address of http"):
        read_static("ftp://server/items.json")


def test_the_recipe_for_bare_files_makes_an_archive_of_them(archive: Path, tmp_path: Path) -> None:
    """The script of docs/recipes.md, as it stands there, on granules that lost all their JSON."""
    bare = tmp_path / "bare"
    shutil.copytree(archive / "sentinel-2-l2a", bare / "2021", ignore=shutil.ignore_patterns("*.json"))
    page = (ROOT / "docs" / "recipes.md").read_text().partition("## An archive of your own")[2]
    subprocess.run([sys.executable, "-c", re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], bare], check=True)
    (bare / "2021" / "notes.json").write_text('{"type": "of no concern"}')
    region = {"geometry": archive / "region.geojson", "start": "2021-10-01", "end": "2022-09-30"}
    scenes = []
    for href in (bare, archive / "items.json"):
        config = Config.model_validate({"region": region, "archive": {"source": "static", "href": str(href)}})
        items = search_scenes(config, load_region(config.region))
        scenes.append([scene for scene in parse_items(items, config).scenes if scene.modality == "s2"])
    mine, theirs = scenes
    assert len(mine) > 8
    assert [(one.id, f"{one.acquired:%F %T}", one.epsg) for one in mine] == [
        (one.id, f"{one.acquired:%F %T}", one.epsg) for one in theirs
    ]
    assert set(mine[0].assets) == set(theirs[0].assets)
    assert all(Path(href).is_file() for href in mine[0].assets.values())


@pytest.mark.parametrize(("status", "kind"), [(404, SmaltiError), (503, ServiceError)])
def test_a_static_archive_that_the_server_does_not_give(status: int, kind: type[SmaltiError]) -> None:
    with serve(lambda request: Answer(status)) as service, pytest.raises(kind, match=f"cannot be read: .*{status}"):
        found(config_for(source="static", href=f"{service.url}/items.json"))


def test_nothing_found_says_what_the_archive_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "items.json", collection(*ELSEWHERE))
    with pytest.raises(SmaltiError) as caught:
        found(config_for(source="static", href=str(path)))
    assert "no item of the region (bbox) from 2021-06-01 to 2021-06-30" in str(caught.value)
    assert "it holds 3 items from 2021-05-31 to 2021-07-01, between 4.00, 50.00 and 9.00, 51.00 degrees" in str(
        caught.value
    )
    assert "swapped" not in str(caught.value)
    south_first = config_for(source="static", href=str(path)).model_dump()
    south_first["region"]["bbox"] = (50.2, 5.0, 50.3, 5.1)
    with pytest.raises(
        SmaltiError, match=r"lies in 50.20, 5.00, 50.30, 5.10: longitude comes first, are they swapped\?"
    ):
        found(Config.model_validate(south_first))


def test_a_remote_catalogue_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.json", {**SEASON[0], "id": "secret"})
    root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "d"}
    for link in (secret.as_uri(), f"FILE://{secret}"):
        catalogue = {**root, "links": [{"rel": "item", "href": link}]}
        with (
            serve(lambda request, content=catalogue: json_answer(content)) as service,
            pytest.raises(SmaltiError, match=r"cannot be read to its end: .*a file of this machine"),
        ):
            found(config_for(source="static", href=f"{service.url}/catalog.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"links": [{"rel": "child", "href": "./catalog.json"}]}, "cannot be read to its end"),
        ({"links": [{"rel": "item", "href": "./deep.json"}]}, "deep.json' does not resolve to a STAC object"),
        ({"links": [{"rel": "item", "href": "./list.json"}]}, "list.json' does not resolve to a STAC object"),
    ],
)
def test_hostile_catalogues_are_refused_in_one_line(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "d"}
    (tmp_path / "deep.json").write_text("[" * 5000 + "]" * 5000)
    (tmp_path / "list.json").write_text("[]")
    href = str(write(tmp_path / "catalog.json", {**root, **content}))
    with pytest.raises(SmaltiError, match=said) as caught:
        found(config_for(source="static", href=href))
    assert "\n" not in str(caught.value)


def test_a_catalogue_in_a_folder_reads_what_lies_in_it_or_was_named(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write(outside / "item.json", {**SEASON[0], "links": []})
    (tmp_path / "own").mkdir()
    root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "d"}
    link = {"rel": "item", "href": "../outside/item.json"}
    href = str(write(tmp_path / "own" / "catalog.json", {**root, "links": [link]}))
    with pytest.raises(SmaltiError, match=r"it lies outside .*own: name its folder in \[archive\] also"):
        found(config_for(source="static", href=href))
    assert found(config_for(source="static", href=href, also=[str(outside)])) == ["S2_01"]


# --- what is saved


def test_saved_items_are_unsigned_absolute_and_byte_for_byte_the_same(tmp_path: Path) -> None:
    signed = copy.deepcopy(SEASON)
    for entry in signed:
        for asset in entry["assets"].values():
            name = asset["href"].removeprefix("./")
            asset["href"] = f"https://account.blob.core.windows.net/c/{name}?se=2021&sig=secret"
        entry["assets"]["thumbnail"] = {"href": "https://example.org/x.png"}
        entry["links"] = [{"rel": "self", "href": "https://example.org/x"}]
    content = []
    for number, order in enumerate((signed, signed[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        href = write(tmp_path / "items.json", collection(*order))
        config = config_for(source="static", href=str(href))
        files = save_items(Run(folder), search_scenes(config, load_region(config.region)))
        content.append({path.name: path.read_bytes() for path in files})
        assert sorted(path.name for path in (folder / "items").iterdir()) == sorted(content[-1])
    assert content[0] == content[1]
    assert sorted(content[0]) == ["sentinel-1-rtc_2021-06.json", "sentinel-2-l2a_2021-06.json"]
    text = b"".join(content[0].values())
    assert b"secret" not in text
    assert b"thumbnail" not in text
    assert b"example.org" not in text


def test_a_new_search_replaces_the_old_items_as_a_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    save_items(run, SEASON)
    save_items(run, [item("x", "2020-01-01T00:00:00Z")])
    assert [path.name for path in run.items.iterdir()] == ["sentinel-2-l2a_2020-01.json"]


# --- scenes of a tile


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(3.5, 5), st.floats(50.3, 51.2), st.floats(0.01, 1)), max_size=12),
    st.sampled_from([64, 512]),
)
def test_the_index_finds_what_touches_a_tile(boxes: list[tuple[float, float, float]], size: int) -> None:
    scenes = []
    for number, (west, south, width) in enumerate(boxes):
        outline = shapely.box(west, south, west + width, south + width)
        entry = item(f"{number:02d}", "2021-06-01T10:00:00Z")
        config = config_for(source="static", href="/x/items.json")
        entry["geometry"] = json.loads(shapely.to_geojson(outline))
        scenes.extend(parse_items([entry], config, "/x/items.json").scenes)
    region = make_region(shapely.box(*BBOX), "x", source="x")
    index = SceneIndex(scenes)
    many = plan_tiles(region, size)[:16]  # more than scenes: these are asked for tiles then
    assert list(index.for_tiles(many)) == [index.for_tile(tile) for tile in many]
    for tile in many[:4]:
        given_scenes = index.for_tile(tile)
        ids = {scene.id for scene in given_scenes}
        west, south, east, north = tile.bounds
        corners = _degrees(tile.epsg, [(west, south), (west, north), (east, north), (east, south)])
        square = shapely.Polygon(corners)
        for scene in scenes:
            outline = shapely.from_wkt(scene.footprint)
            if outline.intersects(square):
                assert scene.id in ids, "a scene that covers the tile must not be missed"
            elif outline.distance(square) > 0.05:
                assert scene.id not in ids


def _degrees(epsg: int, corners: list[tuple[int, int]]) -> list[tuple[float, float]]:
    import pyproj

    backward = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    return [backward.transform(*corner) for corner in corners]


def test_no_scenes_no_hits() -> None:
    scenes: list[Scene] = []
    (tile,) = plan_tiles(make_region(shapely.box(4.058, 50.743, 4.067, 50.748), "x", source="x"), 512)
    assert SceneIndex(scenes).for_tile(tile) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, r"not valid JSON: nested more than 100 deep"),
        (b'{"type": "Feature", "x": ' + b"9" * 10_000 + b"}", r"not valid JSON"),
        (
            b'{"type": "Catalog", "id": "a", "links": [{"rel": "item", "href": "deep.json"}]}',
            r"cannot be read to its end",
        ),
        (b"\xff\xfe", r"not valid JSON"),
        (None, r"should be a file and is a pipe"),
    ],
    ids=["deep", "digits", "deep inside", "no text", "pipe"],
)
def test_a_static_archive_of_any_bytes_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "catalog.json"
    (tmp_path / "deep.json").write_bytes(b'{"a":' * 100_000)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(SmaltiError, match=message) as caught:
        read_static(str(path), [str(tmp_path)])
    assert "\n" not in str(caught.value)
