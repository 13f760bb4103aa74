"""The engine's command line: one array task of a run, or any folder of TESSERA tiles.

python -m infer RUN --shard I/N
python -m infer --tiles DIR --checkpoint FILE --out DIR
python -m infer --self-test
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infer.contract import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    REGISTRY,
    Lazily,
    ModelJob,
    PlannedTile,
    Run,
    Shard,
    SmaltiError,
    is_tile_folder,
    planned_tiles,
    read_model_job,
    scratch_folder,
    stage_lock,
)
from infer.contract.imported import imported_tiles
from infer.contract.registry import JOIN, known_model
from infer.due import Report, Settings, TileTask, nothing_due
from infer.fleet import run_members, take_cores
from infer.progress import on_stop, say

if TYPE_CHECKING:  # torch is imported when something is to be computed: it takes seconds
    from infer.families import AnyEngine
    from infer.weights import Checkpoint

_EXAMPLES = """examples:
  python -m infer RUN --shard 0/8                                        one of eight tasks of a planned and fetched run
  python -m infer --tiles TILES --checkpoint demo --out EMBEDDINGS       any folder of tiles
  python -m infer --self-test                                            what there is here, and whether it works
"""


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m infer",
        description="TESSERA tiles in, embeddings out. `smalti infer RUN` starts it with what run.toml says.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run directory with plan.json and model.json")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th tile from the I-th on (0 <= I < N)")
    folder = parser.add_argument_group("any folder of tiles, without a run")
    folder.add_argument("--tiles", type=Path, metavar="DIR", help="folder of tile folders, or one tile folder")
    folder.add_argument(
        "--checkpoint",
        metavar="FILE",
        help=f"a file, one of {', '.join(REGISTRY)}, or several: a+b; names come first, a file `demo` is ./demo",
    )
    folder.add_argument("--out", type=Path, metavar="DIR", help="where <tile>.npy goes")
    folder.add_argument(
        "--dtype",
        choices=("int8", "float32"),
        help="codes with a scale a pixel, as in runs, or floats (default: int8; of monthly, alone or not: float32)",
    )
    folder.add_argument("--output", dest="dtype", choices=("int8", "float32"), help=argparse.SUPPRESS)  # its old name
    folder.add_argument("--dim", type=int, default=0, help="leading dimensions to keep (0 = all that the family saves)")
    folder.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    folder.add_argument(
        "--heads", type=int, help="attention heads, for v1.0 checkpoints of another size than published"
    )
    folder.add_argument(
        "--min-clear-s2", type=int, default=0, metavar="N", help="leave pixels with fewer clear observations as nodata"
    )
    folder.add_argument(
        "--timings", type=Path, metavar="FILE", help="add a line (JSON) a tile: its pixels, and the seconds they took"
    )
    folder.add_argument("--allow-source-mismatch", action="store_true", help="accept tiles of another data source")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (CUDA or ROCm), mps, xpu")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes side by side (default: one per accelerator)"
    )
    parser.add_argument(
        "--scratch", metavar="DIR", help="disk of this node to copy tiles to before they are read, one ahead"
    )
    parser.add_argument(
        "--release", action="store_true", help="of a run: let a tile's arrays go when its embedding was read back"
    )
    parser.add_argument("--overwrite", action="store_true", help="make complete embeddings again, too")
    parser.add_argument("--self-test", action="store_true", help="device found, parity, speed, free memory")
    parser.add_argument("--member", metavar="K/N", help=argparse.SUPPRESS)  # one of several processes, see infer.fleet
    return parser


@dataclass(frozen=True)
class Work:
    """What a command line asks for."""

    tasks: Sequence[TileTask]
    settings: Settings
    job: ModelJob
    run: Run | None
    """None for a folder of tiles."""
    heads: int | None = None

    def checkpoint(self) -> Checkpoint:
        """Load the model that was asked for."""
        from infer.weights import load_checkpoint, load_registered, resolve_checkpoint

        if self.run is not None:
            return resolve_checkpoint(self.job, self.run)
        name = self.job.checkpoint or ""
        if known_model(name) is not None or (JOIN in name and not Path(name).is_file()):  # a file `demo` is ./demo
            return load_registered(name, heads=self.heads)
        return load_checkpoint(Path(name), heads=self.heads)


def _scratch(arguments: argparse.Namespace) -> Path | None:
    return scratch_folder(arguments.scratch)


def _run_work(arguments: argparse.Namespace) -> Work:
    """The tiles of a run."""
    run = Run(arguments.run)
    imported = imported_tiles(run)  # `smalti import` took their embeddings from others
    tiles: Sequence[PlannedTile] = planned_tiles(run)
    if imported:
        tiles = [tile for tile in tiles if tile.name not in imported]
    tasks = Lazily(tiles, lambda tile: TileTask(tile.name, run.tiles / tile.name, True, tile))
    job = read_model_job(run)
    settings = Settings(
        run.embeddings,
        job.output,
        job.dim,
        arguments.overwrite,
        job.allow_source_mismatch,
        release=arguments.release,
        any_precision=job.precision == "auto",
        scratch=_scratch(arguments),
    )
    return Work(tasks, settings, job, run)


def _folder_work(arguments: argparse.Namespace) -> Work:
    """The tiles of a folder."""
    if arguments.release:
        raise SmaltiError("--release is for a RUN, whose tiles can be fetched again")
    missing = [f"--{name}" for name in ("checkpoint", "out") if getattr(arguments, name) is None]
    if missing:
        raise SmaltiError(f"--tiles also needs {' and '.join(missing)}")
    tiles: Path = arguments.tiles
    if not tiles.is_dir():
        raise SmaltiError(f"{tiles}: no such folder")
    inside = [tiles] if is_tile_folder(tiles) else sorted(x for x in tiles.iterdir() if is_tile_folder(x))
    if not inside:
        raise SmaltiError(f"{tiles}: holds no tiles (folders with bands.npy and so on)")
    tasks = [TileTask(folder.resolve().name, folder, False) for folder in inside]
    known = known_model(arguments.checkpoint)
    job = ModelJob(
        None,
        arguments.checkpoint,
        arguments.dtype or ("int8" if known is None or known.coded else "float32"),
        arguments.dim,
        arguments.precision,
        min_clear_s2=arguments.min_clear_s2,
    )
    settings = Settings(
        arguments.out,
        job.output,
        job.dim,
        arguments.overwrite,
        arguments.allow_source_mismatch,
        scratch=_scratch(arguments),
        timings=arguments.timings,
    )
    return Work(tasks, settings, job, None, arguments.heads)


def _announce(engine: AnyEngine, settings: Settings, tasks: Sequence[TileTask]) -> None:
    checkpoint, device = engine.checkpoint, engine.device
    warning = "" if checkpoint.trained else " (its embeddings show that everything works, and nothing else)"
    say(f"infer: {checkpoint.label}, {checkpoint.family}{warning}")
    dimensions = engine.dimensions(settings.dim, settings.output)
    say(f"infer: {len(tasks)} tiles to {settings.output} x {dimensions} on {device.kind}, {device.precision}")


def _engine(work: Work, device: str, index: int) -> AnyEngine:
    from infer.families import make_engine

    least = work.job.min_clear_s2
    return make_engine(work.checkpoint(), device, work.job.precision, index=index, min_clear_s2=least)


def _embed(work: Work, shard: Shard, device: str, index: int) -> int:
    """Embed the tiles of a shard in this process."""
    from infer.runner import TileRunner

    stop = threading.Event()

    def asked(number: int) -> None:
        if not stop.is_set():
            say(f"infer: {signal.Signals(number).name}: stopping after the current batch")
        stop.set()

    with on_stop(asked):
        engine = _engine(work, device, index)
        try:
            if stop.is_set():
                return EXIT_TRY_AGAIN
            tasks = shard.take(work.tasks)
            _announce(engine, work.settings, tasks)
            report = TileRunner(engine, work.settings, stop).run(tasks)
        finally:
            engine.close()
    say(report.summary())
    return report.exit_code


def _members(arguments: argparse.Namespace, tiles: int) -> int:
    """How many processes to run side by side."""
    if arguments.processes is not None:
        if arguments.processes < 1:
            raise SmaltiError(f"--processes {arguments.processes}: at least 1")
        return min(int(arguments.processes), max(1, tiles))
    if arguments.device == "cpu":
        return 1
    from infer.device import accelerator_count

    return max(1, min(accelerator_count(), tiles))


def _without(argv: Sequence[str], *names: str) -> list[str]:
    """The arguments without some options that take a value."""
    kept, skip = [], False
    for argument in argv:
        name = argument.split("=", 1)[0]
        if skip or name in names:
            skip = not skip and "=" not in argument
            continue
        kept.append(argument)
    return kept


def execute(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """Do what the arguments ask for.

    Raises:
        SmaltiError: if they cannot be followed.
    """
    shard = Shard.parse(arguments.shard)
    if arguments.member is not None:  # the parent holds the lock and has divided the shard
        from infer.device import accelerator_count

        member = Shard.parse(arguments.member)
        take_cores(member.index, member.count)
        work = _run_work(arguments) if arguments.run else _folder_work(arguments)
        index = member.index % max(1, accelerator_count())
        return _embed(work, shard, arguments.device, index)
    work = _run_work(arguments) if arguments.run else _folder_work(arguments)
    lock = nullcontext() if work.run is None else stage_lock(work.run, "infer", shard)
    with lock:
        tasks = work.tasks[shard.index :: shard.count]
        if work.run is not None and nothing_due(tasks, work.settings, work.job, work.run, arguments.device):
            say(Report(skipped=len(tasks)).summary())
            return EXIT_OK
        members = _members(arguments, len(tasks))
        if members == 1:
            return _embed(work, shard, arguments.device, 0)
        work.checkpoint()  # one clear refusal instead of one from each
        return run_members(_without(argv, "--shard", "--processes"), shard, members)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code (see `infer.contract.errors`).
    """
    parser = build_parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    try:
        if arguments.self_test:
            from infer.selftest import self_test

            return self_test(arguments.device, arguments.precision)
        if (arguments.run is None) == (arguments.tiles is None):
            parser.print_usage(sys.stderr)
            say("infer: give a RUN directory, or --tiles DIR --checkpoint FILE --out DIR")
            return EXIT_BAD_INPUT
        return execute(arguments, argv)
    except SmaltiError as error:
        say(f"infer: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
