"""The `validate` stage: out-of-fold predictions, and a reference sample if there is one -> accuracy.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infer.contract import Run, read_manifest, sha256_json, verify_files, write_manifest
from preproc.classify.model import KIND, OUT_OF_FOLD, read_legend
from preproc.classify.out_of_fold import read_oof
from preproc.classify.performance import performance
from preproc.classify.reference import map_accuracy, read_map, read_reference, unmatched
from preproc.classify.table import counted
from preproc.region.vector import fingerprint
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
        model = read_manifest(run.model_manifest, KIND, remedy=f"run `smalti train {run.quoted}`")
        inputs: dict[str, Any] = {"model": sha256_json(model["files"]), "seed": config.classify.seed}
        if config.validate_ is not None:
            made = read_manifest(run.map_manifest, "map", remedy=f"run `smalti predict {run.quoted}`")
            settings = config.validate_.model_dump(mode="json", exclude={"reference"})
            if settings["encoding"] is None:
                del settings["encoding"]  # as in files written before it could be set
            inputs["map"] = sha256_json(made["files"])
            inputs["reference"] = {"file": fingerprint(config.validate_.reference, section="validate"), **settings}
        unit = Unit("accuracy", run.accuracy, "accuracy", inputs)
        return Session([unit], lambda due: one_by_one(due.units, lambda unit: _write(run, config, unit)))


def _write(run: Run, config: Config, unit: Unit) -> None:
    content = accuracy(run, config)
    write_manifest(unit.manifest, unit.kind, inputs=unit.inputs, files=[], fields=content)
    _tell(content)


def accuracy(run: Run, config: Config) -> dict[str, Any]:
    """Everything that accuracy.json says.

    Raises:
        SmaltiError: if the classifier, the map or the reference sample is not what it should be.
    """
    path = run.model_manifest
    model = read_manifest(path, KIND, remedy="run `smalti train`")
    verify_files(path, model, remedy="run `smalti train` again")
    classes, _ = read_legend(path, model)
    oof = read_oof(run.model / OUT_OF_FOLD, [entry.code for entry in classes])
    figures = performance(oof, classes, config.classify.seed)
    figures["left_out"] = model["left_out"]
    figures["tuning"] = model["tuning"]
    figures["tuning_note"] = TUNING_NOTE if model["tuning"]["trials"] else "not tuned"
    content: dict[str, Any] = {
        "performance": figures,
        "map_accuracy": None,
        "map_accuracy_note": NO_REFERENCE,
        "headline": _headline(figures),
    }
    if config.validate_ is not None:
        class_map = read_map(run)
        assessed = map_accuracy(read_reference(config.validate_, class_map), class_map, classes, config.validate_)
        odd = unmatched(assessed)
        if odd is not None:
            say(f"Warning: {config.validate_.reference}: {odd}")
        content["map_accuracy"] = assessed
        content["map_accuracy_note"] = assessed["what"]
        content["headline"] += f"; {_map_headline(assessed)}"
    return content


def _headline(figures: Mapping[str, Any]) -> str:
    pixels = figures["pixels"]
    return (
        f"model performance (cross-validated by group, not map accuracy): macro-F1 {_shown(pixels['macro_f1'])}, "
        f"overall {_shown(pixels['overall_accuracy'])}"
    )


def _map_headline(assessed: Mapping[str, Any]) -> str:
    return f"map accuracy ({assessed['n']} reference points): overall {_shown(assessed['overall_accuracy'])}"


def _shown(figure: Mapping[str, Any]) -> str:
    interval = figure["ci95"]
    tail = "" if interval is None else f" (95 % CI {interval[0]:.2f}-{interval[1]:.2f})"
    return f"{figure['value']:.2f}{tail}"


def _tell(content: Mapping[str, Any]) -> None:
    say(f"validate: {content['headline']}")
    if content["map_accuracy"] is None:
        say(f"validate: map accuracy {content['map_accuracy_note']}")
    for entry in content["performance"]["left_out"]:
        groups = counted(entry["groups"], "group")
        say(f"validate: {entry['name']} was left out of training ({groups}): the map never shows it")
