"""A remote file gives the pixels that the whole file gives, whatever its layout, and fetches each byte once at most."""

from __future__ import annotations

import os
import resource
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from infer.contract import SmaltiError
from preproc.reader import read
from preproc.reader.gdal import gdal_settings
from preproc.reader.placement import SourceWindow, Target
from preproc.reader.ranges import MissingDataError
from preproc.reader.read import REFLECTANCE, Reader
from preproc.reader.sparse_file import HEADER_BYTES, RemoteFile, merged
from preproc.reader.tiff_layout import LayoutError, read_layout


class FileClient:
    """Ranges of a local file, counted."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.asked: list[tuple[int, int]] = []

    def get(self, href: str, start: int, end: int) -> tuple[bytes, int]:
        assert start < end
        self.asked.append((start, end))
        return self.content[start:end], len(self.content)


class Bytes:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def ensure(self, ranges: list[tuple[int, int]]) -> None:
        pass

    def read(self, start: int, end: int) -> bytes:
        return self.content[start:end]


layouts = st.fixed_dictionaries(
    {
        "height": st.integers(1, 300),
        "width": st.integers(1, 300),
        "dtype": st.sampled_from(["uint8", "uint16", "float32"]),
        "compress": st.sampled_from(["none", "deflate", "lzw", "zstd"]),
        "tiled": st.booleans(),
        "block": st.sampled_from([16, 32, 128]),
        "bigtiff": st.sampled_from(["YES", "NO"]),
        "endian": st.sampled_from(["LITTLE", "BIG"]),
        "overviews": st.booleans(),
    }
)


def write(path: Path, case: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, (case["height"], case["width"])).astype(case["dtype"])
    blocks = {"tiled": True, "blockxsize": case["block"], "blockysize": case["block"]} if case["tiled"] else {}
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=case["height"], width=case["width"], dtype=case["dtype"],
        compress=case["compress"], bigtiff=case["bigtiff"], ENDIANNESS=case["endian"], crs="EPSG:32631", nodata=201,
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **blocks,
    ) as dataset:  # fmt: skip
        dataset.write(values, 1)
        if case["overviews"] and min(values.shape) >= 8:
            dataset.build_overviews([2, 4])


@settings(max_examples=60, deadline=None)
@given(layouts, st.data())
def test_any_window_of_any_layout_is_read_from_the_fetched_bytes(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("layouts") / "raster.tif"
    write(path, case)
    row, column = data.draw(st.integers(0, case["height"] - 1)), data.draw(st.integers(0, case["width"] - 1))
    height, width = data.draw(st.integers(1, case["height"] - row)), data.draw(st.integers(1, case["width"] - column))
    client = FileClient(path)
    header = data.draw(st.sampled_from([16, 100, 1000, HEADER_BYTES]))
    with gdal_settings(), RemoteFile(client, "http://x/raster.tif", header) as remote:  # type: ignore[arg-type]  # stands in
        layout = remote.layout()
        assert (layout.height, layout.width) == (case["height"], case["width"])
        remote.ensure(layout.ranges(SourceWindow(row, column, height, width)))
        with rasterio.open(remote.path, driver="GTiff", sharing=False) as dataset:
            found = dataset.read(1, window=Window(column, row, width, height))
            place = (dataset.crs, dataset.transform, dataset.nodata, dataset.dtypes)
    with rasterio.open(path) as dataset:
        assert place == (dataset.crs, dataset.transform, dataset.nodata, dataset.dtypes)
        np.testing.assert_array_equal(found, dataset.read(1)[row : row + height, column : column + width])
    spans = sorted((start, min(end, len(client.content))) for start, end in client.asked)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "a byte was fetched twice"


def test_only_the_blocks_of_the_window_are_fetched(tmp_path: Path) -> None:
    path = tmp_path / "raster.tif"
    values = np.random.default_rng(0).integers(0, 60000, (2048, 2048), dtype=np.uint16)
    profile = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0), "compress": "deflate"}
    with rasterio.open(
        path, "w", driver="COG", count=1, height=2048, width=2048, dtype="uint16", blocksize=256, **profile
    ) as dataset:
        dataset.write(values, 1)
    client = FileClient(path)
    with RemoteFile(client, "http://x/raster.tif") as remote:  # type: ignore[arg-type]  # stands in
        layout = remote.layout()
        remote.ensure(layout.ranges(SourceWindow(300, 300, 500, 500)))
        again = list(client.asked)
        remote.ensure(layout.ranges(SourceWindow(300, 300, 500, 500)))
        assert client.asked == again
    needed = sum(int(layout.counts[row * 8 + column]) for row in (1, 2, 3) for column in (1, 2, 3))
    fetched = sum(end - start for start, end in client.asked)
    assert needed <= fetched <= needed + HEADER_BYTES + 9 * 8
    assert len(client.asked) == 1 + 3  # the header, and one request a row of blocks


def test_a_directory_beyond_the_header_is_fetched(tmp_path: Path) -> None:
    path = tmp_path / "raster.tif"
    case = {"height": 300, "width": 300, "dtype": "uint16", "compress": "deflate", "tiled": True, "block": 16,
            "bigtiff": "NO", "endian": "LITTLE", "overviews": False}  # fmt: skip
    write(path, case)
    content = path.read_bytes()
    offset = struct.unpack("<I", content[4:8])[0]
    moved = content[:4] + struct.pack("<I", len(content) + 40000) + content[8:] + bytes(40000)
    count = struct.unpack("<H", content[offset : offset + 2])[0]
    moved += content[offset : offset + 2 + 12 * count] + bytes(4)
    path.write_bytes(moved)
    client = FileClient(path)
    with RemoteFile(client, "http://x/raster.tif") as remote:  # type: ignore[arg-type]  # stands in
        assert len(remote.layout().offsets) == 19 * 19


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II*",
        b"PNG" * 30,
        b"II*\0" + bytes(4),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(50),
        b"MM\0*\0\0\0\x08\0\x01" + bytes(30),
        b"II+\0\x08\0\0\0" + bytes(40),
    ],
)
def test_what_is_no_tiff_is_refused(content: bytes) -> None:
    with pytest.raises(LayoutError):
        read_layout(Bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_never_do_anything_but_refuse(content: bytes) -> None:
    for head in (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0"):
        text = head + content
        with pytest.raises(LayoutError):
            read_layout(Bytes(text))


SPOILT = int(os.environ.get("SMALTI_FUZZ", "60"))
"""Spoilt files that are tried in each way; set it to thousands for a search."""
SEED = int(os.environ.get("SMALTI_FUZZ_SEED", "0"))
HOSTILE = 2000
"""Bytes at the beginning that are spoilt: header and directories."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small COG with overviews and a mask, and the same without a mask."""
    folder = tmp_path_factory.mktemp("small")
    values = np.random.default_rng(5).integers(1, 9999, (256, 256), dtype="uint16")
    profile = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 573440, 0, -10, 5626880), "nodata": 0}
    with rasterio.open(
        folder / "plain.tif", "w", driver="GTiff", count=1, height=256, width=256, dtype="uint16", **profile
    ) as dataset:
        dataset.write(values, 1)
    rasterio.shutil.copy(folder / "plain.tif", folder / "cog.tif", driver="COG", blocksize=128, overview_count=1)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(folder / "plain.tif", "r+") as dataset:
        dataset.nodata = None
        dataset.write_mask(values > 3000)
    rasterio.shutil.copy(folder / "plain.tif", folder / "masked.tif", driver="COG", blocksize=128, overview_count=1)
    (folder / "plain.tif").unlink()
    return folder


