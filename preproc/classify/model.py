"""The classifier on disk, RUN/model/ or a copy of it: saved, verified, loaded, applied.

The folder needs nothing beside it: model.json (manifest with legend, recipe and checksums), classifier.cbm or .npz,
oof.parquet, trials.jsonl, legend.csv and the card.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from infer.contract import FormatError, Inputs, writing
from infer.contract.classification import ClassEntry, ClassifierManifest
from preproc.classify.methods import SAVED, Linear, Model, probabilities
from preproc.classify.unet import UNet
from preproc.run.classifier import MANIFEST, file_of, verified

if TYPE_CHECKING:
    from catboost import CatBoostClassifier

CLASSIFIER = "classifier.cbm"
ARRAYS = "classifier.npz"
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
    model: Model

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


def save_classifier(
    folder: Path,
    model: Model,
    about: ClassifierManifest,
    *,
    inputs: Inputs,
    files: Sequence[Path],
) -> None:
    """Write classifier.cbm (or .npz) and, last, the manifest. Equal models have equal bytes.

    Args:
        folder: where to, usually a temporary one; see `infer.contract.atomic_dir`.
        model: fitted on class codes.
        about: its legend, its dimensions and how it came about.
        inputs: fingerprint of what it was made from.
        files: what else stands in `folder` and belongs to it.
    """
    path = folder / _file(about)
    if about.method == "catboost":
        _save(path, cast("CatBoostClassifier", model))
    else:
        cast(Linear | UNet, model).save(path)
    about.write(folder / MANIFEST, inputs=inputs, files=[path, *files])


def _save(path: Path, model: CatBoostClassifier) -> None:
    from catboost import CatBoostError  # as in preproc.classify.boost

    # CatBoost notes when a model was trained, and a random identity: both would make equal models differ.
    metadata = model.get_metadata()
    metadata["train_finish_time"] = ""
    metadata["model_guid"] = ""
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
    name = _file(about)
    path, manifest = file_of(folder, name), file_of(folder, MANIFEST)
    if name not in about.files:
        raise FormatError(f"{manifest}: does not list {name}: {_REMEDY}")
    model: Model
    if about.method == "segment":
        model = UNet.load(path)
    else:
        model = _catboost(path) if about.method == "catboost" else SAVED[about.method].load(path)
    codes = [int(code) for code in model.classes_]
    if codes != [entry.code for entry in about.classes] or len(model.feature_names_) != about.dim:
        raise FormatError(
            f"{manifest}: its classes or dimensions are not those of {name} "
            f"(codes {codes}, {len(model.feature_names_)} dimensions): {_REMEDY}"
        )
    return Classifier(about.classes, about.dim, model)


def _file(about: ClassifierManifest) -> str:
    return CLASSIFIER if about.method == "catboost" else ARRAYS


def _catboost(path: Path) -> CatBoostClassifier:
    from catboost import CatBoostClassifier, CatBoostError  # as above

    model = CatBoostClassifier()
    try:
        model.load_model(str(path), format="cbm")
    except CatBoostError as error:
        raise FormatError(f"{path}: not a CatBoost model ({error}): {_REMEDY}") from error
    return model
