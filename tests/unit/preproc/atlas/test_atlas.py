"""The atlas: tiles in their places, and the page in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer
from support.browser import Browser, chromium
from support.mosaicked import NAMES, classified_run, config, crops, embed_crops, far_run, planned_run

from infer.contract import Plan, PlannedTile, PlannedTiles, Run, SmaltiError, Tile, planned_tiles, read_embedding
from infer.contract.rasters import MapManifest
from preproc.atlas.atlas import write_atlas
from preproc.atlas.curves import step_of
from preproc.atlas.drawn import drawn_from, read_drawn
from preproc.atlas.pyramid import grid_of, read_tile, region_box, tile_metres
from preproc.atlas.serve import serving
from preproc.atlas.vectors import MIDDLE, learn_axes
from preproc.classify.sample import SampleStage
from preproc.classify.table import read_samples
from preproc.classify.train import TrainStage
from preproc.explore.groups import find_groups
from preproc.mosaic.stage import StitchStage
from preproc.region.geopackage import geopackage
from preproc.run.config import parse_config
from preproc.run.stage import run_stage
from preproc.survey.looks import curves_at


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run, settings = classified_run(tmp_path_factory.mktemp("atlas") / "run")
    find_groups(run, settings, 3, 0)
    write_atlas(run, None)
    return run


@contextmanager
def served(
    run: Run, live: Run | None = None, labels: Path | None = None, folder: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with serving(folder or run.root / "atlas", 0, live, labels) as (server, address):
        handler: Any = server.RequestHandlerClass
        handler.func.log_request = lambda self, *_: asked.append(self.path)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield address, asked
        finally:
            server.shutdown()
            thread.join()
            del handler.func.log_request


def test_every_pixel_of_the_finest_level_has_the_class_of_its_place(made: Run) -> None:
    tiles = planned_tiles(made)
    back = Transformer.from_crs(3857, tiles[0].epsg, always_xy=True)
    finest = max(int(path.name) for path in (made.root / "atlas" / "classes").iterdir())
    with rasterio.open(made.map / "classes_31N.tif") as source:
        classes, transform = source.read(1), source.transform
    compared = 0
    for path in (made.root / "atlas" / "classes" / str(finest)).rglob("*.png"):
        with rasterio.open(path) as picture:
            found = picture.read(1)
        side, column, row = tile_metres(finest), int(path.parent.name), int(path.stem)
        steps = (np.arange(256) + 0.5) * side / 256
        x, y = np.meshgrid(column * side - math.pi * 6378137 + steps, math.pi * 6378137 - row * side - steps)
        east, north = back.transform(x, y)
        across, down = (east - transform.c) / 10, (transform.f - north) / 10
        inside = (across >= 0) & (across < classes.shape[1]) & (down >= 0) & (down < classes.shape[0])
        certain = inside & (np.abs(across % 1 - 0.5) < 0.4) & (np.abs(down % 1 - 0.5) < 0.4)
        rows, columns = down[certain].astype(int), across[certain].astype(int)
        np.testing.assert_array_equal(found[certain], classes[rows, columns])
        assert not found[~inside & (np.abs(across + 1) < 0.5)].any()
        compared += int(certain.sum())
    assert compared > 3000


def test_at_equator_and_antimeridian_every_pixel_has_the_group_of_its_place(tmp_path: Path) -> None:
    run, _ = far_run(tmp_path / "run", dim=6)
    settings = config(run, '[stitch]\nmissing = "nodata"')
    find_groups(run, settings, 3, 0)
    write_atlas(run, None)
    finest = max(int(path.name) for path in (run.root / "atlas" / "groups").iterdir())
    sides = []
    for label in ("60N", "01N"):
        with rasterio.open(run.root / "groups" / f"groups_{label}.tif") as source:
            codes, transform, epsg = source.read(1), source.transform, source.crs.to_epsg()
        sides.append((codes, transform, Transformer.from_crs(3857, epsg, always_xy=True)))
    compared = np.zeros(2, int)
    for path in (run.root / "atlas" / "groups" / str(finest)).rglob("*.png"):
        with rasterio.open(path) as picture:
            found = picture.read(1)
        side, column, row = tile_metres(finest), int(path.parent.name), int(path.stem)
        steps = (np.arange(256) + 0.5) * side / 256
        x, y = np.meshgrid(column * side - math.pi * 6378137 + steps, math.pi * 6378137 - row * side - steps)
        wanted = np.zeros((2, 256, 256), np.uint8)
        certain = np.ones((256, 256), bool)
        for index, (codes, transform, back) in enumerate(sides):
            east, north = back.transform(x, y)
            across, down = (east - transform.c) / 10, (transform.f - north) / 10
            inside = (across >= 0) & (across < codes.shape[1]) & (down >= 0) & (down < codes.shape[0])
            certain &= ~inside | ((np.abs(across % 1 - 0.5) < 0.4) & (np.abs(down % 1 - 0.5) < 0.4))
            wanted[index, inside] = codes[down[inside].astype(int), across[inside].astype(int)]
        certain &= (wanted > 0).sum(axis=0) < 2
        np.testing.assert_array_equal(found[certain], wanted.max(axis=0)[certain])
        compared += (wanted[:, certain] > 0).sum(axis=1)
    assert (compared > 3000).all()


def test_levels_end_where_two_tiles_hold_the_region() -> None:
    far = [
        PlannedTile(f"t{c}{r}", 32631, 500_000 + c * 81_920, 5_600_000 - r * 81_920, 512)
        for c in range(9)
        for r in range(9)
    ]
    grid = grid_of(far, 50.0)
    assert grid.finest == 14
    assert len(grid.places) == grid.finest - grid.coarsest + 1
    for finer, coarser in zip(grid.places[1:], grid.places, strict=False):
        assert {(column // 2, row // 2) for column, row in finer} == coarser
    less = grid.within(grid.tiles - 1)
    assert (less.coarsest, less.finest, less.places) == (grid.coarsest, grid.finest - 1, grid.places[:-1])
    assert grid.within(1).places == grid.places[:1], "one level at least"
    columns, rows = zip(*grid.places[0], strict=True)
    assert max(columns) - min(columns) <= 1
    assert max(rows) - min(rows) <= 1


def test_a_region_across_the_antimeridian_has_tiles_on_both_sides() -> None:
    tiles = [PlannedTile("t", 32601, 300_000, 6_900_000, 2048), PlannedTile("u", 32660, 690_000, 6_900_000, 2048)]
    grid = grid_of(tiles, 62.0)
    assert 0.9 < grid.box[0] < 1 < grid.box[2] < 1.1
    columns = {column for column, _ in grid.places[-1]}
    assert min(columns) < 100
    assert max(columns) > 2**grid.finest - 100
    over, east = (region_box(grid, (west, 62.1, -179.2, 62.15)) for west in (179.9, -179.3))
    assert over[::2] == pytest.approx(((179.9 + 180) / 360, 1 + 0.8 / 360))
    assert east[::2] == pytest.approx((1 + 0.7 / 360, 1 + 0.8 / 360))
    move = Transformer.from_crs(4326, 3857, always_xy=True)
    half = 20037508.342789244
    assert over[1::2] == pytest.approx(
        [(half - move.transform(0, latitude)[1]) / 2 / half for latitude in (62.15, 62.1)]
    )
    assert region_box(grid, (3, 50, 4, 51)) == grid.box, "of another place"


def test_coarse_levels_come_from_overviews(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = rasterio.open

    def noting(*names: Any, **options: Any) -> Any:
        opened.append(options.get("overview_level"))
        return real(*names, **options)

    monkeypatch.setattr("preproc.atlas.pyramid.rasterio.open", noting)
    path = made.root / "big.tif"
    profile = {"driver": "GTiff", "width": 512, "height": 512, "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    with real(path, "w", **profile, transform=rasterio.Affine(10, 0, 573_440, 0, -10, 5_626_880), tiled=True) as raster:
        raster.write(np.full((512, 512), 7, np.uint8), 1)
        raster.build_overviews([2, 4, 8])
    tile = PlannedTile("t", 32631, 573_440, 5_626_880, 512)
    (column, row) = min(grid_of([tile], 50.7).places[0])
    level = grid_of([tile], 50.7).coarsest
    assert (read_tile([path], [1], 0, level - 2, column >> 2, row >> 2) == 7).any()
    assert opened[0] is None
    assert opened[-1] in (1, 2)


def test_the_page_shows_the_map_tells_values_and_asks_nobody_else(made: Run, tmp_path: Path) -> None:
    with served(made) as (url, asked), chromium(tmp_path / "profile") as browser:
        start = time.monotonic()
        open_page(browser, url)
        wait(browser, "[...cache.values()].some(t => t.picture)")
        assert time.monotonic() - start < 30  # a busy machine; the figure is in the docs
        assert browser.evaluate("document.querySelectorAll('#left option').length") == 7, "no counts: none"
        legend = browser.evaluate("document.getElementById('legend').textContent")
        assert all(name in legend for name in NAMES), "as text, markup or not"
        drawn = browser.evaluate(
            "(() => { paint(); const p = pen.getImageData(canvas.width / 2 | 0, canvas.height / 2 | 0, 1, 1).data;"
            " return '#' + [0, 1, 2].map(i => p[i].toString(16).padStart(2, '0')).join('') })()"
        )
        colors = {entry.color: entry.name for entry in MapManifest.read(made).classes}
        assert drawn in colors
        browser.evaluate("document.getElementById('map').focus()")
        browser.press("Enter")
        wait(browser, "!document.getElementById('here').hidden")
        told = browser.evaluate("document.getElementById('here').textContent")
        assert colors[drawn] in told, "what is drawn in the middle is what Enter tells"
        assert "Embedded or why notembedded" in told, "though the counts of these made embeddings are not known"
        browser.press("Escape")
        assert browser.evaluate("$('here').hidden && mark === null")
        browser.evaluate("(() => { const r = document.getElementById('right'); r.value = 'groups'; r.onchange() })()")
        assert browser.evaluate("document.getElementById('swipebox').hidden") is False
        wait(browser, "[...cache].some(([name, t]) => name.startsWith('groups/') && t.picture)")
        before = browser.evaluate("view.x")
        width, top = browser.evaluate("[canvas.clientWidth, canvas.getBoundingClientRect().top]")
        for kind, x in (("mousePressed", width / 2), ("mouseMoved", width / 4), ("mouseReleased", width / 4)):
            where = {"x": x, "y": top + 300, "button": "left", "buttons": 1, "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", type=kind, **where)
        assert browser.evaluate("[Number($('swipe').value), view.x]") == [25, before], "the line moves, not the map"
        scale, wide = browser.evaluate("[$('scale').textContent, $('scale').clientWidth * metres()]")
        assert abs(wide - float(scale.removesuffix(" m"))) < 0.2 * wide
        west, _, east, _ = browser.evaluate("data.region")
        assert browser.evaluate("view.x") == pytest.approx((west + east) / 2, abs=1e-9)
        before = browser.evaluate("view.zoom")
        browser.press("+")
        assert browser.evaluate("view.zoom") > before
        assert browser.errors == []
        names = browser.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert names
        assert all(name.startswith(url.partition("#")[0]) for name in names)
        browser.screenshot(tmp_path / "desk.png")
        assert (tmp_path / "desk.png").stat().st_size > 5000
    assert "/" in asked
    shown = {"classes", "groups", "confidence", "reason", "short"}
    assert {path.split("/")[1] for path in asked} <= {"", *shown}
    assert len({path.partition("/")[2].partition("/")[2] for path in asked}) < 10, "only where the run's tiles are"


def test_a_click_finds_like_places_and_labels_that_are_drawn_teach_a_map(made: Run, tmp_path: Path) -> None:
    """Examples and labels act at once in the page; what is saved is trained on as any labels are."""
    plan, saved = Plan.read(made), tmp_path / "drawn.gpkg"
    with served(made, labels=saved) as (url, _), chromium(tmp_path / "profile") as browser:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        open_page(browser, url)
        wait(browser, "[...cache.values()].some(t => t.picture)")
        classes = crops(planned_tiles(made)[0])
        places = {code: [place(plan.tiles[0], r, c) for r, c in centres_of(classes, code)[:4]] for code in (0, 1)}
        browser.evaluate("setMode('like')")
        act(browser, *places[0][0])
        wait(browser, "examples.length === 1 && document.getElementById('left').value === 'like'")
        values = read_embedding(made.embeddings, plan.tiles[0].name).window(slice(None), slice(None))
        units = values / np.linalg.norm(values, axis=2, keepdims=True)
        example = units[centres_of(classes, 0)[0]]
        for code in (0, 1):
            for pixel, at in zip(centres_of(classes, code), places[code], strict=False):
                assert abs(likeness(browser, *at) - units[pixel] @ example) < 0.03, "that of the embeddings themselves"
        browser.evaluate("setMode('unlike')")
        act(browser, *places[1][0])
        wait(browser, "examples.length === 2")
        command = browser.evaluate("document.querySelector('#keys code').textContent")
        asked = [f"{longitude:.5f},{latitude:.5f}" for longitude, latitude in (places[0][0], places[1][0])]
        assert command == f"smalti similar RUN --at {asked[0]} --not {asked[1]}"
        browser.evaluate("canvas.focus()")
        browser.press("Backspace")
        assert browser.evaluate("examples.length") == 1
        assert "One pixel in" not in browser.evaluate("document.getElementById('keys').textContent")
        browser.evaluate("data.short.levels[1] = finest - 2; legend()")  # as of a country
        assert "One pixel in 16: " in browser.evaluate("document.getElementById('keys').textContent")
        browser.evaluate("data.short.levels[1] = finest; legend()")
        browser.evaluate("setMode('point')")
        act(browser, *places[0][0])
        wait(browser, "document.getElementById('said').textContent.startsWith('Which class?')")
        for code, name in enumerate(("oats", "<b>rye</b>")):
            browser.evaluate(f"$('name').value = {name!r}")
            for at in places[code][:2]:
                act(browser, *at)
        browser.evaluate("setMode('area')")
        x, y = world(*place(plan.tiles[0], *centres_of(classes, 1)[3]))
        step = 2e-7
        for dx, dy in ((-step, -step), (step, -step), (step, step), (-step, step)):
            browser.evaluate(f"act({x + dx}, {y + dy})")
        browser.evaluate("finish(); corners = [[.999, .5], [.001, .5], [.001, .51]]; finish()")
        assert browser.evaluate("$('said').textContent") == "An area ends at 180 degrees: draw one on each side"
        browser.evaluate("corners = []")
        wait(browser, "labels.length === 5 && labels.every(one => one.vectors && one.vectors.length)")
        browser.evaluate("show('nearest')")
        wait(
            browser,
            "[...cache.values()].some(t => t.made && t.made.nearest && t.made.nearest.version === version.nearest)",
        )
        assert "<b>rye</b>" in browser.evaluate("document.getElementById('keys').textContent")
        open_page(browser, url)
        wait(browser, "labels.length === 5")
        browser.evaluate("void save()")
        wait(browser, "document.getElementById('said').textContent.startsWith('5 labels are in drawn.gpkg.')")
        first = read_drawn(saved)
        browser.evaluate("localStorage.clear()")
        open_page(browser, url)
        wait(browser, "labels.length === 5 && labels.every(one => one.vectors)")
        browser.evaluate("setMode('point'); undo(); void save()")
        wait(browser, "document.getElementById('said').textContent.startsWith('4 labels are in')")
        browser.evaluate(f"labels.push({{ class: 'oats', at: {list(world(4.0, 50.7))} }}); remember()")
        open_page(browser, url)
        wait(browser, "labels.length === 5")  # those of the file, and what was drawn since
        assert browser.evaluate("labels.filter(one => one.class === 'oats').length") == 3
        saved.write_bytes(first.as_geopackage())  # as if by another page
        browser.evaluate("undo(); void save()")
        wait(browser, "document.getElementById('said').textContent.startsWith('Not saved: drawn.gpkg has changed')")
        browser.evaluate("localStorage.clear()")
        open_page(browser, url)
        wait(browser, "labels.length === 5")
        assert len(browser.evaluate("JSON.stringify(labels[4].ring)")) > 50
        open_page(browser, url.partition("#")[0])  # as from a plain web server
        wait(browser, "labels.length === 5")
        browser.evaluate("void save()")
        assert drawn_from(downloaded(tmp_path / "labels.geojson")) == first
        assert browser.errors == []
    text = made.config.read_text().replace('path = "parcels.geojson"', f'path = "{saved}"')
    text = text.replace('class = "crop"', 'class = "class"').replace('group = "parcel"\n', "")
    taught = Run(tmp_path / "taught")
    shutil.copytree(made.root, taught.root, ignore=shutil.ignore_patterns("atlas", "samples*", "model", "map"))
    settings = parse_config(text, taught.config)
    for stage in (SampleStage(), TrainStage()):
        run_stage(stage, taught, settings)
    assert set(read_samples(taught).legend.values()) == {"oats", "<b>rye</b>"}


def downloaded(path: Path) -> bytes:
    for _ in range(200):
        if path.exists():
            break
        time.sleep(0.05)
    return path.read_bytes()


def test_without_a_file_the_browser_gets_a_geopackage(made: Run, tmp_path: Path) -> None:
    with served(made) as (url, _), chromium(tmp_path / "profile") as browser:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        open_page(browser, url)
        x, y = world(4.0, 50.7)
        browser.evaluate(f"labels.push({{ class: 'oats', at: [{x!r}, {y!r}] }}); void save()")
        downloaded(tmp_path / "labels.gpkg")
        found = read_drawn(tmp_path / "labels.gpkg")
        assert (found.classes, found.shapes) == (["oats"], [shapely.Point(4.0, 50.7)])
        assert browser.errors == []


POINT = {"type": "Point", "coordinates": [4.0, 50.7]}
RING = {"type": "Polygon", "coordinates": [[[4, 50], [4.1, 50], [4.1, 50.1], [4, 50]]]}


def labelled(*pairs: tuple[Any, Any]) -> bytes:
    features = [{"properties": {"class": name}, "geometry": geometry} for name, geometry in pairs]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def test_labels_are_taken_from_this_page_alone_and_this_machine_alone_is_answered(made: Run, tmp_path: Path) -> None:
    path, good = tmp_path / "drawn.gpkg", labelled(("oats", POINT), ("é <b>", RING))
    with served(made, labels=path) as (url, _):
        port, key = int(url.rpartition(":")[2].partition("/")[0]), url.partition("#")[2]
        own = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}", "X-Smalti-Key": key}

        def ask(method: str, where: str, body: bytes | None = None, **changed: str | None) -> tuple[int, str]:
            headers = {**own, "Content-Length": str(len(body)) if body else None}
            headers |= {name.replace("_", "-"): value for name, value in changed.items()}
            link = HTTPConnection("127.0.0.1", port, timeout=20)
            link.putrequest(method, where, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if value is not None:
                    link.putheader(name, value)
            link.endheaders(body)
            answer = link.getresponse()
            assert "access-control-allow-origin" not in {name.lower() for name, _ in answer.getheaders()}
            told = answer.status, answer.read().decode()
            link.close()
            return told

        for host in (f"localhost:{port}", "127.0.0.1:9000", "[::1]:80", "LOCALHOST"):
            assert ask("GET", "/", Host=host)[0] == 200, host
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost@evil.example", None):
            for where in ("/", "/labels", "/atlas.json"):
                assert ask("GET", where, Host=host) == (403, "smalti view answers to localhost alone"), host
            assert ask("POST", "/labels", good, Host=host, Origin=f"http://{host}")[0] == 403, host
        assert ask("GET", "/labels", X_Smalti_Key=None)[0] == 403
        for origin in (None, "null", "http://evil.example", f"https://127.0.0.1:{port}", f"http://localhost:{port}"):
            assert ask("POST", "/labels", good, Origin=origin)[0] == 403, origin
        for wrong in (None, "", key[:-1], "é"):
            assert ask("POST", "/labels", good, X_Smalti_Key=wrong)[0] == 403
        assert ask("POST", "/index.html", good)[0] == 404
        assert ask("POST", "/labels", Content_Length="9999999999")[0] == 413
        assert ask("POST", "/labels")[0] == 411
        for word in ("PUT", "DELETE", "OPTIONS"):
            assert ask(word, "/labels", good)[0] == 501
        assert not path.exists()
        code, text = ask("POST", "/labels", b"{}")
        assert (code, path.exists()) == (409, False)
        assert "no labels of an atlas" in text
        assert json.loads(ask("GET", "/labels")[1]) == {"features": [], "digest": ""}
        code, text = ask("POST", "/labels", good)
        assert code == 200
        assert json.loads(text)["path"] == str(path)
        assert read_drawn(path).classes == ["oats", "é <b>"]
        first = path.read_bytes()
        assert ask("POST", "/labels", labelled(("rye", POINT)))[0] == 412, "it has to know what it replaces"
        digest = json.loads(ask("GET", "/labels")[1])["digest"]
        (tmp_path / "drawn.gpkg-wal").touch()
        assert "another program has it open" in ask("POST", "/labels", good, If_Match=digest)[1]
        assert path.read_bytes() == first
        (tmp_path / "drawn.gpkg-wal").unlink()
        assert ask("POST", "/labels", labelled(("rye", POINT)), If_Match=digest)[0] == 200
        assert read_drawn(path).classes == ["rye"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"[" * 100_000,
        labelled(),
        labelled(("", POINT)),
        labelled((None, POINT)),
        labelled(("a" * 500, POINT)),
        labelled(("a\nb", POINT)),
        labelled(("oats", None)),
        labelled(("oats", {"type": "MultiPoint", "coordinates": [[4, 50]]})),
        labelled(("oats", {"type": "Point", "coordinates": [4, 91]})),
        labelled(("oats", {"type": "Point", "coordinates": [float("nan"), 50]})),
        labelled(("oats", {"type": "Point", "coordinates": [10**400, 50]})),
        labelled(("oats", {"type": "Point", "coordinates": [4]})),
        labelled(("oats", {"type": "Polygon", "coordinates": [[[4, 50], [5, 50], [4, 50]]]})),
        labelled(("oats", {"type": "Polygon", "coordinates": [[[4, 50], [5, 50], [5, 51], [4, 51]]]})),
    ],
)
def test_what_is_no_label_is_refused(content: bytes) -> None:
    with pytest.raises(SmaltiError, match="no labels"):
        drawn_from(content)


def test_labels_go_into_a_file_of_their_own(made: Run, tmp_path: Path) -> None:
    folder = made.root / "atlas"
    mine = tmp_path / "mine.gpkg"
    mine.write_bytes(geopackage("parcels", [shapely.Point(4, 50)], {"class": ["oats"], "farm": [7]}, kind="Point"))
    (tmp_path / "text.gpkg").write_text("dear")
    refused = {
        mine: "not labels that were drawn in an atlas: name a new file",
        tmp_path / "text.gpkg": "text.gpkg",
        tmp_path / "labels.shp": r"--labels names a GeoPackage \(.gpkg\)",
        tmp_path / "none" / "labels.gpkg": "in a folder that is there",
    }
    for path, why in refused.items():
        with pytest.raises(SmaltiError, match=why), serving(folder, 0, None, path):
            pass


def centres_of(classes_hw: Any, code: int) -> list[tuple[int, int]]:
    """Middles of the parcels of a class that lie inside a tile and have embeddings."""
    middles = [(r, c) for r in range(4, 32, 8) for c in range(4, 32, 8)]
    return [(r, c) for r, c in middles if classes_hw[r, c] == code]


def place(tile: PlannedTile, row: int, column: int) -> tuple[float, float]:
    back = Transformer.from_crs(tile.epsg, 4326, always_xy=True)
    longitude, latitude = back.transform(tile.west + column * 10 + 5, tile.north - row * 10 - 5)
    return float(longitude), float(latitude)


def world(longitude: float, latitude: float) -> tuple[float, float]:
    y = math.asinh(math.tan(math.radians(latitude)))
    return (longitude + 180) / 360, (1 - y / math.pi) / 2


def act(browser: Browser, longitude: float, latitude: float) -> None:
    x, y = world(longitude, latitude)
    browser.evaluate(f"void act({x!r}, {y!r})")


def likeness(browser: Browser, longitude: float, latitude: float) -> float:
    x, y = world(longitude, latitude)
    code = f"vectorAt({x!r}, {y!r}).then(v => v.reduce((sum, n, k) => sum + n * examples[0].vector[k], 0))"
    answer = browser.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
    return float(answer["result"]["value"])


def test_of_a_run_a_click_tells_the_curve_of_its_pixel(made: Run, tmp_path: Path) -> None:
    tile = planned_tiles(made)[0]
    with served(made, made) as (url, _), chromium(tmp_path / "profile") as browser:
        site = url.partition("#")[0]
        open_page(browser, url)
        x, y = world(*place(tile, 20, 20))
        browser.evaluate(f"void tell({x!r}, {y!r})")
        wait(browser, "document.getElementById('here').textContent.includes('No curve: its time series is not here')")
        assert tile.name in browser.evaluate("document.getElementById('here').textContent")
        east, north = world(*place(planned_tiles(made)[1], 10, 10))
        browser.evaluate(f"void tell({x!r}, {y!r}), tell({east!r}, {north!r})")  # before the first is answered
        wait(browser, "document.getElementById('here').textContent.includes('No curve')")
        time.sleep(0.3)
        told = browser.evaluate("document.getElementById('here').textContent")
        assert told.count("No curve") == 1
        assert planned_tiles(made)[1].name in told
        with pytest.raises(HTTPError, match="400"):
            urlopen(f"{site}series?at=here")
        said = json.loads(urlopen(f"{site}series?at=0,0").read())
        assert said == {"why": "outside the run's tiles"}
        assert browser.errors == []


def of_places(folder: Path, *_: Any, **__: Any) -> Tile:
    """A tile of 32 x 32 pixels whose NDVI says the row and whose VV the column; on one of three days it is cloudy."""
    row, column = np.mgrid[:32, :32]
    bands = np.full((3, 32, 32, 10), 1000, np.uint16)
    bands[..., 3] = 2000 + 100 * row
    masks = np.ones((3, 32, 32), np.uint8)
    masks[1] = 0
    radar = np.zeros((2, 32, 32, 2), np.int16)
    radar[0, ..., 0], radar[0, ..., 1] = (2 * (-25 + column / 4) + 50) * 200, (2 * -18.5 + 50) * 200
    none, days = np.zeros((0, 32, 32, 2), np.int16), np.array([40, 41], np.int16)
    seen = np.array([30, 60, 20], np.uint16)  # of two orbits, not in the order of days
    return Tile(folder.name, bands, masks, seen, radar, days, none, np.zeros(0, np.int16))


def test_a_plain_web_server_shows_the_curve_of_the_nearest_kept_pixel(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preproc.survey.looks.read_tile", of_places)
    write_atlas(made, tmp_path / "atlas")
    plan = Plan.read(made)
    tile = plan.tiles[0]
    content = zlib.decompress((tmp_path / "atlas" / "curves" / f"{tile.name}.bin").read_bytes())
    head, _, values = content.partition(b"\n")
    days = json.loads(head)
    assert days == {"ndvi": [50, 60, 90], "radar": [70, 71]}
    lanes = np.frombuffer(values, np.uint8).reshape(7, 4, 4)
    for i, row in enumerate((4, 12, 20, 28)):
        for j, column in enumerate((4, 12, 20, 28)):
            ndvi, radar = curves_at(made, plan, np.array(place(tile, row, column)))
            told = {
                day: (int(lane[i, j]) - 1) / 127 - 1
                for day, lane in zip(days["ndvi"], lanes, strict=False)
                if lane[i, j]
            }
            assert told == {day: pytest.approx(value, abs=0.005) for day, value in ndvi}
            ((day, vv, vh),) = radar
            assert (int(lanes[3, i, j]) - 1) / 254 * 50 - 40 == pytest.approx(vv, abs=0.11)
            assert (int(lanes[5, i, j]) - 1) / 254 * 50 - 40 == pytest.approx(vh, abs=0.11)
            assert (day, lanes[4, i, j]) == (70, 0)
    with served(made, folder=tmp_path / "atlas") as (url, _), chromium(tmp_path / "profile") as browser:
        open_page(browser, url)
        x, y = world(*place(tile, 20, 12))
        browser.evaluate(f"void tell({x!r}, {y!r})")
        wait(browser, "document.querySelectorAll('#here circle').length === 2 + 2")
        assert browser.evaluate("beside") is None, "it is that pixel itself"
        heights = "[...document.querySelectorAll('#here circle')].map(c => +c.getAttribute('cy'))"
        ndvi = 3000 / 5000
        assert browser.evaluate(heights)[0] == pytest.approx(96 - 16 - (ndvi + 0.2) / 1.2 * 72, abs=0.5)
        x, y = world(*place(tile, 22, 13))
        browser.evaluate(f"void tell({x!r}, {y!r})")
        wait(browser, "document.getElementById('here').textContent.includes('The curve of a pixel 20 m away')")
        assert browser.evaluate("beside") == pytest.approx(world(*place(tile, 20, 12)), abs=3e-9)
        x, y = world(4.0, 51.9)
        browser.evaluate(f"void tell({x!r}, {y!r})")
        wait(browser, "document.getElementById('here').textContent.includes('No curve: smalti view RUN shows it')")
        assert browser.errors == []


def test_the_lattice_of_curves_is_thinner_where_there_is_more_and_none_of_a_country() -> None:
    def of(count: int) -> int | None:
        return step_of(PlannedTiles.of([PlannedTile("t", 32631, 0, 0, 2048)] * count))

    assert [of(count) for count in (1, 4, 5, 16, 17, 64, 65)] == [8, 8, 16, 16, 32, 32, None]


def test_a_second_run_is_shown_beside_the_first(made: Run, tmp_path: Path) -> None:
    other, _ = classified_run(tmp_path / "next year")
    write_atlas(made, tmp_path / "both", beside=other)
    page = (tmp_path / "both" / "index.html").read_text()
    assert '"title":"Classes, next year"' in page
    for path in (tmp_path / "both" / "classes").rglob("*.png"):
        assert (tmp_path / "both" / "other-classes" / path.relative_to(tmp_path / "both" / "classes")).exists()


def test_the_page_fits_a_phone_and_a_long_name_and_follows_the_dark(made: Run, tmp_path: Path) -> None:
    long = shutil.copytree(made.root, tmp_path / ("Überschwemmung 2019, " + "x" * 150))
    write_atlas(made, tmp_path / "both", beside=Run(long))
    with served(made, folder=tmp_path / "both") as (url, _), chromium(tmp_path / "profile") as browser:
        for width, scheme in ((1100, "light"), (360, "dark")):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=False
            )
            browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            open_page(browser, url)
            browser.evaluate(
                "(() => { $('right').value = 'other-classes'; $('right').onchange(); $('legend').open = true })()"
            )
            assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
            assert browser.evaluate("$('legend').scrollWidth <= $('legend').clientWidth")
            dark = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
            assert dark == (scheme == "dark")
        assert browser.errors == []


def test_a_tile_that_does_not_come_is_asked_for_again_and_is_not_called_empty(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(made) as (url, asked), chromium(tmp_path / "profile") as browser:
        answer, refused = SimpleHTTPRequestHandler.do_GET, set[str]()

        def forgetful(handler: SimpleHTTPRequestHandler) -> None:
            if handler.path.endswith(".png") and handler.path not in refused:
                refused.add(handler.path)
                handler.close_connection = True
            else:
                answer(handler)

        monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", forgetful)
        open_page(browser, url)
        browser.evaluate("tell(view.x, view.y)")
        wait(browser, "$('said').textContent.startsWith('The server does not answer')")
        assert browser.evaluate("$('here').hidden"), "nothing is told before it is known"
        wait(browser, "!$('here').hidden")
        assert any(name in browser.evaluate("$('here').textContent") for name in NAMES)
        wait(browser, "$('said').textContent === ''")
        assert browser.errors == []
    assert refused <= set(asked)


def test_short_embeddings_keep_their_cosines() -> None:
    random = np.random.default_rng(0)
    bases = random.normal(size=(5, 64))
    values = (bases[random.integers(0, 5, 400)] + 2 + random.normal(size=(400, 64)) * 0.05).astype(np.float32)
    short = learn_axes(values)
    codes = short.codes(values)
    assert codes.min() >= 1
    numbers = (codes.astype(float) - MIDDLE) * short.scale_k
    pairs = (units @ units.T for units in (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (values, numbers)))
    full, kept = pairs
    assert np.abs(full - kept).max() < 0.02
    few = learn_axes(values[:, :3])
    assert few.codes(values[:, :3]).shape == (400, 8), "embeddings shorter than that have empty axes"
    assert np.abs(few.axes_ck.T @ few.axes_ck - np.diag([1, 1, 1, 0, 0, 0, 0, 0])).max() < 1e-6


def open_page(browser: Browser, url: str) -> None:
    browser.call("Page.navigate", url="about:blank")  # of one address with another # the page would not be loaded again
    browser.call("Page.navigate", url=url)
    wait(browser, "document.readyState === 'complete' && location.protocol === 'http:' && typeof paint === 'function'")


def wait(browser: Browser, condition: str) -> None:
    for _ in range(400):
        if browser.evaluate(condition):
            return
        time.sleep(0.05)
    raise AssertionError(f"never: {condition}")


def test_a_run_without_a_map_shows_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = planned_run(tmp_path / "run", [(32631, 0, 0), (32632, 0, 0)])
    with pytest.raises(SmaltiError, match=r"has no mosaic and no map yet: run `smalti run"):
        write_atlas(run, None)
    embed_crops(run)
    find_groups(run, config(run), 3, 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for content in ("{}", '{"format": "texture"}', "nothing"):
        (tmp_path / "mine" / "atlas.json").write_text(content)  # of another program
        with pytest.raises(SmaltiError, match=r"holds something that is no atlas: name an empty or a new folder"):
            write_atlas(run, tmp_path / "mine")
    assert "2 layers" in write_atlas(run, tmp_path / "atlas")
    first = {path: path.read_bytes() for path in (tmp_path / "atlas").rglob("*") if path.is_file()}
    (run.embeddings / f"{planned_tiles(run)[1].name}.json").unlink()
    assert "2 layers" in write_atlas(run, tmp_path / "half")
    assert "1 of 2 tiles have no embedding: preview and search are without them" in capsys.readouterr().err
    halved = sum(1 for _ in (tmp_path / "half" / "short").rglob("*.png"))
    assert 0 < halved < sum("short" in path.parts for path in first)
    embed_crops(run)
    write_atlas(run, tmp_path / "atlas")
    assert {path: path.read_bytes() for path in (tmp_path / "atlas").rglob("*") if path.is_file()} == first


def test_a_mosaic_alone_begins_with_its_preview_and_has_no_layer_without_values(tmp_path: Path) -> None:
    counted, uncounted = (planned_run(tmp_path / name, [(32631, 0, 0)]) for name in ("counted", "uncounted"))
    embed_crops(counted, min_clear_s2=12)
    embed_crops(uncounted)
    keys = []
    for run in (counted, uncounted):
        run_stage(StitchStage(), run, config(run))
        write_atlas(run, None)
        text = (run.root / "atlas" / "index.html").read_text()
        keys.append(re.findall('"key":"([a-z0-9_]+)","title"', text))
    assert keys == [["clear_s2", "s1", "reason"], ["reason"]]
    with served(uncounted) as (url, _), chromium(tmp_path / "profile") as browser:
        open_page(browser, url)
        assert browser.evaluate("$('left').value") == "preview"


def test_what_a_killed_process_left_is_no_atlas_and_is_written_again(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("preproc.atlas.atlas.write_pyramid", killed)
        write_atlas(made, tmp_path / "out")
    assert (tmp_path / "out" / ".short").exists()
    with pytest.raises(SmaltiError, match="not an atlas: make one with"), serving(tmp_path / "out", 0):
        pass
    write_atlas(made, tmp_path / "out")
    assert not (tmp_path / "out" / ".short").exists()


def test_only_an_atlas_is_served(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="not an atlas: make one with"), serving(tmp_path, 0):
        pass
