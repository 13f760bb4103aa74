"""A run as a whole, for people and for machines: its outputs stage by stage, and its batch jobs where there are any."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infer.contract import Run, SmaltiError
from preproc.cluster.tasks import JobStatus, QueueView, TaskStatus, look_at_queue
from preproc.run import progress, status
from preproc.run.clean import leftover_lines, leftovers
from preproc.run.config import Config
from preproc.run.progress import plain_console
from preproc.run.quality import Qualities, QualitySummary, summarise_quality

_SHOWN = 12
"""Failed tasks that are listed a kind."""
_NODES = 3
"""Nodes that are named of those where tasks failed for one reason."""


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(megabytes: int) -> str:
    """350 MB, 2.1 GB."""
    return f"{megabytes} MB" if megabytes < 1024 else f"{megabytes / 1024:.1f} GB"


def _used(used: str, asked: str) -> str:
    return f"{used} of {asked}" if asked else used


def _note(job: JobStatus) -> str:
    parts = []
    if job.longest_s:
        parts.append(_used(duration(job.longest_s), duration(job.limit_s) if job.limit_s else ""))
    if job.peak_mb:
        parts.append(_used(memory(job.peak_mb), memory(job.requested_mb) if job.requested_mb else ""))
    if job.per_hour:
        parts.append(f"{job.per_hour:.0f} tiles/h")
    if job.eta_s is not None:
        parts.append(f"{duration(job.eta_s)} left")
    if job.waiting:
        parts.append(f"waiting: {job.waiting}")
    return ", ".join(parts)


def as_table(view: QueueView) -> Table:
    """One line a kind of job."""
    states: tuple[str, ...] = ("done", "running", "pending", "requeued", "failed")
    if any(job.counts.get("unknown") for job in view.jobs):
        states = (*states, "unknown")
    table = Table(title="jobs", title_justify="left", box=None, pad_edge=False)
    table.add_column("job")
    for state in states:
        table.add_column(state, justify="right")
    table.add_column("longest, largest, speed", overflow="fold")
    for job in view.jobs:
        table.add_row(job.kind, *(str(job.counts.get(state, 0) or "·") for state in states), _note(job))
    return table


def _nodes(tasks: Sequence[TaskStatus]) -> str:
    """Where tasks failed: what fails on one node alone is that node's fault."""
    hosts = Counter(task.host for task in tasks if task.host).most_common()
    if not hosts:
        return ""
    named = ", ".join(host if len(hosts) == 1 else f"{host} {count}" for host, count in hosts[:_NODES])
    return f"on {named}{f' and {len(hosts) - _NODES} other nodes' if len(hosts) > _NODES else ''}; "


def problem_lines(run: Run, view: QueueView) -> list[str]:
    """Why tasks of a run failed, equal reasons together."""
    lines = [view.note] if view.note else []
    for job in view.jobs:
        failed = [task for task in job.tasks if task.state == "failed"]
        reasons = Counter(task.why for task in failed)
        for why, count in reasons.most_common(_SHOWN):
            alike = [task for task in failed if task.why == why]
            lines.append(f"{job.kind}: {count} failed: {why} ({_nodes(alike)}{alike[0].log})")
        if len(reasons) > _SHOWN:
            lines.append(f"{job.kind}: and {len(reasons) - _SHOWN} other reasons")
        retried = [task for task in job.tasks if task.attempts > 1]
        if retried:
            lines.append(
                f"{job.kind}: {len(retried)} started more than once, {max(t.attempts for t in retried)} times at most"
            )
    if any(job.counts.get("failed") for job in view.jobs):
        lines.append(f"after the cause is mended: `smalti resubmit {run.quoted}`")
    return lines


def as_json(view: QueueView) -> list[dict[str, Any]]:
    """The same for machines, task by task."""
    return [
        {**asdict(job), "tasks": [{**asdict(task), "task": str(task.task)} for task in job.tasks]} for job in view.jobs
    ]


def renderable(run: Run, view: QueueView) -> RenderableType:
    """Table and problems together."""
    return Group(as_table(view), *(Text(line) for line in problem_lines(run, view)))


def watch(draw: Callable[[], tuple[RenderableType, bool]], seconds: float) -> None:
    """Draw again and again until `draw` says that nothing is left to happen, or Ctrl-C."""
    with Live(console=plain_console(), auto_refresh=False) as live:
        while True:
            picture, over = draw()
            live.update(picture, refresh=True)
            if over:
                return
            time.sleep(seconds)


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
        jobs = [] if self.queue is None else as_json(self.queue)
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
            if len(entry.problems) > _PROBLEMS:
                more = f"and {len(entry.problems) - _PROBLEMS:,} more"
                parts.append(Text(f"{entry.stage}: {more}; all are listed by `smalti status {self.run.quoted} --json`"))
        if self.quality is not None:
            parts += [Text(line) for line in self.quality.lines()]
        parts += [Text(line) for line in leftover_lines(self.run, self.left)]
        if self.queue is not None:
            parts += [Text(), renderable(self.run, self.queue)]
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

    watch(draw, watch_s)
    return latest[0]
