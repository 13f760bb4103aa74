"""Small made-up tiles, short trainings, and a student that had none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from infer.model.network import random_student
from infer.selftest import SETTINGS
from preproc.simulate.seasons import write_tile

ROOT = Path(__file__).parents[2]

QUICK = (
    "--batch=32",
    "--groups=2",
    "--latent-dim=4",
    "--num-layers=1",
    "--nhead=2",
    "--dim-feedforward=16",
    "--repr-dim=32",
    "--projector=32",
    "--warmup=4",
    "--shortest=4",
    "--longest=8",
    "--threads=1",
    "--device=cpu",
)
"""A network of a few thousand parameters."""


def make_tiles(folder: Path, count: int = 3, size: int = 12) -> Path:
    """A folder of made-up tiles."""
    for number in range(count):
        write_tile(folder / f"tile-{number}", 100 + number, size)
    return folder


def write_untrained(path: Path, seed: int = 20260) -> Path:
    """A checkpoint of the demonstration's size with random weights."""
    about = {
        "trained": False,
        "label": f"untrained demonstration model (random weights, seed {seed})",
        "data_source": "any",
    }
    torch.save({"args": SETTINGS, "model": random_student(SETTINGS, seed), "smalti": about}, path)
    return path


def environment() -> dict[str, str]:
    """One thread, and this checkout first."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(out: Path, tiles: Path, *options: str) -> list[str]:
    """A short training as a process."""
    return [sys.executable, "-m", "infer.pretrain", str(out), "--tiles", str(tiles), *QUICK, *options]


def pretrain(out: Path, tiles: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a short training to its end."""
    return subprocess.run(
        command(out, tiles, *options), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
