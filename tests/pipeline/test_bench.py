"""The benchmarks run to their end at toy sizes: figures are for people, but a benchmark that broke tells none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fetch", "--dates", "2", "--workers", "2"), "bytes served / compressed blocks needed: 1.0"),
        (("plan", "--tiles", "300", "--scenes", "20"), "tiles"),
        (("infer", "--sizes", "nano", "--precisions", "float32", "--side", "8", "--repeats", "1"), "pixels"),
    ],
    ids=["fetch", "plan", "infer"],
)
def test_benchmarks_run(arguments: tuple[str, ...], said: str) -> None:
    name, *options = arguments
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
