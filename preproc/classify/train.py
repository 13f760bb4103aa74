"""The `train` stage: samples.parquet -> model/ (classifier, out-of-fold predictions, trials)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infer.contract import Inputs, Run, atomic_dir, sha256_json, write_bytes, write_json
from infer.contract.classification import (
    AbsentClasses,
    ClassEntry,
    ClassifierManifest,
    FoldsUsed,
    LearningPoint,
    MethodName,
    MethodScore,
    RegressorManifest,
    Transfer,
)
from infer.contract.record import from_json, to_json
from infer.contract.segment import SegmentRecipe
from preproc.classify.card import CARD, CARD_TEXT, card, card_text
from preproc.classify.folds import Folds, folds_of
from preproc.classify.learning import figures_of, learning_curve
from preproc.classify.methods import METHODS, Chosen, Method, Model, fit_any, out_of_fold, parameters, probabilities
from preproc.classify.model import OUT_OF_FOLD, TRIALS, save_classifier
from preproc.classify.out_of_fold import HELD_OUT, read_out_of_fold, write_out_of_fold
from preproc.classify.performance import transfer_rows
from preproc.classify.pool import regions, samples_inputs, years
from preproc.classify.questions import ClassQuestion, NumberQuestion, Question
from preproc.classify.regression import Choice, build_regressor
from preproc.classify.segment import FINAL, Heads, recipe_of
from preproc.classify.split import Split, divide
from preproc.classify.table import Samples
from preproc.classify.training_set import TrainingSet, training_set, tuning_rows
from preproc.classify.trials import KIND as TRIAL_KIND
from preproc.classify.trials import Study, Trial, published
from preproc.classify.tune import best, search, summary
from preproc.raster.legend import legend_csv, palette
from preproc.run.classifier import maps_number
from preproc.run.config import Classify, Config
from preproc.run.progress import progress, say
from preproc.run.stage import Built, Due, Session, Unit, one_by_one

_RECIPE = 3
"""Raised when training changes in a way that changes its results."""
_NUMBERS = 4
"""The same, where a number is learned."""
LEGEND = "legend.csv"
_SECOND_SPLIT = 1_000_003
"""Added to the seed for the folds that are reported, so that they are not those that parameters were tuned on."""


class TrainStage:
    """`smalti train`."""

    name = "train"
    noun = "classifiers"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The one classifier, and what it is made from."""
        inputs = training_inputs(run, config)
        unit = _unit(run, config, inputs)
        build = build_number_model if maps_number(config) else build_classifier
        return Session([unit], lambda due: one_by_one(due.units, lambda _: build(run, config, inputs)))


def _unit(run: Run, config: Config, inputs: Inputs) -> Unit:
    if maps_number(config):
        return Unit("model", run.model_manifest, RegressorManifest.kind, inputs)
    return Unit("classifier", run.model_manifest, ClassifierManifest.kind, inputs)


class TrainTrialsStage:
    """The trials alone: any number of `smalti train --shard I/N` work on one study, and `smalti train` ends it."""

    name = "train"
    noun = "trials"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """Every trial of every method. All shards help with all of them, for a trial waits for those before it.

        Of a segmentation head every network: each shard trains its own.
        """
        inputs = training_inputs(run, config)
        heads = config.classify.method == "segment"
        noun = "networks" if heads else self.noun
        if _unit(run, config, inputs).state().complete:
            return Session([], lambda due: one_by_one(due.units, lambda _: None), noun=noun)  # its study is over
        if heads:
            wanted = _heads(training_set(run, config), run, config, inputs)
            return Session(wanted.units(), lambda due: _help_heads(due, wanted), noun=noun)
        dtype = NumberQuestion.dtype if maps_number(config) else ClassQuestion.dtype
        studies = {method: _study(run, method, inputs, dtype) for method in _methods(config)}
        units = [
            Unit(f"{method} {number}", study.path(number), TRIAL_KIND, study.inputs)
            for method, study in studies.items()
            for number in range(config.classify.trials)
        ]
        return Session(units, lambda due: _help(due, run, config, inputs))


def _help(due: Due, run: Run, config: Config, inputs: Inputs) -> Generator[Built]:
    _tuned(training_set(run, config), run, config, inputs)
    yield from (Built(unit) for unit in due.units)


