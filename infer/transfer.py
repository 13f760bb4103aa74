"""Arrays to the device: shared on a CPU; elsewhere through two pinned buffers on a stream of their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_STAGING_BYTES = 64 << 20


def shared_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A CPU tensor on an array's own memory (tiles are mapped read-only; nothing writes to it)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


class Transfer:
    """Brings arrays to one device. Use it from one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._staging: list[torch.Tensor] = []
        self._free: list[Any] = []
        if device.type == "cuda":  # CUDA and ROCm; other accelerators copy without a stream of their own
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it so

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Everything queued on the device inside the block runs beside the computation, and is done when it ends."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """Tell the allocator that tensors made while loading are used by the computation's stream."""
        if self._stream is None:
            return
        for tensor in tensors:
            tensor.record_stream(torch.cuda.default_stream(self._device))

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """The array on the device."""
        host = shared_tensor(array)
        if self._stream is None or host.numel() == 0:
            return host.to(self._device)
        target = torch.empty(host.shape, dtype=host.dtype, device=self._device)
        self._copy(host.reshape(-1).view(torch.uint8), target.view(-1).view(torch.uint8))
        return target

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        if not self._staging:
            self._staging = [torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._free = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]  # torch leaves it so
        for turn, start in enumerate(range(0, source.numel(), _STAGING_BYTES)):
            stop = min(start + _STAGING_BYTES, source.numel())
            staging, free = self._staging[turn % 2], self._free[turn % 2]
            free.synchronize()  # the copy that last read this buffer is over
            staging[: stop - start].copy_(source[start:stop])
            target[start:stop].copy_(staging[: stop - start], non_blocking=True)
            free.record(self._stream)
