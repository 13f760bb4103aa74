"""Stacks are byte for byte what numpy.save writes; results come in order; nothing is read too far ahead."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.contract import PlannedTile
from preproc.run.workers import read_ahead
from preproc.tile.writer import StackWriter, write_roi


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 120),
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.sampled_from(["<u2", "u1", "<i2"]),
)
def test_a_stack_has_the_bytes_of_numpy_save(
    tmp_path_factory: pytest.TempPathFactory, dates: int, tail: list[int], dtype: str
) -> None:
    values = np.random.default_rng(0).integers(0, 200, (dates, *tail)).astype(dtype)
    path = tmp_path_factory.mktemp("stack") / "stack.npy"
    with StackWriter(path, np.dtype(dtype), tuple(tail)) as writer:
        for one in values:
            writer.append(one)
    expected = io.BytesIO()
    np.save(expected, values)
    assert path.read_bytes() == expected.getvalue()


def test_a_wrong_shape_or_dtype_is_refused(tmp_path: Path) -> None:
    with StackWriter(tmp_path / "x.npy", np.dtype("u1"), (2, 2)) as writer:
        for wrong in (np.zeros((2, 3), "u1"), np.zeros((2, 2), "u2")):
            with pytest.raises(ValueError, match="expected uint8"):
                writer.append(wrong)


def test_the_region_mask_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    tile = PlannedTile("t", 32631, 573440, 5626880, 64)
    inside = (np.arange(64 * 64).reshape(64, 64) % 3 > 0).astype(np.uint8)
    for name in ("a.tiff", "b.tiff"):
        write_roi(tmp_path / name, tile, inside)
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()
    with rasterio.open(tmp_path / "a.tiff") as dataset:
        np.testing.assert_array_equal(dataset.read(1), inside)
        assert tuple(dataset.transform)[:6] == tile.transform
        assert dataset.crs.to_epsg() == 32631


def test_results_come_in_order_and_no_more_than_allowed_are_waiting() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(task: int) -> int:
        with lock:
            begun.append(task)
        time.sleep(0.01 * (task % 3))
        return task * task

    with ThreadPoolExecutor(4) as pool:
        taken = 0
        for task, result in read_ahead(pool, work, range(40), ahead=6):
            assert (task, result) == (taken, taken * taken)
            assert max(begun) <= taken + 6
            taken += 1
    assert taken == 40


def test_a_failure_comes_in_its_turn_and_stops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(task: int) -> int:
        begun.append(task)
        if task == 3:
            raise KeyError(task)
        time.sleep(0.005)
        return task

    seen = []
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(KeyError):
            for task, _ in read_ahead(pool, work, range(1000), ahead=4):
                seen.append(task)
        count = len(begun)
        time.sleep(0.05)
        assert len(begun) == count  # nothing runs on
    assert seen == [0, 1, 2]
    assert count < 12
