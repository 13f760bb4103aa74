"""The strict reader of tiles: what it accepts, and one clear line for everything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.contract import (
    BANDS,
    MASK_POLARITY,
    TILE_ARRAYS,
    FormatError,
    PlannedTile,
    read_tile,
    write_manifest,
    write_npy,
)
from infer.contract.tile import TileManifest


def make_tile(folder: Path, t: int = 3, a: int = 2, d: int = 0, h: int = 4, w: int = 5, manifest: bool = True) -> Path:
    rng = np.random.default_rng(0)
    sizes = {"t": t, "a": a, "d": d, "h": h, "w": w, "b": 10, "p": 2}
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in TILE_ARRAYS.items():
        high = 2 if name == "masks_thw" else 300
        values = rng.integers(0 if name == "masks_thw" else 1, high, [sizes[axis] for axis in spec.axes])
        write_npy(folder / spec.file, values.astype(spec.dtype))
    if manifest:
        seal(folder)
    return folder


def seal(folder: Path, **changes: object) -> None:
    fields = {"band_order": list(BANDS), "mask_polarity": MASK_POLARITY, **changes}
    files = [folder / spec.file for spec in TILE_ARRAYS.values() if (folder / spec.file).exists()]
    write_manifest(folder / "tile.json", "tile", inputs={"x": 1}, files=files, fields=fields)


@settings(max_examples=25, deadline=None)
@given(t=st.integers(0, 4), a=st.integers(0, 3), d=st.integers(0, 3), h=st.integers(1, 5), w=st.integers(1, 5))
def test_any_consistent_tile_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, t: int, a: int, d: int, h: int, w: int
) -> None:
    folder = make_tile(tmp_path_factory.mktemp("tiles") / "tile", t, a, d, h, w)
    tile = read_tile(folder, need_manifest=True)
    assert tile.bands_thwb.shape == (t, h, w, 10)
    assert tile.shape_hw == (h, w)
    assert tile.sar_asc_thwp.shape == (a, h, w, 2)
    assert tile.sar_desc_doys_t.shape == (d,)


def test_a_folder_of_the_reference_implementation_needs_no_manifest(tmp_path: Path) -> None:
    folder = make_tile(tmp_path / "tile", manifest=False)
    assert read_tile(folder, need_manifest=False).manifest == TileManifest()
    with pytest.raises(FormatError, match=r"tile.json: the manifest of this tile is missing: fetch this tile again"):
        read_tile(folder, need_manifest=True)


def _rewrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_npy(folder / name, change(np.load(folder / name)))
        seal(folder)

    return apply


def _truncate(folder: Path) -> None:
    path = folder / "bands.npy"
    path.write_bytes(path.read_bytes()[:-100])


def _truncate_and_seal(folder: Path) -> None:
    (folder / "tile.json").unlink()
    _truncate(folder)


def _flip(folder: Path) -> None:
    path = folder / "bands.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "tile.json").read_text())
    change(content)
    (folder / "tile.json").write_text(json.dumps(content))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing mask": (
        lambda folder: (folder / "masks.npy").unlink(),
        r"masks.npy: missing",
    ),
    "unlisted mask": (
        lambda folder: ((folder / "masks.npy").unlink(), seal(folder))[1],
        r"tile.json: does not list masks.npy",
    ),
    "truncated, manifest knows": (_truncate, r"bands.npy: \d+ bytes, tile.json says \d+"),
    "truncated, no manifest": (_truncate_and_seal, r"bands.npy: not a readable .npy array"),
    "one bit flipped": (
        _flip,
        r"bands.npy: its contents do not match the checksum in tile.json: delete .*tile.json, then fetch",
    ),
    "nine bands": (
        _rewrite("bands.npy", lambda x: x[..., :9]),
        r"bands.npy: axis 'b' has 9 entries, the ten bands has 10",
    ),
    "float bands": (_rewrite("bands.npy", lambda x: x.astype("f4")), r"bands.npy: dtype float32, expected uint16"),
    "dates do not fit": (_rewrite("doys.npy", lambda x: x[:-1]), r"doys.npy: axis 't' has 2 entries, bands.npy has 3"),
    "mask of 255": (_rewrite("masks.npy", lambda x: x * 255), r"masks.npy: holds 255, a mask is 0 or 1"),
    "day 0": (_rewrite("doys.npy", lambda x: x * 0), r"doys.npy: day of year outside 1..366"),
    "no time axis": (_rewrite("masks.npy", lambda x: x[0]), r"masks.npy: 2 axes \(4, 5\), expected 3"),
    "another band order": (lambda f: seal(f, band_order=sorted(BANDS)), r"tile.json: band order \['B02', "),
    "inverted mask": (lambda f: seal(f, mask_polarity="1 = cloud"), r"tile.json: mask polarity '1 = cloud'"),
    "manifest is no JSON": (
        lambda f: (f / "tile.json").write_text("{"),
        r"tile.json: the manifest of this tile is not valid JSON",
    ),
    "manifest of a later version": (
        lambda f: (f / "tile.json").write_text((f / "tile.json").read_text().replace('_version": 1', '_version": 9')),
        r"tile.json: format version 9, this smalti reads 1",
    ),
    "a manifest that names a file elsewhere": (
        lambda f: _edit_manifest(f, lambda m: m["files"].update({"../x.npy": m["files"]["bands.npy"]})),
        r"tile.json: the file name '../x.npy' leaves its folder",
    ),
    "a manifest without checksums": (
        lambda f: _edit_manifest(f, lambda m: m["files"]["bands.npy"].pop("sha256")),
        r"tile.json: says of bands.npy no bytes and sha256",
    ),
    "a manifest of nulls": (
        lambda f: _edit_manifest(f, lambda m: m["files"].update({"bands.npy": None})),
        r"tile.json: says of bands.npy no bytes and sha256",
    ),
    "a manifest with another number of bytes": (
        lambda f: _edit_manifest(f, lambda m: m["files"]["bands.npy"].update(bytes=1e999)),
        r"tile.json: says of bands.npy no bytes and sha256",
    ),
    "a manifest whose files are a list": (
        lambda f: _edit_manifest(f, lambda m: m.update(files=list(m["files"]))),
        r"tile.json: the manifest lacks its files or inputs",
    ),
    "a season that is none": (
        lambda f: _edit_manifest(f, lambda m: m.update(window={"start": "last spring", "end": "2021-12-31"})),
        r"tile.json: window.start = 'last spring' is not a day such as 2021-07-01: fetch this tile again",
    ),
    "a grid of three numbers": (
        lambda f: _edit_manifest(f, lambda m: m.update(grid={"crs": "EPSG:32631", "transform": [10, 0, 0]})),
        r"tile.json: grid.transform = \(list\) is not a list of 6: fetch this tile again",
    ),
    "a grid beyond all numbers": (
        lambda f: _edit_manifest(
            f, lambda m: m.update(grid={"crs": "EPSG:32631", "transform": [10, 0, 10**400, 0, -10, 0]})
        ),
        r"tile.json: grid.transform\[2\] = \(int\) is not a number: fetch this tile again",
    ),
    "a date that was dropped without a reason": (
        lambda f: _edit_manifest(f, lambda m: m.update(dropped={"s2": [{"date": "2021-07-01", "items": []}]})),
        r"tile.json: dropped.s2\[0\].reason is missing: fetch this tile again",
    ),
    "a pipe in place of an array": (
        lambda f: ((f / "doys.npy").unlink(), os.mkfifo(f / "doys.npy"))[1],
        r"doys.npy: should be a file and is a pipe",
    ),
    "another kind of manifest": (
        lambda f: write_manifest(f / "tile.json", "embedding", inputs={}, files=[]),
        r"tile.json: not a smalti tile manifest",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tile_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    folder = make_tile(tmp_path / "tile")
    damage, message = BROKEN[case]
    damage(folder)
    with pytest.raises(FormatError, match=message) as caught:
        read_tile(folder, need_manifest=case != "truncated, no manifest")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    folder = make_tile(tmp_path / "tile", manifest=False)
    np.save(folder / "bands.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match=r"bands.npy: not a readable .npy array"):
        read_tile(folder, need_manifest=False)


def test_another_tiles_folder_under_this_name_is_refused(tmp_path: Path) -> None:
    here = PlannedTile("31N_a", 32631, 573440, 5626880, 4)
    folder = make_tile(tmp_path / here.name)
    _edit_manifest(folder, lambda m: m.update(inputs={"grid": [32631, 573440, 5626880, 4]}))
    assert read_tile(folder, need_manifest=True, planned=here).name == here.name
    moved = PlannedTile("31N_b", 32631, 573480, 5626880, 4)
    folder.rename(tmp_path / moved.name)
    with pytest.raises(FormatError, match=r"tile\.json: made for the grid .*another tile's folder under this name"):
        read_tile(tmp_path / moved.name, need_manifest=True, planned=moved)
