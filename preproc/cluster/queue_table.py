"""The queue's state for people (a table and the reasons of failures) and for machines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from preproc.cluster.tasks import JobStatus, QueueView, TaskStatus
from preproc.run.progress import plain_console

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


def problem_lines(view: QueueView) -> list[str]:
    """Why tasks failed, equal reasons together."""
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
        lines.append("after the cause is mended: `smalti resubmit RUN`")
    return lines


def as_json(view: QueueView) -> list[dict[str, Any]]:
    """The same for machines, task by task."""
    return [
        {**asdict(job), "tasks": [{**asdict(task), "task": str(task.task)} for task in job.tasks]} for job in view.jobs
    ]


def renderable(view: QueueView) -> RenderableType:
    """Table and problems together."""
    return Group(as_table(view), *(Text(line) for line in problem_lines(view)))


def watch(draw: Callable[[], tuple[RenderableType, bool]], seconds: float) -> None:
    """Draw again and again until `draw` says that nothing is left to happen, or Ctrl-C."""
    with Live(console=plain_console(), auto_refresh=False) as live:
        while True:
            picture, over = draw()
            live.update(picture, refresh=True)
            if over:
                return
            time.sleep(seconds)
