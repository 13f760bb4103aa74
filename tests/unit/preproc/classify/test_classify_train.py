"""Folds, tuning, training and the classifier on disk."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catboost import CatBoostClassifier
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from support.embedded import TOML, embed, parcels, tiled_run, write_vector

from infer.contract import FormatError, Run, Shard, SmaltiError, read_manifest
from infer.contract.classification import Figure, LearningPoint
from infer.contract.manifest import describe_file
from preproc.classify import boost, questions, tune
from preproc.classify.boost import Parameters
from preproc.classify.folds import Folds, assign_folds, main_classes
from preproc.classify.learning import told
from preproc.classify.methods import Method, fit_any, out_of_fold, parameters
from preproc.classify.model import CLASSIFIER, load_classifier
from preproc.classify.out_of_fold import read_out_of_fold
from preproc.classify.questions import ClassQuestion
from preproc.classify.sample import SampleStage
from preproc.classify.table import Samples, Source, read_samples
from preproc.classify.train import TrainStage, TrainTrialsStage
from preproc.classify.training_set import trainable, tuning_rows
from preproc.classify.trials import Study, Trial
from preproc.classify.tune import best, propose, tuning_optimism
from preproc.raster.legend import palette
from preproc.run.config import Config, parse_config
from preproc.run.stage import run_stage
from preproc.run.workers import OneAtATime

TRAINING = "folds = 3\ntrials = 3\nmax_pixels = 12\nlearning_curve = false\n"


def settings(run: Run, extra: str = TRAINING) -> Config:
    text = f'{TOML}[labels]\npath = "labels.gpkg"\nclass = "crop"\ngroup = "parcel"\n[classify]\n{extra}'
    return parse_config(text, run.config)


def sampled(root: Path, names: list[str] | None = None, noise: float = 1.5) -> Run:
    run = tiled_run(root)
    embed(run, noise=noise)
    shapes, own = parcels(run)
    fields = {"crop": np.array(names or own, dtype=object), "parcel": np.arange(len(shapes))}
    write_vector(run.root / "labels.gpkg", shapes, fields)
    run_stage(SampleStage(), run, settings(run))
    return run


@pytest.fixture(autouse=True)
def small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search space in which a trial takes a fraction of a second."""
    small(monkeypatch)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.distributions import IntDistribution

    monkeypatch.setitem(questions._spaces()["catboost"], "iterations", IntDistribution(20, 160, step=20))
    monkeypatch.setitem(questions._spaces()["catboost"], "depth", IntDistribution(2, 5))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sampled(tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture
def run(prepared: Run, tmp_path: Path) -> Run:
    """A sampled run of one's own."""
    shutil.copytree(prepared.root, tmp_path / "run")
    return Run(tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# folds


group_classes = st.lists(st.integers(1, 4), min_size=4, max_size=40)


@given(group_classes, st.integers(2, 6), st.integers(0, 9), st.randoms(use_true_random=False))
def test_folds_keep_groups_together_and_share_classes_out(
    classes: list[int], count: int, seed: int, random: Any
) -> None:
    rows = [(code, f"g{index}") for index, code in enumerate(classes) for _ in range(1 + index % 3)]
    most = max(classes.count(code) for code in set(classes))
    if most < 2:
        return
    code_n, group_n = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = assign_folds(code_n, group_n, count, seed)
    assert folds.count == min(count, most)
    for group in set(group_n):
        assert len(set(folds.fold_n[group_n == group])) == 1
    for code in set(classes):
        groups = [len(set(group_n[(folds.fold_n == f) & (code_n == code)])) for f in range(folds.count)]
        assert max(groups) - min(groups) <= 1  # so a class with two groups is always trained on
        for fold, number in enumerate(groups):
            assert (code in folds.absent.get(fold, [])) == (number == 0)
    order = list(range(len(rows)))
    random.shuffle(order)
    again = assign_folds(code_n[order], group_n[order], count, seed)
    assert (again.fold_n == folds.fold_n[order]).all()


def test_other_seeds_make_other_folds_and_single_groups_none() -> None:
    code_n, group_n = np.repeat([1, 2], 20), np.arange(40)
    assert (assign_folds(code_n, group_n, 4, 0).fold_n != assign_folds(code_n, group_n, 4, 1).fold_n).any()
    with pytest.raises(SmaltiError, match="each class has a single group"):
        assign_folds(np.array([1, 2]), np.array([0, 1]), 2, 0)


def test_the_main_class_of_a_group_is_its_most_frequent() -> None:
    assert main_classes(np.array([5, 5, 9, 9, 5, 9]), np.array([0, 0, 0, 1, 1, 1])).tolist() == [5, 9]


def test_no_model_has_seen_the_group_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups have a fingerprint in their features: a leak would be answered perfectly."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    code_n = rng.integers(1, 4, 40)[groups]
    x = rng.normal(size=(40, 8))[groups].astype(np.float32)
    chosen = Parameters(iterations=40, depth=4)
    honest = assign_folds(code_n, groups, 4, 0)
    values = out_of_fold(x, code_n, np.arange(1, 4), honest, chosen, seed=0, workers=2)
    leaky = assign_folds(code_n, np.arange(400), 4, 0)
    flattering = out_of_fold(x, code_n, np.arange(1, 4), leaky, chosen, seed=0, workers=2)
    assert (values.argmax(1) + 1 == code_n).mean() < 0.6
    assert (flattering.argmax(1) + 1 == code_n).mean() > 0.95


def test_a_class_that_training_lacks_has_probability_zero_and_workers_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    code_n = np.repeat([1, 2, 3], 20)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    fold_n = np.where(code_n == 2, 0, np.arange(60) % 2).astype(np.int32)
    folds = Folds(fold_n, 2, {1: [2]})
    one = out_of_fold(x, code_n, np.array([1, 2, 3]), folds, Parameters(iterations=20), seed=0, workers=1)
    monkeypatch.setattr(boost, "FITS", OneAtATime(0.0))  # a second fit is made in another process at once
    two = out_of_fold(x, code_n, np.array([1, 2, 3]), folds, Parameters(iterations=20), seed=0, workers=2)
    assert (one == two).all()
    assert (one[fold_n == 0, 1] == 0).all()
    assert (one[fold_n == 0, 2] > 0).all()
    assert one.sum(axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    only = Folds(np.where(code_n == 1, 1, 0).astype(np.int32), 2, {})
    single = out_of_fold(x[:40], code_n[:40], np.array([1, 2]), Folds(only.fold_n[:40], 2, {}), Parameters(), seed=0,
                         workers=1)  # fmt: skip
    assert (single[code_n[:40] == 2] == [1, 0]).all()


# tuning


def fake_samples(groups: int, each: int) -> Samples:
    n = groups * each
    index = np.arange(n, dtype=np.int32)
    return Samples(
        tile_n=np.array(["t"] * n), row_n=index, col_n=index, x_n=index * 10.0 + 5, y_n=np.zeros(n),
        epsg_n=np.full(n, 32631, np.int32), code_n=(index // each % 3 + 1).astype(np.int32),
        group_n=(index // each).astype(str), values_nc=np.zeros((n, 2), np.float32), legend={1: "a", 2: "b", 3: "c"},
        feature_n=index.astype(np.int64), district_n=np.full(n, ""), run_n=np.zeros(n, np.int16),
        value_n=np.full(n, np.nan),
        sources=(Source("this run", None, ""),),
    )  # fmt: skip


CATBOOST = ClassQuestion(fake_samples(2, 2), "catboost")


def test_tuning_rows_take_the_same_share_of_every_group() -> None:
    samples = fake_samples(30, 50)
    kept = tuning_rows(samples, 0, limit=620)
    assert np.bincount(samples.group_n[kept].astype(int)).tolist() == [20] * 30
    assert tuning_rows(samples, 0, limit=2000).all()
    few = tuning_rows(samples, 0, limit=15)
    assert np.bincount(samples.code_n[few]).tolist() == [0, 5, 5, 5]
    assert len(set(samples.group_n[few])) == 15


def test_proposals_depend_on_the_history_alone(tmp_path: Path) -> None:
    assert propose(CATBOOST, [], 0, seed=3) == Parameters()
    history: list[Trial] = []
    rng = np.random.default_rng(0)
    for number in range(9):
        values = vars(propose(CATBOOST, history, number, seed=3))
        assert vars(propose(CATBOOST, history, number, seed=3)) == values
        history.append(Trial(number, dict(values), float(rng.random()), np.zeros(4, np.uint8)))
    study = Study(tmp_path, "key")
    for trial in history:
        study.write(trial)
    kept = [trial for trial in map(study.read, range(9)) if trial is not None]
    assert propose(CATBOOST, kept, 9, seed=3) == propose(CATBOOST, history, 9, seed=3)
    assert propose(CATBOOST, history, 9, seed=4) != propose(CATBOOST, history, 9, seed=3)
    assert len({tuple(t.values.items()) for t in history}) == 9


def test_a_trial_of_another_study_or_a_broken_one_is_not_used(tmp_path: Path) -> None:
    study = Study(tmp_path, "key")
    study.write(Trial(0, vars(Parameters()), 0.5, np.arange(3, dtype=np.uint8), (0.4, 0.5)))
    read = study.read(0)
    assert read is not None
    assert parameters("catboost", read.values) == Parameters()
    assert (read.told_n.tolist(), read.partial, read.pruned) == ([0, 1, 2], (0.4, 0.5), False)
    assert Study(tmp_path, "other").read(0) is None
    assert study.read(1) is None
    path = study.path(0)
    whole = path.read_text()
    for content in (whole[:-20], "[" * 100_000, "[1]", whole.replace('"number": 0', '"number": null'), ""):
        path.write_text(content)
        assert study.read(0) is None
    path.unlink()
    os.mkfifo(path)
    assert study.read(0) is None


def test_processes_do_not_do_the_same_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, "key")
    with study.claimed(3) as one, study.claimed(3) as other, study.claimed(4) as another:
        assert (one, other, another) == (True, False, True)
    with study.claimed(3) as again:
        assert again


def test_optimism_is_seen_where_there_is_nothing_to_learn() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 2)
    code_n = np.repeat(rng.integers(1, 3, 60), 2)
    guesses = [
        Trial(i, {}, 0.0, np.repeat(rng.integers(0, 2, 60), 2).astype(np.uint8)) for i in range(30)
    ]  # thirty coins: the best is lucky
    scored = [Trial(t.number, {}, f1_score(code_n - 1, t.told_n, average="macro"), t.told_n) for t in guesses]
    question = ClassQuestion(replace(fake_samples(60, 2), code_n=code_n, group_n=groups), "catboost")
    lucky = best(question, scored).score - float(np.mean([t.score for t in scored]))
    assert tuning_optimism(question, scored, 0) == pytest.approx(lucky, abs=0.06)
    assert lucky > 0.08
    right = (code_n - 1).astype(np.uint8)
    better = [Trial(0, {}, 1.0, right), Trial(1, {}, 0.0, 1 - right)]
    assert tuning_optimism(question, better, 0) == pytest.approx(0.0, abs=1e-9)
    assert tuning_optimism(question, better[:1], 0) == 0.0


# the stage


def test_training_makes_the_same_bytes_again_and_on_any_number_of_workers(run: Run) -> None:
    run_stage(TrainStage(), run, settings(run))
    first = contents(run.model)
    assert sorted(first) == [
        *("card.json", "card.md", "classifier.cbm", "legend.csv", "model.json", "oof.parquet", "trials.jsonl")
    ]
    run_stage(TrainStage(), run, settings(run), force=True)
    assert contents(run.model) == first
    run_stage(TrainStage(), run, settings(run, f"{TRAINING}[site]\nworkers = 1\n"), force=True)
    assert contents(run.model) == first


def test_a_killed_study_goes_on_where_it_stopped_and_ends_alike(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = TRAINING + "[site]\nworkers = 1\n"  # one trial at a time
    run_stage(TrainStage(), run, settings(run))
    undisturbed = contents(run.model)
    for path in sorted(run.model.rglob("*")):
        path.unlink()
    fits: list[Parameters] = []
    whole = boost.fit

    def fit(x: Any, code: Any, chosen: Parameters, seed: int, **final: Any) -> Any:
        if final:
            return whole(x, code, chosen, seed, **final)
        fits.append(chosen)
        if len(fits) == 8:
            raise KeyboardInterrupt
        return whole(x, code, chosen, seed)

    monkeypatch.setattr(boost, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        run_stage(TrainStage(), run, settings(run, alone))
    assert not run.model_manifest.exists()
    kept = len(list((run.logs / "study").rglob("*.json")))
    assert kept == 2  # two trials of three folds
    fits.clear()
    fits.extend([Parameters()] * 100)  # no more interruptions
    run_stage(TrainStage(), run, settings(run, alone))
    assert len(fits) - 100 == 3 + 3  # the third trial and the reported folds; the final fit has other threads
    assert contents(run.model) == undisturbed
    assert not (run.logs / "study").exists()


def test_the_classifier_answers_like_the_model_that_was_saved(run: Run) -> None:
    run_stage(TrainStage(), run, settings(run))
    classifier = load_classifier(run.model)
    params = getattr(classifier.model, "get_metadata")()["params"]  # noqa: B009 (only CatBoost has it)
    assert '"thread_count":4' in params  # recorded in the bytes, and so a part of the recipe
    samples = read_samples(run)
    assert [(e.code, e.name) for e in classifier.classes] == [(1, "crop a"), (2, "crop b"), (3, "crop c")]
    values = classifier.predict_proba(samples.values_nc)
    assert values.dtype == np.float32
    assert values.shape == (len(samples), 3)
    assert values.sum(axis=1) == pytest.approx(np.ones(len(samples)), abs=1e-5)
    assert (values.argmax(axis=1) + 1 == samples.code_n).mean() > 0.7
    assert (classifier.predict_proba(samples.values_nc[7:9]) == values[7:9]).all()
    assert classifier.predict_proba(np.empty((0, 6), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match="nodata"):
        classifier.predict_proba(np.full((1, 6), np.nan, np.float32))
    with pytest.raises(ValueError, match="trained on"):
        classifier.predict_proba(np.zeros((1, 5), np.float32))


def test_out_of_fold_predictions_are_kept_with_their_fold(run: Run) -> None:
    run_stage(TrainStage(), run, settings(run))
    samples, oof = read_samples(run), read_out_of_fold(run.model / "oof.parquet", [1, 2, 3])
    assert (oof.code_n == samples.code_n).all()
    assert (oof.group_n == samples.group_n).all()
    assert (oof.probabilities_nk.argmax(axis=1) + 1 == oof.predicted_n).all()
    tuned_on = assign_folds(samples.code_n, samples.group_n, 3, 0)
    assert set(oof.fold_n) == {0, 1, 2}
    assert (oof.fold_n != tuned_on.fold_n).any()
    trials = [json.loads(line) for line in (run.model / "trials.jsonl").read_text().splitlines()]
    assert [t["number"] for t in trials] == [0, 1, 2]
    manifest = read_manifest(run.model_manifest, "classifier", remedy="")
    assert manifest["tuning"]["macro_f1"] == max(t["score"] for t in trials)
    assert manifest["parameters"] == max(trials, key=lambda t: t["score"])["params"]


def test_no_trials_train_with_the_defaults(run: Run) -> None:
    run_stage(TrainStage(), run, settings(run, "folds = 2\ntrials = 0\nmax_pixels = 12\n"))
    manifest = read_manifest(run.model_manifest, "classifier", remedy="")
    assert manifest["parameters"] == vars(Parameters())
    assert manifest["tuning"]["trials"] == 0
    assert (run.model / "trials.jsonl").read_bytes() == b""


def test_classes_with_too_few_groups_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, names = parcels(tiled_run(tmp_path / "plan"))
    names[5] = "hops"
    names[6], names[7] = "flax", "flax"
    run = sampled(tmp_path / "run", names)
    run_stage(TrainStage(), run, settings(run))
    manifest = read_manifest(run.model_manifest, "classifier", remedy="")
    assert [(e["name"], e["groups"], e["pixels"]) for e in manifest["left_out"]] == [("hops", 1, 12)]
    classifier = load_classifier(run.model)
    assert [e.name for e in classifier.classes] == ["crop a", "crop b", "crop c", "flax"]
    assert [e.code for e in classifier.classes] == [1, 2, 3, 4]
    assert manifest["folds"]["absent"][0]["codes"] == [4]
    said = capsys.readouterr().err
    assert "left out, for [classify] min_groups asks for 2: hops (1 group)" in said
    assert "tests no flax" in said


def test_samples_that_cannot_be_trained_on_end_with_one_line(tmp_path: Path) -> None:
    _, names = parcels(tiled_run(tmp_path / "plan"))
    run = sampled(tmp_path / "run", ["hops"] + ["maize"] * (len(names) - 1))
    with pytest.raises(SmaltiError, match=r"fewer than two classes have 2 groups .*hops: 1, maize: 63"):
        run_stage(TrainStage(), run, settings(run))
    assert not run.model.exists()
    with pytest.raises(SmaltiError, match="run `smalti sample"):
        TrainStage().open(Run(tmp_path / "plan"), settings(run))
    with pytest.raises(SmaltiError, match="fewer than two classes"):
        trainable(fake_samples(2, 4), np.ones(8, dtype=bool), 5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("code", 77, r"codes that samples.json does not know .\[77\]"),
        ("code", None, "its column code has gaps"),
        ("code", "a", "its column code is of type string"),
        ("e000", float("nan"), "not finite"),
        ("e001", float("inf"), "not finite"),
        ("group", None, "its column group has gaps"),
    ],
)
def test_samples_that_were_edited_are_refused(run: Run, name: str, value: Any, message: str) -> None:
    table = pq.read_table(run.samples)
    values = [value, *table.column(name).to_pylist()[1:]]
    kind = pa.string() if isinstance(value, str) else table.schema.field(name).type
    column = pa.array([str(v) for v in values] if isinstance(value, str) else values, kind)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, column), run.samples)
    manifest = json.loads(run.samples.with_suffix(".json").read_text())
    manifest["files"] = {run.samples.name: describe_file(run.samples)}
    run.samples.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=message):
        read_samples(run)


def test_damaged_models_are_refused(run: Run) -> None:
    with pytest.raises(FormatError, match="run `smalti train`"):
        load_classifier(run.model)
    run_stage(TrainStage(), run, settings(run))
    path = run.model / CLASSIFIER
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=r"classifier.cbm: \d+ bytes"):
        load_classifier(run.model)
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(FormatError, match="do not match the checksum"):
        load_classifier(run.model)


def test_a_model_whose_legend_is_another_is_refused(run: Run) -> None:
    run_stage(TrainStage(), run, settings(run))
    content = json.loads(run.model_manifest.read_text())
    content["classes"][0]["code"] = 9
    content["classes"].sort(key=lambda e: e["code"])
    run.model_manifest.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"not those of classifier.cbm"):
        load_classifier(run.model)
    content["classes"][0]["color"] = "red"
    run.model_manifest.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="colour 'red'"):
        load_classifier(run.model)


