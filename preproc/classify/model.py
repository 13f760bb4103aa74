"""The classifier on disk, RUN/model/ or a copy of it: saved, verified, loaded, applied.

The folder needs nothing beside it: model.json (manifest with legend, recipe and checksums), classifier.cbm,
oof.parquet, trials.jsonl, legend.csv and the card.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostClassifier, CatBoostError
from numpy.typing import NDArray

from infer.contract import FormatError, writing
from infer.contract.classification import ClassEntry, ClassifierManifest
from preproc.run.classifier import MANIFEST, file_of, verified

CLASSIFIER = "classifier.cbm"
OUT_OF_FOLD = "oof.parquet"
TRIALS = "trials.jsonl"
_REMEDY = "run `smalti train` again"


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
            x_nc: (N, C) float32 embeddings without nodata; single numbers may be missing (NaN).

        Returns:
            (N, K) float32; rows add up to 1.

        Raises:
            ValueError: for another number of columns, or values that are not finite.
        """
        if x_nc.ndim != 2 or x_nc.shape[1] != self.dim:
            raise ValueError(f"embeddings {x_nc.shape}, the classifier was trained on (N, {self.dim})")
        if len(x_nc) == 0:
            return np.empty((0, len(self.classes)), dtype=np.float32)
        if np.isinf(x_nc).any() or np.isnan(x_nc).all(axis=1).any():
            raise ValueError("embeddings with nodata: leave those pixels out")
        return probabilities(self.model, x_nc, threads=len(os.sched_getaffinity(0)))


def probabilities(model: CatBoostClassifier, x_nc: NDArray[np.float32], *, threads: int) -> NDArray[np.float32]:
    """(N, K) float32 probabilities; the number of threads does not change them."""
    values = model.predict_proba(np.ascontiguousarray(x_nc, dtype=np.float32), thread_count=threads)
    return np.asarray(values, dtype=np.float32)


def save_classifier(
    folder: Path,
    model: CatBoostClassifier,
    about: ClassifierManifest,
    *,
    inputs: Mapping[str, Any],
    files: Sequence[Path],
) -> None:
    """Write classifier.cbm and, last, the manifest. Equal models have equal bytes.

    Args:
        folder: where to, usually a temporary one; see `infer.contract.atomic_dir`.
        model: fitted on class codes.
        about: its legend, its dimensions and how it came about.
        inputs: fingerprint of what it was made from.
        files: what else stands in `folder` and belongs to it.
    """
    # CatBoost notes when a model was trained, and a random identity: both would make equal models differ.
    metadata = model.get_metadata()
    metadata["train_finish_time"] = ""
    metadata["model_guid"] = ""
    path = folder / CLASSIFIER
    _save(path, model)
    about.write(folder / MANIFEST, inputs=inputs, files=[path, *files])


def _save(path: Path, model: CatBoostClassifier) -> None:
    try:
        model.save_model(str(path), format="cbm")
    except CatBoostError as error:  # "(Error 28: No space left on device) ...": say it as the operating system does
        number = re.search(r"Error (\d+)", str(error))
        with writing(path):
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error


def load_classifier(folder: Path) -> Classifier:
    """Read a classifier's folder after its manifest and every checksum have been verified.

    Raises:
        SmaltiError: one line that names the file and what is wrong with it.
    """
    about = verified(folder)
    path, manifest = file_of(folder, CLASSIFIER), file_of(folder, MANIFEST)
    if CLASSIFIER not in about.files:
        raise FormatError(f"{manifest}: does not list {CLASSIFIER}: {_REMEDY}")
    model = CatBoostClassifier()
    try:
        model.load_model(str(path), format="cbm")
    except CatBoostError as error:
        raise FormatError(f"{path}: not a CatBoost model ({error}): {_REMEDY}") from error
    codes = [int(code) for code in model.classes_]
    if codes != [entry.code for entry in about.classes] or len(model.feature_names_) != about.dim:
        raise FormatError(
            f"{manifest}: its classes or dimensions are not those of {CLASSIFIER} "
            f"(codes {codes}, {len(model.feature_names_)} dimensions): {_REMEDY}"
        )
    return Classifier(about.classes, about.dim, model)
