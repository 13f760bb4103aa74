"""What became of jobs: Slurm's answers, logs' last lines, and the words for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer.contract import Run
from preproc.cluster.run_overview import Overview, duration, memory, problem_lines
from preproc.cluster.slurm import Accounted, SlurmError, TaskId, parse_duration, parse_sacct, parse_squeue
from preproc.cluster.slurm import test_only as try_script
from preproc.cluster.submitted import SubmittedJob
from preproc.cluster.tasks import JobStatus, LogRecord, QueueView, TaskStatus, current_tasks, explain, parse_log
from preproc.run import progress
from preproc.run.status import StageStatus

SACCT = """\
66_0|CANCELLED by 0|0:0|0|00:30:00||1G
66_0.batch|FAILED|75:0|1|||
66_2|REQUEUED|0:0|10|00:30:00||1G
66_2.batch|FAILED|15:0|10||57076K|
66_2|COMPLETED|0:0|4|1-00:30:00||1500M
66_2.batch|COMPLETED|0:0|4||250720K|
66_[4-7]|PENDING|0:0|0|00:30:00||1G
67|OUT_OF_MEMORY|0:125|61|00:30:00||4Gn|n7
67.batch|OUT_OF_MEMORY|0:125|61||1.50G|
67.extern|COMPLETED|0:0|61||0|
"""
"""As Slurm 22.05 and (Gn) 20.11 print it."""


def test_accounting_tells_the_last_attempt_and_how_many_there_were() -> None:
    found = parse_sacct(SACCT)
    assert set(found) == {TaskId(66, 0), TaskId(66, 2), TaskId(67)}
    again = found[TaskId(66, 2)]
    assert (again.state, again.attempts, again.seconds, again.limit_seconds) == ("COMPLETED", 2, 4, 88200)
    assert (again.peak_mb, again.requested_mb) == (245, 1500)
    full = found[TaskId(67)]
    assert (full.state, full.signal, full.peak_mb, full.requested_mb, full.node) == (
        "OUT_OF_MEMORY",
        125,
        1536,
        4096,
        "n7",
    )
    assert found[TaskId(66, 0)].state == "CANCELLED"


def test_the_queue_lists_waiting_tasks_in_one_line() -> None:
    text = "12|[3-5,9%2]|PENDING|JobArrayTaskLimit|0:00\n12|1|RUNNING|None|1-02:03:04\n13|N/A|PENDING|Dependency|0:00\n"
    found = {entry.task: entry for entry in parse_squeue(text)}
    waiting = [TaskId(12, index) for index in (3, 4, 5, 9)]
    assert set(found) == {*waiting, TaskId(12, 1), TaskId(13)}
    assert all(found[task].state == "PENDING" for task in waiting)
    assert found[TaskId(12, 1)].seconds == 93784
    assert found[TaskId(13)].reason == "Dependency"


def test_what_slurm_refuses_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sbatch"
    program.write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\necho 'sbatch: fatal: no' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SlurmError) as caught:
        try_script(Path("/r/a.sbatch"))
    assert str(caught.value) == "/r/a.sbatch: sbatch refuses it: invalid partition specified: x; no"
    program.write_text("#!/bin/sh\necho 'sbatch: Job 7 to start at noon' >&2\n")
    assert try_script(Path("/r/a.sbatch")) == "Job 7 to start at noon"


def test_durations() -> None:
    assert [parse_duration(text) for text in ("0:05", "1:02:03", "2-00:00:00", "UNLIMITED")] == [5, 3723, 172800, 0]
    assert [duration(seconds) for seconds in (12, 600, 9000)] == ["12 s", "10 min", "2.5 h"]
    assert [memory(size) for size in (350, 2150)] == ["350 MB", "2.1 GB"]


START = "smalti-task: start job=70 index=2 of=6 attempt={} host=n1 cpus=1 at=1\n"
END = "smalti-task: end code={} stopped=no seconds=12 peak_mb=340 attempt={} at=2\n"


def test_a_log_tells_the_last_attempt() -> None:
    text = START.format(0) + "infer: x\n" + END.format(75, 0) + "smalti-task: back into the queue\n"
    assert parse_log(text) == LogRecord(1, 75, 12, 340, "infer: x", "n1")
    assert parse_log(text + START.format(1)).code is None  # it began again and has not ended
    assert parse_log(text + START.format(1) + END.format(0, 1)).code == 0
    assert parse_log(text + START.format(1) + END.format(0, 1)).attempts == 2


def test_last_words_leave_out_what_says_nothing() -> None:
    text = START.format(0) + "INFO:    squashfuse\nfetch: A\nsmalti: /run/x: no space left\n\n" + END.format(1, 0)
    assert parse_log(text).last == "fetch: A / smalti: /run/x: no space left"
    assert parse_log("").attempts == 0


def account(state: str, **more: int) -> Accounted:
    values = {"exit_code": 0, "signal": 0, "seconds": 9, "limit_seconds": 60, "peak_mb": 1, "requested_mb": 2}
    return Accounted(task=TaskId(1, 2), state=state, attempts=1, **{**values, **more})


@pytest.mark.parametrize(
    ("facts", "state", "said"),
    [
        (None, None, "never started"),
        (None, "CANCELLED", "before it began"),
        (LogRecord(1, 75), "CANCELLED", "was cancelled while it ran"),
        (LogRecord(1), "TIMEOUT", "hit its time limit: ask for more ([site.jobs.infer] time)"),
        (LogRecord(1), "OUT_OF_MEMORY", "[site.jobs.infer] memory"),
        (LogRecord(1), "NODE_FAIL", "node failed"),
        (LogRecord(1, last="tile 7"), "FAILED", "was killed by signal 9 or lost with its node; its last words: tile 7"),
        (LogRecord(1), None, "was killed or lost with its node"),
        (LogRecord(1, 2, last="no checkpoint"), None, "wrong input: running again cannot help: no checkpoint"),
        (LogRecord(1, 1, last="no space left"), "FAILED", "some outputs failed: no space left"),
        (LogRecord(1, 0), "COMPLETED", "ended well, yet outputs are missing"),
        (LogRecord(1, 139), None, "exit code 139"),
    ],
)
def test_reasons(facts: LogRecord | None, state: str | None, said: str) -> None:
    accounting = None if state is None else account(state, signal=9 if state == "FAILED" else 0)
    assert said in explain("infer", facts, accounting)


def test_of_each_shard_the_task_submitted_last_counts() -> None:
    first = SubmittedJob(1, "infer", ("infer",), "0-3", 4)
    second = SubmittedJob(5, "infer", ("infer",), "1,3", 4)
    stitched = [SubmittedJob(2, "stitch", ("stitch",), None, 4), SubmittedJob(6, "stitch", ("stitch",), None, 4)]
    tasks = current_tasks([first, stitched[0], second, stitched[1]])
    assert set(tasks["infer"]) == {TaskId(1, 0), TaskId(5, 1), TaskId(1, 2), TaskId(5, 3)}
    assert set(tasks["stitch"]) == {TaskId(6)}
    anew = SubmittedJob(9, "infer", ("infer",), "0-1", 2)
    assert set(current_tasks([first, anew])["infer"]) == {TaskId(9, 0), TaskId(9, 1)}  # the tiles were divided anew


def test_failures_name_the_nodes_they_happened_on() -> None:
    """Of a node that lost a GPU the operator has to know the name: the reason alone sounds like wrong settings."""
    why = "wrong input: running again cannot help: infer: --device cuda: torch sees no such device here"
    hosts = ["n1", "n7", "n7", "n7", "n2", "n3", "n4", ""]
    tasks = [
        TaskStatus(TaskId(1, i), "infer", "failed", why, log=f"{i}.log", host=host) for i, host in enumerate(hosts)
    ]
    run = Run(Path("my run"))
    line, advice = problem_lines(run, QueueView([JobStatus("infer", {"failed": 8}, tasks)]))
    assert advice == "after the cause is mended: `smalti resubmit 'my run'`"
    assert line == f"infer: 8 failed: {why} (on n7 3, n1 1, n2 1 and 2 other nodes; 0.log)"
    (line, _) = problem_lines(run, QueueView([JobStatus("infer", {"failed": 2}, tasks[1:3])]))
    assert line.endswith("(on n7; 1.log)")
    (line, _) = problem_lines(run, QueueView([JobStatus("infer", {"failed": 1}, tasks[-1:])]))
    assert line.endswith("(7.log)")


def test_what_is_not_listed_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    problems = {f"31N_E{n}_N1": "broken: cut short" for n in range(1023)}
    stages = [StageStatus("fetch", "tiles", problems=problems), StageStatus("infer", "tiles", problems={"a": "b"})]
    progress.show(Overview(Run(Path("my run")), stages, None).picture())
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("fetch: 31N_")]) == 20
    assert "fetch: and 1,003 more; all are listed by `smalti status 'my run' --json`" in lines
    assert lines[-1] == "infer: a: b"