# colours


def test_known_covers_have_their_colours_and_all_differ() -> None:
    names = [
        "Winter wheat",
        "maize",
        "sugar beet",
        "grassland",
        "forest",
        "water",
        "built-up",
        "zebra",
        "Winter barley",
    ]
    colours = palette(names)
    assert colours[1] == "#ffd300"
    assert colours[0] == "#a87000"
    assert palette(names) == colours
    assert palette(["zebra", "maize"])[1] == "#ffd300"


@given(st.lists(st.sampled_from(["wheat", "winter wheat", "barley", "x", "grass", "maize", "corn"]), max_size=120))
def test_no_two_colours_are_alike(names: list[str]) -> None:
    colours = palette(names)
    assert len(set(colours)) == len(names)
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours)


def test_a_full_disk_is_said_plainly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from catboost import CatBoostClassifier, CatBoostError

    def full(self: Any, name: str, **_: Any) -> None:
        raise CatBoostError(f"(Error 28: No space left on device) util/system/file.cpp:1080: can't write to {name}")

    monkeypatch.setattr(CatBoostClassifier, "save_model", full)
    with pytest.raises(SmaltiError, match=r"classifier.cbm: cannot be written: no space left on the device"):
        run_stage(TrainStage(), run, settings(run))
    assert not run.model_manifest.exists()
    assert list(run.root.glob(".model*")) == []


