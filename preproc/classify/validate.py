"""The `validate` stage: out-of-fold predictions, and a reference sample if there is one -> accuracy.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from infer.contract import Run
from infer.contract.classification import AccuracyManifest, Figure, ValueAccuracyManifest
from infer.contract.rasters import CleanedMap, MapManifest
from infer.contract.record import from_json, to_json
from preproc.classify.baseline import baseline
from preproc.classify.class_raster import read_cleaned, read_map
from preproc.classify.elsewhere import tested
from preproc.classify.learning import told
from preproc.classify.model import OUT_OF_FOLD
from preproc.classify.out_of_fold import read_out_of_fold, read_places
from preproc.classify.performance import held_out_figures, performance
from preproc.classify.reference import WHAT, cleaned_accuracy, map_accuracy, read_reference, unmatched
from preproc.classify.regression import tell, value_accuracy
from preproc.classify.table import counted
from preproc.classify.training_set import named_classes
from preproc.region.vector import fingerprint
from preproc.run.classifier import (
    about_classifier,
    file_of,
    maps_number,
    model_folder,
    read_regressor,
    refuse_settings_of_classes,
    verified,
)
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.run.stage import Session, Unit, one_by_one

NO_REFERENCE = (
    "omitted: there is no reference sample. For the accuracy of the map give a probability sample of points in "
    "[validate] (reference, class, design)"
)
TUNING_NOTE = (
    "the parameters were chosen on the same labels (on other folds), which flatters these figures a little: see "
    "tuning.optimism for how much of the best trial's score that was"
)


class ValidateStage:
    """`smalti validate`."""

    name = "validate"
    noun = "accuracy files"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The one file, and what it is made from."""
        if maps_number(config):
            refuse_settings_of_classes(run, config)
            folder = model_folder(run, config)
            numbers = {"model": read_regressor(folder).files_fingerprint, "seed": config.classify.seed}
            unit = Unit("accuracy", run.accuracy, ValueAccuracyManifest.kind, numbers)
            return Session([unit], lambda due: one_by_one(due.units, lambda unit: _write_values(folder, config, unit)))
        model = about_classifier(run, config).files_fingerprint
        inputs: dict[str, Any] = {"model": model, "seed": config.classify.seed, "baseline": config.classify.baseline}
        if config.validate_ is not None:
            settings = config.validate_.model_dump(mode="json", exclude={"reference"})
            if settings["encoding"] is None:
                del settings["encoding"]  # as in files written before it could be set
            inputs["map"] = MapManifest.read(run).files_fingerprint
            if config.clean.steps:
                inputs["cleaned"] = CleanedMap.read(run).files_fingerprint
            inputs["reference"] = {"file": fingerprint(config.validate_.reference, section="validate"), **settings}
        unit = Unit("accuracy", run.accuracy, AccuracyManifest.kind, inputs)
        return Session([unit], lambda due: one_by_one(due.units, lambda unit: _write(run, config, unit)))


def _write_values(folder: Path, config: Config, unit: Unit) -> None:
    made = value_accuracy(folder, config.classify.seed)
    if made.tuning is not None:
        made = replace(made, tuning_note=TUNING_NOTE if made.tuning.trials else "not tuned")
    made.write(unit.manifest, inputs=unit.inputs, files=[])
    tell(made)


def _write(run: Run, config: Config, unit: Unit) -> None:
    made = accuracy(run, config)
    made.write(unit.manifest, inputs=unit.inputs, files=[])
    _tell(made)


