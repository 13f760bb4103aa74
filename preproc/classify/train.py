"""The `train` stage: samples.parquet -> model/ (classifier, out-of-fold predictions, trials)."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    SamplesManifest,
    TrainedOn,
    Tuning,
)
from preproc.classify.boost import Parameters, fit, out_of_fold
from preproc.classify.card import CARD, CARD_TEXT, card, card_text
from preproc.classify.folds import Folds, assign_folds, groups_per_class
from preproc.classify.model import OUT_OF_FOLD, TRIALS, save_classifier
from preproc.classify.out_of_fold import read_out_of_fold, write_out_of_fold
from preproc.classify.palette import palette
from preproc.classify.table import Samples, counted, read_samples
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
        inputs = {
            "samples": SamplesManifest.read(run).files_fingerprint,
            "settings": {
                "folds": settings.folds,
                "trials": settings.trials,
                "seed": settings.seed,
                "min_groups": settings.min_groups,
                "recipe": _RECIPE,
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
    embedded = SamplesManifest.read(run).embedded
    samples, left_out = trainable(read_samples(run), settings.min_groups)
    assign_folds(samples.code_n, samples.group_n, settings.folds, settings.seed)  # refuses before the long search
    workers = config.site.workers or len(os.sched_getaffinity(0))
    journal = Journal(_work(run) / TRIALS, sha256_json(dict(inputs)))
    tuning = samples.take(tuning_rows(samples, settings.seed))
    search(tuning, folds=settings.folds, trials=settings.trials, seed=settings.seed, workers=workers, journal=journal)
    chosen = best(journal.trials).parameters if journal.trials else Parameters()
    folds = assign_folds(samples.code_n, samples.group_n, settings.folds, settings.seed + _SECOND_SPLIT)
    _tell_folds(folds, samples, settings)
    codes_k = np.unique(samples.code_n)
    with progress("train: final", 2, "steps") as bar:
        values_nk = out_of_fold(
            samples.values_nc, samples.code_n, codes_k, folds, chosen, seed=settings.seed, workers=workers
        )
        bar.advance(note="cross-validated")
        model = fit(samples.values_nc, samples.code_n, chosen, settings.seed)
        bar.advance(note="trained on all samples")
    about = ClassifierManifest(
        classes=tuple(_legend(samples, codes_k)),
        dim=samples.values_nc.shape[1],
        parameters=asdict(chosen),
        tuning=_tuning(journal.trials, tuning, settings),
        folds=FoldsUsed(folds.count, settings.folds, _absent(folds)),
        left_out=tuple(left_out),
        rows=len(samples),
        trained_on=() if embedded is None else (TrainedOn(len(samples), len(set(samples.group_n)), embedded),),
        inputs=inputs,
    )
    with atomic_dir(run.model) as folder:
        write_out_of_fold(folder / OUT_OF_FOLD, samples, folds.fold_n, codes_k, values_nk)
        (folder / TRIALS).write_bytes(published(journal.trials))
        files = [folder / OUT_OF_FOLD, folder / TRIALS, *_companions(folder, about)]
        save_classifier(folder, model, about, inputs=inputs, files=files)
    (_work(run) / TRIALS).unlink(missing_ok=True)


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


def trainable(samples: Samples, min_groups: int) -> tuple[Samples, list[LeftOutClass]]:
    """Leave out classes with too few groups to be cross-validated.

    Returns:
        The samples of the other classes, and what was left out.

    Raises:
        SmaltiError: if fewer than two classes remain.
    """
    groups = groups_per_class(samples.code_n, samples.group_n)
    few = [code for code, count in groups.items() if count < min_groups]
    left_out = [
        LeftOutClass(code, samples.legend[code], groups[code], int((samples.code_n == code).sum())) for code in few
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
    return samples.take(~np.isin(samples.code_n, few)), left_out


def _tell_folds(folds: Folds, samples: Samples, settings: Classify) -> None:
    if folds.count < settings.folds:
        say(f"train: {folds.count} folds instead of {settings.folds}: no class has more groups")
    for fold, codes in folds.absent.items():
        names = ", ".join(samples.legend[code] for code in codes)
        say(f"train: fold {fold + 1} tests no {names}: fewer groups than folds")


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
