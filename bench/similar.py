"""How fast places are compared: `python -m bench.similar` prints ratios; see docs/explore.md for what they were.

Made codes (int8, 128 numbers, a scale each) are compared with one example and with eight, in the same run, each way in
a process of its own:

    smalti    preproc.explore.similar.cosines on one thread: codes as they lie on the disk, a block at a time
    numpy     on all threads: the same rows as float32 (codes * scale), one matrix product, divided by their lengths
    product   on all threads: the matrix product alone, of rows that are float32 already (four times the memory)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from preproc.explore.similar import cosines

DIM = 128
COUNTRY = 1e9
"""Pixels."""


def made(rows: int, queries: int) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (rows, DIM), dtype=np.int8)
    scales = rng.random(rows, dtype=np.float32) * 0.01 + 0.001
    like = rng.normal(size=(queries, DIM)).astype(np.float32)
    return codes, scales.astype(np.float32), like / np.linalg.norm(like, axis=1, keepdims=True)


def way(name: str, rows: int, queries: int) -> Callable[[], Any]:
    codes, scales, like = made(rows, queries)
    if name == "smalti":

        def blocks() -> Any:
            with threadpool_limits(1):
                return cosines(codes, like)

        return blocks
    if name == "numpy":

        def plain() -> Any:
            values = codes.astype(np.float32) * scales[:, None]
            return (values @ like.T) / np.linalg.norm(values, axis=1)[:, None]

        return plain
    values = codes.astype(np.float32)
    return lambda: values @ like.T


def measure(name: str, rows: int, queries: int, times: int) -> dict[str, float]:
    """Pixels a second, the best of some times, and peak memory, in this process."""
    compute = way(name, rows, queries)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        compute()
        best = min(best, time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"pixels_s": rows / best, "more_mb": (after - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one[0], options.rows, int(options.one[1]), options.times)))
        return
    for queries in (1, 8):
        found = {}
        for name in ("smalti", "numpy", "product"):
            command = [sys.executable, "-m", "bench.similar", "--one", name, str(queries)]
            command += ["--rows", str(options.rows), "--times", str(options.times)]
            found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name, one in found.items():
            ratio = found["smalti"]["pixels_s"] / one["pixels_s"]
            print(
                f"{queries} examples, {name}: {one['pixels_s'] / 1e6:.1f} million pixels/s, {one['more_mb']:.0f} MB "
                f"beside the rows; smalti is {ratio:.2f} times as fast"
            )
        minutes = COUNTRY / found["smalti"]["pixels_s"] / 60
        print(f"{queries} examples, 1e9 pixels on one core: {minutes:.1f} minutes of comparing")


if __name__ == "__main__":
    main()
