"""`smalti suspects`: labels that may be wrong, to be looked at. Nothing is ever dropped because of it.

Two signs, a group of labels at a time. Disagreement: a classifier that has not seen the group is sure that it is of
another class. Outlier: its embeddings lie far from those of its class. Both may be right labels of odd fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import Run, SmaltiError, atomic_dir, write_manifest
from infer.contract.classification import ClassifierManifest
from preproc.classify.model import OUT_OF_FOLD
from preproc.classify.out_of_fold import OutOfFold, read_out_of_fold
from preproc.classify.pool import pooled_samples
from preproc.classify.table import Samples, counted
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.survey.points import write_points

KIND, MANIFEST, STEM = "suspects", "suspects.json", "suspects"
_OUTLIER = 4.0
"""Robust standard deviations above the middle of the class."""
_ENOUGH = 8
"""Groups that a class needs for one of them to be called an outlier."""


@dataclass(frozen=True)
class Suspect:
    """A group of labels that may be wrong."""

    group: str
    labelled: str
    predicted: str
    """The class that the classifier gives to most of it, on the mean of its pixels."""
    confidence: float
    """The mean probability of that class."""
    outlier: float
    """Robust standard deviations from the middle of its class; 0 where the class has too few groups."""
    pixels: int
    longitude: float
    latitude: float
    reason: str


def suspects(run: Run, config: Config, confidence: float) -> Path:
    """List them in RUN/suspects (GeoPackage, CSV, KML), the most suspicious first.

    Args:
        run: trained.
        config: its settings.
        confidence: mean probability of another class from which a group is listed, 0.5 to 1.

    Raises:
        SmaltiError: if the classifier or its samples are missing or damaged, or the confidence is no such number.
    """
    if not 0.5 <= confidence <= 1:
        raise SmaltiError(f"--confidence {confidence}: give a number from 0.5 to 1")
    about = ClassifierManifest.read(run).verify(run)
    oof = read_out_of_fold(run.model / OUT_OF_FOLD, [entry.code for entry in about.classes])
    names = {entry.code: entry.name for entry in about.classes}
    found = find(oof, pooled_samples(run, config), names, confidence)
    folder = run.root / "suspects"
    columns = ("group", "labelled", "predicted", "confidence", "outlier", "pixels", "reason")
    with atomic_dir(folder) as temporary:
        files = write_points(
            temporary,
            STEM,
            np.arange(len(found)) + 1,
            np.array([[entry.longitude, entry.latitude] for entry in found]).reshape(-1, 2),
            {name: [getattr(entry, name) for entry in found] for name in columns},
        )
        inputs = {"classifier": about.files_fingerprint, "confidence": confidence}
        write_manifest(temporary / MANIFEST, KIND, inputs=inputs, files=files, fields={"suspects": len(found)})
    groups = len(np.unique(oof.group_n))
    say(f"suspects: {len(found)} of {counted(groups, 'group')} may be labelled wrong: look at {folder / STEM}.gpkg")
    return folder


def find(oof: OutOfFold, samples: Samples, names: dict[int, str], confidence: float) -> list[Suspect]:
    """The suspicious groups, the most suspicious first.

    Args:
        oof: what a classifier says of each pixel without having seen its group.
        samples: all labelled pixels, with their embeddings.
        names: of the classes, by code, in the order of the probabilities.
        confidence: see `suspects`.
    """
    codes_k = np.array(sorted(names))
    keys, unit_n = _units(oof.group_n, oof.code_n)
    sizes = np.bincount(unit_n)
    shares_uk = np.stack(
        [np.bincount(unit_n, column) / sizes for column in oof.probabilities_nk.T.astype(np.float64)], axis=1
    )
    far = outliers(samples)
    first = np.unique(unit_n, return_index=True)[1]
    made = []
    for unit, (group, code) in enumerate(keys):
        top = int(shares_uk[unit].argmax())
        sure, score = float(shares_uk[unit, top]), far.get((group, code), 0.0)
        signs = []
        if codes_k[top] != code and sure >= confidence:
            signs.append("the classifier is sure of another class")
        if score >= _OUTLIER:
            signs.append("unlike the other groups of its class")
        if not signs:
            continue
        to_degrees = Transformer.from_crs(int(oof.epsg_n[first[unit]]), 4326, always_xy=True)
        here = (unit_n == unit) & (oof.epsg_n == oof.epsg_n[first[unit]])
        longitude, latitude = to_degrees.transform(oof.x_n[here].mean(), oof.y_n[here].mean())
        made.append(
            Suspect(
                group, names[code], names[int(codes_k[top])], round(sure, 3), round(score, 2), int(sizes[unit]),
                float(longitude), float(latitude), "; ".join(signs),
            )
        )  # fmt: skip
    wrong = [entry.confidence if entry.predicted != entry.labelled else 0.0 for entry in made]
    order = sorted(range(len(made)), key=lambda at: (-wrong[at], -made[at].outlier, made[at].group))
    return [made[at] for at in order]


def _units(group_n: NDArray[np.str_], code_n: NDArray[np.int32]) -> tuple[list[tuple[str, int]], NDArray[np.intp]]:
    """Group and class of each unit, and the unit of each row."""
    groups, group_i = np.unique(group_n, return_inverse=True)
    codes, code_i = np.unique(code_n, return_inverse=True)
    units, unit_n = np.unique(group_i * len(codes) + code_i, return_inverse=True)
    return [(str(groups[unit // len(codes)]), int(codes[unit % len(codes)])) for unit in units.tolist()], unit_n


def outliers(samples: Samples) -> dict[tuple[str, int], float]:
    """Robust standard deviations by which each group's mean embedding is farther from its class's middle than usual."""
    keys, unit_n = _units(samples.group_n, samples.code_n)
    sizes = np.bincount(unit_n)
    mean_uc = np.zeros((len(keys), samples.values_nc.shape[1]))
    np.add.at(mean_uc, unit_n, np.nan_to_num(samples.values_nc))  # a month without a look is NaN
    mean_uc /= sizes[:, None]
    code_u = np.array([code for _, code in keys])
    found: dict[tuple[str, int], float] = {}
    for code in np.unique(code_u):
        here = np.flatnonzero(code_u == code)
        if len(here) < _ENOUGH:
            continue
        away = np.linalg.norm(mean_uc[here] - np.median(mean_uc[here], axis=0), axis=1)
        middle = float(np.median(away))
        spread = 1.4826 * float(np.median(np.abs(away - middle))) or 1e-12
        found.update({keys[unit]: float((away[at] - middle) / spread) for at, unit in enumerate(here)})
    return found
