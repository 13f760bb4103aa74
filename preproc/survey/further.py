"""`smalti design --more`: which strata need how many more points for a wished interval, and drawing them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from infer.contract import Run, SmaltiError, sha256_file
from infer.contract.classification import AccuracyManifest, AssessedMap
from infer.contract.record import from_json
from infer.contract.survey import DesignManifest, Stratum
from preproc.classify.accuracy import Z95
from preproc.classify.class_raster import ClassMap
from preproc.classify.reference import map_accuracy, read_reference
from preproc.run.progress import say, show
from preproc.survey.assess import Assessment, settings_of
from preproc.survey.design import MANIFEST, Wishes, map_of, output_folder, read_design, write_sample
from preproc.survey.draw import more, smoothed

OF = ("overall", "users", "areas")


@dataclass(frozen=True)
class MoreWishes:
    """What the command line asks for beside the sample and its map."""

    interval: float = 0.02
    """Half of the 95 % confidence interval, as a share."""
    of: str = "overall"
    """overall: overall accuracy; users: each class's user's accuracy; areas: each class's share of the mapped area."""
    reference: Path | None = None
    """The labels of a GeoTIFF's sample; a run's are those of its accuracy.json."""
    class_: str = "class"
    draw: Path | None = None
    """Folder for the sample with the further points."""


def further(sample: Wishes, asked: MoreWishes) -> dict[str, int]:
    """Show how many more points each stratum needs, draw them if asked; stratum -> points.

    Raises:
        SmaltiError: if there is no sample, no estimate yet, or the map is another one now.
    """
    if asked.of not in OF or not 0 < asked.interval < 0.5:
        raise SmaltiError(
            f"--interval, --of: a share between 0 and 0.5, of {', '.join(OF)}: --interval 0.02 --of overall"
        )
    folder = output_folder(sample)
    if not (folder / MANIFEST).exists():
        raise SmaltiError(f"{folder}: there is no sample yet: draw one with `smalti design` first")
    made, class_map = read_design(folder), map_of(sample)
    if made.inputs.get("map") != [sha256_file(path) for path in class_map.files]:
        raise SmaltiError(f"{folder}: was drawn from another map: its strata are not those of the map of now")
    assessed = _assessed(sample, asked, class_map)
    names = list(assessed.class_names)
    rows = {entry.name: names.index(entry.name) for entry in made.strata}
    counts_hk = np.array([assessed.count_matrix[row] for row in rows.values()])
    extra_h = points_more(asked, made.strata, counts_hk, np.array(list(rows.values())))
    needed = dict(zip(rows, extra_h.tolist(), strict=True))
    show(_table(asked, made, counts_hk.sum(axis=1), needed))
    unlabelled = made.points - int(counts_hk.sum())
    if unlabelled > 0:
        say(f"{folder}: {unlabelled} of its {made.points} points have no label yet: they count towards these")
    if asked.draw is not None:
        _draw(replace(sample, output=asked.draw), made, class_map, counts_hk.sum(axis=1), extra_h)
    return needed


def points_more(
    asked: MoreWishes, strata: tuple[Stratum, ...], counts_hk: NDArray[np.int64], own_h: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(H,) points that are lacking.

    Args:
        asked: interval, and of what.
        strata: (H,) of the sample.
        counts_hk: (H, K) labelled points by stratum and reference class.
        own_h: (H,) column of each stratum's own class.
    """
    hectares_h = np.array([stratum.hectares for stratum in strata])
    share_h, have_h = hectares_h / hectares_h.sum(), counts_hk.sum(axis=1)
    error = asked.interval / Z95
    right_h = smoothed(counts_hk[np.arange(len(strata)), own_h], have_h, 2)
    if asked.of == "overall":
        return more(share_h, np.sqrt(right_h * (1 - right_h)), have_h, error)
    if asked.of == "users":
        wished_h = np.ceil(right_h * (1 - right_h) / error**2 + 1)
        return np.asarray(np.maximum(wished_h - have_h, 0), dtype=np.int64)
    total_h = have_h.copy()
    for k in range(counts_hk.shape[1]):
        within_h = smoothed(counts_hk[:, k], have_h, counts_hk.shape[1])
        total_h += more(share_h, np.sqrt(within_h * (1 - within_h)), total_h, error)
    lacking_h: NDArray[np.int64] = total_h - have_h
    return lacking_h


def _assessed(sample: Wishes, asked: MoreWishes, class_map: ClassMap) -> AssessedMap:
    if asked.reference is not None:
        settings = settings_of(Assessment(sample.target, asked.reference, asked.class_))
        reference = read_reference(settings, class_map)
        content = map_accuracy(reference, class_map, class_map.names, settings)
        return from_json(AssessedMap, content, asked.reference, "this is a fault of smalti")
    if not sample.target.is_dir():
        raise SmaltiError(f"{sample.target}: give the labels of its sample: --reference FILE")
    run = Run(sample.target)
    assessed = AccuracyManifest.read(run).map_accuracy
    if assessed is None or not assessed.estimator.startswith("Olofsson"):
        raise SmaltiError(
            f"{run.accuracy}: has no estimate from a sample stratified by the map's classes: name the labelled points "
            f"in [validate] and run `smalti validate {run.quoted}` first"
        )
    return assessed


def _draw(
    sample: Wishes, made: DesignManifest, class_map: ClassMap, have_h: NDArray[np.int64], extra_h: NDArray[np.int64]
) -> None:
    """The whole sample anew, with the same ids, and further points after them; work goes on from the saved file."""
    beyond = {
        str(stratum.code): int(have + extra - stratum.points)
        for stratum, have, extra in zip(made.strata, have_h, extra_h, strict=True)
        if have + extra > stratum.points
    }
    if not beyond:
        say("no further points need to be drawn: label those that were")
        return
    rounds = (*made.rounds, beyond)
    strata = [replace(stratum, points=stratum.points + beyond.get(str(stratum.code), 0)) for stratum in made.strata]
    folder = output_folder(sample)
    write_sample(replace(sample, seed=made.seed), folder, class_map, strata, made.sizes_by, rounds)
    say(f"{folder}: the {made.points} points of before under their ids, and {sum(beyond.values())} more: label.html")
    say("goes on from the file that was saved (Ctrl O)")


def _table(asked: MoreWishes, made: DesignManifest, have_h: NDArray[np.int64], needed: dict[str, int]) -> Table:
    what = {
        "overall": "overall accuracy",
        "users": "each user's accuracy",
        "areas": "each class's share of the area",
    }[asked.of]
    title = f"{sum(needed.values())} more points for {what} ± {asked.interval:g} (95 %)"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    shown.add_column("stratum")
    for column in ("drawn", "labelled", "more"):
        shown.add_column(column, justify="right")
    for stratum, have in zip(made.strata, have_h.tolist(), strict=True):
        shown.add_row(stratum.name, str(stratum.points), str(have), str(needed[stratum.name]))
    return shown