def _help_heads(due: Due, heads: Heads) -> Generator[Built]:
    heads.train(due.units)
    yield from (Built(unit) for unit in due.units)


def training_inputs(run: Run, config: Config) -> Inputs:
    """What the classifier is made from."""
    settings = config.classify
    tables = samples_inputs(run, config)
    taken = (
        *("method", "folds", "split", "block", "hold_out", "trials", "seed", "min_groups", "max_rows", "threads"),
        *("task_type", "learning_curve"),
    )
    recipe = {name: to_json(getattr(settings, name)) for name in taken}
    if settings.method == "segment":
        recipe["segment"] = to_json(recipe_of(config))
    if maps_number(config):
        recipe["numbers"] = _NUMBERS
    return {"samples": tables[0] if len(tables) == 1 else tables, "settings": {**recipe, "recipe": _RECIPE}}


def _methods(config: Config) -> tuple[Method, ...]:
    """Those that are tuned; a segmentation head is measured beside CatBoost, and numbers have no other."""
    method = config.classify.method
    if method == "segment" or maps_number(config):
        return ("catboost",)
    return METHODS if method == "best" else (method,)


def _study(run: Run, method: Method, inputs: Inputs, dtype: type[np.generic]) -> Study:
    """Where a study in progress keeps its trials: not in the model's folder, which may be complete and stay so."""
    key = sha256_json(dict(inputs))
    return Study(run.logs / "study" / f"{method}-{key[:12]}", key, dtype)


def _tuned(taught: TrainingSet, run: Run, config: Config, inputs: Inputs) -> dict[Method, tuple[Question, list[Trial]]]:
    """What is asked of each method, and all its trials."""
    settings = config.classify
    workers = config.site.workers or len(os.sched_getaffinity(0))
    few = tuning_rows(taught.samples, settings.seed)
    tuning = taught.samples.take(few)
    folds = divide(tuning, taught.split.take(few), settings, settings.seed)
    methods = _methods(config)
    count = max(settings.trials, 1) if len(methods) > 1 else settings.trials  # to be compared, each is tried once
    found: dict[Method, tuple[Question, list[Trial]]] = {}
    for method in methods:
        question = (NumberQuestion if maps_number(config) else ClassQuestion)(tuning, method)
        study = _study(run, method, inputs, question.dtype)
        found[method] = (
            question,
            search(question, folds, trials=count, seed=settings.seed, workers=workers, study=study),
        )
    return found


def _folds(taught: TrainingSet, settings: Classify) -> Folds:
    """Those that are reported."""
    return divide(taught.samples, taught.split, settings, settings.seed + _SECOND_SPLIT)


def _elsewhere(samples: Samples) -> dict[str, Folds]:
    """A fold a "year" and a fold a "region", where there are several."""
    parts = {"year": years(samples), "region": regions(samples)}
    return {by: folds_of(samples.code_n, part_n) for by, part_n in parts.items() if len(np.unique(part_n)) > 1}


def _heads(taught: TrainingSet, run: Run, config: Config, inputs: Inputs) -> Heads:
    samples = taught.samples
    divisions = {"fold": _folds(taught, config.classify), **_elsewhere(samples)}
    return Heads(run, config, samples, np.unique(samples.code_n), divisions, inputs)


def build_number_model(run: Run, config: Config, inputs: Inputs) -> None:
    """Tune, cross-validate and train a model of a number; write RUN/model.

    Raises:
        SmaltiError: if the samples cannot be trained on.
    """
    taught = training_set(run, config)
    ((method, (question, trials)),) = _tuned(taught, run, config, inputs).items()
    chosen = question.parameters(best(question, trials).values if trials else None)
    choice = Choice(chosen, summary(question, trials, config.classify.seed), published({method: trials}))
    build_regressor(run, config, inputs, taught, _folds(taught, config.classify), choice, _elsewhere(taught.samples))
    shutil.rmtree(run.logs / "study", ignore_errors=True)


class _Learner(Protocol):
    """What a classifier is learned by: one method's parameters on the table of samples, or networks on the ground."""

    def out_of_fold(self, by: str, folds: Folds) -> NDArray[np.float32]:
        """(N, K) what each sample is by a model that has not seen its fold; `by` names the division."""

    def final(self) -> Model:
        """Trained on all samples."""

    def shares(self, model: Model, tested: Samples) -> NDArray[np.float32]:
        """(M, K) what the final one makes of other samples."""

    def stated(self) -> dict[str, Any]:
        """Its parameters, as the manifest has them."""