def test_very_few_samples_are_trained_on_and_equal_ones_are_refused_in_one_line() -> None:
    values_nc, code_n = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32), np.array([1, 1, 2, 2])
    assert boost.fit(values_nc, code_n, Parameters(iterations=200), 0).classes_.tolist() == [1, 2]
    with pytest.raises(SmaltiError, match=r"CatBoost cannot be trained on these 4 samples: .*: add labels") as caught:
        boost.fit(np.zeros((4, 6), np.float32), code_n, Parameters(), 0)
    assert "\n" not in str(caught.value)


# other methods, many processes, many rows


@pytest.mark.parametrize("method", ["linear", "knn", "mlp"])
def test_methods_for_few_labels_are_saved_as_arrays_and_answer_alike(run: Run, method: Method) -> None:
    config = settings(run, f'{TRAINING}method = "{method}"\n')
    run_stage(TrainStage(), run, config)
    first = contents(run.model)
    assert "classifier.npz" in first
    assert CLASSIFIER not in first
    samples = read_samples(run)
    classifier = load_classifier(run.model)
    values = classifier.predict_proba(samples.values_nc)
    assert values.sum(axis=1) == pytest.approx(np.ones(len(samples)), abs=1e-5)
    assert (values.argmax(axis=1) + 1 == samples.code_n).mean() > 0.6
    oof = read_out_of_fold(run.model / "oof.parquet", [1, 2, 3])
    assert f1_score(oof.code_n, oof.predicted_n, average="macro") > 0.6, "and on fields it has not seen"
    run_stage(TrainStage(), run, config, force=True)
    assert contents(run.model) == first
    manifest = read_manifest(run.model_manifest, "classifier", remedy="")
    assert manifest["method"] == method
    np.savez(run.model / "classifier.npz", nothing=np.zeros(2))
    manifest["files"]["classifier.npz"] = describe_file(run.model / "classifier.npz")
    run.model_manifest.write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=rf"classifier\.npz: not the arrays of a {method} classifier"):
        load_classifier(run.model)


