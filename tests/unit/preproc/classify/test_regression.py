"""A number instead of classes, from labels to a float map with an interval, here and in a run without labels."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from optuna.distributions import IntDistribution
from rio_cogeo import cog_validate
from support.embedded import TOML, centre_grid, embed, tiled_run, truth, write_vector
from support.embedded import parcels as square_parcels

from infer.contract import Plan, Run, Shard, SmaltiError, planned_tiles, read_manifest
from infer.contract.classification import RegressorManifest, ValueAccuracyManifest
from infer.contract.rasters import ValueMapManifest
from preproc.classify import questions, regression, tune
from preproc.classify.card import show
from preproc.classify.folds import assign_folds
from preproc.classify.predict import PredictSheetsStage, PredictStage
from preproc.classify.questions import NumberQuestion
from preproc.classify.sample import SampleStage
from preproc.classify.table import read_samples
from preproc.classify.train import TrainStage, TrainTrialsStage
from preproc.classify.trials import Trial
from preproc.classify.tune import best
from preproc.classify.validate import ValidateStage
from preproc.mosaic.stage import StitchStage
from preproc.report.stage import ReportStage
from preproc.run.chain import summarise
from preproc.run.config import Config, parse_config
from preproc.run.stage import run_stage
from preproc.run.stages import chain
from preproc.survey.design import Wishes, design
from preproc.survey.parcels import ParcelWishes, parcels
from preproc.survey.suggest import SuggestWishes, suggest
from preproc.survey.suspects import suspects

MEANS = np.array([3.0, 6.0, 9.0])
BRIEF = "[classify]\nfolds = 3\nmax_pixels = 8\ntrials = 0\n"
TUNED = BRIEF.replace("trials = 0", "trials = 6")


def settings(run: Run, labels: str = 'value = "yield"\n', extra: str = BRIEF) -> Config:
    text = f'{TOML}[labels]\npath = "labels.gpkg"\n{labels}group = "parcel"\n{extra}'
    return parse_config(text, run.config)


def write_yields(run: Run, values: Any = None) -> np.ndarray[Any, Any]:
    shapes, names = square_parcels(run)
    noise = np.random.default_rng(4).normal(size=len(shapes)) * 0.3
    made = MEANS[["abc".index(name[-1]) for name in names]] + noise
    fields = {"yield": made if values is None else values(made), "parcel": np.arange(len(shapes)), "crop": names}
    write_vector(run.root / "labels.gpkg", shapes, fields)
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = tiled_run(tmp_path_factory.mktemp("yield") / "run")
    embed(run, noise=0.5)
    write_yields(run)
    run_stage(SampleStage(), run, settings(run))
    run_stage(TrainStage(), run, settings(run))
    return run


@pytest.fixture
def run(prepared: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(prepared.root, tmp_path / "run"))


def test_yields_are_learned_mapped_and_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(run)
    assert [entry.name for entry in chain(config)][-5:] == ["sample", "train", "predict", "validate", "report"]
    run_stage(PredictStage(), run, config)
    about = ValueMapManifest.read(run).verify(run)
    assert about.value == "yield"
    with rasterio.open(run.map / about.zones["31N"].values) as raster:
        assert (raster.count, set(raster.dtypes)) == (3, {"float32"})
        assert raster.descriptions == ("yield", "yield, 5 %", "yield, 95 %")
        value, low, high = raster.read()
        assert np.isnan(raster.nodata)
    assert cog_validate(run.map / about.zones["31N"].values, strict=True) == (True, [], [])
    tile = planned_tiles(run)[0]
    expected = MEANS[truth(*centre_grid(tile))]
    assert np.isnan(value[0, :32]).all(), "nodata of the embedding"
    here = value[1:32, :32]
    assert np.abs(here - expected[1:]).mean() < 0.8
    seen = np.isfinite(value)
    assert (low[seen] <= value[seen]).all()
    assert (value[seen] <= high[seen]).all()
    assert about.pixels == seen.sum()
    assert about.mean == pytest.approx(float(value[seen].mean(dtype=np.float64)), rel=1e-6)
    run_stage(ValidateStage(), run, config)
    made = ValueAccuracyManifest.read(run)
    oof = pq.read_table(run.model / "oof.parquet")
    true, found = (oof.column(name).to_numpy() for name in ("value", "predicted"))
    assert made.pixels.rmse.value == pytest.approx(float(np.sqrt(np.mean((found - true) ** 2))))
    assert made.pixels.bias.value == pytest.approx(float(np.mean(found - true)))
    assert made.pixels.r2 == pytest.approx(1 - float(np.sum((found - true) ** 2) / np.sum((true - true.mean()) ** 2)))
    assert made.pixels.rmse.ci95 is not None
    assert made.pixels.rmse.ci95[0] < made.pixels.rmse.value < made.pixels.rmse.ci95[1]
    assert made.groups.r2 is not None
    assert made.groups.r2 > 0.8
    assert made.groups.n == 64
    assert 0.82 < made.pixels.coverage < 0.97, "the interval holds what it says, on fields it has not seen"
    assert [fold.fold for fold in made.folds] == [1, 2, 3]
    assert "RMSE" in capsys.readouterr().err
    run_stage(StitchStage(), run, config)
    told = summarise(run, config)
    assert "values_31N.tif" in told
    assert f"accuracy    {made.headline}" in told
    run.config.write_text("[labels]\n# of <this> field\n")
    run_stage(ReportStage(), run, config)
    page = (run.report / "index.html").read_text()
    assert "<h1>Map of yield</h1>" in page
    assert f"{made.pixels.rmse.value:.3g} <small>" in page
    assert page.count("data:image/png;base64,") == 3, "map, scatter plot and embeddings"
    assert "of &lt;this&gt; field" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    stale = run.accuracy.read_text()
    run.accuracy.write_text(stale.replace(made.inputs["model"], "0" * 64))
    with pytest.raises(SmaltiError, match=r"accuracy\.json is about another model"):
        run_stage(ReportStage(), run, config)


def test_the_same_bytes_again_and_no_group_on_two_sides(run: Run) -> None:
    first = {path.name: path.read_bytes() for path in run.model.iterdir()}
    assert sorted(first) == ["card.md", "model.json", "oof.parquet", "regressor.cbm", "scatter.png", "trials.jsonl"]
    run_stage(TrainStage(), run, settings(run), force=True)
    assert {path.name: path.read_bytes() for path in run.model.iterdir()} == first
    oof = pq.read_table(run.model / "oof.parquet")
    pairs = set(zip(oof.column("group").to_pylist(), oof.column("fold").to_pylist(), strict=True))
    assert len(pairs) == 64


def test_a_model_of_yields_maps_a_run_without_labels(run: Run, tmp_path: Path) -> None:
    other = tiled_run(tmp_path / "other")
    embed(other, noise=0.5, seed=8)
    folder = shutil.copytree(run.model, tmp_path / "yields of 2021")
    config = parse_config(f'{TOML}[predict]\nmodel = "{folder}"\n', other.config)
    assert [entry.name for entry in chain(config)][-3:] == ["predict", "validate", "report"]
    run_stage(PredictSheetsStage(), other, config)
    run_stage(PredictStage(), other, config)
    run_stage(ValidateStage(), other, config)
    assert ValueMapManifest.read(other).mean == pytest.approx(6, abs=1)
    assert "A model of yield" in show(folder)
    content = (folder / "regressor.cbm").read_bytes()
    (folder / "regressor.cbm").write_bytes(content[:-1])
    with pytest.raises(SmaltiError, match=r"regressor\.cbm: \d+ bytes, model\.json says"):
        show(folder)
    embed(other, noise=0.5, seed=8, checkpoint="cd" * 32)
    with pytest.raises(SmaltiError, match=r"those of this run are of .*\(cdcdcdcd\)"):
        run_stage(PredictStage(), other, config)


@pytest.fixture
def small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search space in which a trial takes a fraction of a second."""
    monkeypatch.setitem(questions._spaces()[None], "iterations", IntDistribution(20, 60, step=20))
    monkeypatch.setitem(questions._spaces()[None], "depth", IntDistribution(2, 3))
    monkeypatch.setattr(regression.NumberParameters, "__init__", few_trees(regression.NumberParameters.__init__))


