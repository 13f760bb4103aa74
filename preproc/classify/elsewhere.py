"""Whether a classifier may map embeddings that it was not trained on, and what differs where it may. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from infer.contract import SmaltiError
from infer.contract.classification import ClassifierManifest, Elsewhere, RegressorManifest, TrainedOn
from infer.contract.provenance import Embedded
from preproc.classify.table import counted
from preproc.raster.provenance import RunProvenance

_DAYS = 10
"""Windows that begin or last so much differently are worth a word."""


def refuse_other_embeddings(folder: Path, about: ClassifierManifest | RegressorManifest, facts: RunProvenance) -> None:
    """Make sure that the embeddings are of the kind that the classifier knows.

    Args:
        folder: of the classifier, for the message.
        about: what it was trained on.
        facts: what the embeddings are.

    Raises:
        SmaltiError: if they are of another encoder, length or kind of numbers, or if the classifier does not say.
    """
    if not about.trained_on:
        raise SmaltiError(
            f"{folder}: a classifier of an older version, which does not say what embeddings it was trained on: run "
            "`smalti sample --force` and `smalti train` where it was trained"
        )
    known = about.trained_on[0].embedded
    problem = differing(known, about.dim, facts)
    if problem is not None:
        raise SmaltiError(
            f"{folder}: trained on embeddings {problem[0]}, those of this run are {problem[1]}: its classes would be "
            "arbitrary; take a classifier trained on the same kind, or set [model] alike and run `smalti infer` again"
        )


def differing(known: Embedded, dim: int, facts: RunProvenance) -> tuple[str, str] | None:
    """What makes two kinds of embeddings incomparable (that of the classifier, that of the run), or None."""
    if known.model.checkpoint != facts.checkpoint:
        one, other = known.model.label, facts.label
        digests = (f" ({known.model.checkpoint[:8]})", f" ({facts.checkpoint[:8]})") if one == other else ("", "")
        return f"of {one}{digests[0]}", f"of {other}{digests[1]}"
    if dim != facts.dim:
        return f"of {dim} numbers", f"of {facts.dim}"
    kinds = {True: "kept as int8 codes", False: "kept as float32"}
    if (known.embeddings_as == "int8") != facts.int8:
        return kinds[not facts.int8], kinds[facts.int8]
    return None


def remarks(about: ClassifierManifest | RegressorManifest, facts: RunProvenance) -> list[str]:
    """In what the run differs from everything that the classifier was trained on: season, length, archive, place."""
    seasons = [entry.embedded.window for entry in about.trained_on]
    start, end = (date.fromisoformat(day) for day in facts.window)
    days = (end - start).days + 1
    found = []
    if all((window.start, window.end) != (start, end) for window in seasons):
        told = ", ".join(sorted({f"{window.start} to {window.end}" for window in seasons}))
        found.append(f"another season: trained on {told}; this run is of {start} to {end}")
    nearest = min(seasons, key=lambda window: abs(window.days - days))
    if abs(nearest.days - days) > _DAYS:
        found.append(f"a window of another length: trained on {nearest.days} days; this run has {days}")
    shift = min((_days_apart(window.start, start) for window in seasons), default=0)
    if shift > _DAYS:
        found.append(f"a window that begins {shift} days away in the calendar from those it was trained on")
    archives = sorted({name for entry in about.trained_on for name in entry.embedded.data_sources})
    if not set(facts.data_sources) <= set(archives):
        told, here = ", ".join(archives) or "not stated", ", ".join(facts.data_sources) or "not stated"
        found.append(f"another archive: trained on data of {told}; this run has {here}")
    looks = sorted({entry.embedded.min_clear_s2 for entry in about.trained_on})
    if facts.min_clear_s2 < looks[0]:
        found.append(
            f"pixels with fewer observations: trained on those with {looks[0]} clear ones or more, this run maps "
            f"those with {facts.min_clear_s2}"
        )
    return found


def _days_apart(one: date, other: date) -> int:
    """Between the days of a year, the shorter way round."""
    apart = abs(one.timetuple().tm_yday - other.timetuple().tm_yday)
    return min(apart, 365 - apart) if apart <= 365 else 0


def described(sources: Sequence[TrainedOn]) -> list[str]:
    """A line a run that a classifier was trained on."""
    return [
        f"{entry.embedded.region}, {entry.embedded.window.start} to {entry.embedded.window.end}: {entry.rows} pixels "
        f"in {entry.groups} groups"
        for entry in sources
    ]


def tested(row: Elsewhere, groups: int) -> str:
    """What a row of `transfers` is of."""
    return f"trained on {', '.join(row.trained_on)}, tested on {row.tests} ({counted(groups, 'group')})"