@dataclass(frozen=True)
class _OfTable:
    samples: Samples
    codes_k: NDArray[Any]
    chosen: Chosen
    settings: Classify
    workers: int

    def out_of_fold(self, _by: str, folds: Folds) -> NDArray[np.float32]:
        values = self.samples.values_nc, self.samples.code_n, self.codes_k, folds, self.chosen
        return out_of_fold(*values, seed=self.settings.seed, workers=self.workers)

    def final(self) -> Model:
        return fit_any(
            self.samples.values_nc, self.samples.code_n, self.chosen, self.settings.seed,
            threads=self.settings.threads, task_type=self.settings.task_type,
        )  # fmt: skip

    def shares(self, model: Model, tested: Samples) -> NDArray[np.float32]:
        return probabilities(model, tested.values_nc, threads=self.workers)

    def stated(self) -> dict[str, Any]:
        return asdict(self.chosen)


@dataclass(frozen=True)
class _OfGround:
    heads: Heads
    recipe: SegmentRecipe
    workers: int

    def out_of_fold(self, by: str, _folds: Folds) -> NDArray[np.float32]:
        return self.heads.out_of_fold(by, self.workers)

    def final(self) -> Model:
        return self.heads.network(FINAL)

    def shares(self, _model: Model, tested: Samples) -> NDArray[np.float32]:
        return self.heads.say(FINAL, tested, self.workers)

    def stated(self) -> dict[str, Any]:
        return asdict(self.recipe)


def build_classifier(run: Run, config: Config, inputs: Inputs) -> None:
    """Tune, cross-validate and train; write RUN/model.

    Args:
        run: the run directory.
        config: its settings.
        inputs: fingerprint.

    Raises:
        SmaltiError: if the samples cannot be trained on.
    """
    settings = config.classify
    taught = training_set(run, config)
    samples, codes_k = taught.samples, np.unique(taught.samples.code_n)
    workers = config.site.workers or len(os.sched_getaffinity(0))
    tuned = _tuned(taught, run, config, inputs)
    tops = {method: best(question, trials) if trials else None for method, (question, trials) in tuned.items()}
    tabular = {
        method: _OfTable(samples, codes_k, parameters(method, None if top is None else top.values), settings, workers)
        for method, top in tops.items()
    }
    winner = max(tops, key=lambda method: top.score if (top := tops[method]) else 0.0)  # the earlier of equals
    folds = _folds(taught, settings)
    _tell_folds(folds, taught.split, samples, settings)
    learners: dict[MethodName, _Learner] = {method: one for method, one in tabular.items()}  # noqa: C416  # other types
    trained: MethodName = winner
    if settings.method == "segment":
        heads = _heads(taught, run, config, inputs)
        heads.train(heads.units())
        trained, learners["segment"] = "segment", _OfGround(heads, recipe_of(config), workers)
    learner = learners[trained]
    with progress("train: final", 4, "steps") as bar:
        shares = {method: one.out_of_fold("fold", folds) for method, one in learners.items()}
        scores = {
            method: figures_of(codes_k[values_nk.argmax(axis=1)], samples, codes_k, settings.seed)
            for method, values_nk in shares.items()
        }
        bar.advance(note="cross-validated")
        transfers = [
            row
            for by, parts in _elsewhere(samples).items()
            for row in _transfers(by, parts, samples, codes_k, learner, settings.seed)
        ]
        bar.advance(note="tried in other years and regions")
        learning: list[LearningPoint] = []
        if settings.learning_curve and trained == winner:
            learning = learning_curve(
                samples, codes_k, folds, tabular[winner].chosen, scores[winner], seed=settings.seed, workers=workers
            )
        bar.advance(note="tried with fewer groups")
        model = learner.final()
        bar.advance(note="trained on all samples")
    question, trials = tuned[winner]
    about = ClassifierManifest(
        classes=tuple(_legend(samples, codes_k)),
        dim=samples.values_nc.shape[1],
        parameters=learner.stated(),
        tuning=summary(question, trials if trained == winner else [], settings.seed),
        folds=FoldsUsed(
            folds.count, settings.folds, _absent(folds), taught.split.by, folds.names, taught.split.block_m
        ),
        left_out=tuple(taught.left_out),
        rows=len(samples),
        trained_on=samples.trained_on,
        method=trained,
        methods=(
            *([] if trained == winner else [MethodScore(trained, True, 0, None, **scores[trained])]),
            *(
                MethodScore(
                    method, method == trained, len(tuned[method][1]), top.score if top else None, **scores[method]
                )
                for method, top in tops.items()
            ),
        ),
        learning=tuple(learning),
        rows_beyond=taught.beyond,
        transfers=tuple(transfers),
        held_out=taught.held_out,
        inputs=inputs,
    )
    published_trials = published({method: made for method, (_, made) in tuned.items()})
    _write_model(run, taught, folds, shares[trained], learner, model, about, published_trials)
    shutil.rmtree(run.logs / "study", ignore_errors=True)


