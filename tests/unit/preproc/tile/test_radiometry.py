"""Radiometry against the formulas of the papers, written again without the code under test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preproc.catalogue.scene import OffsetPolicy
from preproc.tile.radiometry import clear, offset_is_gone, remove_offset, scaled_db


def test_exactly_six_scene_classes_are_clear() -> None:
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.flatnonzero(clear(classes)).tolist() == [4, 5, 6, 7, 10, 11]


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_the_offset_is_subtracted_from_1000_on_and_nothing_else_changes(values: list[int]) -> None:
    dn = np.array([values], np.uint16)
    found = remove_offset(dn, OffsetPolicy.SUBTRACT_1000)
    assert found.dtype == np.uint16
    assert found[0].tolist() == [v - 1000 if v >= 1000 else v for v in values]
    assert remove_offset(dn, OffsetPolicy.NONE) is dn


@pytest.mark.parametrize(
    ("values", "dark_pixels", "gone"),
    [
        (1300, 0, False),  # nothing below 1000: the offset is there
        (300, 25, True),
        (300, 2, True),
        (300, 1, False),  # one pixel in a hundred is noise
        (980, 100, False),  # with the offset, water may have reflectances a little below zero
        (0, 100, False),  # no value
    ],
)
def test_dark_clear_pixels_show_that_the_offset_is_gone(values: int, dark_pixels: int, gone: bool) -> None:
    dn = np.full((100, 10), 4000, np.uint16)
    dn[:dark_pixels, :3] = values
    assert offset_is_gone(dn) is gone


def _expected_db(x: float) -> int:
    if math.isnan(x) or not 0 < x < 1e10:
        return 0
    return int(min(max((20 * math.log10(x) + 50) * 200, 0), 32767))


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_scaled_db_is_the_formula_truncated(values: list[float]) -> None:
    found = scaled_db(np.array([values], np.float32), -32768.0)
    assert found.dtype == np.int16
    # numpy's and math's log10 may differ in the last bit; where that decides the truncation, either is right.
    for value, got in zip(np.float32(values).tolist(), found[0].tolist(), strict=True):
        want = _expected_db(value)
        assert got == want or (
            abs(got - want) == 1 and abs((20 * math.log10(value) + 50) * 200 - max(got, want)) < 1e-8
        )


@pytest.mark.parametrize(
    ("power", "scaled"),
    [(0.0, 0), (-1.0, 0), (-32768.0, 0), (float("nan"), 0), (float("inf"), 0), (float("-inf"), 0),
     (1.0, 10000), (0.1, 6000), (0.01, 1999), (0.001, 0), (1e6, 32767), (3.4028235e38, 0), (9.96921e36, 0)],
)  # fmt: skip
def test_scaled_db_at_known_points(power: float, scaled: int) -> None:
    assert scaled_db(np.array([[power]], np.float32), -32768.0)[0, 0] == scaled


def test_a_declared_nodata_value_above_zero_is_missing_too() -> None:
    power = np.array([[9999.0, 1.0]], np.float32)
    assert scaled_db(power, 9999.0).tolist() == [[0, 10000]]
    assert scaled_db(power, float("nan"))[0, 1] == 10000