def few_trees(whole: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, iterations: int = 40, depth: int = 2, **others: float) -> None:
        whole(self, iterations, depth, **others)

    return init


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("small_trees")
def test_numbers_are_tuned_by_the_study_of_classes_in_shards_and_after_a_kill(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(run, extra=TUNED)
    other, killed = (Run(shutil.copytree(run.root, tmp_path / name)) for name in ("other", "killed"))
    run_stage(TrainStage(), run, config)
    about = RegressorManifest.read(run)
    trials = [json.loads(line) for line in (run.model / "trials.jsonl").read_text().splitlines()]
    whole = [trial for trial in trials if not trial["pruned"]]
    top = min(whole, key=lambda trial: trial["score"])
    assert [trial["number"] for trial in trials] == list(range(6))
    assert about.tuning is not None
    assert (about.tuning.trials, about.tuning.best_trial, about.tuning.loss) == (6, top["number"], top["score"])
    assert {key: about.parameters[key] for key in top["params"]} == top["params"]
    assert about.tuning.macro_f1 is None
    assert not (run.logs / "study").exists()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: run_stage(TrainTrialsStage(), other, config, shard=Shard(i, 2)), range(2)))
    assert len(list((other.logs / "study").rglob("0*.json"))) == 6
    run_stage(TrainStage(), other, config)
    assert contents(other.model) == contents(run.model)
    assert TrainTrialsStage().open(other, config).units == []

    fits: list[int] = []
    honest = regression.fit

    def fit(*values: Any) -> Any:
        fits.append(1)
        if len(fits) >= 8:
            raise KeyboardInterrupt
        return honest(*values)

    monkeypatch.setattr(regression, "fit", fit)
    alone = settings(killed, extra=f"{TUNED}[site]\nworkers = 1\n")
    with pytest.raises(KeyboardInterrupt):
        run_stage(TrainStage(), killed, alone)
    assert len(list((killed.logs / "study").rglob("0*.json"))) == 2, "two trials of three folds"
    monkeypatch.setattr(regression, "fit", honest)
    run_stage(TrainStage(), killed, alone)
    assert contents(killed.model) == contents(run.model)

    run_stage(PredictStage(), run, config)
    run_stage(ValidateStage(), run, config)
    run_stage(StitchStage(), run, config)
    run.config.write_text("")
    run_stage(ReportStage(), run, config)
    page = (run.report / "index.html").read_text()
    assert "Pinball loss of the trials in their order, lower is better" in page
    assert page.count("<circle") == 6
    assert f"the best of 6 trials, whose mean pinball loss of the three quantiles was {top['score']:.3g}" in page
    tuning = json.loads(run.accuracy.read_text())["tuning"]
    assert tuning["loss"] == top["score"]


