"""The report: one self-contained page whose figures are those of the run."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from matplotlib.image import imread
from rasterio.transform import Affine
from support.browser import chromium
from support.embedded import write_vector
from support.mosaicked import CHAIN, EPSG, MODEL, NAMES, TOML, classified_run, config, crops, observe_tiles

from infer.contract import FormatError, Run, SmaltiError, planned_tiles, read_manifest, write_manifest
from infer.contract.classification import AccuracyManifest
from infer.contract.rasters import MappedClass
from preproc.classify.out_of_fold import read_out_of_fold
from preproc.classify.validate import ValidateStage
from preproc.report.figures import (
    class_areas,
    dates_chart,
    matrix_cells,
    percent_with_interval,
    study_chart,
    worst_mix_ups,
)
from preproc.report.inputs import observe, read_sources
from preproc.report.stage import ReportStage, render, shown_settings
from preproc.run.config import Config
from preproc.run.stage import run_stage


@dataclass
class Page(HTMLParser):
    """What the page holds: tags with attributes, text, tables by caption."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    open: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in ("meta", "img", "line", "rect", "link", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "rect"):
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if ("td" in self.open or "th" in self.open) and "tr" in self.open:
            self.rows[-1][-1] += data.strip()

    def row(self, first: str, *, cells: int) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first and len(row) == cells)


def parse(run: Run) -> Page:
    page = Page()
    page.feed((run.report / "index.html").read_text(encoding="utf-8"))
    assert not page.open
    return page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Config]:
    run, settings = classified_run(tmp_path_factory.mktemp("report") / "run")
    run_stage(ReportStage(), run, settings)
    return run, settings


@pytest.fixture
def copy(made: tuple[Run, Config], tmp_path: Path) -> tuple[Run, Config]:
    """The same run, to be damaged."""
    shutil.copytree(made[0].root, tmp_path / "run")
    run = Run(tmp_path / "run")
    return run, config(run, CHAIN)


