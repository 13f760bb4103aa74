"""A run on a cluster, for the tests: submit, wait, look, disturb."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.runs import command, environment, smalti

SITE = """
name = "test"
base = "local"
[runtime]
image = "{image}"
engine = "{engine}"
[limits]
tasks = 6
signal_seconds = 10
[job]
partition = "left"
memory = "1G"
[job.env]
APPTAINER_USERNS = "1"
[jobs.infer]
partition = "right"
"""
"""The image stands in the profile, so that run.toml, which the report shows, is the same in local mode."""


@dataclass(frozen=True)
class Campaign:
    """A run directory whose jobs go to the test's Slurm."""

    root: Path

    def submit(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        """`smalti submit`."""
        done = subprocess.run(
            command("submit", self.root, *arguments),
            env={**environment(), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def resubmit(self) -> str:
        """`smalti resubmit`."""
        return smalti("resubmit", self.root).stdout

    def status(self) -> dict[str, Any]:
        """`smalti status --json`."""
        content: dict[str, Any] = json.loads(smalti("status", self.root, "--json", check=False).stdout)
        return content

    def job(self, kind: str) -> dict[str, Any]:
        """The status of one kind of job."""
        found: dict[str, Any] = next(job for job in self.status()["jobs"] if job["kind"] == kind)
        return found

    def task(self, kind: str, index: int) -> dict[str, Any]:
        """The status of one array task."""
        tasks = self.job(kind)["tasks"]
        return next(task for task in tasks if task["task"].endswith(f"_{index}"))

    def ids(self) -> dict[str, int]:
        """Kind -> id of its job that was submitted last."""
        content = json.loads((self.root / "logs" / "slurm" / "jobs.json").read_text())
        return {job["kind"]: job["id"] for job in content["jobs"]}

    def log(self, kind: str, index: int | None = None) -> str:
        """A task's log, empty before it starts."""
        job = self.ids()[kind]
        path = self.root / "logs" / "slurm" / (f"{kind}-{job}.log" if index is None else f"{kind}-{job}_{index}.log")
        return path.read_text() if path.exists() else ""

    def queue(self) -> list[str]:
        """Ids of this run's jobs that Slurm still has."""
        mine = ",".join(str(job) for job in self.ids().values())
        return slurm("squeue", "--noheader", "--format=%i", f"--jobs={mine}", check=False).split()

    def finished(self, timeout: float = 420) -> None:
        """Wait until no job of the run is queued."""
        await_that(lambda: not self.queue(), f"jobs of {self.root} to end", timeout)


def make_campaign(root: Path, workshop: Path, image: Path, *, labels: bool = False, scratch: str = "") -> Campaign:
    """A run of the demo region; all of them name the demo's archive by the same path."""
    text = (workshop / "demo" / "run.toml").read_text()
    text = re.sub(r'"archive/', f'"{workshop}/demo/archive/', text)
    if not labels:
        text = re.sub(r"\[labels\].*?(?=^\[classify\])", "", text, flags=re.DOTALL | re.MULTILINE)
    engine = os.environ.get("SMALTI_CLUSTER_ENGINE", "image")
    (workshop / "site.toml").write_text(SITE.format(image=image, engine=engine))
    root.mkdir(parents=True)
    site = '[site]\nprofile = "../site.toml"\n' + (f'scratch = "{scratch}"\n' if scratch else "")
    (root / "run.toml").write_text(text.split("[site]")[0] + site)
    return Campaign(root)


def slurm(*arguments: str, check: bool = True) -> str:
    """Run one of Slurm's programs."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 or not check, f"{arguments}: {done.stderr}"
    return done.stdout


def await_that(condition: Callable[[], bool], what: str, timeout: float = 120) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting for {what} after {timeout:.0f} s"
        time.sleep(0.15)