def test_the_pinball_loss_is_that_of_the_three_quantiles() -> None:
    from sklearn.metrics import mean_pinball_loss

    rng = np.random.default_rng(1)
    true_n, found_n3 = rng.normal(size=50), np.sort(rng.normal(size=(50, 3)), axis=1)[:, [1, 0, 2]]
    expected = np.mean(
        [mean_pinball_loss(true_n, found_n3[:, i], alpha=level) for i, level in enumerate((0.5, 0.05, 0.95))]
    )
    assert regression.pinball(found_n3, true_n).mean() == pytest.approx(expected)


def test_less_loss_is_better_for_choosing_and_for_pruning(run: Run) -> None:
    question = NumberQuestion(read_samples(run), "catboost")
    split = assign_folds(np.ones(len(question.samples)), question.samples.group_n, 3, 0)
    kept = np.ones(len(question.samples), np.float32)
    trials = [Trial(n, {}, score, kept * score, (score,) * 3) for n, score in enumerate((0.4, 0.2, 0.3, 0.2))]
    assert best(question, trials).number == 1, "the least, the earlier of equals"
    chosen = regression.NumberParameters(iterations=5, depth=2)
    behind = [replace(trial, partial=(1e-6,) * 3) for trial in trials]
    assert tune._trial(question, split, chosen, 4, behind, 0).pruned
    ahead = [replace(trial, partial=(1e6,) * 3) for trial in trials]
    made = tune._trial(question, split, chosen, 4, ahead, 0)
    assert not made.pruned
    assert made.score == pytest.approx(float(made.told_n.mean(dtype=np.float64)))


