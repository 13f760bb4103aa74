"""The labelling page in a real browser, by keyboard alone, and what it shows of a place."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from support.browser import chromium
from support.embedded import plan_of
from support.mosaicked import EPSG, NAMES, NORTH, WEST, classified_run, config

from infer.contract import PlannedTile, Run, SmaltiError, Tile, read_manifest
from preproc.classify.validate import ValidateStage
from preproc.cli import app
from preproc.run.stage import run_stage
from preproc.survey.looks import AROUND, NOTHING, _curves, curves_at, look, pixels_of
from preproc.survey.points import LabellingPage, render


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return classified_run(tmp_path_factory.mktemp("label") / "run")[0]


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.root, tmp_path / "run")
    return Run(tmp_path / "run")


def data_of(page: Path) -> Any:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def wait(path: Path) -> Any:
    for _ in range(100):
        if path.exists() and path.stat().st_size:
            return json.loads(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path.name} was not saved")


def test_ten_points_are_labelled_by_keyboard_saved_and_read_by_validate(run: Run, tmp_path: Path) -> None:
    sizes = f"{NAMES[0]}=4,{NAMES[1]}=3,{NAMES[2]}=3"
    app(["design", str(run.root), "--sizes", sizes], standalone_mode=False)
    page = run.root / "survey" / "label.html"
    names = [entry["name"] for entry in data_of(page)["classes"]]
    with chromium(tmp_path / "profile") as browser:
        browser.open(page, run.root / "survey")
        keys = ["1", "2", "3", "1", "2", "3", "1", "2"]
        for key in keys:
            browser.press(key)
        browser.press("ArrowLeft")
        browser.press("Backspace")  # the eighth, taken back ...
        browser.press("1")  # ... and said otherwise
        browser.press(".")
        browser.type("hedge")
        browser.press("Enter")
        browser.press("/")
        browser.type("orchard")
        browser.press("Enter")
        browser.press("0")
        assert browser.evaluate("document.getElementById('done').value") == 10
        assert "all points are done" in browser.evaluate("document.getElementById('said').textContent")
        assert browser.evaluate("document.images.length") == 1
        assert browser.evaluate("document.querySelectorAll('#classes i').length") == 0  # a name is no markup
        browser.press("s", control=True)
        saved = wait(run.root / "survey" / "labelled.geojson")
        browser.open(page, tmp_path)
        assert browser.evaluate("document.getElementById('done').value") == 10  # kept by the browser
        assert browser.errors == []
    answers = {feature["properties"]["id"]: feature["properties"] for feature in saved["features"]}
    expected = [names[int(key) - 1] for key in keys[:7]] + [names[0], "orchard", None]
    assert [answers[number]["class"] for number in range(1, 11)] == expected
    assert [answers[9]["note"], answers[10]["note"]] == ["hedge", "cannot be told"]
    reference = '[validate]\nreference = "survey/labelled.geojson"\nclass = "class"\ndesign = "stratified"\n'
    run_stage(ValidateStage(), run, config(run, chain_of(run) + reference))
    assessed = read_manifest(run.accuracy, "accuracy", remedy="")["map_accuracy"]
    assert assessed["n"] == 9
    assert assessed["dropped"]["features dropped: no class"] == 1
    assert assessed["dropped"]["dropped: not on the map"] == 0
    assert assessed["classes_not_on_the_map"] == ["orchard"]


def test_a_finger_does_what_keys_do(run: Run, tmp_path: Path) -> None:
    app(["design", str(run.root), "--sizes", f"{NAMES[0]}=2,{NAMES[1]}=2,{NAMES[2]}=2"], standalone_mode=False)
    with chromium(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
        browser.open(run.root / "survey" / "label.html", tmp_path)
        assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]

        def tap(words: str) -> str:
            button = f"[...document.querySelectorAll('button')].find(b => b.textContent.endsWith({words!r}))"
            browser.evaluate(f"{button}.click()")
            return str(browser.evaluate("document.getElementById('state').textContent"))

        assert tap("maize").startswith("point 2 · 1 of 6 done")
        assert tap("cannot be told").startswith("point 3 · 2 of 6 done")
        assert tap("previous") == "point 2 · 2 of 6 done · this one: cannot be told"
        assert tap("no class after all") == "point 2 · 1 of 6 done"
        assert tap("next").startswith("point 3 ")
        assert browser.errors == []


def test_what_is_said_to_come_next_names_the_file_where_it_will_be(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.root.parent)
    away = tmp_path / "a place"
    for extra, place in (([], "survey"), (["--output", str(away)], str(away)), (["--output", "run/2nd"], "2nd")):
        app(["design", run.root.name, "--minimum", "5", *extra], standalone_mode=False)
        assert f'then: [validate] reference = "{place}/labelled.geojson", class' in capsys.readouterr().err


def chain_of(run: Run) -> str:
    return run.config.read_text().partition('class = "crop"\n')[2]


def test_work_goes_on_from_a_saved_file_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    about = LabellingPage("t", "k", ["a", "b"], ["#ff0000", "#00ff00"], None, "labelled.geojson")
    page = tmp_path / "label.html"
    page.write_text(render(about, np.array([1, 2, 3]), np.array([[4.0, 50.0]] * 3), [NOTHING] * 3))

    def feature(number: int, name: str | None, note: str | None = None) -> dict[str, Any]:
        return {"type": "Feature", "geometry": None, "properties": {"id": number, "class": name, "note": note}}

    def load(browser: Any, features: list[Any]) -> Any:
        text = json.dumps({"features": features})
        browser.evaluate(f"load(new File([{json.dumps(text)}], 'mine.geojson'))")
        time.sleep(0.3)
        return browser.evaluate("document.getElementById('said').textContent")

    with chromium(tmp_path / "profile") as browser:
        browser.open(page, tmp_path)
        assert "is not of this sample" in load(browser, [feature(9, "a")])
        assert "cannot be used" in load(browser, [None])
        load(browser, [feature(1, "b"), feature(2, None, "cannot be told; cloud")])
        assert browser.evaluate("document.getElementById('state').textContent").startswith("point 3 · 2 of 3 done")
        browser.press("ArrowLeft")
        assert browser.evaluate("document.getElementById('note').value") == "cloud"
        assert browser.errors == []


def test_names_end_no_script() -> None:
    about = LabellingPage("</title><b>", "k", ["</script><b>", "a & 'b'"], ["#ff0000", "#00ff00"], None, "x")
    text = render(about, np.array([1]), np.array([[4.0, 50.0]]), [NOTHING])
    assert text.count("</script>") == 2
    assert "<b>" not in text


def series(bands: dict[int, int], red: int, near: int) -> Tile:
    """A tile of 4 x 4 pixels: clear on the days of `bands` where it is 1; only pixel (1, 2) has these values."""
    count = len(bands)
    values = np.zeros((count, 4, 4, 10), np.uint16)
    values[:, 1, 2, 0], values[:, 1, 2, 3] = red, near
    masks = np.broadcast_to(np.array(list(bands.values()), np.uint8)[:, None, None], (count, 4, 4))
    radar = np.zeros((2, 4, 4, 2), np.int16)
    radar[0, 1, 2] = ((2 * -12.0 + 50) * 200, (2 * -18.5 + 50) * 200)
    days = np.array([340, 10], np.int16)
    none = np.zeros((0, 4, 4, 2), np.int16)
    return Tile("t", values, masks, np.array(list(bands), np.uint16), radar, days, none, np.zeros(0, np.int16))


def test_curves_are_those_of_the_pixel_on_the_days_of_the_window() -> None:
    tile = series({350: 1, 20: 1, 60: 0}, 1000, 3000)
    ndvi, radar = _curves(tile, 1, 2, date(2018, 12, 1))
    assert ndvi == [[15, 0.5], [50, 0.5]]  # 16 December, 20 January; the cloudy day is left out
    assert radar == [[5, -12.0, -18.5]]  # dB of power; the other date has no value
    assert _curves(tile, 0, 0, date(2018, 12, 1)) == ([], [])


def test_pictures_are_of_the_place_and_damaged_tiles_leave_theirs_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from pyproj import Transformer

    tile = PlannedTile("t32631_0_0", EPSG, WEST, NORTH, 32)
    plan = replace(plan_of([tile]), window=(date(2018, 12, 1), date(2019, 11, 30)))
    back = Transformer.from_crs(EPSG, 4326, always_xy=True)
    places = np.array([back.transform(WEST + 55, NORTH - 75), back.transform(WEST - 500, NORTH)])
    there, outside = look(run, plan, places)
    with pytest.raises(SmaltiError, match="its time series is not here"):
        curves_at(run, plan, places[0])
    at = np.array(back.transform(WEST + 25, NORTH - 15))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("preproc.survey.looks.read_tile", lambda *_, **__: series({350: 1}, 1000, 3000))
        assert curves_at(run, plan, at) == ([[15, 0.5]], [[5, -12.0, -18.5]])
    with pytest.raises(SmaltiError, match="outside the run's tiles"):
        curves_at(run, plan, places[1])
    assert outside == NOTHING
    with (
        warnings.catch_warnings(action="ignore"),
        rasterio.MemoryFile(base64.b64decode(there.picture.partition(",")[2])) as file,
        file.open() as image,
    ):
        alpha = image.read(4)
    assert alpha.shape == (2 * AROUND + 1,) * 2
    assert alpha[AROUND, AROUND] == 255
    assert (alpha[: AROUND - 7] == 0).all()  # the place is in row 7 and column 5: beyond the tile there is nothing
    assert (alpha[:, : AROUND - 5] == 0).all()
    assert alpha[AROUND - 7, AROUND - 5] == 0  # nodata in the tile's corner
    beside = PlannedTile("t32631_1_0", EPSG, WEST + 320, NORTH, 32)
    edge = np.array([back.transform(WEST + 315, NORTH - 105)])  # row 10, the last column of its tile
    alone, joined = (look(run, replace(plan, tiles=tiles), edge)[0] for tiles in ((tile,), (tile, beside)))
    for one, last in ((alone, AROUND), (joined, 2 * AROUND)):  # the neighbour's pixels are there as well
        with (
            warnings.catch_warnings(action="ignore"),
            rasterio.MemoryFile(base64.b64decode(one.picture.partition(",")[2])) as file,
            file.open() as image,
        ):
            assert image.read(4)[AROUND].nonzero()[0].max() == last
    assert "places in it have no curves" in " ".join(capsys.readouterr().err.split())  # tile.json lists no arrays
    for path in run.embeddings.glob("t32631_0_0.npy"):
        path.write_bytes(b"x")
    assert look(run, plan, places)[0].picture == ""
    assert "places in it have no picture" in " ".join(capsys.readouterr().err.split())


def test_a_place_near_the_seam_of_zones_lies_in_the_tile_of_its_own_zone() -> None:
    tiles = []
    for epsg in (32631, 32632):
        x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(6.0, 50.0)
        tiles.append(PlannedTile(f"t{epsg}", epsg, int(x) // 10 * 10 - 320, int(y) // 10 * 10 + 320, 64))
    places = np.array([[6.001, 50.0], [5.999, 50.0], [6.1, 50.0], [np.inf, 50.0]])
    names = [pixel and pixel[0].name for pixel in pixels_of(tiles, places)]
    assert names == ["t32632", "t32631", None, None]
    (alone,) = pixels_of(tiles[:1], places[:1])
    assert alone is not None, "where the run has no tile of that zone"
    east, north = Transformer.from_crs(4326, 32631, always_xy=True).transform(6.001, 50.0)
    assert alone[1:] == ((tiles[0].north - north) // 10, (east - tiles[0].west) // 10)
