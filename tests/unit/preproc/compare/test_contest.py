"""Models compared: who is better and whether that shows, the page, and who may not take part."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.contract import Run, SmaltiError, release_tile
from infer.contract.classification import Figure, LearningPoint
from infer.contract.compared import ComparedClass, ComparedModel, Comparison, Difference, MethodFigures
from preproc.classify.split import Split, hold_out, split_of
from preproc.classify.table import Samples, Source
from preproc.compare.compare import Wishes, _settings, compare, dry_run
from preproc.compare.contest import Contest, verdict
from preproc.compare.entrants import entrants, fit_seconds
from preproc.compare.page import Speed, as_text, page_and_table, panel, signed, table_csv
from preproc.compare.pixels import cut, cuts_of
from preproc.run.config import Classify, parse_config

TOML = """\
[region]
bbox = [4.0, 50.0, 4.1, 50.1]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
[model]
name = "demo"
min_clear_s2 = 5
"""


def samples(groups: int = 24, pixels: int = 6) -> Samples:
    group = np.repeat(np.arange(groups), pixels)
    count = len(group)
    place = np.arange(count, dtype=np.float64) * 10
    return Samples(
        tile_n=np.where(group < groups // 2, "a", "b"),
        row_n=(np.arange(count) % 7).astype(np.int32),
        col_n=(np.arange(count) // 7).astype(np.int32),
        x_n=place,
        y_n=place,
        epsg_n=np.full(count, 32631, np.int32),
        code_n=(group % 3 + 1).astype(np.int32),
        group_n=group.astype(np.str_),
        feature_n=group.astype(np.int64),
        district_n=np.full(count, ""),
        run_n=np.zeros(count, np.int16),
        value_n=np.full(count, np.nan),
        values_nc=np.zeros((count, 0), np.float32),
        legend={1: "maize", 2: "grass", 3: "wheat"},
        sources=(Source("this run", None, ""),),
    )


def numbers(table: Samples, noise: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (np.eye(4)[table.code_n] + noise * rng.normal(size=(len(table), 4))).astype(np.float32)


def contest(deals: int = 3) -> Contest:
    table = samples()
    return Contest.of(table, Split("group", table.group_n, None), Classify(folds=3), ("linear", "knn"), deals, 2)


def test_a_better_model_is_told_from_a_worse_one_and_equals_are_not() -> None:
    field = contest()
    said, figures = {}, {}
    for name, noise in (("good", 0.3), ("twin", 0.3), ("bad", 2.5)):
        figures[name], said[name] = field.score(numbers(field.samples, noise), lambda _method: None)
    assert said["good"].shape == (2, 3, len(field.samples))
    better = field.difference("linear", ("good", "bad"), said)
    assert better.macro_f1.value == pytest.approx(figures["good"][0].macro_f1.value - figures["bad"][0].macro_f1.value)
    assert better.macro_f1.ci95 is not None
    assert better.macro_f1.ci95[0] > 0.2
    even = field.difference("linear", ("good", "twin"), said)
    assert even.macro_f1 == Figure(0.0, (0.0, 0.0))
    linear = figures["good"][0]
    assert [point.groups for point in linear.curve] == [1, 3, 8], "8 groups a class, 5.3 of them in training"
    assert linear.curve[-1].macro_f1 == linear.macro_f1
    assert linear.curve[0].macro_f1.value <= linear.macro_f1.value
    assert len(linear.deals) == 3
    assert set(linear.by_class) == {"maize", "grass", "wheat"}


def test_deals_differ_and_named_folds_are_dealt_once() -> None:
    field = contest()
    folds = [dealt.fold_n.tolist() for dealt in field.deals]
    assert len(folds) == 3
    assert folds[0] != folds[1]
    table = samples()
    districts = np.where(table.group_n.astype(int) < 12, "north", "south").astype(np.str_)
    named = Contest.of(table, Split("district", districts, None), Classify(folds=3), ("linear",), 5, 1)
    assert len(named.deals) == 1


def model(name: str, *values: float) -> ComparedModel:
    curve = tuple(
        LearningPoint(size, size * 10, Figure(value, (value - 0.05, value + 0.05)), Figure(value, None))
        for size, value in zip((1, 3, 20), values, strict=True)
    )
    score = MethodFigures(
        "linear", curve[-1].macro_f1, curve[-1].overall_accuracy, {"maize": 0.5, "a < b": 0.25}, (0.5, 0.6), curve
    )
    return ComparedModel(
        name=name, label=name, trained=True, family="v2-student", checkpoint="c" * 64, dim=128, embeddings_as="int8",
        bytes_per_pixel=134, scores=(score,),
    )  # fmt: skip


def comparison() -> Comparison:
    made = (model("demo", 0.4, 0.5, 0.7), model("monthly", 0.3, 0.6, 0.8))
    return Comparison(
        models=made, failed={"<b>bad</b>": "no weights"}, against="monthly", differences=(),
        verdicts={"linear": verdict(made[1], "linear", None)},
        classes=(ComparedClass("maize", 100, 10), ComparedClass("a < b", 100, 10)), left_out=("rye",), pixels=200,
        groups=20, unseen=1, methods=("linear",), split="group", folds=3, deals=2, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize(("interval", "bold"), [((-0.3, 0.1), False), ((-0.3, -0.1), True), (None, False)])
def test_a_difference_is_bold_when_its_interval_leaves_zero_out(
    tmp_path: Path, interval: tuple[float, float] | None, bold: bool
) -> None:
    figure = Figure(-0.1, interval)
    told = Difference("linear", "demo", "monthly", figure, figure)
    page_and_table(tmp_path, replace(comparison(), differences=(told,)), {"demo": None, "monthly": None})
    page = (tmp_path / "index.html").read_text()
    assert f"{signed(figure)}" in page
    assert (f"<strong>{signed(figure)}" in page) == bold


def test_the_page_and_the_table_show_the_same(tmp_path: Path) -> None:
    made, speeds = comparison(), {"demo": Speed(2e-4, "cpu (AVX2)", 2), "monthly": None}
    text = page_and_table(tmp_path, made, speeds)
    page = (tmp_path / "index.html").read_text()
    assert "<b>bad</b>" not in page
    assert "&lt;b&gt;bad" in page
    assert "a &lt; b" in page
    assert "0.80 (0.75–0.85)" in page
    assert "0.80 (0.75–0.85)" in text
    assert "3 min" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.index('scope="row">monthly') < page.index('scope="row">demo'), "the best stands first"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_text())))
    assert [(row["model"], row["groups_per_class"]) for row in rows[:3]] == [
        ("demo", "1"),
        ("demo", "3"),
        ("demo", "20"),
    ]
    assert rows[2]["macro_f1"] == "0.7000"
    assert rows[2]["seconds_per_pixel"] == "0.0002"
    assert rows[3]["seconds_per_pixel"] == ""
    assert rows[3]["overall_low"] == ""
    assert "macro-F1 0.80, and nothing to compare it with" in as_text(made, speeds)
    assert table_csv(made, speeds) == (tmp_path / "compare.csv").read_text()


def test_labels_of_curves_do_not_lie_on_each_other() -> None:
    made = comparison()
    many = tuple(replace(made.models[0], name=f"m{index}") for index in range(8))
    drawn = panel(replace(made, models=many), "linear")
    heights = sorted(curve.label_y for curve in drawn.curves)
    assert all(b - a >= 12.9 for a, b in itertools.pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] <= 300


def test_who_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_bytes(b"")  # is ./demo
    config = parse_config(TOML, tmp_path / "run.toml")
    file = tmp_path / "my own.pt"
    file.write_bytes(b"")
    found = entrants(config, ["demo", "monthly", str(file)])
    assert [(one.name, one.own) for one in found] == [("demo", True), ("monthly", False), ("my-own.pt", False)]
    assert [one.config.model.min_clear_s2 for one in found] == [5, 5, 5]
    assert [one.config.model.output for one in found] == ["int8", "float32", "int8"]
    assert [one.config.model.dim for one in found] == [128, 144, 0], "of a file all that it gives"
    assert [one.name for one in entrants(config, [])] == ["demo", "monthly"]
    for wrong, match in ((["demo", "demo"], "named twice"), (["nonsense"], "no model and no file")):
        with pytest.raises(SmaltiError, match=match):
            entrants(config, wrong)
    missing = entrants(config, ["tessera-v2-large"])[0]
    with pytest.raises(SmaltiError, match="weights fetch tessera-v2-large"):
        missing.inputs()


def test_nobody_is_measured_against_who_does_not_take_part(tmp_path: Path) -> None:
    config, run = parse_config(TOML, tmp_path / "run.toml"), Run(tmp_path / "run")
    for act in (compare, dry_run):
        with pytest.raises(SmaltiError, match=r"--against: 'presto' does not take part: name one of demo, monthly"):
            act(run, config, Wishes(against="presto"))


def test_a_year_that_is_held_out_of_several_runs_does_not_stop_a_comparison_in_one(tmp_path: Path) -> None:
    classify = '[classify]\nsplit = "year"\nhold_out = ["2021"]\n'
    settings = _settings(parse_config(TOML + classify, tmp_path / "run.toml"))
    table = samples()
    held, about = hold_out(table, split_of(table, settings), settings)
    assert (held.any(), about) == (False, None)


def test_more_work_costs_more() -> None:
    for method in ("catboost", "knn", "mlp", "linear"):
        assert fit_seconds(method, 4000, 1000, 128, 4) > fit_seconds(method, 400, 100, 128, 4) > 0


def test_unfetched_and_released_tiles_are_refused_in_one_line(tmp_path: Path) -> None:
    from support.embedded import tiled_run

    from bench.made_tile import made_tile

    run = tiled_run(tmp_path / "run", across=2, down=1, size=32)
    names = ["t00", "t10"]
    table = replace(samples(), tile_n=np.where(samples().tile_n == "a", *names))
    cuts = cuts_of(table)
    assert [one.tile for one in cuts] == names
    with pytest.raises(SmaltiError, match=r"2 of the 2 tiles with labels have not been fetched .*smalti fetch"):
        cut(run, cuts, run.root / "compare" / "pixels")
    for seed, name in enumerate(names):
        tile = made_tile(32, 6, 4, seed=seed)
        whole = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), axis=-1).reshape(-1, 2)
        square = run.tiles / name
        square.mkdir(parents=True)
        _write_whole(square, tile, whole)
    folder = run.root / "compare" / "pixels"
    cut(run, cuts, folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    before = (folder / "t00" / "tile.json").stat().st_mtime_ns
    for name in names:
        release_tile(run.tiles / name)
    cut(run, cuts, folder)  # what was cut before outlives the arrays
    assert (folder / "t00" / "tile.json").stat().st_mtime_ns == before
    with pytest.raises(SmaltiError, match=r"arrays of 1 of the 2 tiles .* were released .*smalti fetch --force"):
        cut(run, [replace(cuts[0], pixels_n2=cuts[0].pixels_n2[:3]), cuts[1]], folder)


def _write_whole(folder: Path, tile: object, whole: np.ndarray) -> None:
    """A fetched tile, as one row of all its pixels."""
    from infer.contract import BANDS, MASK_POLARITY, TILE_ARRAYS, write_manifest, write_npy

    files = []
    for name, spec in TILE_ARRAYS.items():
        files.append(folder / spec.file)
        write_npy(files[-1], getattr(tile, name).astype(spec.dtype))
    about = {"band_order": list(BANDS), "mask_polarity": MASK_POLARITY}
    write_manifest(folder / "tile.json", "tile", inputs={}, files=files, fields=about)
