"""The only place that calls Slurm's programs, and the parsers of what they print."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.contract import EXIT_TRY_AGAIN, SmaltiError

TIMEOUT_S = 90
"""Slurm's own programs give up after some ten seconds a controller; this is for a hung file system."""
_ASK = 500
"""Job ids per call of sacct."""


class SlurmError(SmaltiError):
    """Slurm refused, or did not answer."""


@dataclass(frozen=True, order=True)
class TaskId:
    """An array task, or a whole job."""

    job: int
    index: int | None = None

    def __str__(self) -> str:
        return str(self.job) if self.index is None else f"{self.job}_{self.index}"


@dataclass(frozen=True)
class Queued:
    """A task that Slurm still has."""

    task: TaskId
    state: str
    """PENDING, RUNNING, COMPLETING ..."""
    reason: str
    """Why it waits."""
    seconds: int
    """Time used."""


@dataclass(frozen=True)
class Accounted:
    """What accounting says of a task's last attempt."""

    task: TaskId
    state: str
    """COMPLETED, FAILED, TIMEOUT, OUT_OF_MEMORY, CANCELLED, NODE_FAIL, REQUEUED ..."""
    exit_code: int
    signal: int
    seconds: int
    limit_seconds: int
    peak_mb: int
    """Largest resident memory of a step; 0 where it was not measured."""
    requested_mb: int
    attempts: int
    node: str = ""
    """Where it ran, if it did."""


def _call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]} is not on the PATH: this needs a login node of a Slurm cluster")
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer in {TIMEOUT_S} s", exit_code=EXIT_TRY_AGAIN) from error


def _said(text: str) -> str:
    """What a program of Slurm said, in one line, each line without "sbatch: error: " and the like before it. Pure."""
    lines = (re.sub(r"^\w+: (?:(?:error|fatal): )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(line for line in lines if line)


def _run(command: Sequence[str]) -> str:
    done = _call(command)
    if done.returncode != 0:
        reason = _said(done.stderr) or f"exit code {done.returncode}"
        away = re.search(r"Unable to contact slurm controller|Connection refused|Socket timed out", reason)
        raise SlurmError(f"{command[0]}: {reason}", exit_code=EXIT_TRY_AGAIN if away else None)
    return done.stdout


def test_only(script: Path) -> str:
    """Let `sbatch --test-only` judge a script.

    Returns:
        Its estimate, for example "Job 7 to start at ...".

    Raises:
        SlurmError: with Slurm's reason.
    """
    done = _call(["sbatch", "--test-only", str(script)])
    text = _said(done.stdout + done.stderr)
    if done.returncode != 0:
        raise SlurmError(f"{script}: sbatch refuses it: {text}")
    return text


def sbatch(script: Path, options: Sequence[str] = ()) -> int:
    """Submit a script.

    Returns:
        The job's id.

    Raises:
        SlurmError: with Slurm's reason.
    """
    text = _run(["sbatch", "--parsable", *options, str(script)]).strip()
    match = re.match(r"(\d+)", text.splitlines()[-1] if text else "")
    if match is None:
        raise SlurmError(f"{script}: sbatch answered {text!r} instead of a job id")
    return int(match[1])


def scancel(jobs: Iterable[int]) -> None:
    """Cancel jobs; those that have ended are no error."""
    numbers = [str(job) for job in jobs]
    if numbers:
        _run(["scancel", "--quiet", *numbers])


def parse_duration(text: str) -> int:
    """Seconds of Slurm's [D-][HH:]MM:SS; 0 for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_squeue(text: str) -> list[Queued]:
    """Lines of `squeue --format="%F|%K|%T|%r|%M"`; pending tasks of an array stand in one line (%K is a list)."""
    found = []
    for line in text.splitlines():
        if not line.strip():
            continue
        job, indices, state, reason, used = line.strip().split("|")[:5]
        known = [None] if indices in ("N/A", "") else expand(indices.strip("[]"))
        seconds = parse_duration(used)
        found += [Queued(TaskId(int(job), index), state, reason, seconds) for index in known]
    return found


def queued(jobs: Iterable[int]) -> dict[TaskId, Queued]:
    """What the controller still has of these jobs.

    Raises:
        SlurmError: if it does not answer.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    # SLURM_BITSTR_LEN=0: do not cut long lists of task numbers short.
    command = [
        "env",
        "SLURM_BITSTR_LEN=0",
        "squeue",
        "--noheader",
        f"--user={getpass.getuser()}",
        "--format=%F|%K|%T|%r|%M",
    ]
    if shutil.which("squeue") is None:
        raise SlurmError("squeue is not on the PATH: this needs a login node of a Slurm cluster")
    return {entry.task: entry for entry in parse_squeue(_run(command)) if entry.task.job in wanted}


def _megabytes(text: str) -> int:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)[cn]?", text.strip())
    if match is None:
        return 0
    return round(float(match[1]) * {"": 1 / 2**20, "K": 1 / 1024, "M": 1, "G": 1024, "T": 2**20}[match[2]])


def parse_sacct(text: str) -> dict[TaskId, Accounted]:
    """Lines of `sacct --parsable2 --duplicates` with `accounted`'s fields; the last attempt of each task counts."""
    found: dict[TaskId, Accounted] = {}
    attempts: dict[TaskId, int] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < 7:
            continue
        name, state, code, elapsed, limit, rss, requested = fields[:7]
        match = re.fullmatch(r"(\d+)(?:_(\d+))?(\..+)?", name)
        if match is None:
            continue  # pending tasks of an array: 12_[3-7]
        task = TaskId(int(match[1]), None if match[2] is None else int(match[2]))
        if match[3]:
            before = found.get(task)
            if before is not None:
                peak = max(before.peak_mb, _megabytes(rss))
                found[task] = Accounted(**{**before.__dict__, "peak_mb": peak})
            continue
        attempts[task] = attempts.get(task, 0) + 1
        status, _, signal = code.partition(":")
        found[task] = Accounted(
            task,
            state.split()[0],
            int(status or 0),
            int(signal or 0),
            int(elapsed or 0),
            parse_duration(limit),
            0,
            _megabytes(requested),
            attempts[task],
            fields[7] if len(fields) > 7 and not fields[7].startswith("None") else "",
        )
    return found


def accounted(jobs: Iterable[int]) -> dict[TaskId, Accounted] | None:
    """What accounting knows of these jobs, or None where the site keeps none."""
    numbers = sorted(set(jobs))
    if shutil.which("sacct") is None:
        return None
    found: dict[TaskId, Accounted] = {}
    for start in range(0, len(numbers), _ASK):
        chosen = ",".join(str(number) for number in numbers[start : start + _ASK])
        fields = "JobID,State,ExitCode,ElapsedRaw,Timelimit,MaxRSS,ReqMem,NodeList"
        try:
            text = _run(
                ["sacct", "--noheader", "--parsable2", "--duplicates", f"--jobs={chosen}", f"--format={fields}"]
            )
        except SlurmError:
            return None  # no accounting, or it is down: outputs and logs tell as much
        found |= parse_sacct(text)
    return found


def configuration() -> dict[str, str]:
    """`scontrol show config` as key -> value.

    Raises:
        SlurmError: if the controller does not answer.
    """
    lines = _run(["scontrol", "show", "config"]).splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines) if value}


