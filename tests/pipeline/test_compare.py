"""`smalti compare` from a fetched run: values as wall to wall, one bad model, a kill, and the same again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from support.runs import command, digest, environment, make_run, smalti

from infer.contract import Run, read_embedding
from infer.contract.tile import read_tile

MODELS = ("--methods", "linear", "--deals", "2", "--models", "demo,monthly")


def _results(root: Path) -> dict[str, str]:
    """What may not differ between two runs: all but what tells seconds."""
    found = digest(root / "compare")
    return {name: value for name, value in found.items() if name not in ("index.html", "compare.csv")}


def test_models_compared_on_labelled_pixels_alone(tmp_path: Path, archive: Path) -> None:
    root = make_run(tmp_path / "run", archive)
    smalti("plan", root)
    told = smalti("compare", root, "--dry-run").stdout
    assert "labelled pixels" in told
    assert "monthly" in told
    assert not (root / "compare").exists()
    refused = smalti("compare", root, *MODELS, check=False)
    assert refused.returncode == 2
    assert "have not been fetched" in refused.stderr
    smalti("fetch", root)
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    done = smalti("compare", root, *MODELS[:-1], f"demo,{bad},monthly", check=False)
    assert done.returncode == 1, done.stderr
    assert "1 of the models failed" in done.stderr
    assert "bad.pt" in done.stderr
    made = json.loads((root / "compare" / "compare.json").read_text())
    assert [model["name"] for model in made["models"]] == ["demo", "monthly"]
    assert list(made["failed"]) == ["bad.pt"]
    smalti("compare", root, *MODELS)
    first = _results(root)
    page = (root / "compare" / "index.html").read_text()
    assert "Which model is worth it here" in page
    assert "A million pixels take" in page

    _killed(tmp_path / "other", archive, first)

    smalti("infer", root)
    run, pixels = Run(root), 0
    for folder in sorted((root / "compare" / "pixels").iterdir()):
        rows, cols = np.asarray(read_tile(folder, need_manifest=True).pixels_p2).T
        alone = read_embedding(root / "compare" / "embeddings" / "demo", folder.name)
        whole = read_embedding(run.embeddings, folder.name)
        np.testing.assert_array_equal(alone.values_hwc[0], whole.values_hwc[rows, cols])
        np.testing.assert_allclose(alone.scales_hw[0], whole.scales_hw[rows, cols], rtol=1e-5)
        pixels += len(rows)
    assert pixels == made["pixels"] > 100


def _killed(root: Path, archive: Path, expected: dict[str, str]) -> None:
    """Kill a comparison twice on its way; the third ends with the same bytes."""
    make_run(root, archive)
    smalti("plan", root)
    smalti("fetch", root)
    for part in ("embeddings/demo", "scores"):
        process = subprocess.Popen(
            command("compare", root, *MODELS), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list((root / "compare" / part).glob("*.json")):
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    smalti("compare", root, *MODELS)
    assert _results(root) == expected
