"""The chain on a real Slurm, undisturbed and disturbed: the same bytes, and status tells the truth."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from support.cluster import Campaign, await_that, make_campaign, slurm
from support.runs import digest, smalti

SETUP = Path(__file__).parent / "setup"
TASKS = 6
"""Tasks of an array; the demo region has nine tiles, so that tasks 0 to 2 have two each."""


def test_the_whole_chain_gives_the_bytes_of_local_mode(workshop: Path, image: Path, tmp_path: Path) -> None:
    """Two partitions, six shards, containers; jobs inherit an environment that would break anything it reached."""
    scratch = Path.home() / ".smalti-cluster-test"  # $HOME is what both modes know; the report shows run.toml
    local = make_campaign(workshop / "local", workshop, image, labels=True, scratch=f"$HOME/{scratch.name}")
    smalti("run", local.root)
    scratch.rmdir()
    campaign = make_campaign(workshop / "whole", workshop, image, labels=True, scratch=f"$HOME/{scratch.name}")
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise SystemExit('another numpy')\n")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('another site')\n")
    hostile = (
        f"PYTHONPATH={tmp_path},PYTHONUSERBASE={tmp_path},PROJ_DATA={tmp_path},PROJ_LIB={tmp_path},OMP_NUM_THREADS=1"
    )
    told = campaign.submit(env={"SBATCH_EXPORT": f"ALL,{hostile}"})
    assert "aftercorr" in told
    campaign.finished()
    status = campaign.status()
    assert status["complete"], campaign.log("classify") + str(status)
    assert digest(campaign.root) == digest(local.root)
    scratch.rmdir()  # it was used, and nothing is left there
    counts = {job["kind"]: job["counts"]["done"] for job in status["jobs"]}
    trials = counts.pop("train-trials")  # of a study, side by side, for the jobs of this site have few cores
    assert trials > 1
    assert counts == {"fetch": TASKS, "infer": TASKS, "stitch": 1, "sample": 1, "classify": 1}
    partitions = slurm("sacct", "-X", "-n", "-P", "--format=Partition", f"--jobs={campaign.ids()['infer']}").split()
    assert set(partitions) == {"right"}
    assert campaign.submit() == "nothing is missing\n"


def stop_engine(campaign: Campaign, index: int) -> int:
    """Stop (SIGSTOP) the engine of a task, so that it stays where it is.

    Returns:
        Its process id.
    """
    shard = f"--shard {index}/{TASKS}"

    def engines() -> list[int]:
        lines = subprocess.run(
            ["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        wanted = [line.split() for line in lines if shard in line and str(campaign.root) in line and "-m infer" in line]
        return [int(words[0]) for words in wanted if Path(words[1]).name.startswith("python")]

    await_that(lambda: bool(engines()), f"the engine of task {index}")
    pid = engines()[0]
    os.kill(pid, signal.SIGSTOP)
    return pid


def batch_shell(pid: int) -> int:
    """The job script's process, an ancestor of the engine's."""
    while True:
        words = subprocess.run(["ps", "-ww", "-o", "ppid=,args=", str(pid)], capture_output=True, text=True, check=True)
        parent, arguments = words.stdout.split(maxsplit=1)
        if "slurm_script" in arguments and "bash" in arguments:
            above = subprocess.run(
                ["ps", "-ww", "-o", "args=", parent], capture_output=True, text=True, check=True
            ).stdout
            if "slurm_script" not in above:
                return pid
        pid = int(parent)
        assert pid > 1, "no job script above the engine"


def test_killed_and_requeued_tasks(fetched: Campaign, expected: dict[str, str]) -> None:
    """KILL for two: they must be submitted again. The signal ahead of the limit for another: it helps itself."""
    fetched.submit()
    job = fetched.ids()["infer"]
    stop_engine(fetched, 0)
    slurm("scancel", "--signal=KILL", f"{job}_0")
    lost = stop_engine(fetched, 1)
    os.kill(batch_shell(lost), signal.SIGKILL)
    with suppress(ProcessLookupError):  # Slurm may have been quicker
        os.kill(lost, signal.SIGKILL)
    held = stop_engine(fetched, 2)
    slurm("scancel", "--signal=USR1", "--batch", f"{job}_2")
    await_that(lambda: "USR1 received" in fetched.log("infer", 2), "the signal")
    assert fetched.task("infer", 2)["state"] == "running"
    os.kill(held, signal.SIGCONT)
    await_that(lambda: fetched.task("infer", 2)["state"] == "requeued", "task 2 to be back in the queue")
    slurm("scontrol", "update", f"JobId={job}_2", "StartTime=now")  # else Slurm lets it rest for two minutes
    fetched.finished()
    status = fetched.status()
    assert not status["complete"]
    infer = fetched.job("infer")
    assert (infer["counts"]["done"], infer["counts"]["failed"]) == (TASKS - 2, 2)
    assert [task["state"] for task in infer["tasks"][:2]] == ["failed", "failed"]
    assert "cancelled" in infer["tasks"][0]["why"]  # what Slurm calls a KILL of the whole task
    assert "killed by signal 9" in infer["tasks"][1]["why"]
    stitch = fetched.job("stitch")["tasks"][0]
    assert stitch["state"] == "failed"  # it looked at the manifests itself, and refused
    requeued = fetched.log("infer", 2)
    assert "end code=75 stopped=USR1" in requeued
    assert "back into the queue" in requeued
    assert requeued.count("smalti-task: start") == fetched.task("infer", 2)["attempts"] == 2
    told = fetched.resubmit()
    assert re.search(r"infer +job \d+ \[0-1\]", told), told
    fetched.finished()
    assert digest(fetched.root) == expected


def test_the_time_limit_and_a_controller_that_goes_away(fetched: Campaign, expected: dict[str, str]) -> None:
    """One task stands still until its limit. Meanwhile the controller is down, and comes back."""
    text = (fetched.root / "run.toml").read_text()
    # It may not put itself back into the queue, as it would otherwise: that is what resubmitting is for.
    short = 'limits.requeues = 0\n[site.jobs.infer]\ntime = "00:01:00"\n'
    (fetched.root / "run.toml").write_text(text + short)
    fetched.submit()
    stop_engine(fetched, 2)
    subprocess.run([SETUP, "stop-controller"], check=True)
    try:
        status = fetched.status()
        assert "cannot be asked" in status["note"]
        states = {task["state"] for task in fetched.job("infer")["tasks"]}
        assert states <= {"running", "pending", "done", "unknown"}  # nothing is called failed that may be running
    finally:
        subprocess.run([SETUP, "start"], check=True)
    fetched.finished()
    late = fetched.task("infer", 2)
    assert late["state"] == "failed"
    assert "time limit" in late["why"]
    (fetched.root / "run.toml").write_text(text)
    fetched.resubmit()
    fetched.finished()
    assert digest(fetched.root) == expected


def test_one_tile_fails_for_good(fetched: Campaign, expected: dict[str, str]) -> None:
    """A damaged tile: its task says so, the others go on; mended, the bytes are the same."""
    tile = sorted(folder for folder in (fetched.root / "tiles").iterdir())[3]
    bands = tile / "bands.npy"
    whole = bands.read_bytes()
    bands.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    fetched.submit()
    fetched.finished()
    infer = fetched.job("infer")
    assert infer["counts"]["failed"] == 1
    assert infer["counts"]["done"] == TASKS - 1
    bad = next(task for task in infer["tasks"] if task["state"] == "failed")
    assert "some outputs failed" in bad["why"]
    assert tile.name in Path(bad["log"]).read_text()
    told = fetched.resubmit()
    assert re.search(r"infer +job \d+ \[\d\]", told), told  # one task only
    fetched.finished()
    assert fetched.job("infer")["counts"]["failed"] == 1  # and it fails again
    bands.write_bytes(whole)
    fetched.resubmit()
    fetched.finished()
    assert digest(fetched.root) == expected


def test_a_full_disk(fetched: Campaign, expected: dict[str, str]) -> None:
    """No room for embeddings: said in one line, nothing half-written counts, and with room the bytes are the same.

    Nine tiles take 20 MB. There is room for five: all that are written at once at first, four tasks side by side, fit.
    """
    embeddings = fetched.root / "embeddings"
    embeddings.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(embeddings)], check=True)
    try:
        fetched.submit()
        fetched.finished()
        infer = fetched.job("infer")
        assert infer["counts"]["failed"] > 0
        assert infer["counts"]["done"] > 0
        why = next(task["why"] for task in infer["tasks"] if task["state"] == "failed")
        assert "no space left" in why
        subprocess.run(["mount", "-o", "remount,size=500m", str(embeddings)], check=True)
        fetched.resubmit()
        fetched.finished()
        assert digest(fetched.root) == expected
    finally:
        subprocess.run(["umount", "-l", str(embeddings)], check=True)


def test_cancel_keeps_what_is_complete(fetched: Campaign, expected: dict[str, str]) -> None:
    fetched.submit()
    stop_engine(fetched, 2)  # so that jobs are still queued when the others are done
    await_that(lambda: fetched.job("infer")["counts"]["done"] > 0, "one task to be done")
    assert "jobs of this run are queued" in smalti("submit", fetched.root, check=False).stderr
    assert "cancelled" in smalti("cancel", fetched.root).stdout
    fetched.finished()
    done = fetched.job("infer")["counts"]["done"]
    assert 0 < done < TASKS
    fetched.submit()
    fetched.finished()
    assert digest(fetched.root) == expected


@pytest.mark.parametrize("site", ["lumi", "lumi-node", "betzy", "saga", "generic"])
def test_slurm_accepts_the_directives_of_every_site(site: str, fetched: Campaign) -> None:
    """On partitions of those names, on a node as large as the sites'."""
    partition = 'job.partition = "cpu"\n[site.jobs.infer]\npartition = "gpu"\n' if site == "generic" else ""
    with (fetched.root / "run.toml").open("a") as stream:
        stream.write(f'job.account = "root"\nruntime.binds = []\n{partition}')
    findings = smalti("doctor", fetched.root, "--site", site, check=False).stdout
    directives = [line for line in findings.splitlines() if "directives" in line]
    assert len(directives) == (3 if site in ("betzy", "saga") else 4), findings  # those two fetch on the login node
    assert all(line.startswith("ok") for line in directives), findings


def test_doctor_looks_from_inside_the_jobs(fetched: Campaign) -> None:
    findings = smalti("doctor", fetched.root, "--probe").stdout
    assert "0 failed" in findings, findings
    for said in (
        "[container] torch 2",
        "[container] right on cpu",
        "[node] a known point",
        "[container] can be written",
    ):
        assert said in findings, findings
