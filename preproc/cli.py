"""The command line: arguments, help and exit codes. Everything else is delegated."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from infer.contract import EXIT_FAILED, EXIT_TRY_AGAIN, Run, Shard, SmaltiError
from preproc.progress import console, say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a region and a season to TESSERA embeddings and a crop map.\n\n"
    "A RUN is a folder with a run.toml. Make one with [bold]smalti init RUN[/], look at the cost with "
    "[bold]smalti plan RUN --dry-run[/], then [bold]smalti run RUN[/] does everything, or each stage is its own "
    "command. Every command can be stopped and run again: it goes on with what is missing.\n\n"
    "Exit codes: 0 complete, 1 some outputs failed (listed at the end), 2 wrong input, 75 interrupted or busy.",
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, with its run.toml.")]
ShardOption = Annotated[
    str,
    typer.Option("--shard", metavar="I/N", help="Only every N-th tile, from I (0 <= I < N): one array task's share."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Build again what is complete.")]

_STAGES = "Stages, in order"
_START = "Start here"
_LOOK = "Look"


def _stage(name: str, run: Path, shard: str = "0/1", force: bool = False) -> None:
    from preproc.chain import run_one
    from preproc.config import load_config
    from preproc.stages import stage_named

    directory = Run(run)
    run_one(stage_named(name), directory, load_config(directory), shard=Shard.parse(shard), force=force)


@app.command(rich_help_panel=_START)
def init(run: RunArgument) -> None:
    """Make a run folder with a commented run.toml."""
    from preproc.template import init_run

    directory = Run(run)
    init_run(directory)
    say(f"wrote {directory.config}: set region, dates, archive and labels, then `smalti plan {run} --dry-run`")


@app.command(rich_help_panel=_START)
def demo(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Where to put the demonstration.")] = Path("demo"),
    prepare_only: Annotated[bool, typer.Option(help="Make the archive and run.toml, and stop.")] = False,
) -> None:
    """Simulate a small archive with known truth and run everything on it: the whole chain in minutes, offline."""
    from preproc.chain import run_all
    from preproc.config import load_config
    from preproc.simulate.demo import write_demo_run
    from preproc.summary import summarise

    directory = Run(run)
    write_demo_run(run)
    if prepare_only:
        say(f"prepared {directory.config}; go on with `smalti run {run}`")
        return
    config = load_config(directory)
    run_all(directory, config)
    print(summarise(directory, config))


@app.command("run", rich_help_panel=_START)
def run_command(run: RunArgument, force: ForceOption = False) -> None:
    """Run all stages in order on this machine, skipping what is complete."""
    from preproc.chain import run_all
    from preproc.config import load_config
    from preproc.summary import summarise

    directory = Run(run)
    config = load_config(directory)
    run_all(directory, config, force=force)
    print(summarise(directory, config))


@app.command(rich_help_panel=_STAGES)
def plan(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show tiles, scenes and cost; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Search the archive again.")] = False,
) -> None:
    """Cut the region into tiles and search the archive, once."""
    if dry_run:
        from preproc.config import load_config
        from preproc.plan import dry_run as describe

        directory = Run(run)
        print(describe(directory, load_config(directory)))
        return
    _stage("plan", run, force=force)


@app.command(rich_help_panel=_STAGES)
def fetch(run: RunArgument, shard: ShardOption = "0/1", force: ForceOption = False) -> None:
    """Read the scenes and write each tile's time series."""
    _stage("fetch", run, shard, force)


@app.command(rich_help_panel=_STAGES)
def infer(run: RunArgument, shard: ShardOption = "0/1", force: ForceOption = False) -> None:
    """Embed the tiles, in the site's container or in this Python."""
    _stage("infer", run, shard, force)


@app.command(rich_help_panel=_STAGES)
def stitch(run: RunArgument, force: ForceOption = False) -> None:
    """Join the embeddings into cloud-optimised GeoTIFFs with a preview."""
    _stage("stitch", run, force=force)


@app.command(rich_help_panel=_STAGES)
def sample(run: RunArgument, force: ForceOption = False) -> None:
    """Take the embeddings at the labels."""
    _stage("sample", run, force=force)


@app.command(rich_help_panel=_STAGES)
def train(run: RunArgument, force: ForceOption = False) -> None:
    """Train CatBoost, tuned by Optuna on folds that keep a group together."""
    _stage("train", run, force=force)


@app.command(rich_help_panel=_STAGES)
def predict(run: RunArgument, force: ForceOption = False) -> None:
    """Map the classes wall to wall, with their confidence."""
    _stage("predict", run, force=force)


@app.command(rich_help_panel=_STAGES)
def validate(run: RunArgument, force: ForceOption = False) -> None:
    """Measure how well the classes are told apart, class by class."""
    _stage("validate", run, force=force)


@app.command(rich_help_panel=_STAGES)
def report(run: RunArgument, force: ForceOption = False) -> None:
    """Write one self-contained page with maps, accuracy and provenance."""
    _stage("report", run, force=force)


@app.command(rich_help_panel=_LOOK)
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Verify every checksum (reads all bytes).")] = False,
) -> None:
    """Show what is done, missing, stale and broken. Exit code 0 if all is complete, 1 otherwise."""
    from preproc import status as looking
    from preproc.config import load_config

    directory = Run(run)
    statuses = looking.run_status(directory, load_config(directory), checksums=deep)
    if as_json:
        print(json.dumps(looking.as_json(statuses), indent=1))
    else:
        from rich.console import Console

        Console(soft_wrap=True, highlight=False).print(looking.as_table(directory, statuses))
        for entry in statuses:
            for name, reason in list(entry.problems.items())[:20]:
                print(f"{entry.stage}: {name}: {reason}")
    if not all(entry.complete for entry in statuses):
        raise typer.Exit(EXIT_FAILED)


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not a KeyboardInterrupt, which the command-line library would answer with exit code 1."""


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise _Interrupted


def main() -> None:
    """Entry point of `smalti`: runs a command and turns failures into one clear message and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except SmaltiError as error:
        console.print(f"smalti: {error}", markup=False, style="red")
        sys.exit(error.exit_code)
    except _Interrupted:
        console.print("smalti: interrupted; the same command goes on where it stopped", markup=False)
        sys.exit(EXIT_TRY_AGAIN)


if __name__ == "__main__":
    main()
