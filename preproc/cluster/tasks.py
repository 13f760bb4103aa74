"""What became of a run's batch jobs: Slurm's queue, accounting where there is one, the logs' last lines, the outputs.

Outputs on disk are the truth: a task is done when everything of its shard is complete, whatever Slurm says of it.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infer.contract import Run, SmaltiError, State
from preproc.cluster import slurm
from preproc.cluster.jobs import ARRAYS
from preproc.cluster.sbatch import SHARED
from preproc.cluster.slurm import Accounted, Queued, TaskId
from preproc.cluster.submitted import SubmittedJob, log_path, read_submitted
from preproc.run.stage import Unit
from preproc.run.stages import stage_named
from preproc.run.status import Survey

STATES = ("done", "running", "pending", "requeued", "failed", "unknown")
_TAIL_BYTES = 6000
_SAMPLED_LOGS = 200
"""Logs of finished tasks that are read for time and memory where there is no accounting."""
_RECENT_S = 3600
_END = re.compile(r"^smalti-task: end code=(\d+) stopped=(\w+) seconds=(\d+) peak_mb=(\d*) attempt=(\d+)", re.MULTILINE)
_START = re.compile(r"^smalti-task: start .*attempt=(\d+) host=(\S+)", re.MULTILINE)
_NOISE = re.compile(r"^(smalti-task:|slurmstepd: .*CANCELLED|INFO:|\s*$)")
_CODES = {1: "some outputs failed", 2: "wrong input: running again cannot help", 75: "interrupted, or the run was busy"}
_ALIVE = {"RUNNING": "running", "PENDING": "pending", "REQUEUED": "requeued"}
_BLAMED = {
    "TIMEOUT": "hit its time limit: ask for more ([site.jobs.{kind}] time), or use more tasks",
    "OUT_OF_MEMORY": "out of memory: ask for more ([site.jobs.{kind}] memory)",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "was preempted",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "missed its deadline",
}


@dataclass(frozen=True)
class LogRecord:
    """What a task's log tells."""

    attempts: int = 0
    """How often it started."""
    code: int | None = None
    """Exit code of the last attempt; None if that ended without a word."""
    seconds: int = 0
    peak_mb: int = 0
    last: str = ""
    """Last lines that say something."""
    host: str = ""
    """Node of the last attempt."""


@dataclass(frozen=True)
class TaskStatus:
    """One task, or one single job."""

    task: TaskId
    kind: str
    state: str
    """One of STATES."""
    why: str = ""
    attempts: int = 0
    seconds: int = 0
    peak_mb: int = 0
    log: str = ""
    host: str = ""
    """Node of its last attempt, as far as accounting or its log tells."""


@dataclass(frozen=True)
class JobStatus:
    """All current tasks of one kind of job."""

    kind: str
    counts: dict[str, int]
    """Tasks by state."""
    tasks: list[TaskStatus] = field(repr=False)
    waiting: str = ""
    """Slurm's commonest reason for what is pending."""
    peak_mb: int = 0
    requested_mb: int = 0
    longest_s: int = 0
    limit_s: int = 0
    per_hour: float = 0.0
    """Tiles, or sheets, an hour of late; of arrays only."""
    eta_s: int | None = None
    """Seconds until the rest is done at that rate."""


@dataclass(frozen=True)
class QueueView:
    """The jobs of a run at one moment."""

    jobs: list[JobStatus]
    note: str = ""
    """What could not be asked."""


def parse_log(text: str) -> LogRecord:
    """What a log's end tells. A last start without an end: killed, or the node is gone."""
    starts, ends = list(_START.finditer(text)), list(_END.finditer(text))
    attempts = int(starts[-1][1]) + 1 if starts else (int(ends[-1][5]) + 1 if ends else 0)
    said = [line.strip() for line in text.splitlines() if not _NOISE.match(line)]
    last = " / ".join(said[-2:])
    host = starts[-1][2] if starts else ""
    ended = bool(ends) and (not starts or ends[-1].start() > starts[-1].start())
    if not ended:
        return LogRecord(attempts, None, last=last, host=host)
    _, _, seconds, peak, _ = ends[-1].groups()
    return LogRecord(attempts, int(ends[-1][1]), int(seconds), int(peak or 0), last, host)


