"""The classifier on disk, RUN/model/: model.json (manifest) and classifier.cbm; saved, verified, loaded, applied."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier, CatBoostError
from numpy.typing import NDArray

from infer.contract import FormatError, Run, read_manifest, verify_files, write_manifest, writing

_MANIFEST = Run(Path()).model_manifest.name
CLASSIFIER = "classifier.cbm"
OUT_OF_FOLD = "oof.parquet"
TRIALS = "trials.jsonl"
KIND = "classifier"
_REMEDY = "run `smalti train` again"


@dataclass(frozen=True)
class ClassEntry:
    """One class of the legend."""

    code: int
    """1..255, as in the map; 0 is nodata."""
    name: str
    color: str
    """'#rrggbb'."""


@dataclass(frozen=True)
class Classifier:
    """A trained classifier."""

    classes: tuple[ClassEntry, ...]
    """(K,) by ascending code: the columns of `predict_proba`."""
    dim: int
    """Embedding numbers (C) it was trained on."""
    model: CatBoostClassifier

    def predict_proba(self, x_nc: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities of pixels.

        Args:
            x_nc: (N, C) float32 embeddings without nodata.

        Returns:
            (N, K) float32; rows add up to 1.

        Raises:
            ValueError: for another number of columns, or values that are not finite.
        """
        if x_nc.ndim != 2 or x_nc.shape[1] != self.dim:
            raise ValueError(f"embeddings {x_nc.shape}, the classifier was trained on (N, {self.dim})")
        if len(x_nc) == 0:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        if not np.isfinite(x_nc).all():
            raise ValueError("embeddings with nodata: leave those pixels out")
        return probabilities(self.model, x_nc, threads=len(os.sched_getaffinity(0)))


def probabilities(model: CatBoostClassifier, x_nc: NDArray[np.float32], *, threads: int) -> NDArray[np.float32]:
    """(N, K) float32 probabilities; the number of threads does not change them."""
    values = model.predict_proba(np.ascontiguousarray(x_nc, dtype=np.float32), thread_count=threads)
    return np.asarray(values, dtype=np.float32)


def save_classifier(
    folder: Path,
    model: CatBoostClassifier,
    classes: Sequence[ClassEntry],
    dim: int,
    *,
    inputs: Mapping[str, Any],
    files: Sequence[Path],
    fields: Mapping[str, Any],
) -> None:
    """Write classifier.cbm and, last, the manifest. Equal models have equal bytes.

    Args:
        folder: where to, usually a temporary one; see `infer.contract.atomic_dir`.
        model: fitted on class codes.
        classes: legend of the codes the model knows.
        dim: embedding numbers.
        inputs: fingerprint of what it was made from.
        files: what else stands in `folder` and belongs to it.
        fields: for the manifest.
    """
    # CatBoost notes when a model was trained, and a random identity: both would make equal models differ.
    metadata = model.get_metadata()
    metadata["train_finish_time"] = ""
    metadata["model_guid"] = ""
    path = folder / CLASSIFIER
    _save(path, model)
    legend = [asdict(entry) for entry in classes]
    content = {**fields, "classes": legend, "dim": dim}
    write_manifest(folder / _MANIFEST, KIND, inputs=inputs, files=[path, *files], fields=content)


def _save(path: Path, model: CatBoostClassifier) -> None:
    try:
        model.save_model(str(path), format="cbm")
    except CatBoostError as error:  # "(Error 28: No space left on device) ...": say it as the operating system does
        number = re.search(r"Error (\d+)", str(error))
        with writing(path):
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def load_classifier(run: Run) -> Classifier:
    """Read RUN/model after its manifest and every checksum have been verified.

    Raises:
        FormatError: one line that names the file and what is wrong with it.
    """
    path = run.model_manifest
    manifest = read_manifest(path, KIND, remedy="run `smalti train`")
    verify_files(path, manifest, remedy=_REMEDY)
    if CLASSIFIER not in manifest["files"]:
        raise FormatError(f"{path}: does not list {CLASSIFIER}: {_REMEDY}")
    classes, dim = read_legend(path, manifest)
    model = CatBoostClassifier()
    try:
        model.load_model(str(run.model / CLASSIFIER), format="cbm")
    except CatBoostError as error:
        raise FormatError(f"{run.model / CLASSIFIER}: not a CatBoost model ({error}): {_REMEDY}") from error
    codes = [int(code) for code in model.classes_]
    if codes != [entry.code for entry in classes] or len(model.feature_names_) != dim:
        raise FormatError(
            f"{path}: its classes or dimensions are not those of {CLASSIFIER} "
            f"(codes {codes}, {len(model.feature_names_)} dimensions): {_REMEDY}"
        )
    return Classifier(classes, dim, model)


def read_legend(path: Path, manifest: Mapping[str, Any]) -> tuple[tuple[ClassEntry, ...], int]:
    """Classes and dimensions of a classifier's manifest.

    Raises:
        FormatError: if they are not there or not what they should be.
    """
    try:
        classes = tuple(ClassEntry(int(e["code"]), str(e["name"]), str(e["color"])) for e in manifest["classes"])
        dim = int(manifest["dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: its classes cannot be read ({error!r}): {_REMEDY}") from error
    for entry in classes:
        if not 1 <= entry.code <= 255 or not re.fullmatch(r"#[0-9a-f]{6}", entry.color):
            raise FormatError(f"{path}: class {entry.name!r} has code {entry.code}, colour {entry.color}: {_REMEDY}")
    return classes, dim
