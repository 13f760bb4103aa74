"""Where a TIFF keeps its pixels: which bytes must be fetched so that a window can be decoded. Pure.

Only the first image of the file is looked at (the full resolution of a COG) and its mask, if the file has one inside;
classic TIFF and BigTIFF, tiles and strips. What the pixels mean is left to GDAL.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from preproc.reader.placement import SourceWindow

_WIDTH, _HEIGHT, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = 256, 257, 277, 278, 284
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PIXEL_TAGS = (_WIDTH, _HEIGHT, 258, _SAMPLES, _PLANAR, 339, 33550, 33922, 34264, 34735, 34736, 34737, 42113)
"""What says how pixels are stored and where they lie: sizes, bits, sample format, georeference, nodata."""
_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
"""TIFF type of whole numbers -> numpy's."""
_ORDERS: dict[bytes, Literal["<", ">"]] = {b"II": "<", b"MM": ">"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""TIFF type -> bytes of one value."""
_MOST_ENTRIES = 4096
_MOST_TAG_BYTES = 1 << 25
_MOST_BLOCKS = 1 << 21
_MOST_DIRECTORIES = 64
_SUBFILE, _IS_MASK, _IS_REDUCED = 254, 4, 1
_NO_MASK = (b"KNOWN_INCOMPATIBLE_EDITION=NO", b"LAYOUT=IFDS_BEFORE_DATA")
"""In the first bytes of GDAL's COGs; those with a mask also say MASK_INTERLEAVED_WITH_IMAGERY."""
_AHEAD = 1024
"""Bytes that are fetched with each further directory: more than nearly all of them have."""
MOST_BYTES = 64 << 20
"""Of pixels that are decoded at once, of one block or one window: bounds the memory, whatever a file's header says."""
LEADER = 4
"""Bytes before and after each block in which GDAL's COGs repeat its size and its last bytes; GDAL may look at them."""


class ByteSource(Protocol):
    """A file of which bytes can be had."""

    def ensure(self, ranges: list[tuple[int, int]]) -> None:
        """Make some ranges available: first byte and the one after the last."""

    def read(self, start: int, end: int) -> bytes:
        """Bytes of the file, fewer at its end."""


class LayoutError(Exception):
    """The bytes are not those of a TIFF that can be understood."""


@dataclass(frozen=True)
class BlockLayout:
    """The blocks (tiles or strips) of a TIFF's first image, row by row."""

    height: int
    width: int
    block_height: int
    block_width: int
    offsets: NDArray[np.uint64]
    """First byte of each block."""
    counts: NDArray[np.uint64]
    """Compressed bytes of each block; 0 for blocks that the file leaves out."""
    mask: BlockLayout | None = None
    """Of the mask inside the file that says which pixels have a value."""
    pixel_tags: tuple[tuple[int, bytes], ...] = ()
    """The raw tags that say what the pixels are and where they lie: equal for files of equal type and grid."""

    def ranges(self, window: SourceWindow) -> list[tuple[int, int]]:
        """First byte and the one after the last of every block that touches a window, leaders included.

        Raises:
            LayoutError: if a block claims to be larger than any that smalti would decode.
        """
        across = -(-self.width // self.block_width)
        rows = range(window.row // self.block_height, (window.row + window.height - 1) // self.block_height + 1)
        columns = range(window.column // self.block_width, (window.column + window.width - 1) // self.block_width + 1)
        found = []
        for row in rows:
            for column in columns:
                offset, count = (int(values[row * across + column]) for values in (self.offsets, self.counts))
                if count > MOST_BYTES:
                    raise LayoutError(f"one of its blocks has {count} bytes, at most {MOST_BYTES} are read at once")
                if count:
                    found.append((max(offset - LEADER, 0), offset + count + LEADER))
        return found if self.mask is None else found + self.mask.ranges(window)


def read_layout(source: ByteSource) -> BlockLayout:
    """Read the layout of a TIFF.

    Args:
        source: the file; all that the first directory refers to is made available, because GDAL will need it:
            georeference, nodata and all.

    Raises:
        LayoutError: if this is not a TIFF, or not a whole one.
    """
    try:
        head = source.read(0, 512)
        first, following = _directory(source, *_start(head))
        layout = _layout(first)
        if all(words in head for words in _NO_MASK) and b"MASK_INTERLEAVED" not in head:
            return layout
        mask = _mask(source, first, following)
        if mask is not None and (mask.height, mask.width) != (layout.height, layout.width):
            raise LayoutError("the mask inside the file is not of its size")
        return replace(layout, mask=mask)
    except (struct.error, KeyError, ValueError, ZeroDivisionError) as error:
        raise LayoutError(f"its TIFF directory cannot be read ({error!r})") from error


@dataclass(frozen=True)
class _Directory:
    order: Literal["<", ">"]
    big: bool
    """BigTIFF."""
    entries: dict[int, tuple[int, int, int]]
    """Tag -> type, count, position of the values in the file."""
    source: ByteSource

    def values(self, tag: int) -> NDArray[np.uint64]:
        """The values of a tag of whole numbers."""
        kind, count, position = self.entries[tag]
        if kind not in _TYPES or not 0 < count <= _MOST_BLOCKS:
            raise LayoutError(f"tag {tag} has type {kind} and {count} values")
        dtype = np.dtype(_TYPES[kind]).newbyteorder(self.order)
        return np.frombuffer(self.source.read(position, position + count * dtype.itemsize), dtype).astype(np.uint64)

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag's values."""
        kind, count, position = self.entries[tag]
        return self.source.read(position, position + count * _SIZES.get(kind, 1))

    def value(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag."""
        if default is not None and tag not in self.entries:
            return default
        return int(self.values(tag)[0])


def _start(head: bytes) -> tuple[Literal["<", ">"], bool, int]:
    """Byte order, whether it is a BigTIFF, and where the first directory is."""
    order = _ORDERS.get(head[:2])
    magic = struct.unpack(f"{order}H", head[2:4])[0] if order else 0
    if order is None or magic not in (42, 43):
        raise LayoutError("it does not begin like a TIFF")
    if magic == 42:
        return order, False, int(struct.unpack(f"{order}I", head[4:8])[0])
    return order, True, int(struct.unpack(f"{order}Q", head[8:16])[0])


def _directory(
    source: ByteSource, order: Literal["<", ">"], big: bool, start: int, *, whole: bool = True
) -> tuple[_Directory, int]:
    """The directory at `start`, what it refers to fetched too if `whole`; and where the next one is (0: nowhere)."""
    entry, pointer, counter = ("HHQ", "Q", "Q") if big else ("HHI", "I", "H")
    first = start + struct.calcsize(f"{order}{counter}")
    length = int(struct.unpack(f"{order}{counter}", source.read(start, first))[0])
    if not 0 < length <= _MOST_ENTRIES:
        raise LayoutError(f"its directory has {length} entries")
    inline = struct.calcsize(f"{order}{pointer}")
    size = struct.calcsize(f"{order}{entry}") + inline
    # The link to the next directory, which GDAL follows, comes right after.
    body = source.read(first, first + length * size + inline)
    entries, outside = {}, []
    for index in range(length):
        tag, kind, count = struct.unpack_from(f"{order}{entry}", body, index * size)
        at = (index + 1) * size - inline
        place, bytes_of_values = first + at, count * _SIZES.get(kind, 1)
        if bytes_of_values > inline:
            place = int(struct.unpack_from(f"{order}{pointer}", body, at)[0])
            outside.append((place, place + bytes_of_values))
        entries[tag] = (kind, count, place)
    if sum(end - begin for begin, end in outside) > _MOST_TAG_BYTES:
        raise LayoutError("its directory claims to be larger than any real one")
    if whole:
        source.ensure(outside)
    following = int(struct.unpack_from(f"{order}{pointer}", body, length * size)[0])
    return _Directory(order, big, entries, source), following


def _mask(source: ByteSource, first: _Directory, start: int) -> BlockLayout | None:
    """The layout of the full-size mask among the directories after the first."""
    seen: set[int] = set()
    while start and start not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(start)
        source.ensure([(start, start + _AHEAD)])
        directory, following = _directory(source, first.order, first.big, start, whole=False)
        subfile = directory.value(_SUBFILE, 0)
        if subfile & _IS_MASK and not subfile & _IS_REDUCED:
            return _layout(_directory(source, first.order, first.big, start)[0])
        start = following
    return None


def _layout(directory: _Directory) -> BlockLayout:
    height, width = directory.value(_HEIGHT), directory.value(_WIDTH)
    if _TILE_OFFSETS in directory.entries:
        block_height, block_width = directory.value(_TILE_HEIGHT), directory.value(_TILE_WIDTH)
        offsets, counts = directory.values(_TILE_OFFSETS), directory.values(_TILE_COUNTS)
    else:
        block_height, block_width = min(directory.value(_ROWS_PER_STRIP, height), height), width
        offsets, counts = directory.values(_STRIP_OFFSETS), directory.values(_STRIP_COUNTS)
    blocks = -(-height // block_height) * -(-width // block_width)
    if directory.value(_PLANAR, 1) == 2:
        blocks *= directory.value(_SAMPLES, 1)
    if not len(offsets) == len(counts) == blocks:
        raise LayoutError(f"{len(offsets)} offsets and {len(counts)} sizes for {blocks} blocks")
    tags = tuple((tag, directory.raw(tag)) for tag in _PIXEL_TAGS if tag in directory.entries)
    order = (0, directory.order.encode())
    return BlockLayout(height, width, block_height, block_width, offsets, counts, None, (order, *tags))
