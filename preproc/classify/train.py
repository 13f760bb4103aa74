"""The `train` stage: samples.parquet -> model/ (classifier, out-of-fold predictions, trials)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, SmaltiError, atomic_dir, sha256_json, write_bytes, write_json
from infer.contract.classification import (
    AbsentClasses,
    ClassEntry,
    ClassifierManifest,
    FoldsUsed,
    LeftOutClass,
    TrainedOn,
    Transfer,
    Tuning,
)
from infer.contract.record import from_json, to_json
from preproc.classify.boost import Parameters, fit, out_of_fold
from preproc.classify.card import CARD, CARD_TEXT, card, card_text
from preproc.classify.folds import Folds, folds_of, groups_per_class
from preproc.classify.model import OUT_OF_FOLD, TRIALS, probabilities, save_classifier
from preproc.classify.out_of_fold import HELD_OUT, read_out_of_fold, write_out_of_fold
from preproc.classify.palette import palette
from preproc.classify.performance import transfer_rows
from preproc.classify.pool import pooled_samples, regions, samples_inputs, years
from preproc.classify.split import Split, divide, hold_out, split_of
from preproc.classify.table import Samples, counted
from preproc.classify.trials import Journal, Trial, published
from preproc.classify.tune import best, search, tuning_optimism, tuning_rows
from preproc.raster.legend import legend_csv
from preproc.run.config import Classify, Config
from preproc.run.progress import progress, say
from preproc.run.stage import Session, Unit, one_by_one

_RECIPE = 2
"""Raised when training changes in a way that changes its results."""
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
        settings = config.classify
        tables = samples_inputs(run, config)
        division = {"split": settings.split, "block": settings.block, "hold_out": settings.hold_out}
        usual = {"split": "group", "block": 0.0, "hold_out": 0.0}
        inputs = {
            "samples": tables[0] if len(tables) == 1 else tables,
            "settings": {
                "folds": settings.folds,
                "trials": settings.trials,
                "seed": settings.seed,
                "min_groups": settings.min_groups,
                "recipe": _RECIPE,
                # only what is not as it was before it could be set: classifiers of then are still what is asked for
                **{key: value for key, value in to_json(division).items() if value != usual[key]},
            },
        }
        unit = Unit("classifier", run.model_manifest, ClassifierManifest.kind, inputs)
        return Session([unit], lambda due: one_by_one(due.units, lambda _: build_classifier(run, config, inputs)))


def build_classifier(run: Run, config: Config, inputs: Mapping[str, Any]) -> None:
    """Tune, cross-validate and train; write RUN/model.

    Args:
        run: the run directory.
        config: its settings.
        inputs: fingerprint.

    Raises:
        SmaltiError: if the samples cannot be trained on.
    """
    settings = config.classify
    pooled = pooled_samples(run, config)
    whole = split_of(pooled, settings)
    held, held_out = hold_out(pooled, whole, settings)
    used, left_out = trainable(pooled, ~held, settings.min_groups)
    samples, split = pooled.take(used), whole.take(used)
    divide(samples, split, settings, settings.seed)  # refuses before the long search
    workers = config.site.workers or len(os.sched_getaffinity(0))
    journal = Journal(_work(run) / TRIALS, sha256_json(dict(inputs)))
    few = tuning_rows(samples, settings.seed)
    tuning = samples.take(few)
    tuning_folds = divide(tuning, split.take(few), settings, settings.seed)
    search(tuning, tuning_folds, trials=settings.trials, seed=settings.seed, workers=workers, journal=journal)
    chosen = best(journal.trials).parameters if journal.trials else Parameters()
    folds = divide(samples, split, settings, settings.seed + _SECOND_SPLIT)
    _tell_folds(folds, split, samples, settings)
    codes_k = np.unique(samples.code_n)

    def predicted(by: Folds) -> NDArray[np.float32]:
        values = samples.values_nc, samples.code_n, codes_k, by, chosen
        return out_of_fold(*values, seed=settings.seed, workers=workers)

    with progress("train: final", 3, "steps") as bar:
        values_nk = predicted(folds)
        bar.advance(note="cross-validated")
        rows = [
            row
            for by, part_n in (("year", years(samples)), ("region", regions(samples)))
            if len(np.unique(part_n)) > 1
            for row in _transfers(by, part_n, samples, codes_k, predicted, settings.seed)
        ]
        bar.advance(note="tried in other years and regions")
        model = fit(samples.values_nc, samples.code_n, chosen, settings.seed)
        bar.advance(note="trained on all samples")
    known = held & np.isin(pooled.code_n, codes_k)
    tested = pooled.take(known)
    about = ClassifierManifest(
        classes=tuple(_legend(samples, codes_k)),
        dim=samples.values_nc.shape[1],
        parameters=asdict(chosen),
        tuning=_tuning(journal.trials, tuning, settings),
        folds=FoldsUsed(folds.count, settings.folds, _absent(folds), split.by, folds.names, split.block_m),
        left_out=tuple(left_out),
        rows=len(samples),
        trained_on=_trained_on(samples),
        transfers=tuple(rows),
        held_out=held_out,
        inputs=inputs,
    )
    with atomic_dir(run.model) as folder:
        written = pooled.take(np.concatenate([np.flatnonzero(used), np.flatnonzero(known)]))
        fold_n = np.concatenate([folds.fold_n, np.full(len(tested), HELD_OUT, dtype=np.int32)])
        once_nk = probabilities(model, tested.values_nc, threads=workers)
        write_out_of_fold(folder / OUT_OF_FOLD, written, fold_n, codes_k, np.concatenate([values_nk, once_nk]))
        (folder / TRIALS).write_bytes(published(journal.trials))
        files = [folder / OUT_OF_FOLD, folder / TRIALS, *_companions(folder, about)]
        save_classifier(folder, model, about, inputs=inputs, files=files)
    (_work(run) / TRIALS).unlink(missing_ok=True)


def _transfers(
    by: str,
    part_n: NDArray[np.str_],
    samples: Samples,
    codes_k: NDArray[Any],
    predicted: Callable[[Folds], NDArray[np.float32]],
    seed: int,
) -> list[Transfer]:
    """How a classifier of the same parameters, trained on all other years (or regions), does in each."""
    parts = folds_of(samples.code_n, part_n)
    best_n = codes_k[predicted(parts).argmax(axis=1)]
    return [
        from_json(Transfer, row, Path("transfers"), "this is a fault of smalti")
        for row in transfer_rows(by, samples, parts, best_n, codes_k, seed)
    ]


def _trained_on(samples: Samples) -> tuple[TrainedOn, ...]:
    found = []
    for index, source in enumerate(samples.sources):
        here = samples.run_n == index
        if source.embedded is not None and here.any():
            found.append(TrainedOn(int(here.sum()), len(np.unique(samples.group_n[here])), source.embedded))
    return tuple(found)


def _companions(folder: Path, about: ClassifierManifest) -> list[Path]:
    """What makes the folder complete by itself: the legend, and the card for machines and for people."""
    oof = read_out_of_fold(folder / OUT_OF_FOLD, [entry.code for entry in about.classes])
    content = card(about, oof, about.inputs["settings"])
    write_bytes(folder / LEGEND, legend_csv(about.classes))
    write_json(folder / CARD, content)
    write_bytes(folder / CARD_TEXT, card_text(content, about).encode())
    return [folder / LEGEND, folder / CARD, folder / CARD_TEXT]


def _work(run: Run) -> Path:
    """Where a study in progress keeps its journal: not in the model's folder, which may be complete and stay so."""
    return run.logs / "study"