def read_log(path: Path) -> LogRecord | None:
    """What a task's log tells, or None when there is no log: the task never started."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            return parse_log(stream.read().decode(errors="replace"))
    except FileNotFoundError:
        return None


def explain(kind: str, facts: LogRecord | None, account: Accounted | None) -> str:
    """Why a task that is neither queued nor done failed, for people. Pure."""
    if account is not None and account.state in _BLAMED:
        return _BLAMED[account.state].format(kind=kind)
    if account is not None and account.state == "CANCELLED" and facts is None:
        return "was cancelled before it began (by someone, or because the task it waited for failed)"
    if account is not None and account.state == "CANCELLED":
        return "was cancelled while it ran"
    if facts is None:
        return "left no log: it never started, or could not write in logs/slurm"
    if facts.code is None:
        by = f" by signal {account.signal}" if account is not None and account.signal else ""
        said = f"; its last words: {facts.last}" if facts.last else ""
        return f"was killed{by} or lost with its node{said}"
    reason = _CODES.get(facts.code, f"exit code {facts.code}")
    if facts.code == 0:
        return "ended well, yet outputs are missing or invalid (removed since, or of other settings)"
    return f"{reason}{': ' + facts.last if facts.last else ''}"


def current_tasks(jobs: Sequence[SubmittedJob]) -> dict[str, dict[TaskId, SubmittedJob]]:
    """For each kind the tasks that count: of each shard the one submitted last; of single jobs the last."""
    latest: dict[str, dict[int | None, TaskId]] = {}
    owner = {job.id: job for job in jobs}
    for job in jobs:
        chosen = latest.setdefault(job.kind, {})
        if any(owner[task.job].tasks != job.tasks for task in chosen.values()):
            chosen.clear()  # the tiles were divided anew
        for task in job.task_ids():
            chosen[task.index] = task
    return {kind: {task: owner[task.job] for task in chosen.values()} for kind, chosen in latest.items()}


def _states(survey: Survey, stage: str) -> Sequence[tuple[Unit, State]]:
    try:
        return survey.of(stage)
    except SmaltiError:
        return ()  # what it builds on is not there yet


def shared_units(survey: Survey, kind: str) -> Sequence[tuple[Unit, State]]:
    """The units that the tasks of an array share; none once the stage is complete, for some are gone then."""
    if kind not in SHARED:
        return _states(survey, kind) if kind in ARRAYS else ()
    stage = kind.partition("-")[0]
    known = {unit.name: state for unit, state in _states(survey, stage)}
    if known and all(state.complete for state in known.values()):
        return ()
    try:
        return list(stage_named(stage).load(shard=True).open(survey.run, survey.config).states(known=known))
    except SmaltiError:
        return ()


def tasks_done(
    survey: Survey, tasks: Mapping[TaskId, SubmittedJob], shared: Sequence[tuple[Unit, State]]
) -> set[TaskId]:
    """Tasks whose outputs all stand."""
    if shared:
        count = next(iter(tasks.values())).tasks
        lacking = {index % count for index, (_, state) in enumerate(shared) if not state.complete}
        return {task for task in tasks if task.index not in lacking}
    done = set()
    for task, job in tasks.items():
        states = [pair for stage in job.stages for pair in _states(survey, stage)]
        if states and all(state.complete for _, state in states):
            done.add(task)
    return done


def _rate(complete: Sequence[Unit]) -> float:
    """Tiles an hour, over the last hour of manifests."""
    now = time.time()
    times = sorted(unit.manifest.stat().st_mtime for unit in complete)
    recent = [moment for moment in times if moment > now - _RECENT_S]
    if len(recent) < 2:
        return 0.0
    return 3600 * (len(recent) - 1) / max(1.0, now - recent[0])


def _task_status(
    run: Run,
    kind: str,
    task: TaskId,
    done: bool,
    waiting: Queued | None,
    account: Accounted | None,
    *,
    look: bool,
    asked: bool,
) -> TaskStatus:
    path = log_path(run, kind, task)
    facts = read_log(path) if look else None
    attempts = max(facts.attempts if facts else 0, account.attempts if account else 0)
    seconds = (account.seconds if account else 0) or (facts.seconds if facts else 0)
    peak = max(account.peak_mb if account else 0, facts.peak_mb if facts else 0)
    host = (account.node if account else "") or (facts.host if facts else "")
    state, why = "done", ""
    if waiting is not None and waiting.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        state, why = ("requeued" if facts and facts.attempts else "pending"), waiting.reason
    elif waiting is not None and not done:
        state, seconds = "running", waiting.seconds
    elif not done and not asked:
        state = _ALIVE.get(account.state, "failed") if account is not None else "unknown"
        why = explain(kind, facts, account) if state == "failed" else "as far as is known without the queue"
    elif not done:
        state, why = "failed", explain(kind, facts, account)
    return TaskStatus(task, kind, state, why, attempts, seconds, peak, str(path), host)


def _job_status(
    survey: Survey,
    kind: str,
    tasks: Mapping[TaskId, SubmittedJob],
    queue: Mapping[TaskId, Queued] | None,
    accounts: Mapping[TaskId, Accounted] | None,
) -> JobStatus:
    states = shared_units(survey, kind)
    done = tasks_done(survey, tasks, states)
    complete = [unit for unit, state in states if state.complete]
    looked_at = set(sorted(done, reverse=True)[:_SAMPLED_LOGS])
    statuses = []
    for task in sorted(tasks, key=lambda task: (task.index or 0, task.job)):
        account = accounts.get(task) if accounts is not None else None
        look = task not in done or task in looked_at
        waiting = queue.get(task) if queue is not None else None
        asked = queue is not None
        statuses.append(_task_status(survey.run, kind, task, task in done, waiting, account, look=look, asked=asked))
    counts = Counter(status.state for status in statuses)
    reasons = Counter(status.why for status in statuses if status.state in ("pending", "requeued"))
    known = [accounts[task] for task in tasks if accounts and task in accounts]
    rate = _rate(complete) if counts["running"] else 0.0
    left = len(states) - len(complete)
    return JobStatus(
        kind,
        {state: counts[state] for state in STATES},
        statuses,
        reasons.most_common(1)[0][0] if reasons else "",
        max((status.peak_mb for status in statuses), default=0),
        max((account.requested_mb for account in known), default=0),
        max((status.seconds for status in statuses), default=0),
        max((account.limit_seconds for account in known), default=0),
        rate,
        int(3600 * left / rate) if rate else None,
    )


def look_at_queue(survey: Survey) -> QueueView | None:
    """The jobs of a run, or None if none was ever submitted.

    Raises:
        SmaltiError: if the list of jobs is damaged.
    """
    jobs = read_submitted(survey.run)
    if not jobs:
        return None
    note = ""
    queue: dict[TaskId, Queued] | None = None
    try:
        queue = slurm.queued(job.id for job in jobs)
    except slurm.SlurmError as error:
        note = f"the queue cannot be asked ({error}); outputs and accounting are shown"
    accounts = slurm.accounted(job.id for job in jobs)
    kinds = current_tasks(jobs)
    return QueueView([_job_status(survey, kind, tasks, queue, accounts) for kind, tasks in kinds.items()], note)
