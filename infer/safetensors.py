"""A minimal reader of safetensors files: eight bytes of header length, a JSON header, one raw buffer. Runs no code.

Format: github.com/huggingface/safetensors. The file is mapped, not read: tensors share its pages.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer.contract import FormatError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000
_REMEDY = "fetch it again"


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise FormatError(f"{path}: not a safetensors file (its header would be {length} bytes long): {_REMEDY}")
        try:
            header = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FormatError(f"{path}: its safetensors header is not JSON ({error}): {_REMEDY}") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path}: its safetensors header is not a table: {_REMEDY}")
    return header, 8 + length, size


def _tensor(path: Path, name: str, record: Any, start: int, size: int) -> torch.Tensor:
    try:
        dtype = _DTYPES[record["dtype"]]
        shape = [int(n) for n in record["shape"]]
        first, last = (int(n) for n in record["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: tensor {name!r} is described wrongly ({error!r}): {_REMEDY}") from error
    expected = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    if min(shape, default=0) < 0 or not 0 <= first <= last <= size - start or last - first != expected:
        raise FormatError(f"{path}: tensor {name!r} does not fit the file (truncated or damaged): {_REMEDY}")
    if expected == 0:
        return torch.empty(shape, dtype=dtype)
    raw = np.memmap(path, mode="c", dtype=np.uint8, offset=start + first, shape=(expected,))
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors and the text metadata of a safetensors file.

    Raises:
        FormatError: if the file is not what its header says.
    """
    header, start, size = _header(path)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise FormatError(f"{path}: its metadata is not a table: {_REMEDY}")
    tensors = {name: _tensor(path, name, record, start, size) for name, record in header.items()}
    return tensors, {str(key): str(value) for key, value in metadata.items()}