def trainable(
    samples: Samples, free_n: NDArray[np.bool_], min_groups: int
) -> tuple[NDArray[np.bool_], list[LeftOutClass]]:
    """Leave out classes with too few groups to be cross-validated.

    Args:
        samples: all of them.
        free_n: (N,) not held out.
        min_groups: groups that a class needs.

    Returns:
        (N,) the rows to train on, and what was left out.

    Raises:
        SmaltiError: if fewer than two classes remain.
    """
    groups = groups_per_class(samples.code_n[free_n], samples.group_n[free_n])
    few = [code for code, count in groups.items() if count < min_groups]
    left_out = [
        LeftOutClass(code, samples.legend[code], groups[code], int((free_n & (samples.code_n == code)).sum()))
        for code in few
    ]
    for entry in left_out:
        say(
            f"train: {entry.name} is left out: it has {counted(entry.groups, 'group')}, [classify] min_groups "
            f"asks for {min_groups}"
        )
    if len(groups) - len(few) < 2:
        counts = ", ".join(f"{samples.legend[code]}: {count}" for code, count in groups.items())
        raise SmaltiError(
            f"fewer than two classes have {min_groups} groups of labels ([classify] min_groups), so nothing can be "
            f"trained; groups are {counts}: add labels, or give a finer group in [labels]"
        )
    return free_n & ~np.isin(samples.code_n, few), left_out


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


def _tuning(trials: list[Trial], tuning: Samples, settings: Classify) -> Tuning:
    if not trials:
        return Tuning(0, len(tuning), "not tuned: the default parameters")
    top = best(trials)
    return Tuning(
        trials=len(trials),
        rows=len(tuning),
        note="grouped cross-validation of the best trial; its optimism is what choosing the best adds",
        best_trial=top.number,
        macro_f1=top.score,
        optimism=tuning_optimism(trials, tuning.code_n, tuning.group_n, settings.seed),
    )


def _legend(samples: Samples, codes_k: NDArray[Any]) -> list[ClassEntry]:
    """Entries of the trained classes; colours are given to the whole legend, so that leaving one out moves none."""
    colors = dict(zip(samples.legend, palette(list(samples.legend.values())), strict=True))
    return [ClassEntry(int(code), samples.legend[int(code)], colors[int(code)]) for code in codes_k]
