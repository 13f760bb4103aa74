"""Sequences, their unique form, encodings and reproducible draws, against the plain words of the rules."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.infer_baseline import pad_v2, pad_v11
from infer.contract.provenance import TileGrid
from infer.sequence import (
    bin_length,
    draw,
    encoding_table,
    padded_rows,
    sequence,
    tile_seed,
    unique_form,
)

COUNTS = [*range(1, 60), 63, 64, 65, 127, 128, 129, 200, 255, 256, 257, 258, 300, 366, 500]
PLAIN = {"v2": pad_v2, "v1.1": pad_v11}


@pytest.mark.parametrize("rule", ["v2", "v1.1"])
@pytest.mark.parametrize("n", COUNTS)
def test_sequence_is_that_of_the_plain_rule(rule, n):
    assert np.array_equal(sequence(rule, n), PLAIN[rule](n))


def test_bins():
    assert [bin_length(n) for n in (0, 1, 8, 9, 16, 248, 249, 256, 257, 1000)] == [
        8, 8, 8, 16, 16, 248, 256, 256, 256, 256,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="observations"):
        bin_length(-1)


@pytest.mark.parametrize("rule", ["v2", "v1.1"])
@given(n=st.integers(1, 700))
@settings(deadline=None, max_examples=60)
def test_unique_form_says_the_same_as_the_sequence(rule, n):
    form, full = unique_form(rule, n), sequence(rule, n)
    assert np.array_equal(form.select_u[form.expand_b], full)
    assert np.array_equal(np.bincount(form.expand_b, minlength=len(form.select_u)), form.multiplicity_u)
    assert len(form.select_u) == min(max(n, 1), 256)
    assert form.identity == (n <= 256)
    assert form.multiplicity_u.sum() == bin_length(n)


def test_no_observation_is_one_zero_token_in_v2_and_eight_in_v1_1():
    assert unique_form("v2", 0).multiplicity_u.tolist() == [1]
    assert unique_form("v1.1", 0).multiplicity_u.tolist() == [8]
    with pytest.raises(ValueError, match="without observations"):
        sequence("v2", 0)


def test_encodings_are_sines_and_cosines_of_the_raw_day():
    table = encoding_table(12)
    for day in (0, 1, 77, 366):
        for channel in range(12):
            angle = day * math.exp(-(channel // 2 * 2) * math.log(10000) / 12)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert table[day, channel] == pytest.approx(expected, abs=1e-5)


@given(tokens=st.integers(1, 5000), budget=st.sampled_from([256, 1024, 2048, 1 << 17]))
def test_rows_hold_the_tokens_at_few_sizes(tokens, budget):
    rows = padded_rows(tokens, budget)
    assert tokens <= rows <= tokens + max(16, budget // 8)
    assert len({padded_rows(n, budget) for n in range(1, budget + 1, max(1, budget // 2048))}) <= 24 + budget // 128


@pytest.mark.parametrize("n", [1, 5, 39, 40, 41, 90])
def test_draws_depend_on_the_place_only(n):
    rows, columns = np.divmod(np.arange(50), 7)
    whole = draw(99, 0, rows, columns, n)
    assert whole.shape == (50, 40)
    assert (np.diff(whole, axis=1) >= (1 if n >= 40 else 0)).all()
    assert whole.min() >= 0
    assert whole.max() < n
    one_by_one = np.concatenate([draw(99, 0, rows[i : i + 1], columns[i : i + 1], n) for i in range(50)])
    assert np.array_equal(whole, one_by_one)
    backwards = draw(99, 0, rows[::-1], columns[::-1], n)[::-1]
    assert np.array_equal(whole, backwards)


def test_draws_differ_between_pixels_modalities_and_tiles():
    rows, columns = np.divmod(np.arange(40), 8)
    base = draw(1, 0, rows, columns, 80)
    assert len({tuple(row) for row in base}) == 40
    assert not np.array_equal(base, draw(1, 1, rows, columns, 80))
    assert not np.array_equal(base, draw(2, 0, rows, columns, 80))


def test_every_candidate_is_drawn_about_equally_often():
    rows, columns = np.divmod(np.arange(4000), 100)
    for n in (10, 60):
        share = np.bincount(draw(7, 0, rows, columns, n).ravel(), minlength=n) / (4000 * 40)
        assert np.abs(share * n - 1).max() < 0.1


def test_seed_of_a_tile_is_its_grid():
    grid = TileGrid("EPSG:32631", (10, 0, 0, 0, -10, 0), 4, 4)
    text = '{"crs":"EPSG:32631","height":4,"transform":[10,0,0,0,-10,0],"width":4}'  # as it stands in tile.json
    expected = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    assert tile_seed("a", grid) == tile_seed("b", grid) == expected
    assert tile_seed("a", None) != tile_seed("b", None)
