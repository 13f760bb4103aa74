"""`smalti compare` from a fetched run: values as wall to wall, one bad model, kills on the way, and the same again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from support.runs import command, digest, environment, make_run

from infer.contract import Run, SmaltiError, read_embedding
from infer.contract.classification import SamplesManifest
from infer.contract.rasters import MapManifest, MosaicManifest
from infer.contract.tile import read_tile
from preproc.classify.table import read_samples
from preproc.compare.compare import Wishes, compare, dry_run
from preproc.run.chain import run_all, run_one
from preproc.run.config import load_config
from preproc.run.stage import StageFailedError
from preproc.run.stages import stage_named

WISHES = Wishes(("demo", "monthly"), ("linear",), deals=2)


def _results(root: Path) -> dict[str, str]:
    """What may not differ between two runs: all but what tells seconds."""
    found = digest(root / "compare")
    return {name: value for name, value in found.items() if name not in ("index.html", "compare.csv")}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Run:
    """Planned and fetched, and nothing else."""
    run = Run(make_run(tmp_path_factory.mktemp("fetched") / "run", archive))
    for stage in ("plan", "fetch"):
        run_one(stage_named(stage), run, load_config(run))
    return run


def _copied(run: Run, root: Path) -> Run:
    return Run(Path(shutil.copytree(run.root, root)))


def test_models_compared_on_labelled_pixels_alone(tmp_path: Path, fetched: Run) -> None:
    run, other = _copied(fetched, tmp_path / "run"), _copied(fetched, tmp_path / "other")
    config = load_config(run)
    run.tiles.rename(tmp_path / "tiles")
    told = dry_run(run, config, WISHES)
    assert "labelled pixels" in told
    assert not (run.root / "compare").exists()
    with pytest.raises(SmaltiError, match="have not been fetched"):
        compare(run, config, WISHES)
    (tmp_path / "tiles").rename(run.tiles)
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    with pytest.raises(StageFailedError, match=r"1 of the models failed(.|\n)*bad.pt"):
        compare(run, config, Wishes(("demo", str(bad), "monthly"), ("linear",), deals=2))
    made = json.loads((run.root / "compare" / "compare.json").read_text())
    assert [model["name"] for model in made["models"]] == ["demo", "monthly"]
    assert list(made["failed"]) == ["bad.pt"]
    assert "macro-F1" in compare(run, config, WISHES)
    page = (run.root / "compare" / "index.html").read_text()
    assert "Which model is worth it here" in page
    _other_names_and_a_failing_engine(_copied(run, tmp_path / "renamed"))

    _kill_on_the_way(other.root)
    compare(other, load_config(other), WISHES)
    assert _results(other.root) == _results(run.root)

    run_one(stage_named("infer"), run, config)
    pixels = 0
    for folder in sorted((run.root / "compare" / "pixels").iterdir()):
        rows, cols = np.asarray(read_tile(folder, need_manifest=True).pixels_p2).T
        alone = read_embedding(run.root / "compare" / "embeddings" / "demo", folder.name)
        whole = read_embedding(run.embeddings, folder.name)
        np.testing.assert_array_equal(alone.values_hwc[0], whole.values_hwc[rows, cols])
        np.testing.assert_allclose(alone.scales_hw[0], whole.scales_hw[rows, cols], rtol=1e-5)
        pixels += len(rows)
    assert pixels == made["pixels"] + made["unseen"] > 100


def _other_names_and_a_failing_engine(run: Run) -> None:
    """Classes of other names are scored anew, and embeddings of other settings are not taken for those asked for."""
    labels = Path(str(load_config(run).labels.path))  # type: ignore[union-attr]  # it has [labels]
    content = json.loads(labels.read_text())
    for feature in content["features"]:
        feature["properties"]["crop"] += " (renamed)"
    (run.root / "renamed.geojson").write_text(json.dumps(content))
    run.config.write_text(run.config.read_text().replace(str(labels), str(run.root / "renamed.geojson")))
    config = load_config(run)
    compare(run, config, WISHES)
    made = json.loads((run.root / "compare" / "compare.json").read_text())
    names = {entry["name"] for entry in made["classes"]}
    assert all(name.endswith(" (renamed)") for name in names)
    assert all(set(score["by_class"]) == names for model in made["models"] for score in model["scores"])
    other = config.model_copy(update={"model": config.model.model_copy(update={"min_clear_s2": 2})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preproc.compare.compare.embed_folder", lambda *_: 1)
        with pytest.raises(StageFailedError, match=r"2 of the models failed(.|\n)*could not be embedded"):
            compare(run, other, WISHES)


def test_models_side_by_side_make_a_map(tmp_path: Path, fetched: Run) -> None:
    run = _copied(fetched, tmp_path / "run")
    toml = run.config.read_text()
    run.config.write_text(toml.replace('name = "demo"', 'name = "monthly+demo"').replace("trials = 2", "trials = 0"))
    config = load_config(run)
    wishes = Wishes(("demo", "monthly+demo"), ("linear",), deals=1)
    assert "monthly+demo" in compare(run, config, wishes)
    run_all(run, config)
    samples, map_ = SamplesManifest.read(run), MapManifest.read(run)
    assert (samples.dim, map_.model.family) == (272, "monthly+v2-student")
    assert map_.embeddings_as == "float32"
    table = read_samples(run)
    assert np.isnan(table.values_nc[:, :144]).any(), "missing months stay missing for CatBoost"
    assert np.isfinite(table.values_nc[:, 144:]).all()
    mosaic = MosaicManifest.read(run)
    assert mosaic.dtype == "float32"
    assert [path.name for path in run.mosaic.iterdir() if "scales" in path.name or path.suffix == ".zarr"] == []


def _kill_on_the_way(root: Path) -> None:
    """Kill a comparison when it has embedded something, and another when it has scored something."""
    asked = ("--models", "demo,monthly", "--methods", "linear", "--deals", "2")
    for part in ("embeddings/demo", "scores"):
        process = subprocess.Popen(
            command("compare", root, *asked), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list((root / "compare" / part).glob("*.json")):
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
