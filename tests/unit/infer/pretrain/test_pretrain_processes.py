"""Two processes train what one does; a student learns what its teacher says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.pretraining import QUICK, ROOT, environment, make_tiles, pretrain
from support.recorded import GOLDEN

from infer.contract import EXIT_BAD_INPUT, EXIT_OK, EXIT_TRY_AGAIN, read_tile
from infer.model import Network
from infer.model.network import student_architecture
from infer.pretrain.tiles import gather
from infer.pretrain.views import NO_NOISE, Chance, draw_view

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiles(tmp_path_factory.mktemp("tiles"))


def torchrun(out: Path, tiles: Path, *options: str) -> subprocess.CompletedProcess[str]:
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "infer.pretrain")
    return subprocess.run(
        [sys.executable, *start, str(out), "--tiles", str(tiles), *QUICK, *options],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def embedded(out: Path, tiles: Path) -> torch.Tensor:
    """What the exported student makes of fixed pixels. (Some biases have no gradient but rounding: not compared.)"""
    content = torch.load(out / "student.pt", weights_only=True)
    student = Network(student_architecture(content["args"]))
    student.load_state_dict(content["model"])
    seen = gather(read_tile(tiles / "tile-0", need_manifest=True), np.arange(100))
    with torch.no_grad():
        chance = Chance(torch.Generator().manual_seed(0), slice(0, 100), 100)
        z: torch.Tensor = student(*draw_view(seen, (8, 8), NO_NOISE, chance).batches())
    return z


def test_two_processes_train_what_one_does(tiles: Path, tmp_path: Path) -> None:
    options = ("--steps=6", "--record-every=2", "--ema=0", "--learning-rate=0.004")
    alone = pretrain(tmp_path / "one", tiles, *options)
    assert alone.returncode == EXIT_OK, alone.stderr
    both = torchrun(tmp_path / "two", tiles, *options)
    assert both.returncode == EXIT_OK, both.stderr
    one, two = (embedded(tmp_path / name, tiles) for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=2e-3, rtol=0)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_groups_must_be_shared_out_evenly(tiles: Path, tmp_path: Path) -> None:
    done = torchrun(tmp_path / "out", tiles, "--steps=2", "--groups=1")
    assert done.returncode != EXIT_OK
    assert "--groups 1: must be a multiple of the 2 processes" in done.stderr


@pytest.mark.parametrize(("family", "dim"), [("v2-student", 128), ("v1.1-mpc", None), ("v2-teacher", 64)])
def test_a_student_comes_closer_to_any_teacher(tiles: Path, tmp_path: Path, family: str, dim: int | None) -> None:
    teacher = GOLDEN / family / "checkpoint.pt"
    options = ["--teacher", str(teacher), "--steps=40", "--record-every=10", "--learning-rate=0.01"]
    if dim == 128:
        options.append("--repr-dim=128")  # number by number; otherwise through a linear map
    tile = GOLDEN / family / "tile"
    done = pretrain(tmp_path / "out", tile, *options)
    assert done.returncode == EXIT_OK, done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())["recipe"]
    assert len(recipe["teacher"]) == 64


def test_a_teacher_that_is_no_checkpoint_is_named(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_bytes(b"nothing")
    done = pretrain(tmp_path / "out", tiles, "--teacher", str(tmp_path / "teacher.pt"))
    assert done.returncode == EXIT_BAD_INPUT
    assert "teacher.pt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_job_script_saves_and_asks_to_go_on_when_its_time_is_up(tiles: Path, tmp_path: Path) -> None:
    """Two processes under torchrun, stopped by the signal that Slurm sends before the limit."""
    out = tmp_path / "out"
    variables = {
        "OUT": str(out),
        "TILES": str(tiles),
        "PYTHON": sys.executable,
        "PYTORCH_SIF": "",
        "GPUS": "2",
        "OPTIONS": " ".join([*QUICK, "--steps=100000", "--save-every=5"]),
    }
    script = ROOT / "slurm" / "pretrain.sbatch"
    with subprocess.Popen(
        ["bash", str(script)], env={**environment(), **variables}, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as job:
        while not (out / "state.pt").exists():
            assert job.poll() is None, "it ended before it saved anything"
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=120)
    assert "end code=75" in said
    assert job.returncode == EXIT_TRY_AGAIN
    assert int(torch.load(out / "state.pt", weights_only=True)["step"]) > 0