def test_the_page_loads_nothing_from_elsewhere(made: tuple[Run, Config]) -> None:
    page = parse(made[0])
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for key in ("src", "href", "srcset", "data", "poster"):
            assert attributes.get(key, "data:").startswith("data:"), attributes
        assert not any(key.startswith("on") for key in attributes)
    html = (made[0].report / "index.html").read_text()
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_fits_a_phone(made: tuple[Run, Config], tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
        browser.open(made[0].report / "index.html", tmp_path)
        assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        widths = "[...document.querySelectorAll('.facts td')].map(cell => cell.clientWidth)"
        assert min(browser.evaluate(widths)) > 180, "provenance is no column of single words"
        left = "document.querySelector('.matrix').closest('.scroll')"
        browser.evaluate(f"{left}.scrollLeft = 60")
        head = f"{left}.querySelector('tbody th').getBoundingClientRect().left - {left}.getBoundingClientRect().left"
        assert browser.evaluate(head) == 0, "which class a row is of stays in sight"


def test_pictures_are_whole_and_described(made: tuple[Run, Config], tmp_path: Path) -> None:
    pictures = [attributes for tag, attributes in parse(made[0]).tags if tag == "img"]
    assert len(pictures) == 3, "classes, confidence, embeddings"
    for index, attributes in enumerate(pictures):
        assert len(attributes["alt"]) > 30
        (tmp_path / f"{index}.png").write_bytes(base64.b64decode(attributes["src"].split(",", 1)[1]))
        assert imread(tmp_path / f"{index}.png").shape[2] == 4
    legend = read_manifest(made[0].map / "map.json", "map", remedy="")["classes"]
    colours = {tuple(int(entry["color"][i : i + 2], 16) for i in (1, 3, 5)) for entry in legend}
    shown = imread(tmp_path / "0.png")
    opaque = np.rint(shown[shown[..., 3] > 0][:, :3] * 255).astype(int)
    assert {tuple(row) for row in np.unique(opaque, axis=0).tolist()} == colours


def test_tables_can_be_read_aloud(made: tuple[Run, Config]) -> None:
    page = parse(made[0])
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") >= 5
    assert all(attributes.get("scope") in ("row", "col", "colgroup") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    labelled = {attributes["aria-labelledby"] for tag, attributes in page.tags if tag == "section"}
    assert labelled <= {attributes.get("id") for _, attributes in page.tags}


def test_figures_are_those_of_the_out_of_fold_predictions(made: tuple[Run, Config]) -> None:
    run, _ = made
    page = parse(run)
    oof = read_out_of_fold(run.model / "oof.parquet", [1, 2, 3])
    legend = {entry["code"]: entry["name"] for entry in read_manifest(run.map_manifest, "map", remedy="")["classes"]}
    right = (oof.predicted_n == oof.code_n).mean()
    assert f"Overall {100 * right:.0f}\u00a0% (" in page.text
    for code, name in legend.items():
        recall = (oof.predicted_n[oof.code_n == code] == code).mean()
        precision = (oof.code_n[oof.predicted_n == code] == code).mean()
        row = page.row(name, cells=6)
        assert row[1:3] == [f"{100 * precision:.0f}\u00a0%", f"{100 * recall:.0f}\u00a0%"]
        assert row[4:] == [
            f"{(oof.code_n == code).sum():,}",
            str(len(np.unique(oof.group_n[oof.code_n == code]))),
        ]
        matrix = [int(((oof.predicted_n == code) & (oof.code_n == other)).sum()) for other in legend]
        assert page.row(name, cells=4)[1:] == [f"{count:,}" if count else "·" for count in matrix]


def test_areas_are_those_of_the_map_and_called_what_they_are(made: tuple[Run, Config]) -> None:
    page = parse(made[0])
    for entry in read_manifest(made[0].map / "map.json", "map", remedy="")["classes"]:
        assert page.row(entry["name"], cells=5)[1] == f"{entry['pixels']:,}"
    assert "pixel counts, not an area estimate" in page.text
    assert "not the accuracy of the map" in page.text


def test_cautions_come_first(made: tuple[Run, Config]) -> None:
    page = parse(made[0])
    assert page.text.index("The encoder is not trained") < page.text.index("Mapped area")
    assert "untrained demonstration model" in page.text
    assert "Map accuracy is not known" in page.text
    assert "Simulated data" not in page.text


def test_names_never_become_markup(made: tuple[Run, Config]) -> None:
    html = (made[0].report / "index.html").read_text()
    assert NAMES[2] not in html
    assert "beet &amp; &lt;i&gt;others&lt;/i&gt;" in html


def test_equal_runs_have_equal_pages_wherever_they_are(made: tuple[Run, Config], tmp_path: Path) -> None:
    run, settings = made
    again, other = classified_run(tmp_path / "elsewhere" / "run")
    run_stage(ReportStage(), again, other)
    assert (again.report / "index.html").read_bytes() == (run.report / "index.html").read_bytes()
    assert (again.report / "report.json").read_bytes() == (run.report / "report.json").read_bytes()
    assert str(run.root).encode() not in (run.report / "index.html").read_bytes()
    assert run_stage(ReportStage(), run, settings).built == 0


def test_a_new_accuracy_makes_a_new_page(copy: tuple[Run, Config]) -> None:
    run, settings = copy
    accuracy = read_manifest(run.accuracy, "accuracy", remedy="")
    accuracy["performance"]["left_out"] = [{"code": 9, "name": "hops", "groups": 1, "pixels": 4}]
    run.accuracy.write_text(json.dumps(accuracy))
    assert run_stage(ReportStage(), run, settings).built == 1
    assert "Classes left out. Too few groups of labels to learn from: hops (1)" in parse(run).text


def test_a_trained_model_is_not_warned_about(tmp_path: Path) -> None:
    model = replace(MODEL, name="tessera-v2-small", label="tessera-v2-small", trained=True)
    run, settings = classified_run(tmp_path / "run", model=model)
    run_stage(ReportStage(), run, settings)
    text = parse(run).text
    assert "not trained" not in text
    assert "did not use a TESSERA checkpoint" not in text


def test_a_reference_sample_gives_the_maps_accuracy_and_areas(tmp_path: Path) -> None:
    run, _ = classified_run(tmp_path / "run")
    generator = np.random.default_rng(4)
    points, names = [], []
    for tile in planned_tiles(run):
        codes = crops(tile)
        for row, column in generator.integers(4, tile.size, (40, 2)):
            points.append(shapely.Point(tile.west + column * 10 + 5, tile.north - row * 10 - 5))
            names.append(NAMES[codes[row, column]])
    write_vector(run.root / "reference.geojson", points, {"truth": names}, epsg=EPSG, to=4326)
    extra = CHAIN + '[validate]\nreference = "reference.geojson"\nclass = "truth"\ndesign = "random"\n'
    settings = config(run, extra)
    run.config.write_text(TOML.format(extra=extra))
    for stage in (ValidateStage(), ReportStage()):
        run_stage(stage, run, settings)
    page = parse(run)
    assessed = AccuracyManifest.read(run).map_accuracy
    assert assessed is not None
    assert f"the overall accuracy of the map is {percent_with_interval(assessed.overall_accuracy)}" in page.text
    assert "Map accuracy is not known" not in page.text
    for entry in assessed.per_class:
        assert entry.area_ha.ci95 is not None
        low, high = entry.area_ha.ci95
        shown = f"{entry.area_ha.value:,.1f} ({low:,.1f}–{high:,.1f})"
        assert any(row[0] == entry.name and row[-1] == shown for row in page.rows if row)


def write_truth(run: Run, extra: str = '[report]\ntruth = "truth.tif"\n') -> Config:
    """truth.tif on the lattice of `crops`, two pixels wider than the tiles, and its legend; the run's new settings.

    The codes are not the map's. A strip of 8 columns is a class that no label names, a row of 5 pixels is not known.
    """
    tiles = planned_tiles(run)
    west, north = min(tile.west for tile in tiles) - 20, max(tile.north for tile in tiles) + 20
    codes = np.zeros((68, 68), dtype=np.uint8)
    for tile in tiles:
        row, column = (north - tile.north) // 10, (tile.west - west) // 10
        codes[row : row + 32, column : column + 32] = 10 * (3 - crops(tile))
    codes[:, 10:18] = 77
    codes[40, 20:25] = 0
    profile = {"driver": "GTiff", "width": 68, "height": 68, "count": 1, "dtype": "uint8", "crs": f"EPSG:{EPSG}"}
    with rasterio.open(run.root / "truth.tif", "w", transform=Affine(10, 0, west, 0, -10, north), **profile) as file:
        file.write(codes, 1)
    legend = [{"code": 10 * (3 - index), "crop": name} for index, name in enumerate(NAMES)]
    (run.root / "legend.json").write_text(json.dumps([*legend, {"code": 77, "crop": "road"}]))
    run.config.write_text(TOML.format(extra=CHAIN + extra))
    return config(run, CHAIN + extra)


def test_where_the_truth_is_known_every_pixel_of_the_map_is_judged(copy: tuple[Run, Config]) -> None:
    run, _ = copy
    assert "Against the truth" not in parse(run).text
    settings = write_truth(run)
    assert run_stage(ReportStage(), run, settings).built == 1
    page = parse(run)
    with rasterio.open(run.map / "classes_31N.tif") as file:
        mapped = file.read(1)
    with rasterio.open(run.root / "truth.tif") as file:
        true = file.read(1)[2:-2, 2:-2]
    legend = {entry["code"]: entry["name"] for entry in read_manifest(run.map_manifest, "map", remedy="")["classes"]}
    names = {10 * (3 - index): name for index, name in enumerate(NAMES)} | {77: "road"}
    known = (mapped > 0) & (true > 0)
    called = np.array([legend[code] for code in mapped[known]])
    actual = np.array([names[code] for code in true[known]])
    taught, right = actual != "road", called == actual
    assert f"{100 * right.mean():.0f}\u00a0% of {right.size:,} pixels are right" in page.text
    assert f"{100 * right[taught].mean():.0f}\u00a0% of the {taught.sum():,} whose class the labels taught" in page.text
    for name in NAMES:
        share = [right[actual == name].mean(), right[called == name].mean()]
        expected = [f"{(actual == name).sum():,}", *(f"{100 * value:.0f}\u00a0%" for value in share)]
        assert [row[1:4] for row in page.rows if row and row[0] == name and row[1:4] == expected]
    most, count = max(
        zip(*np.unique(called[actual == "road"], return_counts=True), strict=True), key=lambda one: one[1]
    )
    share_taken = f"{most} ({100 * count / (actual == 'road').sum():.0f}\u00a0%)"
    assert page.row("road", cells=5)[1:] == [f"{(actual == 'road').sum():,}", "not taught", "–", share_taken]
    assert "Map accuracy is not known" not in page.text


def test_another_truth_or_legend_makes_a_new_page(copy: tuple[Run, Config]) -> None:
    run, _ = copy
    settings = write_truth(run)
    run_stage(ReportStage(), run, settings)
    assert run_stage(ReportStage(), run, settings).built == 0
    for name, old, new in (("legend.json", b"road", b"lane"), ("truth.tif", b"\x4d" * 8, b"\x0a" * 8)):
        content = (run.root / name).read_bytes()
        (run.root / name).write_bytes(content.replace(old, new))
        assert run_stage(ReportStage(), run, settings).built == 1, name
    assert "not taught" not in parse(run).text


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("truth.tif", None, r"truth\.tif: cannot be read \(No such file"),
        ("truth.tif", b"not a raster", r"truth\.tif: cannot be compared with .*classes_31N\.tif"),
        ("legend.json", None, r"legend\.json: cannot be read \(No such file"),
        ("legend.json", b"[]", r"legend\.json: no name for code 10 of truth\.tif"),
        ("legend.json", b'{"10": "maize"}', r"legend\.json: not a list of"),
    ],
)
def test_a_truth_that_cannot_be_used_is_named(
    copy: tuple[Run, Config], name: str, content: bytes | None, problem: str
) -> None:
    run, _ = copy
    settings = write_truth(run)
    (run.root / name).unlink()
    if content is not None:
        (run.root / name).write_bytes(content)
    with pytest.raises(FormatError, match=problem + r".*: correct \[report\] truth, or leave it out"):
        run_stage(ReportStage(), run, settings)