def test_two_classes_are_told_apart_by_every_method() -> None:
    rng = np.random.default_rng(0)
    code_n = np.repeat([3, 8], 60)
    x_nc = (rng.normal(size=(120, 5)) + (code_n[:, None] == 8) * 2).astype(np.float32)
    for method in ("linear", "knn", "mlp"):
        model = fit_any(x_nc, code_n, parameters(method), 0)
        shares = model.predict_proba(x_nc)
        assert shares.shape == (120, 2)
        assert (np.array(model.classes_)[shares.argmax(axis=1)] == code_n).mean() > 0.9, method


def test_the_best_method_is_chosen_and_all_are_told(run: Run) -> None:
    brief = 'folds = 2\ntrials = 1\nmethod = "best"\nlearning_curve = false\n'
    run_stage(TrainStage(), run, settings(run, brief))
    manifest = read_manifest(run.model_manifest, "classifier", remedy="")
    told = {entry["method"]: entry for entry in manifest["methods"]}
    assert told.keys() == {"catboost", "linear", "knn", "mlp"}
    top = max(told.values(), key=lambda entry: float(entry["tuning_macro_f1"]))
    assert [name for name, entry in told.items() if entry["chosen"]] == [top["method"]] == [manifest["method"]]
    assert all(entry["macro_f1"]["ci95"] for entry in told.values())
    assert "learning" not in manifest or manifest["learning"] == []


