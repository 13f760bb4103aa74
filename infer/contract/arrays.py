"""Opening .npy files that others may have written: the header is checked against the file before anything is mapped."""

from __future__ import annotations

import math
import os
import struct
import tokenize
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from infer.contract.errors import FormatError
from infer.contract.regular import open_regular

_SMALL = 4096
"""Bytes up to which a file is read, not mapped."""
_MAX_AXIS = 2**31
# numpy parses a header as a Python literal.
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
        return _opened(path)
    except FormatError:
        raise
    except _HEADER_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(f"{path}: not a readable .npy array ({reason}): {remedy}") from error


def _opened(path: Path) -> NDArray[Any]:
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if stream.read(2) == b"PK":
            raise ValueError("it is an archive of arrays, .npz")
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
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
