"""Tiles whose arrays were released once they were embedded, as the stages see them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.embedded import ABOUT
from support.tiny import TinyArchive

from infer.contract import (
    BusyError,
    Run,
    Shard,
    SmaltiError,
    planned_tiles,
    read_tile,
    release_tile,
    stage_lock,
    write_embedding,
)
from preproc.cluster.doctor import _check_tiles
from preproc.run.clean import clean
from preproc.run.config import Config, load_config
from preproc.run.embedded import embedding_units
from preproc.run.quality import summarise_quality
from preproc.run.stage import run_stage
from preproc.run.status import Survey, as_table, run_status
from preproc.tile.stage import FetchStage


@pytest.fixture
def fetched(tmp_path: Path) -> tuple[Run, Config, str]:
    archive = TinyArchive(tmp_path / "archive")
    archive.s2("one", "2021-07-01")
    run, config = archive.run(tmp_path / "run")
    run_stage(FetchStage(), run, config)
    return run, config, planned_tiles(run)[0].name


def embed(run: Run, config: Config, name: str) -> None:
    """An embedding with all of the fingerprint that this side knows."""
    codes, scales = np.zeros((32, 32, 128), np.int8), np.ones((32, 32), np.float32)
    inputs = dict(embedding_units(run, config).of(name).inputs)
    write_embedding(run.embeddings, name, codes, scales, inputs=inputs, about=ABOUT)


def state(run: Run, config: Config) -> str:
    return FetchStage().open(run, config).units[0].state().kind


def test_a_released_tile_is_complete_as_long_as_its_embedding_is(fetched: tuple[Run, Config, str]) -> None:
    run, config, name = fetched
    made = {path.name: path.read_bytes() for path in (run.tiles / name).iterdir()}
    embed(run, config, name)
    assert state(run, config) == "complete"
    freed = release_tile(run.tiles / name)
    assert freed == sum(len(content) for file, content in made.items() if file.endswith(".npy"))
    assert state(run, config) == "released"
    fetch = next(status for status in run_status(Survey(run, config)) if status.stage == "fetch")
    assert (fetch.complete, fetch.counts) == (True, {"released": 1})
    assert "released" in [column.header for column in as_table([fetch]).columns]
    assert run_stage(FetchStage(), run, config).complete_before == 1
    assert summarise_quality(run).tiles == 1
    assert [finding.verdict.name for finding in _check_tiles(run)] == ["OK"]

    (run.embeddings / f"{name}.npy").write_bytes(b"")
    found = FetchStage().open(run, config).units[0].state()
    assert found.kind == "missing"
    assert "its arrays were released, and its embedding is broken" in found.reason
    assert run_stage(FetchStage(), run, config).built == 1
    assert made == {path.name: path.read_bytes() for path in (run.tiles / name).iterdir()}
    read_tile(run.tiles / name, need_manifest=True)


def test_a_released_tile_of_other_settings_or_another_model_is_fetched_again(fetched: tuple[Run, Config, str]) -> None:
    run, config, name = fetched
    embed(run, config, name)
    release_tile(run.tiles / name)
    text = run.config.read_text()
    run.config.write_text(re.sub(r'end = "[0-9-]+"', 'end = "2021-12-24"', text))
    assert state(run, load_config(run)) == "stale"
    run.config.write_text(text + '[model]\nname = "demo"\ndim = 64\n')
    assert state(run, load_config(run)) == "missing"
    run.config.write_text(text)
    (run.tiles / name / "roi.tiff").unlink()
    assert state(run, load_config(run)) == "broken"


def test_cleaning_releases_what_is_embedded_and_can_be_read_back(fetched: tuple[Run, Config, str]) -> None:
    run, config, name = fetched
    (nothing,) = clean(run, config)
    assert nothing.line(dry_run=False) == "arrays of 0 embedded tiles: nothing to free"
    embed(run, config, name)
    arrays = sorted((run.tiles / name).glob("*.npy"))
    size = sum(path.stat().st_size for path in arrays)
    (shown,) = clean(run, config, dry_run=True)
    assert (shown.bytes, shown.files) == (size, len(arrays))
    assert "fetching them again would take about" in shown.line(dry_run=True)
    assert state(run, config) == "complete"

    values = run.embeddings / f"{name}.npy"
    whole = values.read_bytes()
    values.write_bytes(whole[:-1] + b"x")
    assert clean(run, config)[0].files == 0, "an embedding that does not read back keeps its tile"
    values.write_bytes(whole)
    with stage_lock(run, "infer", Shard(0, 2)), pytest.raises(BusyError):
        clean(run, config)
    for reader in ("sample", "validate"):  # of the arrays, for monthly medians
        with stage_lock(run, reader), pytest.raises(BusyError):
            clean(run, config)
    assert clean(run, config)[0].bytes == size
    assert state(run, config) == "released"


def test_cleaning_a_stage_or_what_no_plan_names(fetched: tuple[Run, Config, str]) -> None:
    run, config, _ = fetched
    for path in (run.mosaic / "a.tif", run.tiles / "other" / "bands.npy", run.embeddings / "other.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    stages = ["stitch", "leftovers"]
    shown = [(freed.files, freed.bytes) for freed in clean(run, config, stages, dry_run=True)]
    assert shown == [(1, 4), (2, 8)]
    assert run.mosaic.exists()
    assert [(freed.files, freed.bytes) for freed in clean(run, config, stages)] == shown
    assert not run.mosaic.exists()
    assert not (run.tiles / "other").exists()
    assert not (run.embeddings / "other.json").exists()
    with pytest.raises(SmaltiError, match=r"--stage train: can be freed are fetch, stitch, predict, leftovers"):
        clean(run, config, ["train"])
