"""Whatever a file holds, its reader gives a value or one clear line: never a traceback, never another file's bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.embedded import ABOUT, plan_of
from support.mutations import mutated_bytes, mutated_json

from infer.contract import (
    BANDS,
    MASK_POLARITY,
    TILE_ARRAYS,
    ModelJob,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    embedding_paths,
    one_line,
    open_npy,
    read_embedding,
    read_model_job,
    read_tile,
    write_embedding,
    write_manifest,
    write_model_job,
    write_npy,
)
from infer.model import build_network
from infer.model.network import random_student
from infer.selftest import SETTINGS
from infer.weights import load_checkpoint
from preproc.catalogue.items import parse_items, save_items, search_scenes
from preproc.plan.text import render_plan
from preproc.region.region import load_region
from preproc.run.config import load_config
from preproc.run.profile import load_profile

TILE = PlannedTile("31N_a", 32631, 573440, 5626880, 4)
RUN_TOML = """\
[region]
bbox = [4.0, 50.0, 4.1, 50.1]
start = "2021-01-01"
end = 2021-12-31
[archive]
source = "static"
href = "items.json"
[tiles]
size = 512
[model]
name = "demo"
[site]
profile = "local"
scratch = "$TMPDIR/x"
[labels]
path = "parcels.gpkg"
class = "crop"
"""


@dataclass(frozen=True)
class Subject:
    """A file, and what is done with it."""

    path: Path
    read: Callable[[], Any]


def subjects(root: Path) -> dict[str, Subject]:
    """A run with one file of each kind."""
    run = Run(root)
    root.mkdir(exist_ok=True)
    plan_of([TILE]).write(run.plan, inputs={"a": 1}, files=[])
    write_model_job(run, ModelJob("demo", None, "int8", 128, "auto"))
    run.config.write_text(RUN_TOML)
    folder = run.tiles / TILE.name
    folder.mkdir(parents=True)
    sizes = {"t": 2, "a": 1, "d": 0, "h": 4, "w": 4, "b": 10, "p": 2}
    for spec in TILE_ARRAYS.values():
        write_npy(folder / spec.file, np.ones([sizes[axis] for axis in spec.axes], spec.dtype))
    grid = [TILE.epsg, TILE.west, TILE.north, TILE.size]
    files = [folder / spec.file for spec in TILE_ARRAYS.values()]
    about = {"band_order": list(BANDS), "mask_polarity": MASK_POLARITY}
    write_manifest(folder / "tile.json", "tile", inputs={"grid": grid}, files=files, fields=about)
    codes, scales = np.ones((4, 4, 8), np.int8), np.ones((4, 4), np.float32)
    write_embedding(run.embeddings, TILE.name, codes, scales, inputs={}, about=ABOUT)
    checkpoint, archive, profile = root / "student.pt", root / "items.json", root / "site.toml"
    torch.save({"args": SETTINGS, "model": random_student(SETTINGS, 3), "smalti": {"label": "x"}}, checkpoint)
    item = {
        "type": "Feature",
        "id": "S2A_1",
        "collection": "sentinel-2-l2a",
        "bbox": [4, 50, 5, 51],
        "geometry": {"type": "Polygon", "coordinates": [[[4, 50], [5, 50], [5, 51], [4, 50]]]},
        "properties": {"datetime": "2021-07-01T10:00:00Z", "proj:epsg": 32631, "s2:processing_baseline": "03.01"},
        "assets": {band: {"href": f"./{band}.tif"} for band in (*BANDS, "SCL")},
        "links": [],
    }
    archive.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    profile.write_text('name = "site"\nbase = "local"\n')
    config = load_config(run)
    region = load_region(config.region)

    def searched() -> None:
        items = search_scenes(config, region)
        parse_items(items, config)
        save_items(run, items)

    def tile() -> None:
        read_tile(folder, need_manifest=True, planned=TILE)

    return {
        "plan": Subject(run.plan, lambda: render_plan(Plan.read(run))),
        "model job": Subject(run.model_job, lambda: read_model_job(run)),
        "tile manifest": Subject(folder / "tile.json", tile),
        "embedding manifest": Subject(
            embedding_paths(run.embeddings, TILE.name)[2], lambda: read_embedding(run.embeddings, TILE.name)
        ),
        "array": Subject(folder / "bands.npy", lambda: open_npy(folder / "bands.npy", "fetch it again").sum()),
        "checkpoint": Subject(checkpoint, lambda: build_network(load_checkpoint(checkpoint))),
        "settings": Subject(run.config, lambda: load_config(run)),
        "profile": Subject(profile, lambda: load_profile("site.toml", root)),
        "items": Subject(archive, searched),
    }


JSON_NAMES = ["plan", "model job", "tile manifest", "embedding manifest", "items"]
NAMES = [*JSON_NAMES, "array", "checkpoint", "settings", "profile"]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Subject, bytes]]:
    found = subjects(tmp_path_factory.mktemp("hostile") / "run")
    assert sorted(found) == sorted(NAMES)
    return {name: (subject, subject.path.read_bytes()) for name, subject in found.items()}


def tried(subject: Subject, content: bytes) -> None:
    """Read the file with other content; smalti's own errors are an answer, and no other is."""
    subject.path.write_bytes(content)
    said = ""
    try:
        subject.read()
    except SmaltiError as error:
        said = str(error)
    assert one_line(said.replace("\n", "")) == said.replace("\n", "")
    assert len(said) < 15_000


def test_what_was_not_changed_is_read(readers: dict[str, tuple[Subject, bytes]]) -> None:
    for subject, content in readers.values():
        subject.path.write_bytes(content)
        subject.read()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_bytes_changed_at_random(readers: dict[str, tuple[Subject, bytes]], name: str, rng: random.Random) -> None:
    subject, content = readers[name]
    tried(subject, mutated_bytes(content, rng))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_bytes_that_mean_nothing(readers: dict[str, tuple[Subject, bytes]], name: str, content: bytes) -> None:
    tried(readers[name][0], content)


@pytest.mark.parametrize("name", JSON_NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_values_changed_at_random(readers: dict[str, tuple[Subject, bytes]], name: str, rng: random.Random) -> None:
    subject, content = readers[name]
    tried(subject, mutated_json(content, rng))
