"""What this side knows of the engine's outputs without asking it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.embedded import TOML, tiled_run

from infer.contract import Run, Shard, SmaltiError, planned_tiles, sha256_file, write_manifest
from infer.contract.registry import cache_path
from preproc.cluster.submit import common_script
from preproc.run.config import Config, parse_config
from preproc.run.engine import InferStage, engine_command
from preproc.run.profile import load_profile
from preproc.run.resources import ENGINE
from preproc.run.stage import run_stage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiled_run(tmp_path / "run", across=1, down=1)


def config(run: Run, model: str = 'name = "demo"') -> Config:
    return parse_config(f"{TOML}[model]\n{model}\n", run.config)


def embedded(run: Run, checkpoint: str) -> None:
    """An embedding's manifest as the engine would write it."""
    (tile,) = planned_tiles(run)
    inputs = {
        "checkpoint": checkpoint, "dim": 128, "engine": 1, "output": "int8", "precision": "float32",
        "tile": "not fetched",
    }  # fmt: skip
    run.embeddings.mkdir()
    write_manifest(run.embeddings / f"{tile.name}.json", "embedding", inputs=inputs, files=[])


def test_embeddings_of_another_checkpoint_or_precision_are_stale(run: Run, tmp_path: Path) -> None:
    embedded(run, sha256_file(cache_path("demo")))
    (tmp_path / "other.pt").write_bytes(b"other weights")

    def state(model: str) -> str:
        (unit,) = InferStage().open(run, config(run, model)).units
        return unit.state().kind

    assert state('name = "demo"') == "complete"
    assert state('name = "demo"\nprecision = "float32"') == "complete"
    assert state('name = "demo"\nprecision = "bfloat16"') == "stale"
    assert state('name = "demo"\noutput = "float32"') == "stale"
    assert state(f'checkpoint = "{tmp_path}/other.pt"') == "stale"
    assert state(f'checkpoint = "{tmp_path}/gone.pt"') == "complete"  # cannot be told here: the engine says
    (tmp_path / "other.pt").write_bytes(cache_path("demo").read_bytes())
    assert state(f'checkpoint = "{tmp_path}/other.pt"') == "complete"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, and a program on the PATH that would run it."""
    (tmp_path / "image.sif").write_bytes(b"")
    (tmp_path / "apptainer").write_text("")
    (tmp_path / "apptainer").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "image.sif"


def test_the_container_is_given_the_engine_and_nothing_that_lies_beside_it(run: Run, image: Path) -> None:
    """Beside an installed infer/ lies all of site-packages, numpy for another Python among it."""
    command = engine_command(run, config(run, f'name = "demo"\n[site]\ncontainer = "{image}"'), Shard())
    binds = {command[at + 1] for at, word in enumerate(command) if word == "--bind"}
    assert binds == {str(run.root), f"{ENGINE}:/opt/smalti/infer"}
    assert command[command.index("--env") + 1].split(",")[0] == "PYTHONPATH=/opt/smalti"


def test_the_engine_is_told_of_the_scratch_disk(
    run: Run, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    site = f'[site]\nscratch = "$NODE_DISK/x"\ncontainer = "{image}"'
    command = engine_command(run, config(run, f'name = "demo"\n{site}'), Shard())
    assert command[-2:] == ["--scratch", f"{tmp_path}/disk/x"]
    assert ["--bind", f"{tmp_path}/disk/x"] == command[(at := command.index(f"{tmp_path}/disk/x")) - 1 : at + 1]
    with pytest.raises(SmaltiError, match="command substitution have no place"):
        config(run, 'name = "demo"\n[site]\nscratch = "$(pwd)"')


@pytest.mark.parametrize("name", ["a:b", "x,y"])
def test_a_folder_whose_name_no_bind_can_take_is_refused(tmp_path: Path, image: Path, name: str) -> None:
    odd = Run(tmp_path / name)
    odd.root.mkdir()
    with pytest.raises(SmaltiError, match="rename or move it"):
        engine_command(odd, config(odd, f'name = "demo"\n[site]\ncontainer = "{image}"'), Shard())


def test_the_container_sees_what_the_site_says(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Program, GPU option, the site's paths and a folder of weights: the same in local mode as in a job."""
    image, program = tmp_path / "image.sif", tmp_path / "singularity"
    image.write_bytes(b"")
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "weights"))
    site = (
        f'[site]\ncontainer = "{image}"\n[site.runtime]\nprogram = "singularity"\ngpu_flag = "--nv"\nbinds = ["/data"]'
    )
    settings = config(run, f'name = "tessera-v2-small"\n{site}\n[site.jobs.infer]\ngpus = 1')
    command = engine_command(run, settings, Shard())
    assert command[:3] == ["singularity", "exec", "--cleanenv"]
    assert command.index("--nv") < command.index(str(image))
    bound = {command[at + 1] for at, part in enumerate(command) if part == "--bind"}
    assert {"/data", str(run.root), str(tmp_path / "weights")} <= bound
    assert command[command.index("--device") + 1] == "cuda", "a GPU that was promised is not done without"
    job = common_script(run, settings, load_profile("local", run.root, settings.site), 1, kind="infer")
    assert job.container is not None
    assert command[: len(job.container.options())] == job.container.options(), "job and local mode differ"


def test_a_file_where_the_embeddings_go_is_named(run: Run) -> None:
    run.embeddings.write_text("")
    with pytest.raises(SmaltiError, match=r"embeddings: is a file where a folder is needed"):
        run_stage(InferStage(), run, config(run))


STAND_IN = """
import os, sys
path, wanted = sys.argv[1:3]
if not os.path.exists(path) or "--overwrite" in sys.argv:
    with open(path + ".new", "w") as stream:
        stream.write(wanted)
    os.replace(path + ".new", path)
"""
"""Writes the manifest of one embedding, where it is missing or `--overwrite` is given."""


def test_what_the_engine_embedded_again_counts_as_built(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded(run, sha256_file(cache_path("demo")))
    (path,) = run.embeddings.glob("*.json")
    command = [sys.executable, "-c", STAND_IN, str(path), path.read_text()]
    monkeypatch.setattr("preproc.run.engine.engine_command", lambda *_: command)
    again = run_stage(InferStage(), run, config(run))
    assert (again.built, again.complete_before) == (0, 1)
    forced = run_stage(InferStage(), run, config(run), force=True)
    assert (forced.built, forced.complete_before) == (1, 0)
    path.unlink()
    assert run_stage(InferStage(), run, config(run)).built == 1
