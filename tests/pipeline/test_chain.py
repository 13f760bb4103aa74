"""The whole chain as people run it: over HTTP with tokens, on a real season, and where it must stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.archive_server.serve import serve
from support.runs import RUN_TOML, digest, environment, make_run, smalti

from infer.contract import Run, planned_tiles, read_embedding, read_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def by_file(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """A complete run on the archive's files."""
    root = make_run(tmp_path_factory.mktemp("by-file") / "run", archive)
    smalti("run", root)
    return root


@pytest.mark.slow
def test_a_search_and_reads_over_http_with_tokens_give_the_same_map(
    by_file: Path, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(archive, token_lifetime_s=400) as served:
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        text = RUN_TOML.replace('source = "static"', 'source = "mpc"').replace(
            'href = "{archive}/items.json"', f'url = "{served.url}"'
        )
        root = make_run(tmp_path / "run", archive, text)
        smalti("run", root)
        searches = served.requests(match="/search")
        sent = sum(served.bytes_sent().values())
    for tile in planned_tiles(Run(root)):
        for file in (by_file / "tiles" / tile.name).glob("*.npy"):
            assert (root / "tiles" / tile.name / file.name).read_bytes() == file.read_bytes(), file.name
        for file in (by_file / "embeddings").glob(f"{tile.name}*.npy"):
            assert (root / "embeddings" / file.name).read_bytes() == file.read_bytes()
    stored = "".join(path.read_text() for path in (root / "items").iterdir())
    assert "sig=" not in stored, "hrefs are stored unsigned"
    assert len(searches) <= 4, "one search a collection, whatever the number of tiles"
    assert sent > 0
    (ours,), (theirs,) = (sorted((place / "map").glob("classes_*.tif")) for place in (root, by_file))
    with rasterio.open(ours) as left, rasterio.open(theirs) as right:
        np.testing.assert_array_equal(left.read(), right.read())


def test_outputs_name_the_model_the_window_and_the_source(by_file: Path) -> None:
    zone = read_manifest(by_file / "mosaic" / "mosaic.json", "mosaic", remedy="")["zones"]["31N"]
    with rasterio.open(by_file / "mosaic" / zone["scales"]) as dataset:
        scales = dataset.read(1)
    with rasterio.open(by_file / "mosaic" / zone["raster"]) as dataset:
        tags = dataset.tags()
        assert dataset.count == 128
        codes = dataset.read()
        transform = dataset.transform
    values = codes.astype(np.float32) * scales
    assert tags["SMALTI_MODEL"] == "demo"
    assert (tags["SMALTI_WINDOW_START"], tags["SMALTI_WINDOW_END"]) == ("2021-10-01", "2022-09-30")
    for tile in planned_tiles(Run(by_file)):
        embedding = read_embedding(by_file / "embeddings", tile.name)
        column, row = (int(v) for v in ~transform @ (tile.west, tile.north))
        expected = embedding.window(slice(0, tile.size), slice(0, tile.size))
        found = values[:, max(row, 0) : row + tile.size, max(column, 0) : column + tile.size].transpose(1, 2, 0)
        inside = expected[max(-row, 0) :, max(-column, 0) :][: found.shape[0], : found.shape[1]]
        np.testing.assert_array_equal(found, inside)


def test_status_says_what_is_there(by_file: Path, tmp_path: Path, archive: Path) -> None:
    done = json.loads(smalti("status", by_file, "--json").stdout)
    stages = done["stages"] if isinstance(done, dict) else done
    assert all(stage["complete"] for stage in stages)
    root = make_run(tmp_path / "run", archive)
    smalti("plan", root)
    fresh = smalti("status", root, check=False)
    assert fresh.returncode == 1
    assert "waiting" in fresh.stdout


def test_a_run_without_labels_ends_with_the_mosaic(tmp_path: Path, archive: Path) -> None:
    root = make_run(tmp_path / "run", archive, RUN_TOML.split("[labels]")[0])
    done = smalti("run", root)
    assert "embeddings_" in done.stdout
    assert not (root / "map").exists()
    assert smalti("status", root).returncode == 0


def series_bytes(root: Path) -> int:
    """What the arrays of tiles take on disk now."""
    total = 0
    for folder, _, names in os.walk(root / "tiles"):  # passes over folders that vanish
        for name in names:
            if name.endswith(".npy"):
                with suppress(OSError):  # let go meanwhile
                    total += (Path(folder) / name).stat().st_size
    return total


def test_a_run_in_waves_that_keeps_records_only_gives_the_same_map(
    by_file: Path, archive: Path, tmp_path: Path
) -> None:
    budget = 700_000
    text = RUN_TOML.replace("size = 32", 'size = 32\nkeep = "record"') + f'[site]\ntile_space = "{budget // 1000}kB"\n'
    root = make_run(tmp_path / "run", archive, text)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(smalti, "run", root)
        most = 0
        while not running.done():
            most = max(most, series_bytes(root))
            time.sleep(0.005)
    assert "wave 3 of" in running.result().stderr
    assert 0 < most <= budget < series_bytes(by_file)
    kept, made = digest(by_file), digest(root)
    gone = {name for name in kept if name not in made}
    assert gone == {name for name in kept if name.startswith("tiles/") and name.endswith(".npy")}
    more = {name for name in made if name not in kept and not name.endswith("medians.npz")}
    assert more == {f"{Path(name).parent}/released.json" for name in kept if name.endswith("tile.json")}
    differing = {name for name in kept if name in made and made[name] != kept[name]}
    # the report shows the settings, and `fetch` keeps medians of labelled pixels that sampling may not choose
    assert {name for name in differing if not name.endswith("medians.npz")} <= {
        "report/index.html",
        "report/report.json",
    }
    accuracy = read_manifest(root / "accuracy.json", "accuracy", remedy="")
    assert accuracy["performance"]["baseline"] is not None, "compared, though the arrays were gone before sampling"
    shown = smalti("status", root)
    assert "released" in shown.stdout
    assert "everything is complete" in smalti("run", root).stderr
    broken = next((root / "embeddings").glob("*_scales.npy"))
    broken.write_bytes(b"")
    for stage in ("fetch", "infer"):
        smalti(stage, root)
    assert digest(root) == made, "the tile of a broken embedding is fetched again, and released again"


def test_the_tutorials_notebook_runs_on_a_run(by_file: Path, archive: Path, tmp_path: Path) -> None:
    """Its cells one after another, without Jupyter."""
    (tmp_path / "crops").symlink_to(by_file)
    (tmp_path / "archive").symlink_to(archive)
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept"
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    settings = {**environment(), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "whose class the labels taught" in done.stdout


FLANDERS = """\
[region]
geometry = "{shared}/data/flanders-2019/region.geojson"
start = "2018-12-01"
end = "2019-11-30"
[archive]
source = "static"
href = "{shared}/data/flanders-2019/items.json"
[tiles]
size = 64
[model]
name = "demo"
[labels]
path = "{shared}/data/flanders-2019/parcels.geojson"
class = "crop"
group = "parcel"
[classify]
trials = 3
"""


@pytest.mark.slow
def test_a_real_season_becomes_a_map(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "flanders"
    root.mkdir()
    (root / "run.toml").write_text(FLANDERS.format(shared=shared))
    done = smalti("run", root)
    assert "macro-F1" in done.stdout
    accuracy = read_manifest(root / "accuracy.json", "accuracy", remedy="")
    compared = accuracy["performance"]["baseline"]
    adds, low_high = compared["adds_macro_f1"]["value"], compared["adds_macro_f1"]["ci95"]
    assert adds == pytest.approx(accuracy["performance"]["pixels"]["macro_f1"]["value"] - compared["macro_f1"]["value"])
    assert low_high[0] <= adds <= low_high[1]
    assert accuracy["performance"]["baseline_note"].startswith("the embedding ")
    names = {entry["name"] for entry in accuracy["performance"]["classes"]}
    assert {"grassland", "maize", "winter wheat"} <= names
    page = (root / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    before = digest(root)
    smalti("run", root)
    assert digest(root) == before
