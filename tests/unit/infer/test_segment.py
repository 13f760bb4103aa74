"""The segmentation head: trained by the engine, applied in numpy, from labels to a map without seams."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from support.mosaicked import EPSG, config, embed_crops, parcel_labels, planned_run

from infer.contract import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    FormatError,
    Plan,
    PlannedTile,
    Run,
    Shard,
    SmaltiError,
)
from infer.contract.classification import AccuracyManifest, ClassifierManifest
from infer.contract.rasters import MapManifest
from infer.contract.segment import Ground, lattice, network_files, shapes, standardised
from infer.pretrain.batches import Place
from infer.pretrain.processes import Execution
from infer.segment.__main__ import main, read_job
from infer.segment.chips import Labels
from infer.segment.loop import Training
from infer.segment.network import UNet as Network
from infer.segment.network import arrays
from preproc.classify.model import load_classifier
from preproc.classify.predict import PredictStage
from preproc.classify.sample import SampleStage
from preproc.classify.segment import PROCESSES
from preproc.classify.train import TrainStage, TrainTrialsStage
from preproc.classify.unet import Blended, UNet
from preproc.classify.validate import ValidateStage
from preproc.cluster.slurm import TaskId
from preproc.cluster.submitted import SubmittedJob
from preproc.cluster.tasks import shared_units, tasks_done
from preproc.run.config import Config
from preproc.run.stage import run_stage
from preproc.run.status import Survey

ROOT = Path(__file__).parents[3]
EXTRA = """
group = "parcel"
[classify]
method = "segment"
folds = 2
trials = 0
shrink = 0
[segment]
steps = 30
batch = 4
chip = 16
width = 8
"""


def tile_corner(tile: PlannedTile) -> tuple[int, int]:
    """Row and column of a tile's upper left pixel."""
    rows, columns = lattice(np.array([tile.epsg]), np.array([tile.west + 5]), np.array([tile.north - 5]))
    return int(rows[0]), int(columns[0])


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def labelled(root: Path, cells: Sequence[tuple[int, int, int]]) -> Run:
    run = planned_run(root, cells)
    embed_crops(run, noise=0.8)
    parcel_labels(run)
    run_stage(SampleStage(), run, config(run, EXTRA))
    return run


@pytest.fixture(scope="module", autouse=True)
def _as_before() -> Iterator[None]:
    """What the engine sets of torch is put back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on four tiles of 32 pixels; the job of its networks is kept aside."""
    run = labelled(tmp_path_factory.mktemp("segment") / "run", [(EPSG, c, r) for r in range(2) for c in range(2)])
    settings = config(run, EXTRA)
    assert run_stage(TrainTrialsStage(), run, settings, shard=Shard(0, 2)).noun == "networks"
    shutil.copytree(run.logs / "study", run.root / "kept")
    run_stage(TrainStage(), run, settings)
    return run


def job_of(run: Run) -> Path:
    return next((run.root / "kept").glob("segment-*"))


def copied(run: Run, to: Path) -> Run:
    shutil.copytree(run.root, to)
    return Run(to)


def head(seed: int = 0, dim: int = 6, width: int = 8, classes: int = 3) -> tuple[Network, UNet]:
    torch.manual_seed(seed)
    network = Network(dim, width, classes)
    for value in network.parameters():
        value.data += 0.1 * torch.randn_like(value)
    plain = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    return network, UNet(np.arange(1, classes + 1), *plain, arrays(network))


# the network


def test_numpy_applies_what_torch_trains() -> None:
    network, plain = head()
    assert {name: value.shape for name, value in plain.arrays.items()} == shapes(6, 8, 3)
    values = np.random.default_rng(0).normal(size=(32, 48, 6)).astype(np.float32)
    values[:7, :9] = np.nan
    seen = standardised(values, plain.mean_c, plain.scale_c)
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(seen.transpose(2, 0, 1)[None].copy())), dim=1)
    np.testing.assert_allclose(plain.shares(values), expected[0].permute(1, 2, 0).numpy(), atol=2e-6)


