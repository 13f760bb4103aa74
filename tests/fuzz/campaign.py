"""One case of the fuzz run: a copy of a finished run, one file of it changed, one command, and what must not happen."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from support.mutations import mutated_bytes, mutated_json
from support.runs import RUN_TOML, make_archive, make_run, smalti
from support.simulated import tree

from preproc.cli import main

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
        command = rng.choice(COMMANDS)
        arguments = [command[0], str(place / "run"), *command[1:]]
        code, seconds, computed, peak, said = ask(arguments, self._work / "said.txt")
        fault = self._fault(code, seconds, computed, peak, said)
        return Result(" ".join(command), str(changed), how, code, seconds, peak, said, fault)

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
    """Run the command line in a child of this process, where everything is imported already.

    Returns:
        Exit code, seconds, of those computing, peak memory above this process's own in bytes, what it said.
    """
    before = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_smalti(arguments, spoken)
    while time.monotonic() - before <= 6 * LONGEST_S:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = max(0, usage.ru_maxrss - own) * 1024
    said = spoken.read_text(errors="replace") if spoken.exists() else ""
    return os.waitstatus_to_exitcode(status), time.monotonic() - before, usage.ru_utime + usage.ru_stime, peak, said


def _be_smalti(arguments: list[str], spoken: Path) -> None:
    """Never returns."""
    os.setpgid(0, 0)
    code = 99
    try:
        out = os.open(spoken, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)  # not pytest's
        sys.argv = ["smalti", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:  # noqa: BLE001  # what a user would see as a traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