def test_few_fields_can_be_cross_validated_and_many_pixels_are_capped(run: Run, tmp_path: Path) -> None:
    shapes, _ = square_parcels(run)
    write_vector(run.root / "labels.gpkg", shapes[:5], {"yield": np.arange(5.0), "parcel": np.arange(5)})
    config = settings(run, extra="[classify]\nfolds = 4\ntrials = 0\nmax_pixels = 40\nmax_rows = 100\n")
    run_stage(SampleStage(), run, config)
    run_stage(TrainStage(), run, config)
    about = RegressorManifest.read(run)
    assert about.folds.count == 4, "five fields, not a fifth each"
    assert about.rows <= 100
    assert about.rows + about.rows_beyond == read_manifest(run.samples_manifest, "samples", remedy="")["rows"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            '[validate]\nreference = "r.gpkg"\nclass = "c"\ndesign = "random"\n',
            r"\[validate\] measures a map of classes",
        ),
        ("[clean]\nmajority = 3\n", r"\[clean\] mends a map of classes"),
        ("probabilities = true\n", r"\[predict\] probabilities are of a map of classes"),
    ],
)
def test_what_belongs_to_classes_is_refused_of_a_model_of_numbers(section: str, message: str, run: Run) -> None:
    other = parse_config(f'{TOML}[predict]\nmodel = "{run.model}"\n{section}', run.config)
    for stage in (PredictStage(), ValidateStage()):
        with pytest.raises(SmaltiError, match=rf"run\.toml: {message}, and .*model is a model of numbers") as caught:
            run_stage(stage, run, other)
        assert "\n" not in str(caught.value)
    assert not run.map.exists()


def as_text(change: Callable[[list[str]], None]) -> Callable[[Any], Any]:
    def values(made: Any) -> Any:
        texts = [f"{value:.2f}" for value in made]
        change(texts)
        return np.array(texts, dtype=object)

    return values


