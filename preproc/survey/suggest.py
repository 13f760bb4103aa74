"""`smalti suggest`: where further training labels would help most.

Among many places drawn from the map those are taken, one after the other, at which the classifier is unsure (entropy of
its probabilities) and whose embeddings are unlike those of all labels and of the places taken before, never two close
together on the ground. Such labels are for training: they were not drawn with known chances, and say nothing of the
map's accuracy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    Inputs,
    Plan,
    Run,
    SmaltiError,
    atomic_dir,
    read_manifest,
    sha256_file,
    sha256_json,
    write_bytes,
    write_manifest,
)
from infer.contract.rasters import MapManifest
from preproc.classify.class_raster import ClassMap, read_map
from preproc.classify.model import Classifier, load_classifier
from preproc.classify.table import Samples, read_samples
from preproc.mosaic.reader import EmbeddingReader
from preproc.raster.legend import palette
from preproc.run.classifier import about_classifier, model_folder
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.survey.draw import Units, allocate, draw
from preproc.survey.looks import look
from preproc.survey.points import LabellingPage, render, write_points

KIND = "suggestions"
MANIFEST, PAGE, SAVED, WHY = "suggestions.json", "label.html", "labelled.geojson", "why.csv"
_LEAST_EACH = 200
"""Places looked at in each class, so that rare ones are among them."""
_KNOWN = 4000
"""Labelled pixels that distances are measured to."""
_GLOBE = 6_371_000.0


@dataclass(frozen=True)
class Suggestions:
    """Places (N) by falling worth."""

    at_n: NDArray[np.int64]
    """Which of the candidates."""
    entropy_n: NDArray[np.float64]
    """0: sure, 1: all classes are as likely."""
    distance_n: NDArray[np.float64]
    """To the nearest label or place taken before, in embedding space; 1: the median of all candidates to the labels."""


def choose(
    entropy_m: NDArray[Any],
    values_mc: NDArray[np.float32],
    known_nc: NDArray[np.float32],
    metres_m2: NDArray[np.float64],
    *,
    count: int,
    apart: float,
) -> Suggestions:
    """Take the best candidate by entropy times distance, again and again.

    Args:
        entropy_m: (M,) of the candidates, 0..1.
        values_mc: (M, C) their embeddings.
        known_nc: (N, C) embeddings of labels.
        metres_m2: (M, 2) where they are on the ground.
        count: how many to take; fewer if no candidate is far enough from all.
        apart: metres between any two of them.
    """
    distance_m = np.full(len(values_mc), np.inf)
    squares_m = (values_mc.astype(np.float64) ** 2).sum(axis=1)

    def nearer(vectors_kc: NDArray[np.float32]) -> None:
        for start in range(0, len(vectors_kc), 256):
            part = vectors_kc[start : start + 256].astype(np.float64)
            found = squares_m[:, None] - 2 * values_mc @ part.T + (part**2).sum(axis=1)
            np.minimum(distance_m, np.sqrt(np.maximum(found, 0)).min(axis=1), out=distance_m)

    nearer(known_nc)
    scale = float(np.median(distance_m)) or 1.0
    free_m = np.ones(len(values_mc), dtype=bool)
    taken: list[int] = []
    entropies: list[float] = []
    distances: list[float] = []
    while len(taken) < count and free_m.any():
        best = int(np.argmax(np.where(free_m, entropy_m * distance_m, -1.0)))
        taken.append(best)
        entropies.append(float(entropy_m[best]))
        distances.append(float(distance_m[best]) / scale)
        free_m &= np.hypot(*(metres_m2 - metres_m2[best]).T) >= apart
        free_m[best] = False
        nearer(values_mc[best : best + 1])
    return Suggestions(np.array(taken, dtype=np.int64), np.array(entropies), np.array(distances))


@dataclass(frozen=True)
class SuggestWishes:
    """What the command line asks for."""

    output: Path | None = None
    count: int = 100
    apart: float = 200.0
    """Metres."""
    candidates: int = 20_000
    seed: int = 1


def suggest(run: Run, config: Config, asked: SuggestWishes) -> Path:
    """Write the suggested places and their labelling page; the folder.

    Raises:
        SmaltiError: if map, classifier, samples or embeddings are not there, or other suggestions are in the folder.
    """
    if asked.count < 1 or asked.apart < 0 or asked.candidates < asked.count or asked.seed < 0:
        raise SmaltiError("--count, --apart, --candidates, --seed: 1 or more, of as many candidates, 0 m apart or more")
    folder = asked.output or run.root / "suggestions"
    class_map = read_map(run)
    about = about_classifier(run, config)
    samples = read_samples(run)
    inputs = {
        "map": [sha256_file(path) for path in class_map.files],
        "classifier": about.fingerprint,
        "samples": sha256_file(run.samples),
        "asked": [asked.count, asked.apart, asked.candidates, asked.seed],
    }
    if (folder / MANIFEST).exists():
        there = read_manifest(folder / MANIFEST, KIND, remedy="name another folder with --output")
        if there["inputs"] != inputs:
            raise SmaltiError(
                f"{folder}: holds suggestions from another map or other wishes, on which somebody may be at work: name "
                "another folder with --output"
            )
        say(f"{folder}: complete: these suggestions were made before")
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise SmaltiError(f"{folder}: is there and holds no suggestions of smalti: name another folder with --output")
    classifier = load_classifier(model_folder(run, config))
    units, values_mc = _candidates(run, config, class_map, asked, classifier.dim)
    shares_mk = classifier.predict_proba(values_mc).astype(np.float64)
    entropy_m = -(shares_mk * np.log(np.maximum(shares_mk, 1e-12))).sum(axis=1) / np.log(max(2, shares_mk.shape[1]))
    found = choose(
        entropy_m,
        values_mc,
        _known(samples, asked.seed),
        _metres(units.place_n2),
        count=asked.count,
        apart=asked.apart,
    )
    _write(run, folder, inputs, units, found, _why(classifier, shares_mk, found))
    say(f"{folder / PAGE}: {len(found.at_n)} places; label them, then add {SAVED} to the file of [labels]")
    say("they are for training: chosen places say nothing of the map's accuracy (`smalti design` draws those that do)")
    return folder


def _known(samples: Samples, seed: int) -> NDArray[np.float32]:
    """Embeddings of some labelled pixels, the same whatever their order."""
    order = np.argsort(samples.hashes(seed), kind="stable")[:_KNOWN]
    return samples.values_nc[order]


def _candidates(
    run: Run, config: Config, class_map: ClassMap, asked: SuggestWishes, dim: int
) -> tuple[Units, NDArray[np.float32]]:
    """Places drawn from the map, in proportion but for rare classes, and their embeddings (M, C)."""
    codes = list(class_map.pixels)
    units_h = np.array([max(1, class_map.pixels[code] // 2) for code in codes])
    share_h = units_h / units_h.sum()
    sizes_h = allocate(
        min(asked.candidates, int(units_h.sum())), share_h, share_h, units_h, how="proportional", minimum=_LEAST_EACH
    )
    units = draw(class_map, dict(zip(codes, sizes_h.tolist(), strict=True)), asked.seed)
    reader = EmbeddingReader(run, Plan.read(run), gaps=config.stitch.missing == "nodata", source="tiles first")
    if reader.dim != dim:
        raise SmaltiError(
            f"{run.embeddings}: {reader.dim} numbers a pixel, the classifier was trained on {dim}: run "
            f"`smalti run {run.quoted}` to bring the run up to date"
        )
    values_mc = reader.at(units.place_n2, 4326)
    seen = np.isfinite(values_mc).all(axis=1)
    if not seen.any():
        raise SmaltiError(f"{run.map_manifest}: no mapped pixel has an embedding now: run `smalti run {run.quoted}`")
    return Units(*(getattr(units, name)[seen] for name in vars(units))), values_mc[seen]


def _metres(place_n2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places as metres on a plane that is true near its middle: good enough to keep them apart."""
    middle = np.radians(np.median(place_n2[:, 1]))
    return np.asarray(np.radians(place_n2) * _GLOBE * [np.cos(middle), 1.0], dtype=np.float64)


