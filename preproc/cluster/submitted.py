"""RUN/logs/slurm/: which jobs were submitted for a run, their scripts and logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infer.contract import FormatError, Run, read_json, write_json
from preproc.cluster.slurm import TaskId, expand


@dataclass(frozen=True)
class SubmittedJob:
    """One job or array."""

    id: int
    kind: str
    """Of its script: fetch, infer, stitch, classify, stitch-sheets ..."""
    stages: tuple[str, ...]
    array: str | None
    """Task numbers, compressed."""
    tasks: int
    """Shards that the tiles, or the sheets, were divided into."""
    dependency: str = ""

    def task_ids(self) -> list[TaskId]:
        """Its tasks."""
        return [TaskId(self.id)] if self.array is None else [TaskId(self.id, index) for index in expand(self.array)]


def slurm_folder(run: Run) -> Path:
    """Where logs and scripts of batch jobs are."""
    return run.logs / "slurm"


def log_path(run: Run, kind: str, task: TaskId) -> Path:
    """A task's log; see `--output` in preproc.cluster.sbatch."""
    return slurm_folder(run) / f"{kind}-{task}.log"


def _path(run: Run) -> Path:
    return slurm_folder(run) / "jobs.json"


def read_submitted(run: Run) -> list[SubmittedJob]:
    """Every job that was submitted for this run, oldest first; empty when none was.

    Raises:
        FormatError: if the file is damaged.
    """
    path = _path(run)
    if not path.exists():
        return []
    remedy = "move it away (jobs that still run are then unknown to smalti)"
    content: Any = read_json(path, what="the list of jobs", remedy=remedy)
    if not isinstance(content, dict) or content.get("format") != "smalti/jobs":
        raise FormatError(f"{path}: not a smalti list of jobs: {remedy}")
    try:
        return [SubmittedJob(**{**job, "stages": tuple(job["stages"])}) for job in content["jobs"]]
    except (TypeError, KeyError) as error:
        raise FormatError(f"{path}: {error}: {remedy}") from error


def write_ledger(run: Run, jobs: Sequence[SubmittedJob]) -> None:
    """Replace the list."""
    write_json(_path(run), {"format": "smalti/jobs", "jobs": [asdict(job) for job in jobs]})
