"""Trainings that are killed, stopped, repeated or given something else: the files at the end tell."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.pretraining import command, environment, make_tiles, pretrain

from infer.contract import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN
from infer.weights import load_checkpoint

pytestmark = pytest.mark.slow

STEPS = ("--steps=60", "--save-every=10", "--record-every=5", "--seed=5", "--direct-redundancy=0.05", "--noise=1")
RESULTS = ("student.pt", "metrics.jsonl", "curve.svg", "recipe.json")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def undisturbed(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = pretrain(out, tiles, *STEPS)
    assert done.returncode == EXIT_OK, done.stderr
    return out


def interrupted(out: Path, tiles: Path, number: signal.Signals, *options: str) -> int:
    """Start a training, signal it as soon as it has saved a state, and give its exit code."""
    with subprocess.Popen(
        command(out, tiles, *STEPS, *options), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        while not (out / "state.pt").exists():
            assert process.poll() is None, "it ended before it saved anything"
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(timeout=120)


def step_of(out: Path) -> int:
    return int(torch.load(out / "state.pt", weights_only=True)["step"])


def same_state(one: Path, two: Path) -> None:
    """Optimiser and averages are equal to the last bit (pickle may share strings another way)."""
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (one, two)]
    for part in ("objective", "average"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    for number, moments in states[0]["optimiser"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, states[1]["optimiser"]["state"][number][name]), (number, name)


def test_a_killed_training_ends_with_the_same_bytes(tiles: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert interrupted(tmp_path / "out", tiles, signal.SIGKILL) == -signal.SIGKILL
    assert 0 < step_of(tmp_path / "out") < 60
    done = pretrain(tmp_path / "out", tiles, *STEPS)
    assert done.returncode == EXIT_OK, done.stderr
    for name in RESULTS:
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name
    same_state(tmp_path / "out", undisturbed)


def test_a_stopped_training_saves_says_75_and_goes_on(tiles: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert interrupted(tmp_path / "out", tiles, signal.SIGTERM) == EXIT_TRY_AGAIN
    assert 0 < step_of(tmp_path / "out") < 60
    done = pretrain(tmp_path / "out", tiles, *STEPS)
    assert done.returncode == EXIT_OK, done.stderr
    for name in RESULTS:
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_finished_training_is_left_alone(tiles: Path, undisturbed: Path) -> None:
    before = {name: (undisturbed / name).read_bytes() for name in RESULTS}
    assert pretrain(undisturbed, tiles, *STEPS).returncode == EXIT_OK
    assert {name: (undisturbed / name).read_bytes() for name in RESULTS} == before


def test_what_is_exported_is_a_published_student(undisturbed: Path) -> None:
    checkpoint = load_checkpoint(undisturbed / "student.pt")
    assert checkpoint.family == "v2-student"
    assert checkpoint.trained
    content = torch.load(undisturbed / "student.pt", weights_only=True)
    assert content["smalti"]["recipe"]["seed"] == 5
    assert content["args"]["matryoshka_dims"] == "16,32"
    assert all(value.dtype == torch.float32 for value in content["model"].values())


@pytest.mark.parametrize(
    "objective",
    [
        ("--monthly-weight=0", "--twins-weight=1", "--direct-redundancy=0.3"),
        ("--monthly-weight=5", "--twins-weight=0", "--learning-rate=0.01"),
    ],
    ids=["twins", "months"],
)
def test_training_lowers_the_loss_and_keeps_all_dimensions_alive(
    tiles: Path, tmp_path: Path, objective: tuple[str, ...]
) -> None:
    options = ("--steps=150", "--record-every=30", "--batch=96", "--latent-dim=8", *objective)
    done = pretrain(tmp_path / "out", tiles, *options)
    assert done.returncode == EXIT_OK, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < 0.97 * records[0]["loss"]
    assert records[-1]["effective_rank"] > 1.5
    assert records[-1]["spread_min"] > 1e-3


def test_metrics_tell_of_collapse(undisturbed: Path) -> None:
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(5, 61, 5))
    assert {"effective_rank", "spread_min", "cosine", "cosine_centred"} <= set(records[-1])


def test_another_recipe_or_other_tiles_in_the_same_folder_are_refused(
    tiles: Path, undisturbed: Path, tmp_path: Path
) -> None:
    before = (undisturbed / "student.pt").read_bytes()
    done = pretrain(undisturbed, tiles, *STEPS, "--warmup=5")
    assert done.returncode == EXIT_BAD_INPUT
    assert "another warmup" in done.stderr
    done = pretrain(undisturbed, make_tiles(tmp_path / "fewer", count=1), *STEPS)
    assert done.returncode == EXIT_BAD_INPUT
    assert "another tiles" in done.stderr
    assert (undisturbed / "student.pt").read_bytes() == before


def test_a_damaged_state_is_named(tiles: Path, tmp_path: Path) -> None:
    assert interrupted(tmp_path / "out", tiles, signal.SIGTERM) == EXIT_TRY_AGAIN
    state = tmp_path / "out" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    done = pretrain(tmp_path / "out", tiles, *STEPS)
    assert done.returncode == EXIT_BAD_INPUT
    assert "state.pt: not a readable checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_collapsed_student_is_not_exported(tiles: Path, tmp_path: Path) -> None:
    """Weight decay that strong leaves an embedding that does not depend on its input."""
    options = ("--steps=80", "--learning-rate=0.2", "--weight-decay=4.9", "--warmup=1", "--ema=0", "--record-every=20")
    done = pretrain(tmp_path / "out", tiles, *options)
    assert done.returncode == EXIT_FAILED, done.stderr
    assert "collapsed" in done.stderr
    assert not (tmp_path / "out" / "student.pt").exists()


def test_bfloat16_trains_without_a_scaler(tiles: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        done = pretrain(tmp_path / precision, tiles, "--steps=8", "--record-every=1", f"--precision={precision}")
        assert done.returncode == EXIT_OK, done.stderr
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [json.loads(line)["loss"] for line in lines]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
