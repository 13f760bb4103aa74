"""One case of the fuzz run: a copy of a finished run, one file of it changed, one command, and what must not happen."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from support.mutations import mutated_bytes, mutated_json
from support.runs import RUN_TOML, command, environment, make_archive, make_run, smalti
from support.simulated import tree

LONGEST_S = 20.0
"""Of computing, or six times that of waiting: a busy machine is no fault."""
LARGEST_BYTES = 1 << 30
COMMANDS = (
    ("status",),
    ("plan", "--dry-run"),
    ("plan",),
    ("fetch",),
    ("stitch",),
    ("sample",),
    ("train",),
    ("predict",),
    ("validate",),
    ("report",),
    ("submit", "--dry-run"),
    ("stitch", "--force"),
    ("sample", "--force"),
    ("predict", "--force"),
    ("validate", "--force"),
    ("report", "--force"),
)
CODES = (0, 1, 2, 75)


def finished_run(folder: Path) -> Path:
    """A folder with a small archive and a run beside it, all stages done."""
    make_archive(folder / "archive")
    run = make_run(folder / "run", folder / "archive", RUN_TOML.replace("{archive}", "../archive"))
    smalti("run", run)
    return folder


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    command: str
    changed: str
    how: str
    code: int
    seconds: float
    peak_bytes: int
    said: str
    fault: str

    def __str__(self) -> str:
        told = self.said.strip().splitlines()[-1:] or [""]
        what = f"smalti {self.command} after {self.changed} {self.how} ({self.seconds:.1f} s)"
        return f"{self.fault}: {what}: {told[0][:300]}"


class Campaign:
    """Cases on one finished run. A case is told by its seed alone."""

    def __init__(self, finished: Path, work: Path) -> None:
        """Args are a folder with run/ and archive/, which is only read, and an empty one."""
        self._finished, self._work = finished, work
        self._canary = work / "canary.json"
        self._canary.write_text("{}")
        self._outside = self._look()
        self._files = sorted(
            path.relative_to(finished)
            for path in finished.rglob("*")
            if path.is_file() and "logs" not in path.parts and path.suffix not in (".png", ".html", ".lock")
        )

    def case(self, seed: int) -> Result:
        """Change one file, run one command, look."""
        rng = random.Random(seed)
        place = self._work / "case"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self._finished, place, symlinks=True)
        kind = rng.choice(sorted({path.suffix for path in self._files}))  # each as often, however many there are
        changed = rng.choice([path for path in self._files if path.suffix == kind])
        how = change(place / changed, rng, self._canary)
        words = rng.choice(COMMANDS)
        arguments = [words[0], str(place / "run"), *words[1:]]
        code, seconds, computed, peak, said = ask(arguments, self._work / "said.txt")
        fault = self._fault(code, seconds, computed, peak, said)
        return Result(" ".join(words), str(changed), how, code, seconds, peak, said, fault)

    def _fault(self, code: int, seconds: float, computed: float, peak: int, said: str) -> str:
        if "Traceback" in said:
            return "a traceback"
        if seconds > 6 * LONGEST_S or computed > LONGEST_S:
            return "a hang"
        if peak > LARGEST_BYTES:
            return f"{peak >> 20} MiB"
        if code not in CODES:
            return f"exit code {code}"
        if code and not said.strip():
            return "nothing said"
        if self._look() != self._outside:
            self._outside = self._look()
            return "bytes changed outside the run"
        return ""

    def _look(self) -> dict[str, str]:
        return {**tree(self._finished), "canary": self._canary.read_text()}


def change(path: Path, rng: random.Random, canary: Path) -> str:
    """Leave a file as an attacker, a disk or an editor may."""
    content = path.read_bytes()
    kind = rng.random()
    if kind < 0.02:
        path.unlink()
        path.mkdir()
        return "is a folder"
    if kind < 0.04:
        path.unlink()
        os.mkfifo(path)
        return "is a pipe"
    if kind < 0.06:
        path.unlink()
        path.symlink_to("/dev/zero")
        return "is /dev/zero"
    if kind < 0.08:
        path.unlink()
        path.symlink_to(canary)
        return "is another's file"
    if kind < 0.1:
        path.write_bytes(b"")
        return "is empty"
    if kind < 0.12:
        path.unlink()
        return "is gone"
    if path.suffix in (".json", ".geojson") and kind < 0.75:
        path.write_bytes(mutated_json(content, rng))
        return "has other values"
    if path.suffix in (".npy", ".tif", ".parquet", ".cbm") and kind < 0.6:  # what is read first tells how much to read
        head = min(len(content), 300)
        path.write_bytes(mutated_bytes(content[:head], rng) + content[head:])
        return "has another head"
    path.write_bytes(mutated_bytes(content, rng))
    return "has other bytes"


def ask(arguments: list[str], spoken: Path) -> tuple[int, float, float, int, str]:
    """Run the command line in a process of its own: a fork of this one would copy the locks of its libraries' threads.

    Returns:
        Exit code, seconds, of those computing, peak memory in bytes, what it said.
    """
    before = time.monotonic()
    with spoken.open("w") as out:
        asked = subprocess.Popen(command(*arguments), env=environment(), stdout=out, stderr=out, start_new_session=True)
    while time.monotonic() - before <= 6 * LONGEST_S:
        done, status, usage = os.wait4(asked.pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.killpg(asked.pid, signal.SIGKILL)
        _, status, usage = os.wait4(asked.pid, 0)
    asked.returncode = os.waitstatus_to_exitcode(status)
    said = spoken.read_text(errors="replace")
    return asked.returncode, time.monotonic() - before, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, said
