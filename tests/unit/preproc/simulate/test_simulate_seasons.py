"""Made-up tiles: whole, repeatable, different from each other, and not told apart by chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infer.contract import EXIT_OK, TILE_ARRAYS, SmaltiError, read_tile
from preproc.simulate.crops import CROPS
from preproc.simulate.seasons import draw_season, main, simulate_tile, write_tile


def test_a_tile_is_whole_and_the_same_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tile(tmp_path / name, 11, 16)
    tile = read_tile(tmp_path / "one", need_manifest=True)
    assert tile.shape_hw == (16, 16)
    assert tile.masks_thw.mean(axis=(1, 2)).min() >= 0.05
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_a_complete_tile_is_left_alone_and_a_damaged_one_made_again(tmp_path: Path) -> None:
    write_tile(tmp_path / "tile", 11, 16)
    bands = tmp_path / "tile" / "bands.npy"
    good, when = bands.read_bytes(), bands.stat().st_mtime_ns
    write_tile(tmp_path / "tile", 11, 16)
    assert bands.stat().st_mtime_ns == when
    bands.write_bytes(good[:-10])
    write_tile(tmp_path / "tile", 11, 16)
    assert bands.read_bytes() == good


def test_seasons_are_of_many_kinds() -> None:
    drawn = [draw_season(seed) for seed in range(200)]
    assert {len(season.s1_steps) for season in drawn} == {0, 1, 2}
    assert len({season.start.year for season in drawn}) >= 8
    assert len({season.s2_step for season in drawn}) == 3
    assert any(season.climate.southern for season in drawn)
    assert np.std([season.climate.season_shift for season in drawn]) > 8
    kinds = {int(kind) for seed in range(12) for kind in np.unique(simulate_tile(seed, 16)[1])}
    assert len(kinds) > len(CROPS) / 2


def test_what_is_masked_holds_nothing(tmp_path: Path) -> None:
    arrays, kind, stand = simulate_tile(4, 16)
    assert set(arrays) == set(TILE_ARRAYS)
    masked = arrays["masks_thw"] == 0
    assert masked.any()
    assert not arrays["bands_thwb"][masked].any()
    assert (arrays["bands_thwb"][~masked] > 0).all()
    assert kind.shape == stand.shape == (16, 16)
    for number in np.unique(stand):  # one kind of land a stand
        assert len(np.unique(kind[stand == number])) == 1


def test_the_command_line_writes_a_folder_of_tiles(tmp_path: Path) -> None:
    assert main([str(tmp_path / "seasons"), "--count", "2", "--size", "8"]) == EXIT_OK
    assert len(list((tmp_path / "seasons").iterdir())) == 2
    with pytest.raises(SmaltiError, match="--count"):
        main([str(tmp_path), "--count", "0"])