def test_the_learning_curve_rises_and_says_so(run: Run) -> None:
    run_stage(TrainStage(), run, settings(run, "folds = 3\ntrials = 0\nmax_pixels = 12\n"))
    points = read_manifest(run.model_manifest, "classifier", remedy="")["learning"]
    assert [point["groups"] for point in points] == [1, 3, 10, 34]
    scores = [point["macro_f1"]["value"] for point in points]
    assert scores[0] < scores[-1]
    assert points[0]["rows"] == 3 * 12, "a group of each class"
    steep = [LearningPoint(n, n, Figure(v, None), Figure(v, None)) for n, v in ((3, 0.5), (10, 0.7))]
    assert "more labels would help" in told(steep)
    assert "would help little" in told([steep[0], replace(steep[1], macro_f1=Figure(0.505, None))])


def test_shards_work_on_one_study_and_the_bytes_are_the_same(run: Run, tmp_path: Path) -> None:
    config = settings(run, f"{TRAINING}".replace("trials = 3", "trials = 6"))
    other = Run(shutil.copytree(run.root, tmp_path / "other"))
    run_stage(TrainStage(), run, config)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: run_stage(TrainTrialsStage(), other, config, shard=Shard(i, 2)), range(2)))
    assert len(list((other.logs / "study").rglob("0*.json"))) == 6
    run_stage(TrainStage(), other, config)
    assert contents(other.model) == contents(run.model)
    assert TrainTrialsStage().open(other, config).units == []


