"""Views: what is drawn is there, what is not there is a zero token, and without noise nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pretraining import make_tiles

from infer.contract import FormatError, SmaltiError, read_tile
from infer.normalisation import NORMALISATIONS
from infer.pretrain.batches import Place, make_batch
from infer.pretrain.options import Recipe
from infer.pretrain.tiles import Reader, cut, draw_pairs, gather, neighbours, open_tiles
from infer.pretrain.views import NO_NOISE, Chance, Noise, Pixels, choose, draw_view, without_some_months
from preproc.simulate.seasons import write_tile


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiles(tmp_path_factory.mktemp("tiles"))


def chance(seed: int, count: int) -> Chance:
    return Chance(torch.Generator().manual_seed(seed), slice(0, count), count)


@given(st.integers(0, 2**20), st.integers(1, 12), st.integers(1, 20), st.floats(0, 1))
def test_only_observations_that_are_there_are_drawn(seed: int, dates: int, length: int, share: float) -> None:
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(9, dates, generator=g) < share
    index, some = choose(valid, length, chance(seed, 9))
    assert index.shape == (9, length)
    assert (index.diff(dim=1) >= 0).all()
    assert some.tolist() == valid.any(dim=1).tolist()
    for row in range(9):
        if some[row]:
            drawn = index[row].tolist()
            assert all(valid[row, place] for place in drawn)
            assert len(set(drawn)) == min(length, int(valid[row].sum()))


def pixels(count: int = 6, s2: int = 7, s1: int = 5) -> Pixels:
    g = torch.Generator().manual_seed(1)
    return Pixels(
        torch.randint(1, 5000, (count, s2, 10), generator=g).float(),
        torch.ones(count, s2, dtype=torch.bool),
        (torch.arange(1, s2 + 1) * 20).expand(count, -1),
        torch.randint(1, 9000, (count, s1, 2), generator=g).float(),
        torch.ones(count, s1, dtype=torch.bool),
        (torch.arange(1, s1 + 1) * 30).expand(count, -1),
        (torch.arange(s1) < 2).expand(count, -1),
    )


def test_a_view_without_noise_of_all_observations_is_the_standardised_tile() -> None:
    seen = pixels()
    view = draw_view(seen, (7, 5), NO_NOISE, chance(2, 6))
    norm = NORMALISATIONS["v2-student"]
    s2 = (seen.bands_ptb.numpy() - np.array(norm.s2.mean)) / np.array(norm.s2.std)
    np.testing.assert_allclose(view.s2_ptc, s2, atol=1e-5)
    assert view.s2_days_pt[0].tolist() == seen.doys_pt[0].tolist()
    for dates, statistics in ((slice(0, 2), norm.asc), (slice(2, 5), norm.desc)):
        s1 = (seen.sar_pup[:, dates].numpy() - np.array(statistics.mean)) / np.array(statistics.std)
        np.testing.assert_allclose(view.s1_ptc[:, dates], s1, atol=1e-5)


def test_a_modality_without_observations_is_a_zero_token_of_day_zero() -> None:
    seen = pixels()
    seen.clear_pt[2] = False
    seen.seen_pu[4] = False
    view = draw_view(seen, (6, 6), Noise(), chance(3, 6))
    assert not view.s2_ptc[2].any()
    assert not view.s2_days_pt[2].any()
    assert view.s1_ptc[2].any()
    assert not view.s1_ptc[4].any()
    assert not view.s1_days_pt[4].any()
    assert view.s2_ptc[4].any()


def test_days_stay_days_of_the_year_when_the_calendar_is_moved() -> None:
    view = draw_view(pixels(400), (7, 5), Noise(days=40, drop_s2=0, drop_s1=0), chance(4, 400))
    for days in (view.s2_days_pt, view.s1_days_pt):
        assert int(days.min()) >= 1
        assert int(days.max()) <= 366


def test_a_tile_without_radar_has_views(tmp_path: Path) -> None:
    write_tile(tmp_path / "tile", 5, 8)
    for name in ("sar_ascending", "sar_descending"):
        path = tmp_path / "tile" / f"{name}.npy"
        np.save(path, np.load(path)[:0])
        days = tmp_path / "tile" / f"{name}_doy.npy"
        np.save(days, np.load(days)[:0])
    (tmp_path / "tile" / "tile.json").unlink()
    seen = gather(read_tile(tmp_path / "tile", need_manifest=False), np.arange(10))
    view = draw_view(seen, (4, 4), Noise(), chance(1, 10))
    assert not view.s1_ptc.any()
    assert view.s2_ptc.any()


def test_gathered_pixels_are_those_of_the_tile(tiles: Path) -> None:
    tile = read_tile(tiles / "tile-0", need_manifest=True)
    position = np.array([0, 17, 143, 5])
    seen = gather(tile, position)
    small = cut(tile, position)
    for place, flat in enumerate(position):
        row, column = divmod(int(flat), tile.shape_hw[1])
        np.testing.assert_array_equal(seen.bands_ptb[place], tile.bands_thwb[:, row, column])
        np.testing.assert_array_equal(seen.clear_pt[place], tile.masks_thw[:, row, column] == 1)
        radar = np.concatenate([tile.sar_asc_thwp[:, row, column], tile.sar_desc_thwp[:, row, column]])
        np.testing.assert_array_equal(seen.sar_pup[place], radar)
        np.testing.assert_array_equal(small.bands_thwb[:, 0, place], tile.bands_thwb[:, row, column])


def test_partners_are_near_and_inside(tiles: Path) -> None:
    tile = read_tile(tiles / "tile-0", need_manifest=True)
    position = np.arange(144)
    partner = neighbours(tile, position, 2, np.random.default_rng(0))
    rows, columns = np.divmod(position, 12), np.divmod(partner, 12)
    assert max(np.abs(rows[0] - columns[0]).max(), np.abs(rows[1] - columns[1]).max()) == 2
    assert partner.min() >= 0
    assert partner.max() < 144
    opened = open_tiles([tiles], [1.0])
    pairs = draw_pairs(opened, 20, 0, np.random.default_rng(1))
    assert pairs.one is pairs.two


def test_missing_months_are_some_in_a_row_and_never_all_there_is() -> None:
    valid = torch.ones(300, 24, dtype=torch.bool)
    valid[0] = False
    valid[0, 5] = True
    doys = (torch.arange(24) * 366 // 24 + 3).expand(300, -1)
    left = without_some_months(valid, doys, 1.0, 4, chance(1, 300))
    assert not (left & ~valid).any()
    assert left[0].sum() == 1
    months = {int(24 - row.sum()) // 2 for row in left[1:]}
    assert months == {1, 2, 3, 4}
    hidden = ~left[1]
    edges = (hidden != hidden.roll(1)).sum()
    assert edges == 2, "one gap, round the year"
    assert torch.equal(without_some_months(valid, doys, 0.0, 4, chance(1, 300)), valid)


def test_whole_tiles_on_a_device_give_what_the_memory_maps_give(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_tiles([tiles], [1.0])
    position = np.array([3, 140, 3, 77])
    mapped = Reader(opened, torch.device("cpu"), monthly=True)
    monkeypatch.setattr(Reader, "_fits", lambda self: True)
    resident = Reader(opened, torch.device("cpu"), monthly=True)
    for number in range(len(opened.tiles)):
        one, two = mapped.take(number, position), resident.take(number, position)
        for name in Pixels.__dataclass_fields__:
            assert torch.equal(getattr(one, name), getattr(two, name)), name
        assert one.clear_pt.shape[1] == mapped.dates[0]


def test_a_step_is_drawn_the_same_again_and_in_shares(tiles: Path) -> None:
    opened = open_tiles([tiles], [1.0])
    recipe = Recipe(batch=16, groups=2, shortest=3, longest=6)
    reader = Reader(opened, torch.device("cpu"), monthly=True)
    whole = make_batch(reader, recipe, 7, Place())
    again = make_batch(reader, recipe, 7, Place())
    other = make_batch(reader, recipe, 8, Place())
    assert torch.equal(whole.view.s2_ptc, again.view.s2_ptc)
    assert whole.view.s2_ptc.shape != other.view.s2_ptc.shape or not torch.equal(whole.view.s2_ptc, other.view.s2_ptc)
    shares = [make_batch(reader, recipe, 7, Place(rank, 2)).view.s1_ptc.chunk(2) for rank in range(2)]
    joined = torch.cat([shares[0][0], shares[1][0], shares[0][1], shares[1][1]])
    assert torch.equal(joined, whole.view.s1_ptc)


def test_weights_say_how_often_tiles_are_drawn(tiles: Path, tmp_path: Path) -> None:
    make_tiles(tmp_path / "other", count=1)
    opened = open_tiles([tiles, tmp_path / "other"], [3.0, 1.0])
    assert opened.chance.sum() == pytest.approx(1)
    assert opened.chance[-1] == pytest.approx(0.25)


def test_folders_without_anything_to_train_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="no tiles here"):
        open_tiles([tmp_path], [1.0])
    write_tile(tmp_path / "tile", 5, 8)
    np.save(tmp_path / "tile" / "masks.npy", np.zeros_like(np.load(tmp_path / "tile" / "masks.npy")))
    for name in ("sar_ascending", "sar_descending"):
        np.save(tmp_path / "tile" / f"{name}.npy", np.zeros_like(np.load(tmp_path / "tile" / f"{name}.npy")))
    (tmp_path / "tile" / "tile.json").unlink()
    with pytest.raises(FormatError, match="no pixel has 4 observations"):
        open_tiles([tmp_path], [1.0])
