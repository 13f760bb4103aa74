"""Turn a student from the frame's random axes to those of months and bands, for classifiers that set thresholds.

python -m infer.pretrain.turn_back STUDENT OUT

Distances between embeddings stay; a number then follows, as far as it goes, one band in one month. Prefixes tell less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer.contract import BANDS, EXIT_OK, FormatError, SmaltiError, write_bytes
from infer.contract.monthly import MONTHLY_DIM, MONTHS
from infer.pretrain.frame import Floats, moved_seasons, random_turn
from infer.pretrain.loop import FRAME_PIXELS, FRAME_STEP, FRAME_TILES
from infer.pretrain.state import saved_bytes
from infer.progress import say
from infer.torch_file import Saved, read_torch

_SIZE = 128
_LAYER = "dim_reducer.4"
"""The last linear layer of a v2 student."""


def axes() -> list[int]:
    """Which of the 144 numbers of months the 128 follow, the most telling ones first.

    Left out: B8A, which B08 repeats, and B07 of four months.
    """
    names = (*BANDS, "VV", "VH")

    def of(bands: Sequence[str], months: Sequence[int]) -> list[int]:
        return [month * len(names) + names.index(band) for band in bands for month in months]

    chosen = of(("B08", "B11", "VH", "B04"), (3, 5, 7, 9)) + of(("B08", "B11", "VH", "B04"), (2, 4, 6, 8))
    chosen += of(("B06", "VV", "B05", "B12"), (3, 4, 5, 6, 7, 8, 9, 2))
    left_out = {*of(("B8A",), range(MONTHS)), *of(("B07",), (11, 0, 1, 2))}
    return chosen + [number for number in range(MONTHLY_DIM) if number not in {*chosen, *left_out}]


def back(seed: int) -> Floats:
    """(128, 128) orthogonal, from the numbers of a student of this seed to those of `axes`.

    The last layer norm takes the mean of the numbers away, so that the vector of ones stays where it is.
    """
    rng = np.random.default_rng([seed, FRAME_STEP])
    moved_seasons(np.zeros((FRAME_TILES * FRAME_PIXELS, MONTHLY_DIM)), rng)  # what the frame draws before
    one, _, other = np.linalg.svd(random_turn(_SIZE, rng)[axes()])
    centred = np.eye(_SIZE) - 1 / _SIZE
    left, _, right = np.linalg.svd(centred @ (one @ other) @ centred)
    turned: Floats = left[:, :-1] @ right[:-1] + 1 / _SIZE
    return turned


def turned_back(content: Saved, path: Path) -> dict[str, Any]:
    """A student's checkpoint, turned.

    Raises:
        FormatError: if it was not trained on months by this version, or is turned already.
    """
    about: dict[str, Any] = dict(content.get("smalti") or {})
    recipe: dict[str, Any] = about.get("recipe") or {}
    fits = recipe.get("version") == 3 and recipe.get("monthly_weight", 0) > 0
    if not fits or about.get("turned_back") or f"{_LAYER}.weight" not in content["model"]:
        raise FormatError(f"{path}: not a student of recipe 3 that was trained on months, or turned already")
    if content["model"][f"{_LAYER}.weight"].shape[0] != _SIZE:
        raise FormatError(f"{path}: only students of {_SIZE} numbers can be turned")
    turn = torch.from_numpy(back(int(recipe["seed"])))
    state = dict(content["model"])
    for name in (f"{_LAYER}.weight", f"{_LAYER}.bias"):
        state[name] = (turn @ state[name].double()).float().contiguous()
    return {**content, "model": state, "smalti": {**about, "turned_back": True}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m infer.pretrain.turn_back", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "student", type=Path, metavar="STUDENT", help="checkpoint that `python -m infer.pretrain` wrote"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="where the turned checkpoint goes")
    arguments = parser.parse_args(argv)
    try:
        content = read_torch(arguments.student, "name a student.pt")
        write_bytes(arguments.out, saved_bytes(turned_back(content, arguments.student)))
    except SmaltiError as error:
        say(f"turn_back: {error}")
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
