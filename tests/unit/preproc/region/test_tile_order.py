"""Shards of a plan are patches of neighbours, and nothing is lost or doubled in the dealing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infer.contract import PlannedTile, Shard
from preproc.region.grid import by_neighbourhood, interleaved
from preproc.tile.stage import group_key


def tiles_of(rows: int, columns: int, epsg: int = 32631) -> list[PlannedTile]:
    return [
        PlannedTile(f"{row}_{column}", epsg, (40 + column) * 5120, (900 - row) * 5120, 512)
        for row in range(rows)
        for column in range(columns)
    ]


@given(st.integers(0, 300), st.integers(1, 400))
def test_each_shard_is_one_run_of_the_order(count: int, shards: int) -> None:
    units = interleaved(range(count), shards)
    assert sorted(units) == list(range(count))
    shares = [Shard(index, shards).take(units) for index in range(shards)]
    assert [unit for share in shares for unit in share] == list(range(count))


def test_sixteen_tiles_a_shard_are_one_square_of_the_fetch() -> None:
    tiles = tiles_of(8, 12)
    units = interleaved([tiles[index] for index in by_neighbourhood(tiles)], 6)
    squares = [{group_key(tile) for tile in Shard(index, 6).take(units)} for index in range(6)]
    assert all(len(square) == 1 for square in squares)


def test_four_tiles_a_shard_are_two_by_two() -> None:
    tiles = tiles_of(8, 8)
    units = interleaved([tiles[index] for index in by_neighbourhood(tiles)], 16)
    for index in range(16):
        share = Shard(index, 16).take(units)
        assert len({tile.west for tile in share}) == 2
        assert len({tile.north for tile in share}) == 2


def test_zones_are_not_mixed() -> None:
    tiles = [*tiles_of(3, 3, 32632), *tiles_of(3, 3)]
    order = [tiles[index].epsg for index in by_neighbourhood(tiles)]
    assert order == [32631] * 9 + [32632] * 9
    assert by_neighbourhood([]) == []