def test_arrays_that_are_no_head_are_refused(tmp_path: Path) -> None:
    _, plain = head()
    path = tmp_path / "classifier.npz"
    plain.save(path)
    first = path.read_bytes()
    UNet.load(path).save(path)
    assert path.read_bytes() == first
    wrong = {**plain.arrays, "up1_w": plain.arrays["up1_w"][:2]}
    replace(plain, arrays=wrong).save(path)
    with pytest.raises(FormatError, match="do not fit each other"):
        UNet.load(path)
    nan = {**plain.arrays, "head_b": plain.arrays["head_b"] * np.float32(np.nan)}
    replace(plain, arrays=nan).save(path)
    with pytest.raises(FormatError, match="head_b holds what is no number"):
        UNet.load(path)
    replace(plain, arrays={**plain.arrays, "stem_w": np.float32(1)}).save(path)
    with pytest.raises(FormatError, match="do not fit each other"):
        UNet.load(path)
    for content in (b"nothing", first[: len(first) // 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="not readable"):
            UNet.load(path)
    np.savez_compressed(path, **plain.arrays)
    with pytest.raises(FormatError, match="not readable \\(compressed"):
        UNet.load(path)
    with pytest.raises(SmaltiError, match="cannot say anything of single vectors"):
        plain.predict_proba(np.zeros((2, 6)))


# the ground


def test_windows_cross_the_edges_of_tiles(prepared: Run) -> None:
    tiles = Plan.read(prepared).tiles
    ground = Ground(prepared, tiles, checksums=True)
    row, column = min(tile_corner(tile) for tile in tiles)
    zone = EPSG % 100
    whole = ground.window(zone, row, column, 64, 64)
    assert whole is not None
    assert np.isfinite(whole).all(axis=2).mean() > 0.9
    part = ground.window(zone, row + 20, column + 25, 30, 20)
    assert part is not None
    np.testing.assert_array_equal(part, whole[20:50, 25:45])
    beyond = ground.window(zone, row - 10, column - 10, 20, 20)
    assert beyond is not None
    assert np.isnan(beyond[:10]).all()
    np.testing.assert_array_equal(beyond[10:, 10:], whole[:10, :10])
    assert ground.window(zone + 1, row, column, 8, 8) is None


def test_the_lattice_of_a_zone_goes_on_across_the_equator() -> None:
    epsg, x = np.array([32631, 32731]), np.array([500_005.0, 500_005.0])
    rows, columns = lattice(epsg, x, np.array([5.0, 9_999_995.0]))
    assert rows.tolist() == [-1, 0]
    assert columns.tolist() == [50_000, 50_000]


def test_single_pixels_and_rectangles_agree_wherever_they_begin(prepared: Run) -> None:
    """So that neither sheets nor strips leave a seam, and figures are of what is on the map."""
    _, plain = head()
    tiles = Plan.read(prepared).tiles
    row, column = min(tile_corner(tile) for tile in tiles)

    def fresh() -> Blended:
        return Blended(plain, Ground(prepared, tiles, checksums=False), EPSG % 100)

    whole = fresh().rectangle(row, column, 64, 64)
    np.testing.assert_allclose(whole.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_array_equal(fresh().rectangle(row + 13, column + 7, 40, 51), whole[13:53, 7:58])
    strips = fresh()
    np.testing.assert_array_equal(
        np.concatenate([strips.rectangle(row + top, column, 16, 64) for top in range(0, 64, 16)]), whole
    )
    rows, columns = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    order = np.random.default_rng(0).permutation(64 * 64)[:500]
    found = fresh().pixels(row + rows.ravel()[order], column + columns.ravel()[order], 2)
    np.testing.assert_array_equal(found, whole.reshape(-1, 3)[order])


# training


def test_chips_are_a_function_of_step_and_place_and_hide_what_is_tested(prepared: Run) -> None:
    job = read_job(job_of(prepared))
    labels = Labels(job_of(prepared), job, "fold-1")
    both = labels.chips(3, Place())
    second = Labels(job_of(prepared), job, "fold-1").chips(3, Place(1, 2))
    assert torch.equal(both.x_bchw[2:], second.x_bchw)
    np.testing.assert_allclose(both.share_bkhw.sum(dim=(1, 2, 3)), 1, rtol=1e-5)
    stored = np.load(job_of(prepared) / "labels.npz")
    train_n = stored["train_mn"][job.networks.index("fold-1")]
    tested = {(r, c) for r, c in zip(stored["row_n"][~train_n], stored["col_n"][~train_n], strict=True)}
    top, left = int(stored["row_n"].min()), int(stored["col_n"].min())
    for down in range(0, 48, 8):  # chips before they are turned
        shown = np.argwhere(labels.shares(0, top + down, left).any(axis=2))
        assert len(shown)
        assert not {(top + down + r, left + c) for r, c in shown} & tested


def test_many_threads_draw_what_one_draws(prepared: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = read_job(job_of(prepared))
    monkeypatch.setattr("infer.segment.chips._cores", lambda: 8)
    monkeypatch.setattr("infer.contract.segment._OPEN", 1)  # so that threads close each other's embeddings
    alone = Labels(job_of(prepared), job, "final")
    for step, chips in enumerate(Labels(job_of(prepared), job, "final").stream(0, Place())):
        wanted = alone.chips(step, Place())
        assert torch.equal(chips.x_bchw, wanted.x_bchw)
        assert torch.equal(chips.share_bkhw, wanted.share_bkhw)


def test_threads_that_begin_at_once_read_a_plan_once(prepared: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job, plan, began = read_job(job_of(prepared)), Plan.read(prepared), []

    def read(run: Run) -> Plan:
        began.append(run)
        time.sleep(0.1)  # the others come meanwhile
        return plan

    monkeypatch.setattr("infer.segment.chips._cores", lambda: 4)
    monkeypatch.setattr(Plan, "read", read)
    next(Labels(job_of(prepared), job, "final").stream(0, Place()))
    assert len(began) == 1


def test_a_stopped_training_resumes_bit_for_bit(prepared: Run, tmp_path: Path) -> None:
    job = shutil.copytree(job_of(prepared), tmp_path / "job")
    manifest, path, state = network_files(job, "fold-1")
    wanted = path.read_bytes()
    manifest.unlink()
    path.unlink()
    command = [sys.executable, "-m", "infer.segment", str(job), "--device=cpu", "--networks=fold-1", "--save-every=3"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        while not state.exists():
            assert process.poll() is None, "it ended before it saved anything"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode in (EXIT_TRY_AGAIN, EXIT_OK), said
    assert main([str(job), "--device=cpu", "--networks=fold-1"]) == EXIT_OK
    assert path.read_bytes() == wanted
    assert not state.exists()


def test_what_is_damaged_is_one_line(prepared: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = shutil.copytree(job_of(prepared), tmp_path / "job")
    labels, manifest = job / "labels.npz", job / "job.json"
    network_files(job, "fold-1")[0].unlink(missing_ok=True)

    def refused(*options: str) -> str:
        assert main([str(job), "--device=cpu", *options]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "the job has fold-1, fold-2, final" in refused("--networks=fold-9")
    network_files(job, "fold-1")[2].write_bytes(b"no state")
    assert "delete it to begin this network anew" in refused("--networks=fold-1")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "networks": ["../../evil"]}))
    assert "holds a path, not a name" in refused()
    manifest.write_text(json.dumps({**content, "recipe": {**content["recipe"], "width": 9}}))
    assert "not one of smalti's" in refused()
    manifest.write_text(json.dumps(content))
    labels.write_bytes(b"no labels")
    assert "labels.npz: not readable" in refused("--networks=fold-1")


@pytest.mark.slow
def test_two_processes_train_what_one_does(prepared: Run, tmp_path: Path) -> None:
    job = shutil.copytree(job_of(prepared), tmp_path / "job")
    manifest, path, _ = network_files(job, "fold-1")
    heads = [UNet.load(path)]
    manifest.unlink()
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "infer.segment"]
    options = [str(job), "--device=cpu", "--networks=fold-1"]
    done = subprocess.run(
        [*start, *options], env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == EXIT_OK, done.stderr
    heads.append(UNet.load(path))
    values = np.random.default_rng(0).normal(size=(16, 16, 6)).astype(np.float32)
    np.testing.assert_allclose(heads[1].shares(values), heads[0].shares(values), atol=5e-3)


def test_a_run_is_mapped_by_a_head_and_measured_beside_catboost(prepared: Run, tmp_path: Path) -> None:
    run = copied(prepared, tmp_path / "run")
    settings = config(run, EXTRA)
    for stage in (PredictStage(), ValidateStage()):
        run_stage(stage, run, settings)
    about = ClassifierManifest.read(run)
    assert about.method == "segment"
    assert about.parameters["steps"] == 30
    told = AccuracyManifest.read(run).performance
    assert [(row.method, row.chosen) for row in told.methods] == [("segment", True), ("catboost", False)]
    assert told.pixels.macro_f1 == told.methods[0].macro_f1
    assert told.baseline is None
    assert told.pixels.overall_accuracy.value > 0.7
    assert not (run.logs / "study").exists()
    with rasterio.open(next(run.map.glob("classes_*.tif"))) as raster:
        classes = raster.read(1)
    assert set(np.unique(classes)) <= {0, 1, 2, 3}
    assert (classes[3:, 3:] > 0).mean() > 0.95
    assert (classes[:3, :3] == 0).all(), "no embedding, no class"


def classes_of(run: Run) -> NDArray[np.uint8]:
    with rasterio.open(next(run.map.glob("confidence_*.tif"))) as raster:
        values: NDArray[np.uint8] = raster.read(1)
    return values


def test_sheets_leave_no_seam_and_know_what_lies_beside_them(prepared: Run, tmp_path: Path) -> None:
    cells = [(EPSG, c, r) for r in range(2) for c in range(5)]
    run = planned_run(tmp_path / "wide", cells)  # 160 pixels wide: sheets of 128 divide it
    embed_crops(run, noise=0.8)

    def settings(side: int) -> Config:
        found = config(run, EXTRA).mapped_by(prepared.model)
        return found.model_copy(update={"stitch": found.stitch.model_copy(update={"sheet": side})})

    run_stage(PredictStage(), run, settings(4096))
    whole = classes_of(run)
    run_stage(PredictStage(), run, settings(128), force=True)
    assert len(list(run.map.glob("sheet_*.json"))) == 2
    np.testing.assert_array_equal(classes_of(run), whole)
    session = PredictStage().open(run, settings(128))
    sheets = [unit.wanted() for unit in session.units if unit.kind == "map-sheet"]
    assert all(sheet["around"] for sheet in sheets)


@pytest.mark.parametrize("harm", ["missing", "manifest cut short", "values cut short"])
def test_a_tile_that_may_be_missing_is_nodata_and_its_neighbours_are_mapped(
    harm: str, prepared: Run, tmp_path: Path
) -> None:
    run = copied(prepared, tmp_path / "run")
    gone = max(Plan.read(run).tiles, key=tile_corner)  # the lower right one
    manifest, values = (run.embeddings / f"{gone.name}{suffix}" for suffix in (".json", ".npy"))
    if harm == "missing":
        manifest.unlink()
    else:
        broken = manifest if harm.startswith("manifest") else values
        broken.write_bytes(broken.read_bytes()[:-9])
    found = config(run, EXTRA).mapped_by(prepared.model)
    settings = found.model_copy(update={"stitch": found.stitch.model_copy(update={"missing": "nodata"})})
    run_stage(PredictStage(), run, settings)
    classes = classes_of(run)
    assert (classes[32:, 32:] == 0).all()
    assert (classes[:32, 32:] > 0).mean() > 0.9
    assert MapManifest.read(run).missing == (gone.name,)


def test_bytes_that_have_changed_stop_the_sheets_that_see_them_whatever_may_be_missing(
    prepared: Run, tmp_path: Path
) -> None:
    run = copied(prepared, tmp_path / "run")
    gone = max(Plan.read(run).tiles, key=tile_corner)
    values = run.embeddings / f"{gone.name}.npy"
    content = bytearray(values.read_bytes())
    content[-1] ^= 1
    values.write_bytes(content)
    found = config(run, EXTRA).mapped_by(prepared.model)
    settings = found.model_copy(update={"stitch": found.stitch.model_copy(update={"missing": "nodata"})})
    with pytest.raises(SmaltiError, match=rf"{gone.name}\.npy: its contents do not match the checksum"):
        run_stage(PredictStage(), run, settings)


# what is refused


def test_without_torch_and_container_it_says_so(prepared: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = copied(prepared, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.model.iterdir()}
    monkeypatch.setattr("preproc.run.container.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SmaltiError, match="torch is not installed here and no container is named"):
        run_stage(TrainStage(), run, config(run, EXTRA), force=True)
    assert {path.name: path.read_bytes() for path in run.model.iterdir()} == before


def test_an_engine_that_fails_leaves_the_model_as_it_was(
    prepared: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(prepared, tmp_path / "run")
    before = (run.model / "model.json").read_bytes()
    asked: list[list[str]] = []

    def engine(run: Run, config: Config, arguments: list[str], binds: list[str]) -> list[str]:
        asked.append(arguments)
        return [sys.executable, "-c", "raise SystemExit(1)"]

    monkeypatch.setattr("preproc.classify.segment.engine_python", engine)
    for together in ("1", "3"):
        monkeypatch.setenv(PROCESSES, together)
        with pytest.raises(SmaltiError, match=r"did not train network fold-1, .*its reason stands above"):
            run_stage(TrainStage(), run, config(run, EXTRA), force=True)
    assert (run.model / "model.json").read_bytes() == before
    assert asked[0][:2] == ["-m", "infer.segment"]
    assert asked[-1][:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m"]
    execution = Execution(torch.device("cpu"), Place(0, 3))
    with pytest.raises(SmaltiError, match="batch = 4: must be a multiple of the 3 processes"):
        Training(job_of(prepared), read_job(job_of(prepared)), "final", execution)


def test_jobs_that_cannot_be_trained_end_with_one_line(
    prepared: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Path(shutil.copytree(job_of(prepared), tmp_path / "job"))
    manifest, labels = job / "job.json", job / "labels.npz"
    whole = manifest.read_text(), labels.read_bytes()

    def refused(message: str, *options: str) -> None:
        assert main([str(job), *options]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1, said
        assert message in said[0]
        manifest.write_text(whole[0])
        labels.write_bytes(whole[1])

    refused("--save-every must be at least 1", "--save-every", "0")
    refused("--networks nobody: the job has", "--networks", "nobody")
    manifest.write_text(whole[0].replace('"width": 8', '"width": 9'))
    refused("job.json: its recipe is not one of smalti's")
    manifest.write_text(whole[0].replace('"final"', '"../final"'))
    refused("job.json: networks")
    manifest.write_text(whole[0][:-20])
    refused("job.json")
    labels.write_bytes(whole[1][:-99])
    refused("labels.npz", "--networks", "fold-2")
    stored = dict(np.load(labels))
    np.savez(labels, **{**stored, "train_mn": np.zeros_like(stored["train_mn"])})
    refused("labels.npz: fold-2 has no pixels to be trained on", "--networks", "fold-2")
    manifest.unlink()
    refused("job.json: ")


def test_other_embeddings_than_those_of_the_samples_are_refused(prepared: Run, tmp_path: Path) -> None:
    run = copied(prepared, tmp_path / "run")
    before = (run.model / "model.json").read_bytes()
    embed_crops(run, noise=5.0)
    other = config(run, EXTRA.replace("steps = 30", "steps = 2"))
    with pytest.raises(SmaltiError, match=r"other embeddings than those that are there now.*run `smalti sample"):
        run_stage(TrainStage(), run, other)
    assert (run.model / "model.json").read_bytes() == before


def test_single_vectors_are_not_for_a_head(prepared: Run) -> None:
    classifier = load_classifier(prepared.model)
    with pytest.raises(SmaltiError, match="a segmentation head"):
        classifier.predict_proba(np.zeros((3, 6), np.float32))


def test_the_job_script_trains_its_share_with_all_its_gpus(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$SMALTI_SEGMENT_PROCESSES, $APPTAINERENV_CUDA_VISIBLE_DEVICES: $*"\n')
    python.chmod(0o755)
    variables = {"RUN": "/a run", "PYBIN_PREPROC": str(python), "GPUS": "4", "TASKS": "3", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / "segment.sbatch")],
        env={**environment(), **variables, "SLURM_SUBMIT_DIR": str(ROOT), "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "4, 0,1,2,3: -s -m preproc.cli train /a run --shard 1/3\n" in done.stdout
    assert "end code=0" in done.stdout


def test_tasks_of_an_array_are_done_when_their_networks_are(prepared: Run, tmp_path: Path) -> None:
    run = copied(prepared, tmp_path / "run")
    settings = config(run, EXTRA)
    job = SubmittedJob(9, "train-networks", ("train",), "0-2", 3)
    tasks = dict.fromkeys((TaskId(9, 0), TaskId(9, 1), TaskId(9, 2)), job)

    def done() -> set[TaskId]:
        survey = Survey(run, settings)
        return tasks_done(survey, tasks, shared_units(survey, job.kind))

    assert done() == set(tasks), "the classifier is there"
    shutil.rmtree(run.model)
    assert done() == set()
    shutil.copytree(job_of(prepared), run.logs / "study" / job_of(prepared).name)
    assert done() == {TaskId(9, 0), TaskId(9, 2)}