@pytest.mark.parametrize("name", ["cog", "masked"])
@pytest.mark.parametrize("place", ["local", "served"])
def test_spoilt_headers_give_one_clear_error_or_pixels_and_never_fill_the_memory(
    small: Path, tmp_path: Path, name: str, place: str
) -> None:
    """Whatever a header says: smalti's own error or an array of the right shape, within 1 GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the tests so far
    content = (small / f"{name}.tif").read_bytes()
    target, path = Target(32631, 573440, 5626880, 200, 200), tmp_path / "x.tif"
    path.write_bytes(content)
    reader = Reader(FolderClient(tmp_path))  # type: ignore[arg-type]  # what Reader needs of a RangeClient
    href = str(path) if place == "local" else "https://archive/x.tif"
    rng = np.random.default_rng(SEED)
    refused = []
    with gdal_settings():
        (whole,) = reader.read(href, [target], REFLECTANCE)
        for _ in range(SPOILT):
            spoilt = bytearray(content)
            for at in rng.integers(0, HOSTILE, rng.integers(1, 6)):
                spoilt[at] = rng.choice([0, 1, 127, 255, spoilt[at] ^ (1 << rng.integers(8))])
            path.write_bytes(spoilt)
            try:
                (placed,) = reader.read(href, [target], REFLECTANCE)
            except SmaltiError as error:
                refused.append(str(error))
            else:
                assert placed.values_hw.shape == whole.values_hw.shape
    assert len(refused) > SPOILT // 10
    assert all("x.tif: " in message and "\n" not in message for message in refused)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB


def test_a_size_that_no_file_has_is_refused() -> None:
    class Liar:
        def get(self, href: str, start: int, end: int) -> tuple[bytes, int]:
            return b"II*\0", 10**30

    with pytest.raises(MissingDataError, match="as the server says"):
        Reader(Liar()).read("https://archive/x.tif", [Target(32631, 0, 0, 9, 9)], REFLECTANCE)  # type: ignore[arg-type]  # as above


ranges = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)).map(lambda p: (p[0], p[0] + p[1])), max_size=20)


@given(ranges, st.integers(0, 50), st.integers(1, 200))
def test_merged_ranges_cover_the_same_bytes_and_little_more(parts: list[tuple[int, int]], gap: int, most: int) -> None:
    joined = merged(parts, gap, most)
    wanted = {byte for start, end in parts for byte in range(start, end)}
    covered = [byte for start, end in joined for byte in range(start, end)]
    assert wanted <= set(covered)
    assert joined == sorted(joined)
    between = set(covered) - wanted
    if gap == 0:
        assert not between
    assert all(end - start <= max(most, max(e - s for s, e in parts)) for start, end in joined)


class FolderClient:
    """Ranges of the files of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, href: str, start: int, end: int) -> tuple[bytes, int]:
        content = (self.folder / href.rpartition("/")[2]).read_bytes()
        return content[start:end], len(content)


