"""The device: which one, in which precision, how many threads and tokens at once, and how arrays get there.

Nothing here is particular to one vendor: ROCm builds of torch answer to the name cuda, and other accelerators are asked
through `torch.accelerator` where torch has it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import SmaltiError

Precision = Literal["float32", "bfloat16"]

CPU_TOKENS: dict[Precision, int] = {"float32": 1024, "bfloat16": 2048}
"""Tokens of a batch on a CPU: what a batch touches stays in the cache."""
GPU_TOKENS = 1 << 19
"""Tokens of a batch on an accelerator, for networks up to 256 wide (fewer in proportion for wider ones): 3 GiB of the
device in bfloat16, 6 GiB in float32; a device that has less halves them."""


def open_cores() -> int:
    """Cores that this process may use: its affinity mask (Slurm, containers, taskset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allotted_cores() -> int:
    """The same, or fewer by OMP_NUM_THREADS."""
    cores = open_cores()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wanted)) if wanted.isdigit() else cores)


@dataclass(frozen=True)
class Device:
    """Where and how the network runs."""

    torch_device: torch.device
    precision: Precision
    workers: int
    """Threads that each run batches of their own, one core a thread; 1 on an accelerator."""

    @property
    def on_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self.torch_device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the backbones."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def kind(self) -> str:
        """What it is, for manifests: the maker's name of the accelerator, or cpu with its vector instructions."""
        if self.on_cpu:
            return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
        if self.torch_device.type == "cuda":
            vendor = "rocm" if torch.version.hip else "cuda"
            return f"{vendor} ({torch.cuda.get_device_name(self.torch_device)})"
        return self.torch_device.type

    def activate(self) -> None:
        """Make it the calling thread's current accelerator (kernels compiled at run time need that)."""
        if self.torch_device.type == "cuda":
            torch.cuda.set_device(self.torch_device)
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in float32
        elif self.torch_device.type == "xpu":
            torch.xpu.set_device(self.torch_device)

    def synchronise(self) -> None:
        """Wait until everything that was asked of it is done, for whoever measures time."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.torch_device.type == "xpu":
            torch.xpu.synchronize(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    def token_budget(self, width: int) -> int:
        """Tokens of a batch for a network of this width, the same for every tile."""
        if self.on_cpu:
            return CPU_TOKENS[self.precision]
        return max(4096, min(GPU_TOKENS, GPU_TOKENS * 256 // width))


def _accelerator() -> str | None:
    """Type of the accelerator that torch sees, or None."""
    if torch.cuda.is_available():  # CUDA and ROCm
        return "cuda"
    modern = getattr(torch, "accelerator", None)
    if modern is not None and modern.is_available():
        return str(modern.current_accelerator().type)
    if torch.backends.mps.is_available():
        return "mps"
    return None


def _bfloat16_on(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type in ("xpu", "cpu")


def accelerator_count() -> int:
    """Number of accelerators that this process sees."""
    kind = _accelerator()
    if kind == "cuda":
        return torch.cuda.device_count()
    return 0 if kind is None else 1


def choose_device(
    wanted: str = "auto", precision: Literal["auto", "float32", "bfloat16"] = "auto", index: int = 0
) -> Device:
    """Choose device and precision.

    Args:
        wanted: auto (an accelerator where there is one), cpu, cuda (CUDA or ROCm), or another torch device type.
        precision: auto is bfloat16 on accelerators that have it and float32 elsewhere.
        index: which accelerator.

    Raises:
        SmaltiError: if what is wanted is not there.
    """
    found = _accelerator()
    if wanted == "auto":
        wanted = found or "cpu"
    elif wanted != "cpu" and wanted != found:
        raise SmaltiError(
            f"--device {wanted}: torch {torch.__version__} sees no such device here (it sees {found or 'none'})"
        )
    device = torch.device("cpu") if wanted == "cpu" else torch.device(wanted, index)
    if precision == "bfloat16" and not _bfloat16_on(device):
        raise SmaltiError(f"--precision bfloat16: this {wanted} device does not have it: use float32")
    if precision == "auto":
        precision = "bfloat16" if wanted != "cpu" and _bfloat16_on(device) else "float32"
    return Device(device, precision, allotted_cores() if wanted == "cpu" else 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device (or the host's allocator under torch) ran out of memory."""
    named = getattr(torch, "OutOfMemoryError", None)
    if named is not None and isinstance(error, named):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


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
