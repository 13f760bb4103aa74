"""A run as a whole: its outputs stage by stage, and its batch jobs where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from infer.contract import Run, SmaltiError
from preproc.cluster import queue_table
from preproc.cluster.tasks import QueueView, look_at_queue
from preproc.run import progress, status
from preproc.run.clean import leftover_lines, leftovers
from preproc.run.config import Config
from preproc.run.quality import Qualities, QualitySummary, summarise_quality

_PROBLEMS = 20
"""Damaged or stale outputs that are listed a stage."""


@dataclass(frozen=True)
class Overview:
    """What `smalti status` shows."""

    run: Run
    stages: list[status.StageStatus]
    queue: QueueView | None
    """None for a run that was never submitted."""
    quality: QualitySummary | None = None
    """None while nothing is planned, or if a tile's quality record cannot be read."""
    left: dict[str, list[str]] = field(default_factory=dict)
    """Folder -> tiles that an earlier plan left there."""

    @property
    def complete(self) -> bool:
        """Whether every stage is."""
        return all(entry.complete for entry in self.stages)

    @property
    def over(self) -> bool:
        """Whether nothing is queued or running that could change it."""
        busy = ("running", "pending", "requeued", "unknown")
        jobs = self.queue.jobs if self.queue is not None else []
        return self.complete or not any(job.counts.get(state) for job in jobs for state in busy)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        jobs = [] if self.queue is None else queue_table.as_json(self.queue)
        note = "" if self.queue is None else self.queue.note
        quality = None if self.quality is None else self.quality.as_json()
        stages = status.as_json(self.stages)
        return {
            "complete": self.complete,
            "stages": stages,
            "quality": quality,
            "leftovers": self.left,
            "jobs": jobs,
            "note": note,
        }

    def picture(self) -> RenderableType:
        """For people."""
        parts: list[RenderableType] = [Text(str(self.run.root), style="italic"), status.as_table(self.stages)]
        for entry in self.stages:
            problems = list(entry.problems.items())[:_PROBLEMS]
            parts += [Text(f"{entry.stage}: {name}: {reason}") for name, reason in problems]
        if self.quality is not None:
            parts += [Text(line) for line in self.quality.lines()]
        parts += [Text(line) for line in leftover_lines(self.run, self.left)]
        if self.queue is not None:
            parts += [Text(), queue_table.renderable(self.queue)]
        return Group(*parts)


def _look(survey: status.Survey, qualities: Qualities | None) -> Overview:
    run = survey.run
    queue = look_at_queue(survey)
    return Overview(run, status.run_status(survey), queue, _quality(run, qualities), _left(run))


class Watcher:
    """Looks at a run again and again, each time only at what something was done to since."""

    def __init__(self, run: Run, config: Config, *, checksums: bool = False, once: bool = False) -> None:
        """A watcher of a run; with `checksums` the first look at an output reads every byte of it.

        Args:
            run: the run directory.
            config: its settings.
            checksums: read every byte.
            once: nobody will look again, so that nothing need be kept for it.
        """
        self._survey = status.Survey(run, config, checksums, watching=not once)
        self._qualities = None if once else Qualities()
        self._first = True

    def look(self) -> Overview:
        """The run of now."""
        if not self._first:
            self._survey = self._survey.again()
        self._first = False
        return _look(self._survey, self._qualities)


def _quality(run: Run, known: Qualities | None) -> QualitySummary | None:
    try:
        return summarise_quality(run, known)
    except SmaltiError:
        return None  # the stages say what is missing or broken


def _left(run: Run) -> dict[str, list[str]]:
    try:
        return leftovers(run)
    except SmaltiError:
        return {}  # without a plan nothing is known to be left over


def show(overview: Overview, again: Callable[[], Overview], watch_s: float) -> Overview:
    """Print an overview; with `watch_s` above 0 look again every so many seconds until nothing is left to happen.

    Returns:
        The last one.
    """
    if watch_s <= 0:
        progress.show(overview.picture())
        return overview
    latest = [overview]

    def draw() -> tuple[RenderableType, bool]:
        latest[0] = again()
        return latest[0].picture(), latest[0].over

    queue_table.watch(draw, watch_s)
    return latest[0]
