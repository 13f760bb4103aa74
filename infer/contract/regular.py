"""Opening what must be a regular file as one, and reading JSON, TOML and .npy within bounds.

A pipe in place of a file would make a reader wait for ever, a device like /dev/zero would fill the memory, and a
document nested 100 000 deep ends in an error that no caller expects. Whatever a user's or an archive's file holds, the
answer is a value or one clear line.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import threading
import tokenize
import tomllib
from collections.abc import Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infer.contract.errors import FormatError

MAX_DOCUMENT_BYTES = 512 << 20
"""Of a JSON file: a plan of a million tiles takes a tenth of it."""
MAX_TOML_BYTES = 4 << 20
"""Of a settings file: the standard library's parser takes seconds for each megabyte."""
_LONG_NUMBER = re.compile(r"\b0[xob][0-9A-Fa-f_]{1000}")
MAX_DEPTH = 100
"""Levels of nesting: STAC items and GeoJSON need ten."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SMALL = 4096
"""Bytes up to which a file is read, not mapped."""
_MAX_AXIS = 2**31
# numpy parses a header as a Python literal.
_PARSING = threading.Lock()
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    SyntaxError,
    RecursionError,
    MemoryError,
    EOFError,
    OSError,
    struct.error,
    tokenize.TokenError,
)


def _refuse(path: Path | str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise FormatError(f"{path}: should be a file and is {kind}")


def check_regular(path: Path | str) -> int:
    """Make sure that a path is a regular file (or a link to one), for libraries that open it themselves.

    Returns:
        Its size in bytes.

    Raises:
        FormatError: if it is a folder, pipe, socket or device.
        OSError: if it is not there, or cannot be looked at.
    """
    found = _looked_at(path)
    _refuse(path, found.st_mode)
    return found.st_size


def file_mark(path: Path | str) -> tuple[int, ...]:
    """What tells a file, or a folder's list of files, from what it was before; empty if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116  # as below
    except (OSError, ValueError):
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _looked_at(path: Path | str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116  # of a country's files a Path takes longer to make than to look at
    except ValueError as error:  # a NUL in the path
        raise FormatError(f"{str(path)!r}: no path can hold this: correct the name") from error


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading; never waits for the other end of a pipe.

    Raises:
        FormatError: if it is a folder, pipe, socket or device.
        OSError: if it cannot be opened.
    """
    return os.fdopen(_opened(path)[0], "rb")


def _opened(path: Path | str) -> tuple[int, int]:
    """A descriptor of a regular file, and its size."""
    found = _looked_at(path)
    if not stat.S_ISREG(found.st_mode):  # to open a device may be to act on it
        _refuse(path, found.st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):  # it was replaced in between
            _refuse(path, found.st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, found.st_size


def read_regular(path: Path | str, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        FormatError: if it is no regular file, or larger.
        OSError: if it cannot be read.
    """
    descriptor, size = _opened(path)
    content = b""
    try:  # without a buffer: of a country's small files it takes longer to make than to read them
        while size <= limit and (more := os.read(descriptor, size + 1 - len(content))):  # a file that grows is not cut
            content += more
            if len(content) >= size:
                break
    finally:
        os.close(descriptor)
    if max(size, len(content)) > limit:
        raise FormatError(f"{path}: larger than {limit >> 20} MiB, which such a file never is")
    return content


JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object whose keys others define, or that is passed on unread: whoever looks into one checks what is there."""


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text, nested at most MAX_DEPTH deep.

    Raises:
        ValueError: for whatever is wrong with it: syntax, encoding, nesting, numbers of thousands of digits.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    brackets = (b"{", b"[") if isinstance(content, bytes) else ("{", "[")
    if sum(map(content.count, brackets)) > MAX_DEPTH:  # type: ignore[arg-type]  # of fewer none is so deep
        _check_depth(value)
    return value


_DECODER = json.JSONDecoder()


def parse_json_parts(content: bytes, keys: Iterable[str]) -> dict[str, Any] | None:
    """Some values of a table that is laid out as `write_json` does it; the others are not parsed, nor checked.

    Args:
        content: of a file that is known to be JSON.
        keys: of the table, in order.

    Returns:
        The values, or None if the table is laid out in another way, or lacks one.
    """
    found: dict[str, Any] = {}
    place = 0
    try:
        text = content.decode()
        for key in keys:
            lead = f'\n "{key}": '  # with this indentation no key of a table within this one
            found[key], place = _DECODER.raw_decode(text, text.index(lead, place) + len(lead))
    except (ValueError, RecursionError):
        return None
    return found


def _check_depth(value: Any) -> None:
    # What the parser takes may still be too deep for those who copy, compare or write it.
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if type(outer) in (dict, list)
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


TomlTable: TypeAlias = Mapping[str, Any]
"""Tables of a settings file before they are validated."""


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: for whatever is wrong with it.
    """
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"larger than {MAX_TOML_BYTES >> 20} MiB")
    if _LONG_NUMBER.search(text):  # of such a number Python refuses to tell the digits
        raise ValueError("a number of more than a thousand digits")
    try:
        content = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    _check_depth(content)
    return content


def read_toml(path: Path) -> str:
    """The text of a settings file in UTF-8; a byte order mark, as some editors write it, is left out.

    Raises:
        FormatError: if it is no regular file, or too large.
        UnicodeDecodeError: if it is not UTF-8.
        OSError: if it cannot be read.
    """
    return read_regular(path, MAX_TOML_BYTES).decode("utf-8-sig").replace("\r\n", "\n")


def open_npy(path: Path, remedy: str) -> NDArray[Any]:
    """An array of numbers from a .npy file, read-only and memory-mapped where it is not small.

    Args:
        path: the file.
        remedy: what to do, for the message.

    Raises:
        FormatError: if it is no regular file, no .npy file (an .npz, a pickle), or its header promises what the file
            does not hold.
    """
    try:
        return _mapped(path)
    except FormatError:
        raise
    except _HEADER_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(f"{path}: not a readable .npy array ({reason}): {remedy}") from error


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of the array in a .npy file, read up to its numbers.

    One thread at a time: numpy parses the header by way of Python's syntax tree, whose maker counts its depth for all
    threads together (python/cpython#106905), so that a sound file ended in a SystemError.

    Raises:
        ValueError: if it is another version of the format, or one of what numpy raises of a damaged header.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _PARSING:
        return read(stream)


def _mapped(path: Path) -> NDArray[Any]:
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if stream.read(2) == b"PK":
            raise ValueError("it is an archive of arrays, .npz")
        stream.seek(0)
        shape, fortran, dtype = npy_header(stream)
        start = stream.tell()
        if dtype.kind not in "biufc" or not all(type(n) is int and 0 <= n < _MAX_AXIS for n in shape):
            raise ValueError(f"{dtype} {shape} is no array of numbers")
        needed = math.prod(shape) * dtype.itemsize
        if needed > size - start:
            raise ValueError(f"its header promises {needed} bytes, it holds {size - start}: cut short or damaged")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if needed <= _SMALL:
            flat = np.frombuffer(stream.read(needed), dtype=dtype)
            return flat.reshape(shape, order=order)
    mapped: NDArray[Any] = np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape, order=order)
    return mapped
