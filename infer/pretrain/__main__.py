"""Train or distil a small v2 student on tiles.

python -m infer.pretrain OUT --tiles DIR [--tiles DIR ...]
torchrun --nproc-per-node 4 -m infer.pretrain OUT --tiles DIR
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from infer.contract import SmaltiError
from infer.pretrain.loop import RecordedExecution, Training
from infer.pretrain.objective import Teacher
from infer.pretrain.options import Recipe, Shape
from infer.pretrain.processes import choose, processes
from infer.pretrain.state import Folder
from infer.pretrain.tiles import open_tiles
from infer.pretrain.views import Noise
from infer.progress import on_stop, say

_PLAIN = (
    "steps",
    "batch",
    "groups",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip",
    "redundancy",
    "prefix_weight",
    "direct_weight",
    "direct_redundancy",
    "twins_weight",
    "monthly_weight",
    "monthly_power",
    "offset_weight",
    "projector",
    "reach",
    "shortest",
    "longest",
    "ema",
    "seed",
)
"""Entries of the recipe that are options of their own."""


def build_parser() -> argparse.ArgumentParser:
    """The arguments; those of the recipe have its defaults."""
    parser = argparse.ArgumentParser(prog="python -m infer.pretrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of this training; the same command goes on where it stopped")
    parser.add_argument(
        "--tiles", type=Path, action="append", required=True, help="a tile or a folder of tiles; may be repeated"
    )
    parser.add_argument(
        "--weight", type=float, action="append", help="how often each --tiles is drawn, in their order (default 1)"
    )
    parser.add_argument("--teacher", type=Path, help="distil this checkpoint instead of Barlow Twins")
    recipe = parser.add_argument_group("recipe")
    default = Recipe()
    for name in _PLAIN:
        value = getattr(default, name)
        recipe.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    for item in fields(Shape):
        value = getattr(default.shape, item.name)
        recipe.add_argument(f"--{item.name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    recipe.add_argument("--noise", type=float, default=1.7, help="factor on the noise added to views (default 1.7)")
    recipe.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    execution = parser.add_argument_group("execution (they do not change the weights)")
    execution.add_argument("--save-every", type=int, default=500, help="steps between states (default 500)")
    execution.add_argument("--record-every", type=int, default=50, help="steps between lines of metrics (default 50)")
    execution.add_argument("--threads", type=int, help="of torch on a CPU; equal results need equal numbers")
    execution.add_argument("--device", default="auto", help="auto, cpu, cuda (CUDA or ROCm)")
    execution.add_argument("--label", default="student trained by smalti", help="what the checkpoint calls itself")
    return parser


def scaled(noise: Noise, factor: float) -> Noise:
    """Noise times a factor; the chances of losing a modality or some months stay."""
    names = [item.name for item in fields(noise) if not item.name.startswith(("drop", "gap"))]
    return replace(noise, **{name: getattr(noise, name) * factor for name in names})


def recipe_of(arguments: argparse.Namespace, teacher: Teacher | None) -> Recipe:
    """The recipe that the arguments ask for.

    Raises:
        SmaltiError: for values out of range.
    """
    if arguments.noise < 0:
        raise SmaltiError(f"--noise {arguments.noise}: must not be negative")
    shape = Shape(**{item.name: getattr(arguments, item.name) for item in fields(Shape)})
    prefixes = (*(size for size in (16, 32, 64) if size < shape.repr_dim), shape.repr_dim)
    return Recipe(
        shape=shape,
        prefixes=prefixes,
        noise=scaled(Noise(), arguments.noise),
        precision=arguments.precision,
        teacher=None if teacher is None else teacher.checkpoint.sha256,
        **{name: getattr(arguments, name) for name in _PLAIN},
    )


def train(arguments: argparse.Namespace) -> int:
    """Run or resume the training that the arguments describe."""
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise SmaltiError(f"--threads {arguments.threads}: must be at least 1")
        torch.set_num_threads(arguments.threads)
    if min(arguments.save_every, arguments.record_every) < 1:
        raise SmaltiError("--save-every and --record-every must be at least 1")
    weights = arguments.weight or [1.0] * len(arguments.tiles)
    if len(weights) != len(arguments.tiles) or min(weights) <= 0:
        raise SmaltiError("--weight: give one above 0 for each --tiles, or none")
    device = choose(arguments.device)
    teacher = None if arguments.teacher is None else Teacher(arguments.teacher, device)
    recipe = recipe_of(arguments, teacher)
    tiles = open_tiles(arguments.tiles, weights)
    stop = threading.Event()  # once set, the step is finished and the state saved
    with processes(device) as place, on_stop(lambda _number: stop.set()):
        if recipe.groups % place.world:
            raise SmaltiError(f"--groups {recipe.groups}: must be a multiple of the {place.world} processes")
        execution = RecordedExecution(device, place, arguments.save_every, arguments.record_every, arguments.label)
        training = Training(Folder(arguments.out), recipe, tiles, execution, teacher)
        return training.run(stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code (see `infer.contract.errors`).
    """
    arguments = build_parser().parse_args(argv)
    try:
        return train(arguments)
    except SmaltiError as error:
        say(f"pretrain: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