# --- what is missing or does not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("accuracy.json", "validate"),
        ("map/map.json", "predict"),
        ("mosaic/mosaic.json", "stitch"),
        ("samples.json", "sample"),
        ("model/model.json", "train"),
        ("plan.json", "plan"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_makes_it(
    copy: tuple[Run, Config], path: str, command: str
) -> None:
    run, settings = copy
    (run.root / path).unlink()
    with pytest.raises(SmaltiError, match=rf"{re.escape(path)}: .* missing: run `smalti {command}"):
        run_stage(ReportStage(), run, settings)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        (
            "samples.json",
            {"classes": [{"code": 1, "name": "a", "groups": "x", "pixels": 1}]},
            "classes[0].groups = 'x'",
        ),
        ("samples.json", {"rows": None}, "rows = None is not a whole number: run `smalti sample "),
        ("model/model.json", {"tuning": 3}, "tuning = 3 is not a table: run `smalti train "),
        ("map/map.json", {"window": {"start": "2021"}}, "window.start = '2021' is not a day"),
        ("mosaic/mosaic.json", {"preview": None}, "preview = None is not a table: run `smalti stitch "),
        ("accuracy.json", {"performance": {}}, "performance.what is missing: run `smalti validate "),
        ("plan.json", {"region": {"name": "x"}}, "region.fingerprint is missing: run `smalti plan "),
    ],
)
def test_a_manifest_that_was_edited_is_refused_in_one_line(
    copy: tuple[Run, Config], path: str, change: dict[str, Any], said: str
) -> None:
    run, settings = copy
    manifest = json.loads((run.root / path).read_text())
    (run.root / path).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(FormatError, match=rf"{re.escape(path)}: {re.escape(said)}[^\n]* --force`$"):
        run_stage(ReportStage(), run, settings)