def put(text: str) -> Callable[[Any], Any]:
    return as_text(lambda texts: texts.__setitem__(5, text))


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "text": (put("about 7"), r"attribute 'yield' holds 'about 7', which is no number"),
    "a comma": (put("7,25"), r"holds '7,25', which is no number: write 3\.5, not 3,5"),
    "without end": (put("inf"), r"holds inf: a map keeps float32 numbers"),
    "too large": (put("1e40"), r"holds 1e\+40: a map keeps float32 numbers"),
    "all equal": (lambda made: np.full(len(made), 4.0), r"have the same number \(yield = 4\.0\): there is nothing"),
    "all empty": (lambda made: np.full(len(made), np.nan), r"attribute 'yield', which \[labels\] names, is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_that_are_none_are_refused_in_a_line(name: str, run: Run) -> None:
    values, message = BAD[name]
    write_yields(run, values)
    before = run.samples.read_bytes()
    with pytest.raises(SmaltiError, match=message) as caught:
        run_stage(SampleStage(), run, settings(run))
    assert len(str(caught.value).splitlines()) == 1
    assert run.samples.read_bytes() == before


def test_gaps_among_numbers_are_dropped_and_counted(run: Run) -> None:
    write_yields(run, as_text(lambda texts: texts.__setitem__(slice(0, 3), ["", "NaN", "nan"])))
    run_stage(SampleStage(), run, settings(run))
    counts = read_manifest(run.samples_manifest, "samples", remedy="")["counts"]
    assert counts["features dropped: no number"] == 3


@pytest.mark.parametrize(
    ("labels", "extra", "message"),
    [
        ('value = "yield"\nclass = "crop"\n', BRIEF, "give class .* or value .*, one of them"),
        ("", BRIEF, "give class .* or value .*, one of them"),
        ('value = "yield"\n', BRIEF + 'method = "knn"\n', "learned by CatBoost"),
        ('value = "yield"\n', BRIEF + 'task_type = "GPU"\n', "on the CPU"),
        ('value = "yield"\n', BRIEF + "[predict]\nprobabilities = true\n", "probabilities are of classes"),
        (
            'value = "yield"\n',
            BRIEF + '[validate]\nreference = "r.gpkg"\nclass = "c"\ndesign = "random"\n',
            r"\[validate\] measures a map of classes",
        ),
    ],
)
def test_settings_that_do_not_go_with_numbers_are_refused(
    labels: str, extra: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SmaltiError, match=message):
        settings(Run(tmp_path), labels, extra)


def test_what_is_held_out_is_seen_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(run, extra=BRIEF + "hold_out = 0.25\n")
    run_stage(TrainStage(), run, config)
    about = RegressorManifest.read(run)
    assert about.held_out is not None
    assert about.rows + about.held_out.rows == 512
    run_stage(ValidateStage(), run, config)
    made = ValueAccuracyManifest.read(run)
    assert made.held_out is not None
    oof = pq.read_table(run.model / "oof.parquet")
    once = oof.column("fold").to_numpy() == -1
    groups = np.array(oof.column("group").to_pylist())
    assert not set(groups[once]) & set(groups[~once])
    true, found = (oof.column(name).to_numpy()[once] for name in ("value", "predicted"))
    assert made.held_out.figures.rmse.value == pytest.approx(float(np.sqrt(np.mean((found - true) ** 2))))
    assert made.held_out.figures.n == once.sum() == about.held_out.rows
    assert made.pixels.n == about.rows
    assert made.held_out.figures.rmse.value < 1.5
    assert "held out and used once: RMSE" in capsys.readouterr().err


def test_what_is_about_classes_says_so(run: Run, tmp_path: Path) -> None:
    config = settings(run)
    run_stage(PredictStage(), run, config)
    polygons = ParcelWishes(run.root / "labels.gpkg", class_="crop")
    asked: dict[str, Callable[[], object]] = {
        "map of numbers": lambda: design(Wishes(run.root, tmp_path / "sample")),
        "a map of numbers": lambda: suggest(run, config, SuggestWishes(tmp_path / "places")),
        "model of numbers": lambda: suspects(run, config, 0.7),
        "for maps of classes": lambda: parcels(run, config, polygons),
    }
    for message, ask in asked.items():
        with pytest.raises(SmaltiError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sample").exists()
    assert not (tmp_path / "places").exists()
    vectors = pq.read_table(parcels(run, config, ParcelWishes(run.root / "labels.gpkg")))
    assert "mapped" not in vectors.column_names
    assert np.isfinite(np.stack(vectors.column("mean").to_pylist())).mean() > 0.9


def test_numbers_and_classes_are_not_mixed(run: Run, tmp_path: Path) -> None:
    other = tiled_run(tmp_path / "classes")
    embed(other, noise=0.5, seed=3)
    write_yields(other)
    by_class = settings(other, 'class = "crop"\n')
    run_stage(SampleStage(), other, by_class)
    both = settings(run, extra=f'[train]\nruns = ["{other.root}"]\n{BRIEF}')
    with pytest.raises(SmaltiError, match="samples of classes hold classes, and not yield: leave it out"):
        run_stage(TrainStage(), run, both)
    with pytest.raises(SmaltiError, match=r"hold numbers \(yield\), and not classes"):
        run_stage(TrainStage(), other, settings(other, 'class = "crop"\n', f'[train]\nruns = ["{run.root}"]\n'))


def test_numbers_of_other_runs_alone_are_learned_and_mapped(run: Run, tmp_path: Path) -> None:
    third = tiled_run(tmp_path / "2023")
    embed(third, noise=0.5, seed=8)
    there = f'{TOML}[train]\nruns = ["{run.root}"]\n'
    config = parse_config(f"{there}{BRIEF}", third.config)
    for stage in (TrainStage(), PredictStage(), ValidateStage()):
        run_stage(stage, third, config)
    assert RegressorManifest.read(third).value == "yield"
    assert ValueMapManifest.read(third).mean == pytest.approx(6, abs=1)
    with pytest.raises(SmaltiError, match=r"numbers \(the labels of \[train\] runs hold yield\) are learned by"):
        run_stage(TrainStage(), third, parse_config(f'{there}{BRIEF}method = "knn"\n', third.config))
    with pytest.raises(SmaltiError, match=r"\[validate\] measures a map of classes"):
        asked = '[validate]\nreference = "points.gpkg"\nclass = "crop"\ndesign = "random"\n'
        run_stage(PredictStage(), third, parse_config(there + asked, third.config))


def test_a_model_of_two_years_says_how_it_does_in_each(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiled_run(tmp_path / "2022")
    window = (date(2022, 1, 1), date(2022, 12, 31))
    replace(Plan.read(other), window=window).write(other.plan, inputs={}, files=[])
    embed(other, noise=0.5, seed=8)
    write_yields(other, lambda made: made + 1)  # a better year, of which the other one knows nothing
    run_stage(SampleStage(), other, settings(other))
    config = settings(run, extra=f'[train]\nruns = ["{other.root}"]\n{BRIEF}')
    run_stage(TrainStage(), run, config)
    run_stage(ValidateStage(), run, config)
    made = ValueAccuracyManifest.read(run)
    rows = {row.tests: row for row in made.transfers}
    assert [(row.by, row.trained_on) for row in made.transfers] == [("year", ("2022",)), ("year", ("2021",))]
    assert [rows[year].figures.n for year in ("2021", "2022")] == [
        pq.read_table(r.samples).num_rows for r in (run, other)
    ]
    assert rows["2021"].figures.bias.value == pytest.approx(1, abs=0.3)
    assert rows["2022"].figures.bias.value == pytest.approx(-1, abs=0.3)
    assert 0.1 < rows["2022"].figures.coverage < 0.6 < made.pixels.coverage, "too narrow"
    assert rows["2022"].distance_m.median == 0, "the same ground"
    line = "trained on 2021, tested on 2022 (64 groups): RMSE"
    assert f"validate: {line}" in capsys.readouterr().err
    assert f"- {line}" in show(run.model)


def test_numbers_that_are_called_otherwise_are_not_taken_for_the_same(run: Run, tmp_path: Path) -> None:
    other = tiled_run(tmp_path / "other")
    embed(other, noise=0.5, seed=8)
    shapes, names = square_parcels(other)
    write_vector(other.root / "labels.gpkg", shapes, {"ertrag": np.arange(len(names)), "parcel": np.arange(len(names))})
    run_stage(SampleStage(), other, settings(other, 'value = "ertrag"\n'))
    with pytest.raises(SmaltiError, match="the samples of other hold ertrag, and not yield: if they"):
        run_stage(TrainStage(), run, settings(run, extra=f'[train]\nruns = ["{other.root}"]\n{BRIEF}'))


def test_numbers_that_are_damaged_are_refused(run: Run) -> None:
    from infer.contract.manifest import describe_file

    table = pq.read_table(run.samples)
    import pyarrow as pa

    values = table.column("value").to_numpy().copy()
    values[3] = np.nan
    index = table.schema.get_field_index("value")
    pq.write_table(table.set_column(index, "value", pa.array(values)), run.samples)
    manifest = json.loads(run.samples_manifest.read_text())
    manifest["files"] = {"samples.parquet": describe_file(run.samples)}
    run.samples_manifest.write_text(json.dumps(manifest))
    with pytest.raises(SmaltiError, match="its column value holds what is no number"):
        run_stage(TrainStage(), run, settings(run))
