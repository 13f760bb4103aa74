"""Nothing is lost and nothing depends on how often a run was interrupted or how it was divided."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.runs import STAGES, command, digest, environment, make_run, smalti

KILLS_PER_STAGE = 3
"""Nine stages: 27 kills."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> tuple[dict[str, str], dict[str, float]]:
    """The outputs of a run that nobody disturbed, and how long each stage took."""
    root = make_run(tmp_path_factory.mktemp("undisturbed") / "run", archive)
    seconds = {}
    for stage in STAGES:
        started = time.monotonic()
        smalti(stage, root)
        seconds[stage] = time.monotonic() - started
    return digest(root), seconds


def _kill_after(arguments: list[str], delay: float) -> bool:
    """Start a command, kill it and its children after a while; whether it was still alive."""
    process = subprocess.Popen(
        arguments, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_with_the_same_bytes(
    tmp_path: Path, archive: Path, undisturbed: tuple[dict[str, str], dict[str, float]]
) -> None:
    expected, seconds = undisturbed
    root = make_run(tmp_path / "run", archive)
    moments = random.Random(20)
    killed = 0
    for stage in STAGES:
        longest = seconds[stage]
        for _ in range(KILLS_PER_STAGE):
            # The first part is the interpreter and its imports; kills are meant for the work. How fast the machine is
            # changes while tests run beside each other, so a stage that was quicker is given less time.
            while not _kill_after(command(stage, root, "--force"), longest * moments.uniform(0.3, 1.0)):
                longest *= 0.6
            killed += 1
        smalti(stage, root)
    assert killed >= 20
    smalti("run", root)
    assert digest(root) == expected
    left = [path for path in root.rglob(".*") if path.name.endswith(".tmp")]
    assert not left, "what killed processes left is removed"


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 5])
def test_resharding_gives_the_same_bytes(
    tmp_path: Path, archive: Path, undisturbed: tuple[dict[str, str], dict[str, float]], shards: int
) -> None:
    root = make_run(tmp_path / "run", archive)
    smalti("plan", root)
    for stage in ("fetch", "infer"):
        for index in reversed(range(shards)):
            smalti(stage, root, "--shard", f"{index}/{shards}")
    for index in range(shards):
        smalti("sample", root, "--shard", f"{index}/{shards}")
    for stage in ("stitch", "sample", "train"):
        smalti(stage, root)
    for index in range(shards):
        smalti("predict", root, "--shard", f"{index}/{shards}")
    smalti("run", root)
    assert digest(root) == undisturbed[0]


@pytest.mark.slow
def test_a_second_run_finds_everything_complete(
    tmp_path: Path, archive: Path, undisturbed: tuple[dict[str, str], dict[str, float]]
) -> None:
    root = make_run(tmp_path / "run", archive)
    smalti("run", root)
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    again = smalti("run", root)
    assert " built" not in again.stderr
    assert "everything is complete" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == stamps
    assert smalti("status", root).returncode == 0
