"""The probe: raw features against a plain loop, scores that keep parcels whole, curves, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from support.embedded import ABOUT

from infer.contract import EXIT_BAD_INPUT, Run, SmaltiError, read_tile, release_tile, write_embedding
from infer.contract.monthly import month_index, monthly_composites, months_go_by_date, season_start, without_gaps
from infer.contract.provenance import Window
from infer.contract.tile import TileManifest, TileSeason
from preproc.classify.probe.__main__ import build_parser, curves_png, feature_tables, main, probe, table
from preproc.classify.probe.features import filled, keep_classes, keep_medians, kept_medians, labelled_medians
from preproc.classify.probe.score import cross_validated, draw_groups, efficiency
from preproc.classify.table import Samples, Source
from preproc.simulate.seasons import write_tile


def samples(parcels: int = 12, pixels: int = 8) -> Samples:
    """Three classes, `parcels` parcels of `pixels` pixels, and no embedding to speak of."""
    group = np.repeat(np.arange(parcels), pixels)
    code = (group % 3 + 1).astype(np.int32)
    count = len(group)
    zero = np.zeros(count, np.int32)
    names = group.astype(np.str_)
    place = zero.astype(np.float64)
    values = np.zeros((count, 4), np.float32)
    legend = {1: "grassland", 2: "maize", 3: "wheat"}
    more = {
        "feature_n": zero.astype(np.int64),
        "district_n": np.full(count, ""),
        "run_n": zero.astype(np.int16),
        "value_n": np.full(count, np.nan),
    }
    tiles, sources = np.full(count, "t"), (Source("this run", None, ""),)
    return Samples(
        tiles, zero, zero, place, place, zero, code, names, values_nc=values, legend=legend, sources=sources, **more
    )


def test_monthly_composites_are_medians_of_what_is_clear(tmp_path: Path) -> None:
    write_tile(tmp_path / "tile", 3, 8)
    tile = read_tile(tmp_path / "tile", need_manifest=True)
    gaps = np.random.default_rng(0)  # the edge of a swath: some of a month's passes are missing
    asc, desc = (
        (x * (gaps.random((*x.shape[:3], 1)) < 0.6)).astype(np.int16) for x in (tile.sar_asc_thwp, tile.sar_desc_thwp)
    )
    tile = replace(tile, sar_asc_thwp=asc, sar_desc_thwp=desc)
    rows, cols = np.array([0, 3, 7]), np.array([1, 4, 6])
    found = monthly_composites(tile, rows, cols).reshape(3, 12, 12)
    start = season_start(tile.manifest.window)
    month = month_index(tile.doys_t, start)
    sar = np.concatenate([tile.sar_asc_thwp, tile.sar_desc_thwp]).astype(np.float64)
    sar_month = month_index(np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t]), start)
    for place, (row, col) in enumerate(zip(rows, cols, strict=True)):
        for which in range(12):
            clear = (month == which) & (tile.masks_thw[:, row, col] == 1)
            expected = np.median(tile.bands_thwb[clear, row, col], axis=0) if clear.any() else np.full(10, np.nan)
            np.testing.assert_allclose(found[place, which, :10], expected / 10_000, rtol=1e-6)
            seen = (sar_month == which) & (sar[:, row, col] != 0).any(axis=1)
            decibel = (np.median(sar[seen, row, col], axis=0) / 200 - 50) / 2 if seen.any() else np.full(2, np.nan)
            np.testing.assert_allclose(found[place, which, 10:], (decibel + 25) / 25, rtol=1e-5)
    np.testing.assert_array_equal(
        monthly_composites(tile, slice(2, 4), slice(None)), monthly_composites(tile, *np.divmod(np.arange(16, 32), 8))
    )


def test_months_are_those_of_the_calendar_from_the_first_of_the_season() -> None:
    assert month_index(np.array([1, 31, 32, 365]), date(2021, 1, 1)).tolist() == [0, 0, 1, 11]
    # 1 and 30 November 2023, 29 February and 1 March of a leap year, 31 October: its last month.
    assert month_index(np.array([305, 334, 60, 61, 305 - 1]), date(2023, 11, 1)).tolist() == [0, 0, 3, 4, 11]
    assert month_index(np.array([300, 280]), date(2023, 10, 15)).tolist() == [0, 11], "last days: last month"


def test_missing_months_are_filled_along_the_year() -> None:
    values = np.full((3, 12, 12), np.nan, np.float32)
    values[0, 2, 0], values[0, 6, 0] = 1, 3
    values[1] = np.arange(144).reshape(12, 12)
    found = without_gaps(values.reshape(3, 144)).reshape(3, 12, 12)
    assert found[0, :, 0].tolist() == [1, 1, 1, 1.5, 2, 2.5, 3, 3, 3, 3, 3, 3]
    assert (found[0, :, 1:] == 0).all(), "never observed"
    np.testing.assert_array_equal(found[1], values[1])
    assert np.isnan(found[2]).all(), "no pixel"


def test_gaps_are_filled_from_training_rows_only() -> None:
    train = np.array([[1, np.nan], [3, np.nan]], np.float32)
    test = np.array([[np.nan, 5]], np.float32)
    new_train, new_test = filled(train, test)
    assert new_train.tolist() == [[1, 0], [3, 0]]
    assert new_test.tolist() == [[2, 5]]


def test_embeddings_of_one_name_stand_side_by_side_and_may_lack_months_but_not_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preproc.classify.probe.__main__.raw_features", lambda run, samples: samples.values_nc)
    values = np.zeros((1, 1, 3), np.float32)
    values[0, 0, 1] = np.nan
    write_embedding(tmp_path / "a", "t", values, None, inputs={}, about=ABOUT)
    write_embedding(tmp_path / "b", "t", values[..., :2] + 1, None, inputs={}, about=ABOUT)
    asked = [f"both={tmp_path / 'a'}", f"alone={tmp_path / 'b'}", f"both={tmp_path / 'b'}"]
    tables = feature_tables(Run(tmp_path), samples(), asked)
    np.testing.assert_array_equal(tables["both"][5], [0, np.nan, 0, 1, np.nan])
    np.testing.assert_array_equal(tables["alone"][5], [1, np.nan])
    write_embedding(tmp_path / "b", "t", np.full_like(values, np.nan), None, inputs={}, about=ABOUT)
    with pytest.raises(SmaltiError, match="labelled pixels have no embedding"):
        feature_tables(Run(tmp_path), samples(), asked)


@pytest.mark.parametrize("kind", ["linear", "catboost"])
def test_what_tells_classes_apart_scores_and_what_tells_parcels_apart_does_not(kind: str) -> None:
    table_of = samples()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(table_of), 6)).astype(np.float32)
    by_class = noise + 9 * np.eye(6, dtype=np.float32)[table_of.code_n]
    number = table_of.group_n.astype(int)
    by_parcel = (rng.normal(size=(12, 6)) * 9).astype(np.float32)[number] + 0.01 * noise
    settings = {"folds": 4, "deals": 2, "seed": 0}
    good = cross_validated(kind, by_class, table_of.code_n, table_of.group_n, **settings)  # type: ignore[arg-type]
    leak = cross_validated(kind, by_parcel, table_of.code_n, table_of.group_n, **settings)  # type: ignore[arg-type]
    assert good.macro > 0.95
    assert set(good.by_class) == {1, 2, 3}
    # Pixels of a parcel are nearly copies: with one on each side of a fold this would be 1.
    assert leak.macro < 0.7


def test_training_parcels_are_drawn_per_class_and_none_is_left_out_of_the_test() -> None:
    table_of = samples()
    train = draw_groups(table_of.code_n, table_of.group_n, 2, np.random.default_rng(1))
    assert train is not None
    for code in (1, 2, 3):
        mine = table_of.code_n == code
        assert len(np.unique(table_of.group_n[train & mine])) == 2
    assert not set(table_of.group_n[train]) & set(table_of.group_n[~train])
    assert draw_groups(table_of.code_n, table_of.group_n, 4, np.random.default_rng(1)) is None


def test_the_curve_rises_and_stops_where_parcels_run_out() -> None:
    table_of = samples(parcels=36)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(36, 4)) * 1.5)[table_of.group_n.astype(int)] + 2 * np.eye(4)[table_of.code_n]
    points = efficiency(
        "linear",
        x.astype(np.float32),
        table_of.code_n,
        table_of.group_n,
        counts=(1, 3, 10, 30),
        draws=12,
        seed=0,
    )
    assert [point.groups for point in points] == [1, 3, 10]
    assert points[2].macro > points[0].macro


def test_results_come_as_a_table_and_a_picture() -> None:
    table_of = samples()
    x = np.eye(4, dtype=np.float32)[table_of.code_n]
    arguments = build_parser().parse_args(["RUN", "--counts", "1,2", "--draws", "2", "--deals", "1"])
    results = probe(table_of, {"exact": x}, arguments)
    assert results["exact"]["linear"]["macro_f1"] == 1.0
    text = table(results, table_of.legend)
    assert "| exact | linear | 1.00 | 1.00 | 1.00 | 1.000 ± 0.000 |" in text
    picture = curves_png(results)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(SmaltiError, match="no 'barley' among the labels; they have grassland, maize, wheat"):
        keep_classes(samples(), ["barley"])
    assert set(keep_classes(samples(), ["maize"]).code_n.tolist()) == {2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "run `smalti sample "), (["--folds", "1"], "--folds must be"), (["--counts", "a"], "expected whole numbers")],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code = main([str(tmp_path / "nothing"), *arguments])
    said = capsys.readouterr().err
    assert code == EXIT_BAD_INPUT
    assert words in said
    assert said.count("\n") == 1


def test_medians_of_labelled_pixels_outlive_the_arrays(tmp_path: Path) -> None:
    folder = tmp_path / "tile"
    write_tile(folder, 3, 8)
    tile = read_tile(folder, need_manifest=True)
    rows, cols = np.array([0, 3, 7, 2], np.int32), np.array([1, 4, 6, 2], np.int32)
    expected = labelled_medians(folder, rows, cols)
    assert kept_medians(folder, rows, cols) is None
    keep_medians(folder, tile, rows, cols)
    before = (folder / "medians.npz").read_bytes()
    keep_medians(folder, tile, rows, cols)
    assert (folder / "medians.npz").read_bytes() == before, "equal medians are equal bytes"
    release_tile(folder)
    np.testing.assert_array_equal(labelled_medians(folder, rows[::-1], cols[::-1]), expected[::-1])
    with pytest.raises(SmaltiError, match="released"):
        labelled_medians(folder, rows, cols + 1)
    (folder / "medians.npz").write_bytes(before[:200])
    assert kept_medians(folder, rows, cols) is None, "damaged"
    (folder / "medians.npz").write_bytes(before)
    manifest = (folder / "tile.json").read_text()
    (folder / "tile.json").write_text(manifest + " ")
    assert kept_medians(folder, rows, cols) is None, "of another tile"


def test_months_go_by_date_where_a_day_of_year_may_be_two() -> None:
    july, doys = date(2023, 7, 1), np.array([182, 182, 1])
    days = [date(2023, 7, 1), date(2024, 6, 30), date(2024, 1, 1)]
    assert month_index(doys, july).tolist() == [0, 0, 6], "all that days of year tell"
    assert month_index(doys, july, days).tolist() == [0, 11, 6]
    two_years = [date(2022, 7, 1), date(2023, 7, 1), date(2024, 6, 30), date(2023, 1, 5)]
    assert month_index(doys, date(2022, 7, 1), two_years).tolist() == [0, 0, 11, 6], "further years count to the first"
    season = Window(date(2023, 7, 1), date(2024, 6, 30))
    ambiguous = TileSeason(window=season, dates={"s2": (date(2023, 7, 2), date(2024, 6, 30)), "s1_ascending": ()})
    assert months_go_by_date(ambiguous)
    assert not months_go_by_date(replace(ambiguous, dates={"s2": (date(2023, 7, 2), date(2024, 6, 29))}))
    for odd in (TileSeason(), TileSeason(dates={}), TileSeason(window=season), TileSeason(window=season, dates={})):
        assert not months_go_by_date(odd), "a tile of somebody else"


def test_composites_take_the_dates_of_a_tile_unless_they_are_not_its_own(tmp_path: Path) -> None:
    write_tile(tmp_path / "tile", 3, 8)
    tile = read_tile(tmp_path / "tile", need_manifest=True)
    count = len(tile.doys_t)
    tile = replace(tile, doys_t=np.full(count, 182, np.uint16), masks_thw=np.ones_like(tile.masks_thw))
    season, last = Window(date(2023, 7, 1), date(2024, 6, 30)), date(2024, 6, 30)
    places = np.array([0]), np.array([0])

    def there(*days: date) -> list[int]:
        manifest = TileManifest(window=season, dates={"s2": days})
        found = monthly_composites(replace(tile, manifest=manifest), *places).reshape(12, 12)[:, 0]
        return np.flatnonzero(np.isfinite(found)).tolist()

    assert there() == [0]
    assert there(*[last] * count) == [11]
    assert there(*[date(2024, 6, 29)] * count) == [0], "dates of other days"
    assert there(last) == ([0] if count > 1 else [11]), "too few"