def accuracy(run: Run, config: Config) -> AccuracyManifest:
    """Everything that accuracy.json says.

    Raises:
        SmaltiError: if the classifier, the map or the reference sample is not what it should be.
    """
    folder = model_folder(run, config)
    about = verified(folder)
    oof = read_out_of_fold(file_of(folder, OUT_OF_FOLD), [entry.code for entry in about.classes])
    compared, note = None, "the classifier was trained elsewhere"
    if folder == run.model:
        compared, note = baseline(run, config, about, oof.cross_validated, read_places(file_of(folder, OUT_OF_FOLD)))
    figures = {
        "baseline": compared,
        "baseline_note": note,
        **performance(oof, about.classes, config.classify.seed),
        "split": about.folds.by,
        "block_m": about.folds.block_m,
        "methods": to_json(about.methods),
        "learning": to_json(about.learning),
        "learning_note": told(about.learning) if about.learning else "",
        "transfers": to_json(about.transfers),
        "held_out": held_out_figures(
            oof, about.classes, about.held_out.parts if about.held_out else (), config.classify.seed
        ),
        "left_out": to_json(about.left_out),
        "tuning": to_json(about.tuning),
        "tuning_note": TUNING_NOTE if about.tuning.trials else "not tuned",
    }
    for row, name in zip(figures["folds"], about.folds.names, strict=False):
        row["tests"] = name
    content = {"performance": figures, "map_accuracy": None, "map_accuracy_note": NO_REFERENCE, "headline": ""}
    if config.validate_ is not None:
        class_map = read_map(run)
        reference = read_reference(config.validate_, class_map)
        legend = {entry.code: entry.name for entry in about.classes}
        content["map_accuracy"] = map_accuracy(reference, class_map, legend, config.validate_)
        content["map_accuracy_note"] = WHAT
        if config.clean.steps:
            content["cleaned_accuracy"] = cleaned_accuracy(
                reference, class_map, read_cleaned(run), legend, config.validate_
            )
    made = from_json(AccuracyManifest, content, run.accuracy, "this is a fault of smalti")
    odd = None if made.map_accuracy is None else unmatched(made.map_accuracy)
    if odd is not None and config.validate_ is not None:
        say(f"Warning: {config.validate_.reference}: {odd}")
    return replace(made, headline=_headline(made))


def _headline(made: AccuracyManifest) -> str:
    pixels, assessed = made.performance.pixels, made.map_accuracy
    split = made.performance.split
    text = (
        f"model performance (cross-validated by {split}, not map accuracy): macro-F1 {_shown(pixels.macro_f1)}, "
        f"overall {_shown(pixels.overall_accuracy)}"
    )
    if assessed is None:
        return text
    return f"{text}; map accuracy ({assessed.n} reference points): overall {_shown(assessed.overall_accuracy)}"


def _shown(figure: Figure) -> str:
    interval = figure.ci95
    tail = "" if interval is None else f" (95 % CI {interval[0]:.2f}-{interval[1]:.2f})"
    return f"{figure.value:.2f}{tail}"


def _tell(made: AccuracyManifest) -> None:
    say(f"validate: {made.headline}")
    if made.map_accuracy is None:
        say(f"validate: map accuracy {made.map_accuracy_note}")
    for one in made.performance.methods if len(made.performance.methods) > 1 else ():
        mark = " (chosen)" if one.chosen else ""
        say(f"validate: {one.method}{mark}: macro-F1 {_shown(one.macro_f1)}")
    if made.performance.learning_note:
        say(f"validate: {made.performance.learning_note}")
    against = made.performance.baseline
    if against is None:
        say(f"validate: not compared with monthly medians: {made.performance.baseline_note}")
    else:
        say(f"validate: {against.features}: macro-F1 {_shown(against.macro_f1)}: {made.performance.baseline_note}")
    for row in made.performance.transfers:
        say(
            f"validate: {tested(row, row.n_groups)}: macro-F1 {_shown(row.macro_f1)}, overall "
            f"{_shown(row.overall_accuracy)}"
        )
    held = made.performance.held_out
    if held is not None:
        say(
            f"validate: held out and used once: macro-F1 {_shown(held.pixels.macro_f1)}, overall "
            f"{_shown(held.pixels.overall_accuracy)} ({counted(held.pixels.n_groups, 'group')})"
        )
    if made.cleaned_accuracy is not None:
        say(f"validate: the cleaned map: overall {_shown(made.cleaned_accuracy.overall_accuracy)}")
    if made.performance.left_out:
        left_out = named_classes(made.performance.left_out)
        say(f"validate: left out of training, so that the map never shows them: {left_out}")