@pytest.mark.parametrize(
    ("path", "change", "problem"),
    [
        ("map/map.json", {"embeddings": "0"}, "the map and the mosaic were made from different embeddings"),
        ("map/map.json", {"classifier": "0"}, "the map was made by another classifier"),
        ("accuracy.json", {"model": "0"}, r"accuracy\.json is about another classifier"),
    ],
)
def test_parts_of_different_runs_are_not_put_on_one_page(
    copy: tuple[Run, Config], path: str, change: dict[str, str], problem: str
) -> None:
    run, settings = copy
    manifest = json.loads((run.root / path).read_text())
    manifest["inputs"].update(change)
    (run.root / path).write_text(json.dumps(manifest))
    before = (run.report / "index.html").read_bytes()
    with pytest.raises(SmaltiError, match=problem):
        run_stage(ReportStage(), run, settings)
    assert (run.report / "index.html").read_bytes() == before


def test_a_damaged_map_is_not_shown(copy: tuple[Run, Config]) -> None:
    run, settings = copy
    path = run.map / "classes_31N.tif"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SmaltiError, match=r"classes_31N\.tif: its contents do not match"):
        run_stage(ReportStage(), run, settings, force=True)


def test_without_labels_there_is_no_report(made: tuple[Run, Config]) -> None:
    settings = made[1].model_copy(update={"labels": None})
    with pytest.raises(SmaltiError, match=r"\[labels\]: missing: a report is about a map"):
        run_stage(ReportStage(), made[0], settings)