def hurt(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(changes)


HURTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no score": hurt(score=float("nan")),
    "an endless score": hurt(partial=[0.1, float("inf"), 0.2]),
    "too few folds": lambda record: record["partial"].pop(),
    "rows of another study": lambda record: record.update(predicted=record["predicted"][2:]),
    "a class that is none": lambda record: record.update(predicted="09" + record["predicted"][2:]),
    "a parameter that is none": lambda record: record["params"].update(colour="red"),
    "a parameter less": lambda record: record["params"].pop("depth"),
    "a depth out of range": lambda record: record["params"].update(depth=99),
    "text for a number": lambda record: record["params"].update(depth="deep"),
}


@pytest.mark.parametrize("name", HURTS)
def test_a_trial_that_cannot_be_of_the_study_is_made_again(
    name: str, run: Run, capsys: pytest.CaptureFixture[str], studied: dict[str, bytes]
) -> None:
    config = settings(run, STUDIED)
    run_stage(TrainTrialsStage(), run, config)
    path = next((run.logs / "study").rglob("0001.json"))
    record = json.loads(path.read_text())
    HURTS[name](record)
    path.write_text(json.dumps(record))
    capsys.readouterr()
    run_stage(TrainStage(), run, config)
    said = " ".join(capsys.readouterr().err.split())
    assert "0001.json: not a trial of these rows and parameters: it is made again" in said
    assert contents(run.model) == studied