def _write_model(
    run: Run,
    taught: TrainingSet,
    folds: Folds,
    shares_nk: NDArray[np.float32],
    learner: _Learner,
    model: Model,
    about: ClassifierManifest,
    trials: bytes,
) -> None:
    """Write RUN/model: the classifier, what it says of each sample unseen, and those that were held out, once."""
    pooled, codes_k = taught.pooled, np.unique(taught.samples.code_n)
    known = taught.held_n & np.isin(pooled.code_n, codes_k)
    tested = pooled.take(known)
    written = pooled.take(np.concatenate([np.flatnonzero(taught.used_n), np.flatnonzero(known)]))
    fold_n = np.concatenate([folds.fold_n, np.full(len(tested), HELD_OUT, dtype=np.int32)])
    all_nk = np.concatenate([shares_nk, learner.shares(model, tested)])
    with atomic_dir(run.model) as folder:
        write_out_of_fold(folder / OUT_OF_FOLD, written, fold_n, codes_k, all_nk)
        (folder / TRIALS).write_bytes(trials)
        files = [folder / OUT_OF_FOLD, folder / TRIALS, *_companions(folder, about)]
        save_classifier(folder, model, about, inputs=about.inputs, files=files)


def _transfers(
    by: str,
    parts: Folds,
    samples: Samples,
    codes_k: NDArray[Any],
    learner: _Learner,
    seed: int,
) -> list[Transfer]:
    """How a classifier of the same parameters, trained on all other years (or regions), does in each."""
    best_n = codes_k[learner.out_of_fold(by, parts).argmax(axis=1)]
    return [
        from_json(Transfer, row, Path("transfers"), "this is a fault of smalti")
        for row in transfer_rows(by, samples, parts, best_n, codes_k, seed)
    ]


def _companions(folder: Path, about: ClassifierManifest) -> list[Path]:
    """What makes the folder complete by itself: the legend, and the card for machines and for people."""
    oof = read_out_of_fold(folder / OUT_OF_FOLD, [entry.code for entry in about.classes])
    content = card(about, oof, about.inputs["settings"])
    write_bytes(folder / LEGEND, legend_csv(about.classes))
    write_json(folder / CARD, content)
    write_bytes(folder / CARD_TEXT, card_text(content, about).encode())
    return [folder / LEGEND, folder / CARD, folder / CARD_TEXT]


def _tell_folds(folds: Folds, split: Split, samples: Samples, settings: Classify) -> None:
    if folds.count < settings.folds and not folds.names:
        what = "groups" if split.by == "group" else f"{split.by}s"
        say(f"train: {folds.count} folds instead of {settings.folds}: no class has more {what}")
    for fold, codes in folds.absent.items():
        names = ", ".join(samples.legend[code] for code in codes)
        called = f"fold {folds.names[fold]}" if folds.names else f"fold {fold + 1}"
        why = "" if folds.names else ": fewer groups than folds"
        say(f"train: {called} tests no {names}{why}")


def _absent(folds: Folds) -> tuple[AbsentClasses, ...]:
    return tuple(AbsentClasses(fold, tuple(codes)) for fold, codes in folds.absent.items())


def _legend(samples: Samples, codes_k: NDArray[Any]) -> list[ClassEntry]:
    """Entries of the trained classes; colours are given to the whole legend, so that leaving one out moves none."""
    colors = dict(zip(samples.legend, palette(list(samples.legend.values())), strict=True))
    return [ClassEntry(int(code), samples.legend[int(code)], colors[int(code)]) for code in codes_k]
