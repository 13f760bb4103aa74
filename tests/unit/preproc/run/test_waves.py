"""What tiles may take on disk at a time, and how a run is divided so that they do not take more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.embedded import TOML, tiled_run

from infer.contract import Plan, Run, Shard, SmaltiError
from preproc.run.config import Config, parse_config
from preproc.run.waves import Space, fewest_shards, lying, room_of, tile_space, waves_of

TILE = tile_space(32, 10, 5)
"""Of a tile of the runs here."""


def config(**site: object) -> Config:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in site.items())
    return parse_config(f'{TOML}[tiles]\nsize = 32\nkeep = "record"\n[site]\n{lines}', Path("run.toml"))


def planned(root: Path) -> tuple[Run, Plan]:
    run = tiled_run(root, across=4, down=2)
    plan = Plan.read(run)
    return run, replace(plan, season=replace(plan.season, s2_days=10.0, s1_days=5.0))


def put(run: Run, name: str, size: int) -> None:
    folder = run.tiles / name
    folder.mkdir(parents=True)
    np.save(folder / "bands.npy", np.zeros(size - 128, np.uint8))


def test_sizes_are_written_as_people_write_them() -> None:
    assert config(tile_space="1.5TB").site.tile_space == 1_500_000_000_000
    assert config(tile_space="64 GiB").site.tile_space == 64 * 2**30
    assert config(tile_space=10**9).site.tile_space == 10**9
    with pytest.raises(SmaltiError, match=r"\[site\] tile_space: '5 apples' is not a size"):
        config(tile_space="5 apples")
    with pytest.raises(SmaltiError, match=r'need \[tiles\] keep = "record"'):
        parse_config(f"{TOML}[site]\ntile_files = 100\n", Path("run.toml"))


def test_as_many_waves_as_the_budget_asks_for(tmp_path: Path) -> None:
    _, plan = planned(tmp_path)
    three = config(tile_space=int(TILE.bytes * 3.4))
    assert fewest_shards(three, 8, 10, 5) == 3
    assert fewest_shards(config(tile_files=50), 8, 10, 5) == 2
    assert fewest_shards(config(), 8, 10, 5) == 1
    assert waves_of(plan, config(), 8) is None
    waves = waves_of(plan, three, 8)
    assert waves is not None
    assert [list(waves.members(wave)) for wave in range(waves.count)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    uneven = waves_of(plan, three, 6)
    assert uneven is not None
    assert uneven.together == 1, "the largest shards have two tiles, and four tiles are above the budget"
    with pytest.raises(SmaltiError, match=r"a tile takes .* and 11 files: allow more"):
        fewest_shards(config(tile_files=9), 8, 10, 5)


def test_what_lies_there_of_other_waves_is_room_that_a_wave_has_not_got(tmp_path: Path) -> None:
    run, plan = planned(tmp_path)
    names = [tile.name for tile in plan.tiles]
    settings = config(tile_space=int(TILE.bytes * 3.4))  # waves of 3 shards of a tile
    room = room_of(run, settings, plan, Shard(4, 8), names)
    assert room is not None
    assert room.fits(TILE)
    assert not room.fits(TILE * 2), "the other shards of the wave have the rest"
    put(run, names[0], int(TILE.bytes))  # of the first wave: embedding it failed
    put(run, f".{names[7]}.host.0.1.tmp", int(TILE.bytes))  # and a killed process left this of the last one
    room = room_of(run, settings, plan, Shard(4, 8), names)
    assert room is not None
    assert not room.fits(TILE)
    assert "embed them" in str(room.refusal())
    mine = room_of(run, settings, plan, Shard(0, 8), names)
    assert mine is not None
    assert not mine.fits(TILE), "its own tile is there already"


def test_only_arrays_count(tmp_path: Path) -> None:
    run, plan = planned(tmp_path)
    names = [tile.name for tile in plan.tiles]
    assert lying(run, names) == {}
    put(run, names[0], 1000)
    (run.tiles / names[1]).mkdir()
    (run.tiles / names[1] / "released.json").write_text("{}")
    found = lying(run, names)
    assert found[names[1]] == Space(0, 0)
    assert found[names[0]].bytes == 1000 + 2**16
