"""The quality of tiles summed up, against figures reckoned by hand; poor observation is said before the engine runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny import SIZE, TinyArchive

from infer.contract import FormatError, Run, planned_tiles, read_json
from preproc.cluster.run_overview import Watcher
from preproc.run import quality
from preproc.run.chain import run_one
from preproc.run.config import Config
from preproc.run.quality import Qualities, blind_spots, quality_warnings, summarise_quality
from preproc.run.stages import stage_named
from preproc.run.text import percent


@pytest.fixture
def fetched(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> tuple[Run, Config, str]:
    """Two tiles: twelve clear dates over the first and three over the second, a corner of which is never clear."""
    archive = TinyArchive(tmp_path / "archive")
    extent = 2 * SIZE * 10
    for index in range(12):
        scl = np.full((extent // 20, extent // 20), 4, np.uint8)
        scl[:, SIZE // 2 :] = 4 if index < 3 else 9
        scl[:4, -4:] = 9
        archive.s2(f"s2-{index}", f"2021-07-{1 + 2 * index:02d}", scl=scl, extent=extent)
    archive.s1("s1", "2021-07-03", extent=SIZE * 10)
    run, config = archive.run(tmp_path / "run", shrink=0, tiles=(1, 2), min_clear=0.0)
    capfd.readouterr()
    run_one(stage_named("fetch"), run, config)
    return run, config, capfd.readouterr().err


def test_tiles_are_summed_up(fetched: tuple[Run, Config, str]) -> None:
    run, config, said = fetched
    found = summarise_quality(run)
    poor = max(planned_tiles(run), key=lambda tile: tile.west)
    assert (found.tiles, found.planned, found.pixels) == (2, 2, 2 * SIZE * SIZE)
    assert (found.s2_typical, found.s2_fewest, found.s2_without) == ((12 + 3) / 2, 0, 64)
    assert found.unseen == 64, "the radar covers the other tile"
    assert (found.s1_typical, found.s1_without, found.poor) == (0.5, 1, (poor.name,))
    assert found.s2_largest_gap > 300
    warnings = found.warnings()
    assert len(warnings) == 3
    assert "no clear Sentinel-2 observation at all: no radar saw them either" in warnings[1]
    assert all(warning in said for warning in warnings), "fetch says so at its end"
    assert quality_warnings(run) == [f"Warning: {warning}" for warning in warnings], "the plan's are history by now"
    assert Watcher(run, config).look().as_json()["quality"]["s2_without"] == 64


def test_a_record_is_read_again_only_if_it_changed(
    fetched: tuple[Run, Config, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, _ = fetched
    known: Qualities = {}
    first = summarise_quality(run, known)
    read: list[str] = []
    monkeypatch.setattr(quality, "read_json", lambda path, **words: read.append(path) or read_json(path, **words))
    assert summarise_quality(run, known) == first
    assert read == []
    changed = run.tiles / planned_tiles(run)[0].name / "quality.json"
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert summarise_quality(run, known) == first
    assert read == [str(changed)]


def test_before_the_fetch_the_plan_warns(tmp_path: Path) -> None:
    archive = TinyArchive(tmp_path / "archive")
    archive.s2("one", "2021-07-01")
    run, config = archive.run(tmp_path / "run")
    said = "\n".join(quality_warnings(run))
    assert "no Sentinel-1 scene was found" in said
    assert "1 Sentinel-2 date before clouds" in said
    assert summarise_quality(run).lines() == []
    assert Watcher(run, config).look().quality == summarise_quality(run)


def test_a_record_that_cannot_be_read_is_named(fetched: tuple[Run, Config, str]) -> None:
    run, config, _ = fetched
    path = run.tiles / planned_tiles(run)[0].name / "quality.json"
    content = json.loads(path.read_text())
    del content["stacks"]["s2"]
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"quality\.json: cannot be read"):
        summarise_quality(run)
    assert Watcher(run, config).look().quality is None


def test_records_from_before_unseen_pixels_were_counted_are_read(fetched: tuple[Run, Config, str]) -> None:
    run, _, _ = fetched
    path = run.tiles / planned_tiles(run)[0].name / "quality.json"
    content = json.loads(path.read_text())
    del content["pixels_unseen"]
    path.write_text(json.dumps(content))
    found = summarise_quality(run)
    assert found.unseen is None
    assert "they rest on radar alone, or on nothing" in found.warnings()[1]


def test_what_blind_pixels_rest_on_is_said_as_it_is() -> None:
    assert blind_spots(259, 0) == "they rest on radar alone"
    assert blind_spots(259, 259) == "no radar saw them either"
    assert blind_spots(1259, 259) == "1,000 of them rest on radar alone, 259 were not seen by radar either"
    assert blind_spots(259, None) == "they rest on radar alone, or on nothing"


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    assert [percent(n, 1000) for n in (0, 3, 42, 420, 995, 999, 1000)] == [
        "0 %",
        "0.3 %",
        "4.2 %",
        "42 %",
        "> 99 %",
        "> 99 %",
        "100 %",
    ]
    assert percent(1, 100_000) == "< 0.1 %"