def test_what_one_file_told_is_believed_of_files_with_the_same_tags_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is read by GDAL once for a season's files of one band; a file of another grid or nodata is not it."""
    rng = np.random.default_rng(3)
    size, west, north = 64, 573440, 5626880
    pixels: dict[str, Any] = {}

    def scene(name: str, east: int = 0, nodata: float | None = 0, **options: Any) -> None:
        pixels[name] = rng.integers(1, 999, (size, size)).astype("uint16")
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", count=1, height=size, width=size, dtype="uint16", crs="EPSG:32631",
            nodata=nodata, transform=rasterio.Affine(10, 0, west + east, 0, -10, north), compress="deflate", **options,
        ) as dataset:  # fmt: skip
            dataset.write(pixels[name], 1)

    scene("a.tif")
    scene("same.tif", tiled=True, blockxsize=16, blockysize=16)  # other blocks, same pixels' places
    scene("east.tif", east=160)
    scene("nodata.tif", nodata=7)
    opened: list[str] = []
    real = read.open_raster

    def counted(name: str) -> Any:
        opened.append(name)
        return real(name)

    monkeypatch.setattr(read, "open_raster", counted)
    reader = Reader(FolderClient(tmp_path))  # type: ignore[arg-type]  # what Reader needs of a RangeClient
    target = Target(32631, west + 160, north - 160, 32, 32)
    counts, nodata = {}, {}
    with gdal_settings():
        for name, column in (("a.tif", 16), ("same.tif", 16), ("east.tif", 0), ("nodata.tif", 16), ("a.tif", 16)):
            before = len(opened)
            (placed,) = reader.read(f"https://archive/{name}", [target], REFLECTANCE)
            np.testing.assert_array_equal(placed.values_hw, pixels[name][16:48, column : column + 32])
            counts[name], nodata[name] = len(opened) - before, placed.nodata
    assert counts == {"a.tif": 1, "same.tif": 1, "east.tif": 2, "nodata.tif": 2}
    assert nodata == {"a.tif": 0, "same.tif": 0, "east.tif": 0, "nodata.tif": 7}
