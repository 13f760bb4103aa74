"""The engine's command line and what it leaves on disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from support.months_reference import random_presto
from support.pretraining import write_untrained
from support.recorded import GOLDEN

from bench.made_tile import made_tile
from infer import runner as infer_runner
from infer.__main__ import build_parser, main
from infer.contract import (
    BANDS,
    DEMO_CHECKPOINT,
    MASK_POLARITY,
    TILE_ARRAYS,
    FormatError,
    ModelJob,
    Run,
    Shard,
    is_released,
    read_embedding,
    read_tile,
    release_tile,
    scratch_folder,
    write_manifest,
    write_model_job,
    write_npy,
    write_pixels_of,
)
from infer.contract.manifest import describe_file
from infer.contract.monthly import monthly_composites
from infer.device import choose_device
from infer.due import Settings, TileTask
from infer.engine import Engine
from infer.fleet import part_of, worst
from infer.runner import DeviceLostError, TileRunner
from infer.weights import load_checkpoint
from preproc.run.config import Model

ROOT = Path(__file__).parents[3]
GRID = {"crs": "EPSG:32631", "transform": [10, 0, 0, 0, -10, 0]}


def write_tile(folder: Path, seed: int = 0, side: int = 6, manifest: bool = False, **changes: object) -> Path:
    folder.mkdir(parents=True)
    tile = made_tile(side, 12, 8, seed=seed)
    for name, spec in TILE_ARRAYS.items():
        write_npy(folder / spec.file, getattr(tile, name).astype(spec.dtype))
    if manifest:
        about = {
            "band_order": list(BANDS),
            "mask_polarity": MASK_POLARITY,
            "grid": GRID,
            "data_source": "mpc",
            **changes,
        }
        files = [folder / spec.file for spec in TILE_ARRAYS.values()]
        write_manifest(folder / "tile.json", "tile", inputs={}, files=files, fields=about)
    return folder


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        write_tile(tmp_path / "tiles" / name, seed=number, manifest=name != "a")
    return tmp_path / "tiles"


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    return write_untrained(tmp_path / "untrained.pt")


ENDS = (".npy", "_scales.npy", "_observations.npy", ".json")


def infer(tiles: Path, out: Path, *options: str, checkpoint: str | Path = DEMO_CHECKPOINT) -> int:
    arguments = ["--tiles", str(tiles), "--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu", *options]
    return main(arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def make_run(root: Path, names: str = "abcde", job: ModelJob | None = None) -> Run:
    run = Run(root)
    for number, name in enumerate(names):
        write_tile(run.tiles / name, seed=number, manifest=True)
    rows = [[name, 32631, 60 * number, 0] for number, name in enumerate(names)]
    write_manifest(run.plan, "plan", inputs={}, files=[], fields={"tile_size": 6, "tiles": rows})
    write_model_job(run, job or ModelJob("demo", None, "int8", 128, "auto"))
    return run


def test_a_folder_of_tiles_with_and_without_manifests(tiles, tmp_path, untrained, capsys):
    assert infer(tiles, tmp_path / "out", checkpoint=untrained) == 0
    for name in "abc":
        embedding = read_embedding(tmp_path / "out", name)
        assert embedding.shape_hwc == (6, 6, 128)
        about = embedding.manifest.as_json()
        assert set(about["inputs"]) == {"tile", "checkpoint", "output", "dim", "precision", "engine"}
        assert about["inputs"]["precision"] == "float32"
        assert about["model"]["trained"] is False
        assert "untrained demonstration model" in about["model"]["label"]
        assert about.get("grid") == (None if name == "a" else GRID)
        assert set(about["observations"]) == {"s2", "s1"}
    assert "untrained demonstration model" in capsys.readouterr().err


def test_a_folder_is_embedded_as_a_run_is(tiles, tmp_path):
    asked, setting = build_parser().parse_args([]), Model(name="demo").job()
    assert asked.precision == setting.precision
    assert infer(tiles / "b", tmp_path / "out") == 0
    embedding = read_embedding(tmp_path / "out", "b")
    assert (embedding.values_hwc.dtype, embedding.shape_hwc[2]) == (np.int8, setting.dim)


def test_a_registered_name_comes_before_a_file_of_that_name(tiles, tmp_path, untrained, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(untrained, "demo")
    assert infer(tiles / "b", tmp_path / "named", checkpoint="demo") == 0
    assert read_embedding(tmp_path / "named", "b").manifest.model.name == "demo"
    assert infer(tiles / "b", tmp_path / "file", checkpoint="./demo") == 0
    assert read_embedding(tmp_path / "file", "b").manifest.model.trained is False
    assert infer(tiles / "b", tmp_path / "twice", checkpoint="demo+demo") != 0
    assert "one of its parts comes twice" in capsys.readouterr().err


def test_an_embedding_of_months_that_went_by_day_of_year_is_made_again_where_that_matters(tmp_path):
    """30 June 2024 and 1 July 2023 are both day 182: only tiles that have it are stale."""
    season = {"window": {"start": "2023-07-01", "end": "2024-06-30"}}
    for name, day in (("a", "2024-06-30"), ("b", "2024-06-29")):
        write_tile(tmp_path / "tiles" / name, manifest=True, **season, dates={"s2": [day]})
    for checkpoint, marked in (("monthly", True), ("demo", False), ("demo+monthly", True)):
        out = tmp_path / checkpoint
        assert infer(tmp_path / "tiles", out, checkpoint=checkpoint) == 0
        inputs = {name: read_embedding(out, name).manifest.inputs for name in "ab"}
        assert inputs["a"].get("months") == ("by date" if marked else None)
        assert "months" not in inputs["b"]


def test_monthly_medians_come_by_the_same_way_and_leave_missing_months_missing(tiles, tmp_path):
    assert infer(tiles, tmp_path / "out", checkpoint="monthly") == 0
    before = contents(tmp_path / "out")
    assert infer(tiles, tmp_path / "out", checkpoint="monthly") == 0, "all complete"
    assert contents(tmp_path / "out") == before
    rows, cols = np.divmod(np.arange(36), 6)
    for name in "abc":
        embedding, tile = read_embedding(tmp_path / "out", name), read_tile(tiles / name, need_manifest=False)
        assert embedding.shape_hwc == (6, 6, 144)
        expected = monthly_composites(tile, rows, cols)
        found = embedding.window(slice(None), slice(None), gaps=True).reshape(36, 144)
        np.testing.assert_array_equal(found, expected)
        assert np.isnan(found).any()
        there = embedding.embedded(slice(None), slice(None))
        assert np.isfinite(embedding.window(slice(None), slice(None))[there]).all(), "filled for those who ask no gaps"
        assert embedding.manifest.nodata_pixels == int((~there).sum())
    assert infer(tiles, tmp_path / "codes", "--dtype", "int8", checkpoint="monthly") != 0
    assert infer(tiles, tmp_path / "least", "--min-clear-s2", "200", checkpoint="monthly") == 0
    assert not read_embedding(tmp_path / "least", "a").embedded(slice(None), slice(None)).any()


def test_one_tile_folder_alone(tiles, tmp_path):
    assert infer(tiles / "b", tmp_path / "out", "--output", "int8", "--dim", "32") == 0, "the old name of --dtype"
    embedding = read_embedding(tmp_path / "out", "b")
    assert embedding.values_hwc.dtype == np.int8
    assert embedding.shape_hwc == (6, 6, 32)


def test_complete_outputs_are_left_alone_and_stale_ones_made_again(tiles, tmp_path, capsys):
    out = tmp_path / "out"
    assert infer(tiles, out) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert infer(tiles, out) == 0
    assert "3 were complete" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    masks = np.load(tiles / "a" / "masks.npy")
    write_npy(tiles / "a" / "masks.npy", 1 - masks)
    (out / "b.npy").write_bytes(b"")
    assert infer(tiles, out) == 0
    assert "2 tiles done, 1 were complete" in capsys.readouterr().err
    assert infer(tiles, out, "--overwrite") == 0
    assert "3 tiles done" in capsys.readouterr().err


def test_one_bad_tile_does_not_stop_the_others(tiles, tmp_path, capsys):
    write_tile(tiles / "aa", seed=9)
    (tiles / "aa" / "masks.npy").unlink()
    (tiles / "b" / "bands.npy").write_bytes((tiles / "b" / "bands.npy").read_bytes()[:-10])
    assert infer(tiles, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "masks.npy: missing" in told
    assert "bands.npy" in told
    assert "2 tiles done, 0 were complete, 2 failed" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{tile}{end}" for tile in "ac" for end in ENDS}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "give a RUN directory"),
        (["--tiles", "nowhere", "--checkpoint", "demo", "--out", "o"], "no such folder"),
        (["--tiles", "."], "also needs --checkpoint and --out"),
        (["--tiles", "empty", "--checkpoint", "demo", "--out", "o"], "holds no tiles"),
        (["--tiles", "tiles", "--checkpoint", "none.pt", "--out", "o"], "no such checkpoint"),
        (["--tiles", "tiles", "--checkpoint", "demo", "--out", "o", "--dim", "7"], "dim 7"),
        (["--tiles", "tiles", "--checkpoint", "demo", "--out", "o", "--shard", "2/2"], "--shard"),
        (["--tiles", "tiles", "--checkpoint", "demo", "--out", "o", "--device", "abacus"], "--device abacus"),
        (["--tiles", "tiles", "--checkpoint", "demo", "--out", "o", "--processes", "0"], "--processes 0"),
        (["nowhere"], "no such run directory"),
    ],
)
def test_bad_arguments_have_one_clear_line(tiles, tmp_path, monkeypatch, capsys, options, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(options) == 2
    assert match in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())


def test_another_data_source_is_refused_unless_told_otherwise(tmp_path, capsys):
    write_tile(tmp_path / "tiles" / "t", manifest=True)
    aws = GOLDEN / "v1.1-aws" / "checkpoint.pt"
    assert infer(tmp_path / "tiles", tmp_path / "out", checkpoint=aws) == 1
    assert "come from 'mpc'" in capsys.readouterr().err
    assert infer(tmp_path / "tiles", tmp_path / "out", "--allow-source-mismatch", checkpoint=aws) == 0


def test_shards_together_make_the_bytes_of_the_whole(tmp_path):
    run = make_run(tmp_path / "run")
    assert main([str(run.root), "--device", "cpu"]) == 0
    whole = contents(run.embeddings)
    assert len(whole) == 5 * len(ENDS)
    for count in (2, 3):
        for path in run.embeddings.iterdir():
            path.unlink()
        for index in reversed(range(count)):
            assert main([str(run.root), "--shard", f"{index}/{count}", "--device", "cpu"]) == 0
        assert contents(run.embeddings) == whole


def test_processes_side_by_side_make_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "run", "abc")
    assert main([str(run.root), "--device", "cpu"]) == 0
    whole = contents(run.embeddings)
    for path in run.embeddings.iterdir():
        path.unlink()
    assert main([str(run.root), "--device=cpu", "--processes", "2"]) == 0
    assert contents(run.embeddings) == whole


def test_with_nothing_to_do_a_task_ends_without_torch(tmp_path):
    run = make_run(tmp_path / "run", "ab")

    def without_torch(*options: str) -> bool:
        arguments = [str(run.root), "--device", "cpu", *options]
        code = (
            "import sys; from infer.__main__ import main; sys.exit(main(sys.argv[1:]) or 3 * ('torch' in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stderr
        assert "were complete, 0 failed" in done.stderr or "1 tiles done" in done.stderr
        return done.returncode == 0

    assert run_engine(run) == 0
    assert without_torch()
    assert not without_torch("--release"), "their arrays are to be let go"
    assert without_torch("--release")
    assert without_torch("--shard", "1/2")
    job = json.loads(run.model_job.read_text())
    run.model_job.write_text(json.dumps({**job, "precision": "auto"}))
    assert without_torch()
    (run.embeddings / "a.npy").write_bytes(b"")
    assert without_torch("--shard", "1/2"), "b is whole"


def test_a_tile_that_was_not_fetched_is_said(tmp_path, capsys):
    run = make_run(tmp_path / "run", "ab")
    (run.tiles / "a" / "tile.json").unlink()
    assert main([str(run.root), "--device", "cpu"]) == 1
    assert "has not been fetched: run `smalti fetch`" in capsys.readouterr().err


def test_a_job_chooses_output_and_dimensions(tmp_path):
    run = make_run(tmp_path / "run", "a", ModelJob(None, str(DEMO_CHECKPOINT), "float32", 16, "bfloat16"))
    assert main([str(run.root), "--device", "cpu"]) == 0
    embedding = read_embedding(run.embeddings, "a")
    assert embedding.shape_hwc == (6, 6, 16)
    assert embedding.manifest.inputs["precision"] == "bfloat16"


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "infer", *arguments, "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_it_cleanly_and_the_same_command_goes_on(tmp_path, name):
    write_tile(tmp_path / "tiles" / "a", side=8)
    write_tile(tmp_path / "tiles" / "b", side=200, seed=1)
    arguments = ("--tiles", str(tmp_path / "tiles"), "--checkpoint", "demo", "--out", str(tmp_path / "out"))
    process = start(*arguments)
    while not (tmp_path / "out" / "a.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert f"{name}: stopping" in told
    assert "the same command goes on from here" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"a{end}" for end in ENDS}
    again = start(*arguments)
    assert "1 tiles done, 1 were complete" in again.communicate(timeout=120)[1]
    assert again.returncode == 0


def test_tiles_read_by_way_of_a_scratch_disk_give_the_same_bytes(tiles, tmp_path, monkeypatch):
    assert infer(tiles, tmp_path / "plain") == 0
    seen = []

    def looking(folder, **options):
        seen.append((folder.parent.parent, folder.name))
        return read_tile(folder, **options)

    monkeypatch.setattr(infer_runner, "read_tile", looking)
    scratch = tmp_path / "node"
    assert infer(tiles, tmp_path / "out", "--scratch", str(scratch)) == 0
    assert seen == [(scratch, name) for name in "abc"]
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert list(scratch.iterdir()) == []


def test_a_scratch_disk_that_refuses_costs_nothing_but_the_copy(tiles, tmp_path, monkeypatch, capsys):
    """Full for one tile, damaging another: both are read in place, and a tile that is damaged there is named there."""
    assert infer(tiles, tmp_path / "plain") == 0
    copyfile = shutil.copyfile
    refusals = {"a": errno.ENOSPC, "c": errno.EIO}

    def spoilt(source, target):
        if source.name == "masks.npy" and source.parent.name in refusals:
            raise OSError(refusals[source.parent.name], "refused")
        copyfile(source, target)
        if source.parent.name == "b" and source.name == "bands.npy":
            content = bytearray(target.read_bytes())
            content[-1] ^= 1
            target.write_bytes(content)

    monkeypatch.setattr(shutil, "copyfile", spoilt)
    (tiles / "c" / "sar_ascending.npy").write_bytes(b"")
    assert infer(tiles, tmp_path / "out", "--scratch", str(tmp_path / "node")) == 1
    told = capsys.readouterr().err
    assert "a is read in place, not by way of the scratch disk" in told
    assert "no space left" in told
    assert "c is read in place, not by way of the scratch disk: [Errno 5] refused" in told
    assert f"{tiles}/c/sar_ascending.npy: " in told.partition("1 failed")[2]
    whole = contents(tmp_path / "plain")
    assert contents(tmp_path / "out") == {name: whole[name] for name in whole if not name.startswith("c")}
    assert list((tmp_path / "node").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_on_the_scratch_disk_of_a_process_that_was_ended(tmp_path, number):
    for index, name in enumerate("ab"):
        write_tile(tmp_path / "tiles" / name, side=200, seed=index)
    scratch = tmp_path / "node"
    arguments = ("--tiles", str(tmp_path / "tiles"), "--checkpoint", "demo", "--out", str(tmp_path / "out"))
    process = start(*arguments, "--scratch", str(scratch))

    def mapped() -> str:
        return Path(f"/proc/{process.pid}/maps").read_text()

    while f"{scratch}/" not in mapped():  # the first tile is being computed from its copy
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    if number == signal.SIGKILL:  # which may have come while the second tile was copied
        scratch_folder(str(scratch))
    assert list(scratch.iterdir()) == []


def runner(tmp_path: Path, tiles: Path) -> tuple[TileRunner, list[TileTask], Engine]:
    engine = Engine(load_checkpoint(DEMO_CHECKPOINT), choose_device("cpu"))
    tasks = [TileTask(name, tiles / name, False) for name in "abc"]
    return TileRunner(engine, Settings(tmp_path / "out", "float32", 0), threading.Event()), tasks, engine


def test_a_device_that_vanishes_ends_the_shard(tiles, tmp_path, monkeypatch):
    made, tasks, engine = runner(tmp_path, tiles)

    def vanish(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("CUDA error: device-side unspecified launch failure\nmore")

    try:
        monkeypatch.setattr(type(engine.device), "on_cpu", property(lambda _self: False))
        monkeypatch.setattr(engine, "embed", vanish)
        with pytest.raises(DeviceLostError, match="unspecified launch failure") as caught:
            made.run(tasks)
        assert caught.value.exit_code == 75
        assert "\n" not in str(caught.value)
    finally:
        engine.close()


def test_a_disk_that_refuses_ends_it(tiles, tmp_path, monkeypatch, capsys):
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert infer(tiles, tmp_path / "out") == 1
    assert "no space left on the device" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_nan_fails_its_tile_only(tiles, tmp_path, untrained, capsys):
    content = torch.load(untrained, weights_only=True)
    content["model"]["s2_backbone.embedding.2.bias"].fill_(3e38)  # infinite in the sums only
    torch.save(content, untrained)
    empty = tiles / "c"  # its pixels have no observation at all, so nothing is computed for it
    (empty / "tile.json").unlink()
    for name in ("masks", "sar_ascending", "sar_descending"):
        write_npy(empty / f"{name}.npy", np.zeros_like(np.load(empty / f"{name}.npy")))
    assert infer(tiles, tmp_path / "out", checkpoint=untrained) == 1
    told = capsys.readouterr().err
    assert "a: NaN or infinity in the embedding of 36 pixels, first at row 0, column 0" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"c{end}" for end in ENDS}


def test_manifests_hold_no_times_and_no_hosts(tiles, tmp_path):
    assert infer(tiles, tmp_path / "one") == 0
    assert infer(tiles, tmp_path / "two") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    about = json.loads((tmp_path / "one" / "b.json").read_text())
    assert os.uname().nodename not in json.dumps(about)


def test_the_fleet_divides_a_shard_without_overlap():
    units = list(range(23))
    whole = Shard(1, 3).take(units)
    parts = [part_of(Shard(1, 3), member, 4).take(units) for member in range(4)]
    assert sorted(unit for part in parts for unit in part) == whole
    assert [worst(codes) for codes in ([0, 0], [0, 1, 75], [75, 0], [1, 2], [0, -9])] == [0, 1, 75, 2, 1]


def test_self_test_passes_here(capsys):
    assert main(["--self-test", "--device", "cpu"]) == 0
    assert "as expected" in capsys.readouterr().err


def test_self_test_notices_a_wrong_result(capsys, monkeypatch):
    monkeypatch.setattr("infer.normalisation.EPSILON", 1.0)
    monkeypatch.setattr("infer.prepare.EPSILON", 5.0)
    assert main(["--self-test", "--device", "cpu"]) == 1
    assert "NOT as expected" in capsys.readouterr().err


def test_expected_numbers_of_the_self_test_are_the_plain_computations():
    from bench.infer_baseline import embed_plain
    from infer.selftest import EXPECTED, formula_checkpoint, formula_tile

    found = embed_plain(formula_tile(), formula_checkpoint(), dtype=torch.float64)
    assert np.nanmax(np.abs(found - np.load(EXPECTED))) <= 1e-5
    assert {field.name for field in fields(formula_tile())} >= set(TILE_ARRAYS)


def arrays_of(run: Run, name: str) -> list[str]:
    return sorted(path.name for path in (run.tiles / name).glob("*.npy"))


def run_engine(run: Run, *options: str) -> int:
    return main([str(run.root), "--device", "cpu", *options])


def test_arrays_are_released_once_the_embedding_was_read_back(tmp_path):
    kept, run = make_run(tmp_path / "kept", "ab"), make_run(tmp_path / "run", "ab")
    assert run_engine(kept) == run_engine(run, "--release") == 0
    assert contents(kept.embeddings) == contents(run.embeddings)
    assert [arrays_of(run, name) for name in "ab"] == [[], []]
    assert (run.tiles / "a" / "tile.json").read_bytes() == (kept.tiles / "a" / "tile.json").read_bytes()
    with pytest.raises(FormatError, match=r"arrays were released .*fetch --force"):
        read_tile(run.tiles / "a", need_manifest=True)
    before = {path: path.stat().st_mtime_ns for path in run.embeddings.iterdir()}
    assert run_engine(run, "--release") == 0, "a released tile is no broken one"
    assert before == {path: path.stat().st_mtime_ns for path in run.embeddings.iterdir()}
    assert run_engine(kept, "--release") == 0, "what was complete before is released as well"
    assert [arrays_of(kept, name) for name in "ab"] == [[], []]


def test_an_embedding_that_cannot_be_read_back_keeps_its_tile(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path, "ab")

    def bad(folder: Path, name: str) -> None:
        if name == "a":
            raise FormatError("a.npy: its contents do not match")

    monkeypatch.setattr(infer_runner, "read_back", bad)
    assert run_engine(run, "--release") == 1
    assert "a failed: a.npy: its contents do not match; the tile's arrays are kept" in capsys.readouterr().err
    assert len(arrays_of(run, "a")) == len(TILE_ARRAYS)
    assert not (run.embeddings / "a.json").exists()
    assert arrays_of(run, "b") == []
    monkeypatch.undo()
    assert run_engine(run, "--release") == 0
    assert arrays_of(run, "a") == []


def test_a_complete_embedding_is_verified_before_its_tile_is_released(tmp_path, capsys):
    run = make_run(tmp_path, "a")
    assert run_engine(run) == 0
    good = (run.embeddings / "a.npy").read_bytes()
    (run.embeddings / "a.npy").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert run_engine(run, "--release") == 0
    assert "a is made again" in capsys.readouterr().err
    assert (run.embeddings / "a.npy").read_bytes() == good
    assert arrays_of(run, "a") == []


def test_a_released_tile_that_is_needed_again_is_taken_back(tmp_path, capsys):
    run = make_run(tmp_path, "ab")
    assert run_engine(run, "--release") == 0
    (run.embeddings / "a.npy").write_bytes(b"")
    assert run_engine(run, "--release") == 1
    assert "a: its arrays were released, and are needed to embed it anew: run `smalti fetch`" in capsys.readouterr().err
    assert not (run.tiles / "a" / "released.json").exists()
    assert (run.tiles / "b" / "released.json").exists()


def test_what_a_kill_left_of_a_tile_is_released_to_the_end(tmp_path, monkeypatch):
    run = make_run(tmp_path, "a")
    assert run_engine(run) == 0
    with monkeypatch.context() as patch:
        patch.setattr("infer.contract.tile._remove_arrays", lambda folder: 0)
        assert release_tile(run.tiles / "a") == 0
    assert is_released(run.tiles / "a")
    assert len(arrays_of(run, "a")) == len(TILE_ARRAYS)
    assert run_engine(run, "--release") == 0
    assert arrays_of(run, "a") == []


def test_pixels_taken_from_a_tile_embed_as_they_do_there(tmp_path):
    wide = {"crs": "EPSG:32631", "transform": [30_000, 0, 500_000, 0, -30_000, 5_600_000]}  # places tell apart
    window = {"start": "2021-01-01", "end": "2021-12-31"}
    whole = write_tile(tmp_path / "whole" / "t", seed=3, side=9, manifest=True, grid=wide, window=window)
    presto = tmp_path / "presto.pt"
    torch.save(random_presto(), presto)
    pixels = np.array([[0, 4], [3, 3], [8, 8], [5, 0], [7, 2]], np.int32)
    part = tmp_path / "part" / "t"
    part.mkdir(parents=True)
    write_pixels_of(read_tile(whole, need_manifest=True), part, pixels, {"of": "t"})
    assert read_tile(part, need_manifest=True).shape_hw == (1, 5)
    drawn = GOLDEN / "v1.0-float32" / "checkpoint.pt"  # whose draws depend on where a pixel is
    for checkpoint, options in ((DEMO_CHECKPOINT, ()), ("monthly", ()), (presto, ()), (drawn, ("--heads", "4"))):
        found = []
        for tiles in (whole, part):
            out = tmp_path / f"{Path(checkpoint).stem}-{tiles.parent.name}"
            assert infer(tiles, out, "--dtype", "float32", *options, checkpoint=checkpoint) == 0
            found.append(read_embedding(out, "t").window(slice(None), slice(None), gaps=True))
        np.testing.assert_allclose(found[1][0], found[0][pixels[:, 0], pixels[:, 1]], rtol=0, atol=1e-5)
    manifest = json.loads((part / "tile.json").read_text())
    write_npy(part / "pixels.npy", pixels[:4])
    manifest["files"]["pixels.npy"] = describe_file(part / "pixels.npy")
    (part / "tile.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match="row and column of 5 pixels"):
        read_tile(part, need_manifest=True)


def test_timings_say_how_long_each_tile_took(tiles, tmp_path):
    timings = tmp_path / "timings.jsonl"
    for _ in range(2):  # what is complete takes no time, and is not told again
        assert infer(tiles, tmp_path / "out", "--timings", str(timings), checkpoint="monthly") == 0
    lines = [json.loads(line) for line in timings.read_text().splitlines()]
    assert [line["tile"] for line in lines] == list("abc")
    assert all(0 < line["pixels"] <= 36 and line["seconds"] > 0 and line["cores"] >= 1 for line in lines)


def test_models_side_by_side_give_what_each_gives(tmp_path, capsys):
    tiles = write_tile(tmp_path / "tiles" / "t", seed=4, side=7, manifest=True)
    found = {}
    for name in ("demo", "monthly", "demo+monthly", "monthly+demo"):
        assert infer(tiles, tmp_path / name, *(("--dtype", "float32") if name == "demo" else ()), checkpoint=name) == 0
        found[name] = read_embedding(tmp_path / name, "t")
    both, around = found["demo+monthly"], found["monthly+demo"]
    assert both.gappy
    assert both.shape_hwc == (7, 7, 272)
    demo, monthly = found["demo"].values_hwc, found["monthly"].values_hwc
    np.testing.assert_array_equal(both.values_hwc, np.concatenate([demo, monthly], axis=-1))
    np.testing.assert_array_equal(around.values_hwc, np.concatenate([monthly, demo], axis=-1))
    everything = slice(None), slice(None)
    filled = found["monthly"].window(*everything)
    assert np.isnan(monthly).any(axis=-1).any(), "some month is missing somewhere"
    np.testing.assert_array_equal(both.window(*everything)[..., 128:], filled)
    np.testing.assert_array_equal(around.window(*everything)[..., :144], filled)
    np.testing.assert_array_equal(both.embedded(*everything), found["demo"].embedded(*everything))
    assert [part.numbers for part in both.manifest.model.parts or ()] == [128, 144]
    assert both.manifest.model.family == "v2-student+monthly"
    assert both.manifest.inputs["checkpoint"] not in (around.manifest.inputs["checkpoint"], "")
    np.testing.assert_array_equal(both.observations_hwm, found["demo"].observations_hwm)
    for options, message in ((("--dtype", "int8"), "one scale a pixel would crush"), (("--dim", "64"), "gives 272")):
        assert infer(tiles, tmp_path / "refused", *options, checkpoint="demo+monthly") != 0
        assert message in capsys.readouterr().err
    for wrong, message in (("demo+demo", "comes twice"), ("demo+nothing", "'nothing' is not known")):
        assert infer(tiles, tmp_path / "refused", checkpoint=wrong) != 0
        assert message in capsys.readouterr().err