STUDIED = TRAINING.replace("folds = 3\ntrials = 3", "folds = 3\ntrials = 2")


@pytest.fixture(scope="module")
def studied(prepared: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model after two trials, undisturbed."""
    run = Run(shutil.copytree(prepared.root, tmp_path_factory.mktemp("studied") / "run"))
    with pytest.MonkeyPatch.context() as patched:
        small(patched)
        run_stage(TrainStage(), run, settings(run, STUDIED))
    return contents(run.model)


def test_trials_that_fall_behind_are_pruned(run: Run) -> None:
    samples = read_samples(run)
    question = ClassQuestion(samples, "catboost")
    split = assign_folds(samples.code_n, samples.group_n, 3, 0)
    nothing = np.zeros(len(samples), np.uint8)
    history = [Trial(n, vars(Parameters()), 0.99, nothing, (0.99, 0.99, 0.99)) for n in range(4)]
    poor = tune._trial(question, split, Parameters(iterations=20, depth=2), 4, history, 0)
    assert poor.pruned
    assert len(poor.partial) == 1
    assert best(question, [*history, poor]).number == 0
    propose(CATBOOST, [*history, poor], 5, 0)
    easy = [replace(trial, partial=(0.1, 0.1, 0.1)) for trial in history]
    assert not tune._trial(question, split, Parameters(iterations=20, depth=2), 4, easy, 0).pruned


def test_rows_beyond_the_cap_are_left_out_fairly_and_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(TrainStage(), run, settings(run, f"{TRAINING}max_rows = 256\n"))
    manifest = read_manifest(run.model_manifest, "classifier", remedy="")
    assert (manifest["rows"], manifest["rows_beyond"]) == (256, 768 - 256)
    oof = read_out_of_fold(run.model / "oof.parquet", [1, 2, 3])
    assert set(np.unique(oof.group_n, return_counts=True)[1]) == {4}
    assert "512 of 768 pixels left out" in capsys.readouterr().err


def test_with_a_gpu_the_final_fit_runs_there_and_folds_do_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: CatBoost is told of it and trains on the CPU instead."""
    asked: list[dict[str, Any]] = []

    class Recorded(CatBoostClassifier):
        def __init__(self, **options: Any) -> None:
            asked.append(dict(options))
            super().__init__(**{**options, "task_type": "CPU"})

    monkeypatch.setattr("catboost.utils.get_gpu_device_count", lambda: 1)
    monkeypatch.setattr("catboost.CatBoostClassifier", Recorded)
    monkeypatch.setattr(boost, "FITS", OneAtATime(600.0))  # all fits in this process
    config = settings(run, f'{TRAINING}task_type = "GPU"\n'.replace("trials = 3", "trials = 0"))
    run_stage(TrainStage(), run, config)
    on_gpu = [options for options in asked if options["task_type"] == "GPU"]
    assert len(on_gpu) == 1
    assert "rsm" not in on_gpu[0], "CatBoost refuses it for several classes there"
    assert on_gpu[0]["thread_count"] == 4
    assert len(asked) == 1 + 3, "and a fit a fold on the CPU"
    about = read_manifest(run.model_manifest, "classifier", remedy="")
    assert about["inputs"]["settings"]["task_type"] == "GPU"


def test_a_gpu_that_is_not_there_is_refused_with_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catboost.utils.get_gpu_device_count", lambda: 0)
    with pytest.raises(SmaltiError, match='task_type = "GPU": CatBoost finds no GPU here'):
        run_stage(TrainStage(), run, settings(run, f'{TRAINING}task_type = "GPU"\n'))
    assert not run.model.exists()
