"""A run that is looked at again and again: only what something was done to is read anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.embedded import ABOUT
from support.tiny import TinyArchive

from infer.contract import Run, SmaltiError, planned_tiles, release_tile, write_embedding
from preproc.run.chain import run_one
from preproc.run.config import Config
from preproc.run.embedded import EmbeddingUnit, embedding_units
from preproc.run.stage import Unit
from preproc.run.stages import stage_named
from preproc.run.status import Survey
from preproc.tile.stage import TileUnit


@pytest.fixture
def fetched(tmp_path: Path) -> tuple[Run, Config]:
    """Two tiles; one of them is embedded."""
    archive = TinyArchive(tmp_path / "archive")
    archive.s2("one", "2021-07-01")
    run, config = archive.run(tmp_path / "run", tiles=(1, 2))
    run_one(stage_named("fetch"), run, config)
    embed(run, config, planned_tiles(run)[0].name)
    return run, config


def embed(run: Run, config: Config, name: str) -> None:
    codes, scales = np.zeros((32, 32, 128), np.int8), np.ones((32, 32), np.float32)
    inputs = dict(embedding_units(run, config).of(name).inputs)
    write_embedding(run.embeddings, name, codes, scales, inputs=inputs, about=ABOUT)


def kinds(survey: Survey) -> list[str]:
    return [state.kind for stage in ("fetch", "infer") for _, state in survey.of(stage)]


def test_what_is_complete_and_untouched_is_not_read_again(
    fetched: tuple[Run, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = fetched
    survey = Survey(run, config, watching=True)
    assert kinds(survey) == ["complete", "complete", "complete", "missing"]
    looked: list[str] = []
    for kind, short in ((EmbeddingUnit, "embedding"), (TileUnit, "tile")):
        state = kind.state

        def counted(unit: Unit, *, checksums: bool = False, state=state, short=short):  # type: ignore[no-untyped-def]
            if unit.kind == short:
                looked.append(f"{short} {unit.name}")
            return state(unit, checksums=checksums)

        monkeypatch.setattr(kind, "state", counted)
    first, second = [tile.name for tile in planned_tiles(run)]
    survey = survey.again()
    assert kinds(survey) == ["complete", "complete", "complete", "missing"]
    assert looked == [f"embedding {second}"], "what was missing may be there by now"
    looked.clear()
    embed(run, config, second)
    survey = survey.again()
    assert kinds(survey) == ["complete"] * 4
    assert looked == [f"embedding {second}"]
    looked.clear()
    manifest = run.tiles / first / "tile.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "another": 1}))
    survey = survey.again()
    assert kinds(survey) == ["complete", "complete", "stale", "complete"]
    assert looked == [f"tile {first}", f"embedding {first}"], "and what was made of it"


def test_a_tile_is_seen_to_be_released_and_to_lack_its_embedding(fetched: tuple[Run, Config]) -> None:
    run, config = fetched
    first = planned_tiles(run)[0].name
    survey = Survey(run, config, watching=True)
    assert kinds(survey)[0] == "complete"
    release_tile(run.tiles / first)
    survey = survey.again()
    assert kinds(survey)[0] == "released"
    assert kinds(survey.again())[0] == "released"
    (run.embeddings / f"{first}.json").unlink()
    assert kinds(survey.again())[0] == "missing"


def test_with_another_plan_everything_is_looked_at(fetched: tuple[Run, Config]) -> None:
    run, config = fetched
    survey = Survey(run, config, watching=True)
    kinds(survey)
    assert survey.again()._earlier
    os.utime(run.plan)
    assert not survey.again()._earlier


def test_a_plan_that_was_replaced_is_read_again(fetched: tuple[Run, Config]) -> None:
    run, _ = fetched
    assert len(planned_tiles(run)) == 2
    content = json.loads(run.plan.read_text())
    content["tiles"] = content["tiles"][:1]
    run.plan.write_text(json.dumps(content))
    assert len(planned_tiles(run)) == 1


_HEAVY = (
    "PIL catboost jinja2 matplotlib obstore optuna pandas planetary_computer pyogrio pystac_client requests scipy "
    "sklearn torch xarray zarr"
)
_OF_STAGES = "pyarrow pydantic pyproj rasterio shapely"
_MAIN = """
import sys
from preproc.cli import main
try:
    main()
finally:
    print("imported:", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [(["--help"], f"{_HEAVY} {_OF_STAGES}"), (["--version"], f"{_HEAVY} {_OF_STAGES}"), (["status", "RUN"], _HEAVY)],
    ids=["help", "version", "status"],
)
def test_whoever_looks_does_not_wait_for_what_only_work_needs(
    fetched: tuple[Run, Config], arguments: list[str], heavy: str
) -> None:
    run, config = fetched
    embed(run, config, planned_tiles(run)[1].name)
    label = {"type": "Feature", "properties": {"crop": "a"}, "geometry": {"type": "Point", "coordinates": [3.0, 51.0]}}
    (run.root / "labels.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [label]}))
    with run.config.open("a") as stream:
        stream.write('[labels]\npath = "labels.geojson"\nclass = "crop"\n')
    command = [sys.executable, "-c", _MAIN, *(str(run.root) if part == "RUN" else part for part in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout
    imported = done.stderr.rpartition("imported: ")[2].split()
    assert "typer" in imported
    assert set(heavy.split()).isdisjoint(imported)


def test_all_stages_of_a_survey_see_an_embedding_as_it_was(fetched: tuple[Run, Config]) -> None:
    """One that goes away meanwhile would be complete for one stage and missing for the next."""
    run, config = fetched
    first, second = [tile.name for tile in planned_tiles(run)]
    embed(run, config, second)
    survey = Survey(run, config)
    assert kinds(survey) == ["complete"] * 4
    (run.embeddings / f"{first}.npy").unlink()
    assert [state.kind for state in survey.of("stitch").states] == ["missing", "missing"]
    with pytest.raises(SmaltiError, match=rf"1 of 2 tiles .* {first} \(broken\)"):
        Survey(run, config).of("stitch")