def parse_associations(text: str) -> dict[str, int]:
    """Lines of `sacctmgr --parsable2 show assoc format=account,maxsubmit` as account -> jobs one may have (0: any)."""
    pairs = (line.split("|") for line in text.splitlines() if "|" in line)
    return {account: int(most) if most.isdigit() else 0 for account, most, *_ in pairs}


def associations() -> dict[str, int] | None:
    """This user's accounts and how many jobs each may have queued, or None where the site keeps none."""
    if shutil.which("sacctmgr") is None:
        return None
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}"]
    try:
        return parse_associations(_run([*command, "format=account,maxsubmit"])) or None
    except SlurmError:
        return None  # sbatch --test-only tells whether the account is accepted


def partitions() -> dict[str, str]:
    """Partition -> its line of settings.

    Raises:
        SlurmError: if the controller does not answer.
    """
    lines = _run(["scontrol", "--oneliner", "show", "partition"]).splitlines()
    named = ((re.search(r"PartitionName=(\S+)", line), line) for line in lines)
    return {match[1]: line for match, line in named if match}


def compress(indices: Iterable[int]) -> str:
    """[3, 7, 12, 13, 14, 15] -> "3,7,12-15". Every N-th of a range becomes "0-8:4", as Slurm understands it."""
    numbers = sorted(set(indices))
    parts: list[str] = []
    start = 0
    while start < len(numbers):
        step = numbers[start + 1] - numbers[start] if start + 1 < len(numbers) else 1
        end = start + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        if end - start >= 3 or (step == 1 and end - start == 2):
            stride = "" if step == 1 else f":{step}"
            parts.append(f"{numbers[start]}-{numbers[end - 1]}{stride}")
            start = end
        else:
            parts.append(str(numbers[start]))
            start += 1
    return ",".join(parts)


def expand(text: str) -> list[int]:
    """The inverse of `compress`; a throttle (%K) is left out.

    Raises:
        SmaltiError: if the text is not a list of task numbers.
    """
    numbers: set[int] = set()
    for part in text.split("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip())
        if match is None:
            raise SmaltiError(f"{text!r}: not a list of task numbers like 3,7,12-15")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        numbers.update(range(first, last + 1, max(1, step)))
    return sorted(numbers)
