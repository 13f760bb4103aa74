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
from infer.contract.tile import read_tile
from preproc.compare.compare import Wishes, compare, dry_run
from preproc.run.chain import run_one
from preproc.run.config import load_config
from preproc.run.stage import StageFailedError
from preproc.run.stages import stage_named

WISHES = Wishes(("demo", "monthly"), ("linear",), deals=2)


def _results(root: Path) -> dict[str, str]:
    """What may not differ between two runs: all but what tells seconds."""
    found = digest(root / "compare")
    return {name: value for name, value in found.items() if name not in ("index.html", "compare.csv")}


def test_models_compared_on_labelled_pixels_alone(tmp_path: Path, archive: Path) -> None:
    run = Run(make_run(tmp_path / "run", archive))
    config = load_config(run)
    run_one(stage_named("plan"), run, config)
    told = dry_run(run, config, WISHES)
    assert "labelled pixels" in told
    assert not (run.root / "compare").exists()
    with pytest.raises(SmaltiError, match="have not been fetched"):
        compare(run, config, WISHES)
    run_one(stage_named("fetch"), run, config)
    other = Run(Path(shutil.copytree(run.root, tmp_path / "other")))
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
