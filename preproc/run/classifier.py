"""Which classifier maps a run: its own, or one that another run trained; where it lies and what it says of itself."""

from __future__ import annotations

from pathlib import Path

from infer.contract import FormatError, Run, SmaltiError, read_json, read_manifest, verify_files
from infer.contract.classification import ClassifierManifest, RegressorManifest, SamplesManifest
from infer.contract.record import from_json
from preproc.run.config import Config

MANIFEST = "model.json"
_REMEDY = "run `smalti train` again where it was trained, or copy the folder again"


def model_folder(run: Run, config: Config) -> Path:
    """Where the classifier that maps this run lies: its own, or the one that [predict] model names."""
    return config.predict.model or run.model


def about_classifier(run: Run, config: Config) -> ClassifierManifest:
    """The manifest of the classifier that maps this run.

    Raises:
        SmaltiError: in one line, if it is missing or not what it should be.
    """
    return ClassifierManifest.read(run) if config.predict.model is None else read_about(config.predict.model)


def learns_number(folder: Path) -> bool:
    """Whether the model in a folder gives numbers, not classes; False where there is none."""
    try:
        content = read_json(_inner(folder) / MANIFEST, what="the manifest of this model", remedy=_REMEDY)
    except (SmaltiError, OSError):
        return False
    return isinstance(content, dict) and content.get("format") == f"smalti/{RegressorManifest.kind}"


def maps_number(config: Config) -> bool:
    """Whether a run maps a number ([labels] value, a model of one, or other runs' labels with one), not classes."""
    if config.labels is not None:
        return config.labels.value is not None
    if config.predict.model is not None:
        return learns_number(config.predict.model)
    return bool(config.train.runs) and _sampled_number(Run(config.train.runs[0]))


def _sampled_number(run: Run) -> bool:
    """Whether the samples of a run are numbers; False where there are none, which `train` says."""
    try:
        return SamplesManifest.read(run).value is not None
    except (SmaltiError, OSError):
        return False


def refuse_settings_of_classes(run: Run, config: Config) -> None:
    """Make sure that nothing is asked of a map of numbers that only a map of classes has.

    Raises:
        SmaltiError: naming the section of run.toml.
    """
    asked = {
        "[validate] measures": config.validate_ is not None,
        "[clean] mends": bool(config.clean.steps),
        "[predict] probabilities are of": config.predict.probabilities,
    }
    for what, given in asked.items():
        if given:
            raise SmaltiError(
                f"{run.config}: {what} a map of classes, and {model_folder(run, config)} is a model of numbers: "
                "leave it out"
            )


def read_regressor(folder: Path) -> RegressorManifest:
    """The manifest of a model of a number; its files are not looked at.

    Raises:
        SmaltiError: in one line, if it is missing or not what it should be.
    """
    path = _inner(folder) / MANIFEST
    content = read_manifest(path, RegressorManifest.kind, remedy=_REMEDY)
    return from_json(RegressorManifest, content, path, "run `smalti train --force` where it was trained")


def read_about(folder: Path) -> ClassifierManifest:
    """The manifest of a classifier's folder; its files are not looked at.

    Args:
        folder: RUN/model, or a copy of it anywhere; that of a run stands for its classifier.

    Raises:
        SmaltiError: in one line, if it is missing or not what it should be.
    """
    path = _inner(folder) / MANIFEST
    if folder.is_file():
        raise SmaltiError(f"{folder}: is a file, and a classifier is a folder: give `{folder.parent}`")
    if not path.exists():
        remedy = "run `smalti train`, or give the folder model/ of a run that was trained"
        raise FormatError(f"{path}: the manifest of this classifier is missing: {remedy}")
    content = read_manifest(path, ClassifierManifest.kind, remedy=_REMEDY)
    return from_json(ClassifierManifest, content, path, "run `smalti train --force` where it was trained")


def verified(folder: Path) -> ClassifierManifest:
    """The same after every checksum has been compared.

    Raises:
        SmaltiError: naming the first file that is missing or damaged.
    """
    about = read_about(folder)
    verify_files(_inner(folder) / MANIFEST, about.files, remedy=_REMEDY)
    return about


def file_of(folder: Path, name: str) -> Path:
    """A file of a classifier's folder."""
    return _inner(folder) / name


def _inner(folder: Path) -> Path:
    """RUN/model for a run's folder, which has a model.json as well: what the engine is asked for."""
    return folder / "model" if (folder / "run.toml").exists() else folder
