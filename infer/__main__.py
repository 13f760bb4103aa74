"""The engine's command line: one array task of a run, or any folder of TESSERA tiles.

python -m infer RUN --shard I/N
python -m infer --tiles DIR --checkpoint FILE --out DIR
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from infer.contract import (
    EXIT_BAD_INPUT,
    REGISTRY,
    Run,
    Shard,
    SmaltiError,
    cached_checkpoint,
    is_tile_folder,
    planned_tiles,
    read_model_job,
    registered_model,
    stage_lock,
)
from infer.device import choose_device
from infer.engine import Engine
from infer.progress import say
from infer.runner import Report, Settings, TileRunner, TileTask, stopping
from infer.weights import Checkpoint, load_checkpoint, resolve_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m infer", description="TESSERA tiles in, embeddings out.")
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run directory with plan.json and model.json")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th tile from the I-th on (0 <= I < N)")
    folder = parser.add_argument_group("any folder of tiles, without a run")
    folder.add_argument("--tiles", type=Path, metavar="DIR", help="folder of tile folders, or one tile folder")
    folder.add_argument("--checkpoint", metavar="FILE", help=f"a checkpoint, or one of {', '.join(REGISTRY)}")
    folder.add_argument("--out", type=Path, metavar="DIR", help="where <tile>.npy goes")
    folder.add_argument("--output", choices=("float32", "int8"), default="float32")
    folder.add_argument("--dim", type=int, default=0, help="leading dimensions to keep (0 = all that the family saves)")
    folder.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    folder.add_argument(
        "--heads", type=int, help="attention heads, for v1.0 checkpoints of another size than published"
    )
    folder.add_argument("--allow-source-mismatch", action="store_true", help="accept tiles of another data source")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (CUDA or ROCm), mps, xpu")
    parser.add_argument("--overwrite", action="store_true", help="make complete embeddings again, too")
    return parser


def _announce(engine: Engine, settings: Settings, tasks: Sequence[TileTask]) -> None:
    checkpoint, device = engine.checkpoint, engine.device
    warning = "" if checkpoint.trained else " (its embeddings show that everything works, and nothing else)"
    say(f"infer: {checkpoint.label}, {checkpoint.family}{warning}")
    dimensions = engine.architecture.dimensions(settings.dim)
    say(f"infer: {len(tasks)} tiles to {settings.output} x {dimensions} on {device.kind}, {device.precision}")


def _work(checkpoint: Checkpoint, settings: Settings, tasks: Sequence[TileTask], device: str, precision: str) -> Report:
    engine = Engine(checkpoint, choose_device(device, precision))  # type: ignore[arg-type]  # argparse and ModelJob restrict it
    try:
        _announce(engine, settings, tasks)
        stop = threading.Event()
        with stopping(stop):
            return TileRunner(engine, settings, stop).run(tasks)
    finally:
        engine.close()


def run_shard(root: Path, shard: Shard, device: str, *, overwrite: bool) -> Report:
    """Embed one shard of a run's tiles."""
    run = Run(root)
    tasks = [TileTask(tile.name, run.tiles / tile.name, True) for tile in shard.take(planned_tiles(run))]
    job = read_model_job(run)
    settings = Settings(run.embeddings, job.output, job.dim, overwrite, job.allow_source_mismatch)
    with stage_lock(run, "infer", shard):
        return _work(resolve_checkpoint(job, run), settings, tasks, device, job.precision)


def _folder_checkpoint(name: str, heads: int | None) -> Checkpoint:
    if name in REGISTRY and not Path(name).exists():
        return load_checkpoint(cached_checkpoint(name), registered_model(name), heads=heads)
    return load_checkpoint(Path(name), heads=heads)


def run_folder(arguments: argparse.Namespace) -> Report:
    """Embed every tile of a folder."""
    missing = [f"--{name}" for name in ("checkpoint", "out") if getattr(arguments, name) is None]
    if missing:
        raise SmaltiError(f"--tiles also needs {' and '.join(missing)}")
    tiles: Path = arguments.tiles
    if not tiles.is_dir():
        raise SmaltiError(f"{tiles}: no such folder")
    folders = (
        [tiles] if is_tile_folder(tiles) else sorted(x for x in tiles.iterdir() if x.is_dir() and is_tile_folder(x))
    )
    if not folders:
        raise SmaltiError(f"{tiles}: holds no tiles (folders with bands.npy and so on)")
    tasks = [TileTask(folder.resolve().name, folder, False) for folder in folders]
    settings = Settings(
        arguments.out, arguments.output, arguments.dim, arguments.overwrite, arguments.allow_source_mismatch
    )
    shard = Shard.parse(arguments.shard)
    checkpoint = _folder_checkpoint(arguments.checkpoint, arguments.heads)
    return _work(checkpoint, settings, shard.take(tasks), arguments.device, arguments.precision)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code (see `infer.contract.errors`).
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if (arguments.run is None) == (arguments.tiles is None):
        parser.print_usage(sys.stderr)
        say("infer: give a RUN directory, or --tiles DIR --checkpoint FILE --out DIR")
        return EXIT_BAD_INPUT
    try:
        if arguments.run is not None:
            shard = Shard.parse(arguments.shard)
            report = run_shard(arguments.run, shard, arguments.device, overwrite=arguments.overwrite)
        else:
            report = run_folder(arguments)
    except SmaltiError as error:
        say(f"infer: {error}")
        return error.exit_code
    say(report.summary())
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
