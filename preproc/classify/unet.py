"""The segmentation head where it is applied: the U-Net in numpy, and windows of a fixed lattice that are blended.

Windows lie at multiples of _STEP pixels from the zone's origin, wherever sheets and tiles end, so that no edge of
either shows, and a pixel has the same probabilities in whatever sheet it is made.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from infer.contract import FormatError, SmaltiError, write_bytes
from infer.contract.segment import Ground, read_arrays, shapes, standardised

WINDOW = 128
"""Side of a window in pixels: how far around a pixel its probabilities may depend on."""
_STEP = 96
_RAMP = WINDOW - _STEP
"""Pixels from a window's edge at which it counts in full."""
_GROUP = 8
_REMEDY = "run `smalti train` again"
_EPSILON = 1e-5


@dataclass(frozen=True)
class UNet:
    """A trained head: arrays alone, as `infer.contract.segment.shapes` names them."""

    method: ClassVar[str] = "segment"

    classes_: NDArray[np.int64]
    """(K,) class codes, ascending."""
    mean_c: NDArray[np.float32]
    scale_c: NDArray[np.float32]
    arrays: Mapping[str, NDArray[np.float32]]

    @property
    def feature_names_(self) -> list[str]:
        """As many as an embedding has numbers."""
        return [str(index) for index in range(len(self.mean_c))]

    def predict_proba(self, x: Any, *, thread_count: int = 1) -> Any:
        """Refuse: it needs more than pixels.

        Raises:
            SmaltiError: always.
        """
        del x, thread_count
        raise SmaltiError(
            "this classifier is a segmentation head: it maps pixels by what lies around them (`smalti predict`), and "
            "cannot say anything of single vectors: train one of another [classify] method for that"
        )

    def save(self, path: Path) -> None:
        """Write the arrays; equal ones give equal bytes."""
        buffer = io.BytesIO()
        plain: dict[str, Any] = {"classes_": self.classes_, "mean_c": self.mean_c, "scale_c": self.scale_c}
        np.savez(buffer, **{**plain, **self.arrays})
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save`, or the engine, wrote.

        Raises:
            FormatError: if it is something else.
        """
        names = list(shapes(1, 8, 2))
        stored = read_arrays(path, ["classes_", "mean_c", "scale_c", *names], _REMEDY)
        codes, mean_c, scale_c = stored["classes_"], stored["mean_c"], stored["scale_c"]
        width = stored["stem_b"].size
        wanted = shapes(len(mean_c), width, len(codes)) if mean_c.ndim == codes.ndim == 1 else {}
        fits = bool(wanted) and scale_c.shape == mean_c.shape and width > 0 and width % _GROUP == 0
        if not fits or any(stored[name].shape != shape for name, shape in wanted.items()):
            raise FormatError(f"{path}: its arrays do not fit each other: {_REMEDY}")
        for name, values in stored.items():
            if values.dtype != (np.int64 if name == "classes_" else np.float32) or not np.isfinite(values).all():
                raise FormatError(f"{path}: {name} holds what is no number: {_REMEDY}")
        return cls(codes, mean_c, scale_c, {name: stored[name] for name in names})

    def shares(self, values_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
        """(h, w, K) probabilities of a window of embeddings, NaN = missing; h and w are multiples of 4."""
        whole = self._block(
            "down0", np.maximum(self._pointwise("stem", standardised(values_hwc, self.mean_c, self.scale_c)), 0)
        )
        half = self._block("down1", _halved(whole))
        quarter = self._block("down2", _halved(half))
        half = self._block("up1", np.concatenate([_doubled(quarter), half], axis=2))
        scores = self._pointwise("head", self._block("up0", np.concatenate([_doubled(half), whole], axis=2)))
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        result: NDArray[np.float32] = shares / shares.sum(axis=2, keepdims=True)
        return result

    def _pointwise(self, name: str, x_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = x_hwc @ self.arrays[f"{name}_w"] + self.arrays[f"{name}_b"]
        return result

    def _block(self, name: str, x_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
        """A convolution of 3 x 3 pixels, GroupNorm and ReLU."""
        height, width, _ = x_hwc.shape
        kernel = self.arrays[f"{name}_w"]
        padded = np.pad(x_hwc, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros((height * width, kernel.shape[3]), dtype=np.float32)
        for row in range(3):
            for column in range(3):
                shifted = np.ascontiguousarray(padded[row : row + height, column : column + width])
                out += shifted.reshape(height * width, -1) @ kernel[row, column]
        mean_c = _of_groups(out.sum(axis=0, dtype=np.float64) / len(out))
        out -= mean_c.astype(np.float32)
        spread_c = _of_groups(np.square(out).sum(axis=0, dtype=np.float64) / len(out))
        out *= (self.arrays[f"{name}_g"] / np.sqrt(spread_c + _EPSILON)).astype(np.float32)
        out += self.arrays[f"{name}_b"]
        np.maximum(out, 0, out=out)
        return out.reshape(height, width, -1)


def _of_groups(mean_c: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,) each channel's number replaced by the mean of its group."""
    return np.repeat(mean_c.reshape(-1, _GROUP).mean(axis=1), _GROUP)


def _halved(x_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
    h, w, c = x_hwc.shape
    result: NDArray[np.float32] = x_hwc.reshape(h // 2, 2, w // 2, 2, c).mean(axis=(1, 3), dtype=np.float32)
    return result


def _doubled(x_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
    return x_hwc.repeat(2, axis=0).repeat(2, axis=1)


def _weights() -> NDArray[np.float32]:
    """(WINDOW, WINDOW) how much a window counts at its pixels: less towards its edges."""
    place = np.arange(WINDOW)
    ramp = np.minimum(np.minimum(place + 1, WINDOW - place), _RAMP).astype(np.float32) / np.float32(_RAMP)
    return ramp[:, None] * ramp


@dataclass
class Blended:
    """Probabilities of the pixels of a zone."""

    head: UNet
    ground: Ground
    zone: int
    _made: dict[tuple[int, int], NDArray[np.float32] | None] = field(default_factory=dict)
    """Windows of the rectangle before this one, which may be asked for again."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def _weight_hw(self) -> NDArray[np.float32]:
        return _weights()

    def _window(self, row: int, column: int) -> NDArray[np.float32] | None:
        """(WINDOW, WINDOW, K) of the window of the lattice; None where no embedding is."""
        with self._lock:
            values = self.ground.window(self.zone, row * _STEP, column * _STEP, WINDOW, WINDOW)
        if values is None or not np.isfinite(values).any():
            return None
        return self.head.shares(values)

    def rectangle(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """(h, w, K) of the pixels from row `top` and column `left` of the zone's lattice on; 0 where nothing is."""
        total_hw = np.zeros((height, width), dtype=np.float32)
        result = np.zeros((height, width, len(self.head.classes_)), dtype=np.float32)
        rows, columns = (
            range((first - WINDOW) // _STEP + 1, (first + length - 1) // _STEP + 1)
            for first, length in ((top, height), (left, width))
        )
        kept: dict[tuple[int, int], NDArray[np.float32] | None] = {}
        with threadpool_limits(1):  # so that no bit depends on the machine
            for cell in ((row, column) for row in rows for column in columns):
                shares = kept[cell] = self._made[cell] if cell in self._made else self._window(*cell)
                if shares is None:
                    continue
                down, across = cell[0] * _STEP - top, cell[1] * _STEP - left
                here = (
                    slice(max(0, down), min(height, down + WINDOW)),
                    slice(max(0, across), min(width, across + WINDOW)),
                )
                there = (
                    slice(here[0].start - down, here[0].stop - down),
                    slice(here[1].start - across, here[1].stop - across),
                )
                result[here] += self._weight_hw[there][..., None] * shares[there]
                total_hw[here] += self._weight_hw[there]
        self._made = kept
        result /= np.where(total_hw > 0, total_hw, 1)[..., None]
        return result

    def pixels(self, row_n: NDArray[np.int64], col_n: NDArray[np.int64], workers: int) -> NDArray[np.float32]:
        """(N, K) of single pixels: what `rectangle` says of them, though windows without one are not made."""
        found = []
        for up in (0, 1):
            for back in (0, 1):
                row, column = row_n // _STEP - up, col_n // _STEP - back
                inside = np.flatnonzero((row_n - row * _STEP < WINDOW) & (col_n - column * _STEP < WINDOW))
                found.append(np.column_stack([row[inside], column[inside], inside]))
        cells = np.concatenate(found)
        cells = cells[np.lexsort((cells[:, 2], cells[:, 1], cells[:, 0]))]
        starts = np.flatnonzero(np.r_[True, (np.diff(cells[:, :2], axis=0) != 0).any(axis=1)])
        windows = np.split(cells, starts[1:])
        result = np.zeros((len(row_n), len(self.head.classes_)), dtype=np.float32)
        total_n = np.zeros(len(row_n), dtype=np.float32)
        with threadpool_limits(1), ThreadPoolExecutor(max(1, workers)) as pool:
            for first in range(0, len(windows), 4 * workers):  # a few at a time, so that memory stays small
                parts = windows[first : first + 4 * workers]
                made = pool.map(lambda part: self._window(int(part[0, 0]), int(part[0, 1])), parts)
                for part, shares in zip(parts, made, strict=True):
                    if shares is not None:
                        place = row_n[part[:, 2]] - part[:, 0] * _STEP, col_n[part[:, 2]] - part[:, 1] * _STEP
                        result[part[:, 2]] += self._weight_hw[place][:, None] * shares[place]
                        total_n[part[:, 2]] += self._weight_hw[place]
        result /= np.where(total_n > 0, total_n, 1)[:, None]
        return result