def test_simulated_scenes_are_never_passed_off_as_real(copy: tuple[Run, Config]) -> None:
    run, settings = copy
    run.items.mkdir()
    item = {"type": "Feature", "properties": {"smalti:simulated": True}}
    (run.items / "s2.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    assert read_sources(run, config(run)).simulated
    run_stage(ReportStage(), run, settings, force=True)
    text = parse(run).text
    assert text.index("Simulated data") < text.index("Mapped area")


def test_removed_time_series_are_said(copy: tuple[Run, Config]) -> None:
    run, settings = copy
    shutil.rmtree(run.tiles / planned_tiles(run)[0].name)
    run_stage(ReportStage(), run, settings)
    assert "The time series of 1 of 4 tiles are no longer in the run" in parse(run).text
    shutil.rmtree(run.tiles)
    run_stage(ReportStage(), run, settings)
    assert "observations cannot be counted" in parse(run).text


# --- the parts ----------------------------------------------------------------------------------------------------


def test_observations_are_weighed_by_pixels_and_the_worst_is_kept(made: tuple[Run, Config]) -> None:
    seen = observe(made[0], ("2018-12-01", "2019-11-30"))
    s2 = seen.stacks["s2"]
    medians, weights = [12 + i + 5 for i in range(4)], [1, 2, 3, 4]
    assert s2.typical == pytest.approx(np.average(medians, weights=weights))
    assert (s2.fewest, s2.most, s2.largest_gap, s2.dropped) == (12, 12 + 3 + 10, 43, 3)
    assert seen.months[0] == "2018-12"
    assert len(seen.months) == 12
    assert sum(seen.per_month["s2"]) == 4
    assert seen.per_month["s2"][4] == 2, "April has two dates, in all tiles the same"
    assert not seen.poor_tiles


def test_tiles_with_few_looks_are_named(copy: tuple[Run, Config]) -> None:
    run, settings = copy
    shutil.rmtree(run.tiles)
    observe_tiles(run, worst=3)
    run_stage(ReportStage(), run, settings)
    assert "2 of 4 tiles have fewer than 10 clear Sentinel-2 observations for half of their pixels: " in parse(run).text


@pytest.mark.parametrize(
    ("key", "value"), [("stacks", 3), ("region_pixels", None), ("region_pixels", float("inf")), ("stacks", {"s2": []})]
)
def test_a_quality_record_that_was_edited_is_named(copy: tuple[Run, Config], key: str, value: object) -> None:
    run = copy[0]
    path = run.tiles / planned_tiles(run)[0].name / "quality.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(FormatError, match=rf"{path.parent.name}/quality\.json: cannot be read"):
        observe(run, ("2018-12-01", "2019-11-30"))


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        (3, "dates = 3 is not a table"),
        ({"s2": ["2019-13-01"]}, "dates.s2[0] = '2019-13-01' is not a day such as 2021-07-01"),
        ({"s2": [], "s1_ascending": []}, "dates.s1_descending is missing"),
    ],
)
def test_dates_that_were_edited_are_named(copy: tuple[Run, Config], dates: object, said: str) -> None:
    run = copy[0]
    path = run.tiles / planned_tiles(run)[0].name / "tile.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dates": dates}))
    with pytest.raises(FormatError, match=rf"{path.parent.name}/tile\.json: {re.escape(said)}: fetch this tile again"):
        observe(run, ("2018-12-01", "2019-11-30"))