def _why(classifier: Classifier, shares_mk: NDArray[np.float64], found: Suggestions) -> dict[str, list[Any]]:
    names = [entry.name for entry in classifier.classes]
    order_nk = np.argsort(-shares_mk[found.at_n], axis=1, kind="stable")
    second = order_nk[:, 1] if len(names) > 1 else order_nk[:, 0]
    return {
        "entropy": [round(value, 3) for value in found.entropy_n.tolist()],
        "distance": [round(value, 3) for value in found.distance_n.tolist()],
        "likeliest": [names[k] for k in order_nk[:, 0]],
        "next": [names[k] for k in second],
    }


def _write(
    run: Run,
    folder: Path,
    inputs: Inputs,
    units: Units,
    found: Suggestions,
    why: Mapping[str, list[Any]],
) -> None:
    place_n2, count = units.place_n2[found.at_n], len(found.at_n)
    id_n = np.arange(count) + 1
    plan = Plan.read(run)
    names = sorted({*why["likeliest"], *(entry.name for entry in MapManifest.read(run).classes)})
    about = LabellingPage(
        f"{count} places whose labels would help training (not for accuracy)",
        f"smalti {sha256_json(inputs)[:16]}",
        names,
        palette(names),
        plan.window,
        SAVED,
    )
    html = render(about, id_n, place_n2, look(run, plan, place_n2))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("id", *why))
    writer.writerows(zip(id_n.tolist(), *why.values(), strict=True))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_dir(folder) as temporary:
        files = write_points(temporary, "points", id_n, place_n2, {"class": [""] * count, "note": [""] * count})
        write_bytes(temporary / PAGE, html.encode())
        write_bytes(temporary / WHY, stream.getvalue().encode())
        files += [temporary / PAGE, temporary / WHY]
        write_manifest(temporary / MANIFEST, KIND, inputs=inputs, files=files, fields={"places": count})
