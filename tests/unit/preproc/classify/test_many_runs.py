"""Labels of several runs in one classifier, and who is tested when: groups, squares, districts, years, a hold-out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.embedded import TOML, embed, parcels, tiled_run, write_vector

from infer.contract import Plan, Run, SmaltiError
from infer.contract.classification import AccuracyManifest, ClassifierManifest
from infer.contract.manifest import describe_file
from preproc.classify.card import show
from preproc.classify.out_of_fold import HELD_OUT, read_out_of_fold
from preproc.classify.performance import summary
from preproc.classify.pool import pooled_samples, same_ground
from preproc.classify.sample import SampleStage
from preproc.classify.split import divide, hold_out, label_reach, split_of
from preproc.classify.table import Samples, read_samples
from preproc.classify.train import TrainStage
from preproc.classify.validate import ValidateStage
from preproc.run.config import Classify, Config, parse_config
from preproc.run.stage import run_stage

BRIEF = "folds = 3\ntrials = 0\nmax_pixels = 6\nlearning_curve = false\n"


def settings(run: Run, *others: Run, extra: str = "", labels: bool = True, district: bool = False) -> Config:
    text = TOML
    if labels:
        text += '[labels]\npath = "labels.gpkg"\nclass = "crop"\ngroup = "parcel"\n'
        text += 'district = "district"\n' if district else ""
    if others:
        text += f"[train]\nruns = {json.dumps([str(other.root) for other in others])}\n"
    return parse_config(f"{text}[classify]\n{BRIEF}{extra}", run.config)


def sampled(root: Path, *, year: int = 2021, seed: int = 0, names: list[str] | None = None, **embedding: Any) -> Run:
    run = tiled_run(root)
    plan = Plan.read(run)
    replace(plan, window=(date(year, 1, 1), date(year, 12, 31))).write(run.plan, inputs={}, files=[])
    embed(run, noise=1.0, seed=seed, **embedding)
    shapes, own = parcels(run)
    west = [shape.centroid.x < 500_320 for shape in shapes]
    fields = {
        "crop": np.array(names or own, dtype=object),
        "parcel": np.arange(len(shapes)),
        "district": np.where(west, "Westland", "Ostland"),
    }
    write_vector(run.root / "labels.gpkg", shapes, fields)
    run_stage(SampleStage(), run, settings(run, district=True))
    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seasons")
    sampled(folder / "2021")
    other = sampled(folder / "2022", year=2022, seed=7)
    # what is called otherwise in another year has another code, and is still the same class
    shapes, own = parcels(other)
    names = ["a new crop" if index < 6 else name for index, name in enumerate(own)]
    fields = {"crop": np.array(names, dtype=object), "parcel": np.arange(len(own)), "district": ["Nord"] * len(own)}
    write_vector(other.root / "labels.gpkg", shapes, fields)
    run_stage(SampleStage(), other, settings(other, district=True))
    return folder


@pytest.fixture
def seasons(prepared: Path, tmp_path: Path) -> tuple[Run, Run]:
    shutil.copytree(prepared, tmp_path / "runs")
    return Run(tmp_path / "runs" / "2021"), Run(tmp_path / "runs" / "2022")


def test_a_classifier_of_two_years_says_how_it_does_in_each(seasons: tuple[Run, Run]) -> None:
    run, other = seasons
    config = settings(run, other, district=True)
    run_stage(TrainStage(), run, config)
    about = ClassifierManifest.read(run)
    assert [entry.name for entry in about.classes] == ["a new crop", "crop a", "crop b", "crop c"]
    assert [entry.embedded.year for entry in about.trained_on] == ["2021", "2022"]
    assert about.rows == sum(entry.rows for entry in about.trained_on)
    run_stage(ValidateStage(), run, config)
    made = AccuracyManifest.read(run).performance
    rows = {row.tests: row for row in made.transfers}
    assert rows.keys() == {"2021", "2022"}, "one region, so no row by region"
    assert rows["2022"].trained_on == ("2021",)
    assert rows["2022"].untrained_codes == (1,), "only 2022 has the new crop"
    assert rows["2021"].absent_codes == (1,)
    assert rows["2022"].n == about.trained_on[1].rows
    assert 0.5 < rows["2021"].macro_f1.value < 1
    assert rows["2021"].distance_m.median == 0, "the same ground"
    told = f"- trained on 2022, tested on 2021 (64 groups): macro-F1 {rows['2021'].macro_f1.value:.2f} (95 % CI "
    assert told in show(run.model)
    oof = read_out_of_fold(run.model / "oof.parquet", [1, 2, 3, 4])
    for parcel in range(64):  # the same field in the other year is on the same side
        folds = oof.fold_n[np.isin(oof.group_n, [f"this run: {parcel}", f"2022: {parcel}"])]
        assert len(set(folds.tolist())) == 1


def test_years_are_folds_where_they_are_asked_for_and_a_year_can_be_held_out(seasons: tuple[Run, Run]) -> None:
    run, other = seasons
    config = settings(run, other, extra='split = "year"\n')
    run_stage(TrainStage(), run, config)
    run_stage(ValidateStage(), run, config)
    folds = AccuracyManifest.read(run).performance.folds
    assert [fold.tests for fold in folds] == ["2021", "2022"]
    third = sampled(run.root.parent / "2023", year=2023, seed=9)
    config = settings(run, other, third, extra='split = "year"\nhold_out = ["2023"]\n')
    run_stage(TrainStage(), run, config)
    about = ClassifierManifest.read(run)
    assert about.held_out is not None
    assert (about.held_out.parts, about.held_out.groups) == (("2023",), 64)
    assert [entry.embedded.year for entry in about.trained_on] == ["2021", "2022"]
    run_stage(ValidateStage(), run, config)
    held = AccuracyManifest.read(run).performance.held_out
    assert held is not None
    assert held.pixels.n == about.held_out.rows
    alone = settings(run, other, extra='split = "year"\nhold_out = ["2022"]\n')
    with pytest.raises(SmaltiError, match="without what is held out all samples are of one"):
        run_stage(TrainStage(), run, alone)


def test_what_is_held_out_changes_nothing_but_its_own_figures(seasons: tuple[Run, Run]) -> None:
    """Other labels for what is held out must leave the classifier as it is, byte for byte."""
    run, _ = seasons
    config = settings(run, extra="hold_out = 0.25\n")
    run_stage(TrainStage(), run, config)
    before = (run.model / "classifier.cbm").read_bytes()
    oof = read_out_of_fold(run.model / "oof.parquet", [1, 2, 3])
    held = oof.fold_n == HELD_OUT
    assert 0.15 < held.mean() < 0.35
    assert not set(oof.group_n[held]) & set(oof.group_n[~held])
    table = pq.read_table(run.samples)
    groups = np.array(table.column("group").to_pylist())
    e000 = table.column("e000").to_numpy().copy()
    e000[np.isin(groups, oof.group_n[held])] = 9.0
    from infer.contract.manifest import describe_file

    index = table.schema.get_field_index("e000")
    pq.write_table(table.set_column(index, "e000", pa.array(e000, pa.float32())), run.samples)
    manifest = json.loads(run.samples_manifest.read_text())
    manifest["files"] = {"samples.parquet": describe_file(run.samples)}
    run.samples_manifest.write_text(json.dumps(manifest))
    run_stage(TrainStage(), run, config)
    assert (run.model / "classifier.cbm").read_bytes() == before


def test_districts_and_squares_are_kept_whole(seasons: tuple[Run, Run]) -> None:
    run, _ = seasons
    samples = read_samples(run)
    assert set(samples.district_n) == {"Westland", "Ostland"}
    by_district = Classify(split="district")
    folds = divide(samples, split_of(samples, by_district), by_district, 0)
    assert folds.names == ("Ostland", "Westland")
    assert ((samples.x_n < 500_320) == (folds.fold_n == 1)).all()
    by_block = Classify(split="block", block=160.0, folds=3)
    split = split_of(samples, by_block)
    folds = divide(samples, split, by_block, 0)
    squares = np.stack([samples.x_n // 160, samples.y_n // 160], axis=1).astype(int)
    for square in np.unique(squares, axis=0):
        assert len(set(folds.fold_n[(squares == square).all(axis=1)].tolist())) == 1
    assert folds.count == 3
    held, about = hold_out(samples, split, Classify(split="block", block=160.0, hold_out=0.25))
    assert about is not None
    assert not set(split.unit_n[held]) & set(split.unit_n[~held])
    config = settings(run, extra='split = "block"\nblock = 160\n')
    run_stage(TrainStage(), run, config)
    run_stage(ValidateStage(), run, config)
    made = AccuracyManifest.read(run).performance
    assert (made.split, made.block_m) == ("block", 160.0)
    assert made.distance_m.median >= 10


def checkerboard(patch: float, fields: int = 40, side: float = 100.0) -> Samples:
    """Fields of 100 m whose class changes at random every `patch` metres."""
    grid = np.arange(fields) * side + 5
    x, y = (part.ravel() for part in np.meshgrid(grid, grid))
    lots = np.random.default_rng(3).integers(1, 4, (200, 200))
    code = lots[(x // patch).astype(int), (y // patch).astype(int)].astype(np.int32)
    n = len(x)
    zero = np.zeros(n, np.int32)
    return Samples(
        tile_n=np.full(n, "t"), row_n=zero, col_n=zero, x_n=x, y_n=y, epsg_n=zero + 32631, code_n=code,
        group_n=np.arange(n).astype(str), feature_n=np.arange(n), district_n=np.full(n, ""),
        run_n=zero.astype(np.int16), value_n=np.full(n, np.nan), values_nc=np.zeros((n, 2), np.float32), sources=(),
        legend={1: "a", 2: "b", 3: "c"},
    )  # fmt: skip


def test_the_reach_of_labels_is_that_of_the_patches_they_lie_in() -> None:
    reaches = {patch: label_reach(checkerboard(patch), 2, 0) for patch in (100.0, 400.0, 800.0)}
    assert reaches[100.0] <= 200
    assert 200 <= reaches[400.0] <= 600
    assert 500 <= reaches[800.0] <= 1100
    one_place = checkerboard(100.0, fields=2)
    assert label_reach(replace(one_place, x_n=one_place.x_n * 0, y_n=one_place.y_n * 0), 2, 0) == 100


def test_distances_are_counted_in_bars_that_double() -> None:
    told = summary(np.array([0.0, 9.9, 10.0, 39.0, 40.0]))
    assert told["below_m"] == [10.0, 20.0, 40.0, 80.0]
    assert told["counts"] == [2, 1, 1, 1]


def test_the_same_ground_is_one_group_and_other_ground_is_not(seasons: tuple[Run, Run]) -> None:
    run, other = seasons
    samples = pooled_samples(run, settings(run, other))
    ground = same_ground(samples)
    pairs = {(g.rpartition(": ")[2], name) for g, name in zip(samples.group_n, ground, strict=True)}
    assert len(pairs) == 64, "a field of both years has one name"
    samples.x_n[samples.run_n == 1] += 100_000
    assert len(set(same_ground(samples))) == 128


def no_samples(run: Run) -> None:
    run.samples_manifest.unlink()


def older(run: Run) -> None:
    content = json.loads(run.samples_manifest.read_text())
    del content["embedded"]
    run.samples_manifest.write_text(json.dumps(content))


def stating(**changes: Any) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        content = json.loads(run.samples_manifest.read_text())
        for key, value in changes.items():
            part = content["embedded"]
            *path, last = key.split("__")
            for step in path:
                part = part[step]
            part[last] = value
        run.samples_manifest.write_text(json.dumps(content))

    return change


def renamed(run: Run) -> None:
    shapes, own = parcels(run)
    names = np.array([f"Kultur {name[-1]}" for name in own], dtype=object)
    fields = {"crop": names, "parcel": np.arange(len(own)), "district": ["Nord"] * len(own)}
    write_vector(run.root / "labels.gpkg", shapes, fields)
    run_stage(SampleStage(), run, settings(run, district=True))


def cut(run: Run) -> None:
    run.samples.write_bytes(run.samples.read_bytes()[:-9])


def shorter(run: Run) -> None:
    shutil.rmtree(run.embeddings)
    embed(run, dim=4, noise=1.0)
    run_stage(SampleStage(), run, settings(run, district=True))


def without_district(run: Run) -> None:
    run_stage(SampleStage(), run, settings(run))


def some_districts(run: Run) -> None:
    table = pq.read_table(run.samples)
    names = ["" if row < 5 else "Nord" for row in range(len(table))]
    retable(run, table.set_column(table.schema.names.index("district"), "district", pa.array(names)))


def gaps(run: Run) -> None:
    table = pq.read_table(run.samples)
    groups = [None, *table.column("group").to_pylist()[1:]]
    retable(run, table.set_column(table.schema.names.index("group"), "group", pa.array(groups, pa.string())))


def infinite(run: Run) -> None:
    table = pq.read_table(run.samples)
    numbers = table.column("e001").to_numpy().copy()
    numbers[7] = np.inf
    retable(run, table.set_column(table.schema.names.index("e001"), "e001", pa.array(numbers)))


def retable(run: Run, table: Any) -> None:
    """Another table whose manifest says that it is right."""
    pq.write_table(table, run.samples)
    content = json.loads(run.samples_manifest.read_text())
    content["files"] = {"samples.parquet": describe_file(run.samples)}
    run.samples_manifest.write_text(json.dumps(content))


TOGETHER: dict[str, tuple[Callable[[Run], None], str, str]] = {
    "not there": (lambda run: shutil.rmtree(run.root), "", "no such run directory"),
    "no samples": (no_samples, "", "2022 has no samples.parquet: run `smalti sample"),
    "cut samples": (cut, "", r"samples\.parquet: \d+ bytes, samples\.json says"),
    "an older table": (older, "", "the samples of 2022 are of an older version"),
    "another encoder": (stating(model__checkpoint="cd" * 32), "", "of 2022 are of another encoder"),
    "another length": (shorter, "", r"of 2022 are of another length \(4\) than those of this run \(6\)"),
    "other numbers": (stating(embeddings_as="int8"), "", "of 2022 are kept in another way"),
    "other classes": (renamed, "", r"no class of this run \(crop a, crop b, crop c\) is in another run"),
    "no district": (without_district, 'split = "district"\n', "the samples of 2022 name no district"),
    "unknown year": (
        lambda _: None,
        'split = "year"\nhold_out = ["1999"]\n',
        "no year is called '1999': there are 2021, 2022",
    ),
    "one region": (lambda _: None, 'split = "region"\n', r'split = "region": all samples are of one'),
    "some districts": (some_districts, 'split = "district"\n', "5 samples have no district: fill the attribute"),
    "a group without name": (gaps, "", r"samples\.parquet: its column group has gaps: run `smalti sample` again"),
    "infinite": (infinite, "", r"samples\.parquet: holds numbers that are not finite: run `smalti sample` again"),
    "all years held out": (
        lambda _: None,
        'split = "year"\nhold_out = ["2021", "2022"]\n',
        "what is left to train on has fewer than two classes: hold out less",
    ),
    "not a window": (stating(window__start="soon"), "", r"embedded\.window\.start = 'soon' is not a day"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_runs_that_do_not_belong_together_are_refused_in_a_line(name: str, seasons: tuple[Run, Run]) -> None:
    run, other = seasons
    change, extra, message = TOGETHER[name]
    change(other)
    with pytest.raises(SmaltiError, match=message) as caught:
        run_stage(TrainStage(), run, settings(run, other, extra=extra, district="district" in extra))
    assert len(str(caught.value).splitlines()) == 1
    assert not run.model.exists()


def test_a_run_twice_or_itself_is_refused(seasons: tuple[Run, Run]) -> None:
    run, other = seasons
    with pytest.raises(SmaltiError, match="is this run itself"):
        run_stage(TrainStage(), run, settings(run, run))
    copy = Run(run.root.parent / "copy of 2022")
    shutil.copytree(other.root, copy.root)
    with pytest.raises(SmaltiError, match="2022 and copy of 2022 hold the same samples"):
        run_stage(TrainStage(), run, settings(run, other, copy))
    with pytest.raises(SmaltiError, match="is named twice"):
        settings(run, other, other)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("hold_out = 0.7\n", "hold_out"),
        ('hold_out = ["2021"]\n', 'split = "group" has none with names'),
        ('split = "year"\nhold_out = 0.2\n', "name the parts, as a list"),
        ("block = 100\n", 'block belongs to split = "block"'),
        ('split = "district"\n', r"needs \[labels\] district"),
        ('split = "parcel"\n', "split"),
    ],
)
def test_divisions_that_make_no_sense_are_refused(extra: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match=message):
        settings(Run(tmp_path), extra=extra)


def test_labels_of_other_runs_alone_are_enough(seasons: tuple[Run, Run]) -> None:
    from preproc.run.stages import chain

    run, other = seasons
    config = settings(run, other, labels=False)
    assert [entry.name for entry in chain(config)][3:] == ["stitch", "train", "predict", "validate", "report"]
    run_stage(TrainStage(), run, config)
    assert [entry.embedded.year for entry in ClassifierManifest.read(run).trained_on] == ["2022"]