@pytest.mark.parametrize(("window", "months"), [(("2020-02-29", "2020-03-01"), 2), (("2019-12-31", "2020-12-01"), 13)])
def test_the_chart_has_every_month_of_the_window(
    made: tuple[Run, Config], window: tuple[str, str], months: int
) -> None:
    chart = dates_chart(observe(made[0], window))
    assert len(chart.months) == months
    assert all(bar.height >= 0 and bar.y >= 0 for bar in chart.bars)


def test_matrices_are_shaded_by_their_columns() -> None:
    cells = matrix_cells([[8, 1, 0], [2, 3, 0], [0, 0, 0]])
    assert (cells[0][0].share, cells[1][0].share, cells[1][1].right) == (0.8, 0.2, True)
    assert cells[2][2].share is None, "a class without labels has no share"
    mixed = worst_mix_ups(["a", "b", "c"], cells)
    assert [(mix.reference, mix.mapped) for mix in mixed] == [("b", "a"), ("a", "b")]


def test_uncertain_pixels_are_those_below_the_threshold() -> None:
    counts = [0] * 101
    counts[49], counts[50], counts[51] = 3, 4, 5
    entry = MappedClass(1, "a", "#000000", 12, 0.12, tuple(counts))
    empty = replace(entry, code=2, pixels=0, pixels_by_confidence=(0,) * 101)
    rows = class_areas([empty, entry], 0.5)
    assert rows[0]["uncertain"] == pytest.approx(3 / 12)
    assert rows[1]["uncertain"] is None


def test_keys_in_addresses_are_not_shown(copy: tuple[Run, Config]) -> None:
    run, _ = copy
    run.config.write_text('href = "https://example.org/items.json?sig=SECRET&x=1"\nother = "a?b"\n')
    assert shown_settings(run) == 'href = "https://example.org/items.json?(query not shown)"\nother = "a?b"\n'


def test_a_gap_in_the_pages_data_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render({"title": "only a title"})


def test_a_plan_that_warned_is_quoted(copy: tuple[Run, Config]) -> None:
    run, settings = copy
    plan = json.loads(run.plan.read_text())
    inputs, fields = plan.pop("inputs"), {**plan, "warnings": ["1 item lacks a band"]}
    write_manifest(run.plan, "plan", inputs=inputs, files=[], fields=fields)
    run_stage(ReportStage(), run, settings)
    assert "1 item lacks a band" in parse(run).text


def test_on_paper_nothing_lies_beyond_a_scroll_bar_or_is_folded_up(made: tuple[Run, Config]) -> None:
    page = (made[0].report / "index.html").read_text()
    printed = page[page.index("@media print") : page.index("</style>")]
    for rule in (".scroll, pre { overflow: visible; }", "white-space: normal", "details > :not(summary)"):
        assert rule in printed


def test_trials_are_drawn_in_their_order_and_pruned_ones_are_told_apart() -> None:
    lines = [
        json.dumps({"method": "linear", "number": n, "params": {"c": 0.02}, "score": s, "pruned": s < 0.5})
        for n, s in enumerate((0.6, 0.4, 0.8))
    ]
    drawn = study_chart(lines)
    assert drawn is not None
    assert [dot.pruned for dot in drawn.dots] == [False, True, False]
    xs, ys = [dot.x for dot in drawn.dots], [dot.y for dot in drawn.dots]
    assert xs == sorted(xs)
    assert ys[2] < ys[0] < ys[1], "better is higher"
    assert "trial 2: 0.800; c 0.02" in drawn.dots[2].text
    assert study_chart([]) is None


def test_the_page_says_whether_more_labels_would_help(made: tuple[Run, Config]) -> None:
    page = parse(made[0])
    assert "Would more labels help?" in page.text
    assert "How far test pixels lie from the nearest pixel trained on" in page.text
