"""The command line: arguments, help and exit codes. Everything else is delegated."""

from __future__ import annotations

import gc
import json
import signal
import sys
from inspect import cleandoc
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from infer.contract import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, Run, Shard, SmaltiError
from preproc.run.environment import drop_foreign_data_paths, speak_any_encoding
from preproc.run.progress import console, say

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a region and a season to TESSERA embeddings and a map of crops, or of a number such as yield.\n\n"
    "A RUN is a folder with a run.toml. Make one with [bold]smalti init RUN[/], look at the cost with "
    "[bold]smalti plan RUN --dry-run[/], then [bold]smalti run RUN[/] does everything, or each stage is its own "
    "command. On a cluster [bold]smalti doctor RUN[/] looks whether all is ready, [bold]smalti submit RUN[/] queues "
    "the stages, and [bold]smalti status RUN[/] tells where they are. Every command can be stopped and run again: it "
    "goes on with what is missing. [bold]smalti demo[/] shows the whole in minutes, without data.\n\n"
    "Exit codes: 0 complete, 1 some outputs failed (listed at the end), 2 wrong input, 75 interrupted or busy.",
)

container_app = typer.Typer(no_args_is_help=True, help="The engine's container image.")
app.add_typer(container_app, name="container", rich_help_panel="On a cluster")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, with its run.toml.")]
ShardOption = Annotated[
    str,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="A share of the stage's tiles, sheets or trials: every N-th from I on (0 <= I < N).",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Build again what is complete.")]

SiteOption = Annotated[
    str | None,
    typer.Option("--site", metavar="SITE", help=r"Another profile than \[site] profile: a name or a .toml file."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from infer.contract import SOFTWARE

        print(SOFTWARE)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


_STAGES = "Stages, in order"
_CLUSTER = "On a cluster"
_EXCHANGE = "In and out"
_START = "Start here"
_LOOK = "Look"
_SURVEY = "From map to estimate"
_EXPLORE = "Explore without labels"


def _stage(name: str, run: Path, shard: str = "0/1", force: bool = False, model: Path | None = None) -> None:
    from preproc.run.chain import run_one
    from preproc.run.config import load_config
    from preproc.run.stages import stage_named

    directory = Run(run)
    config = load_config(directory)
    if model is not None:
        config = config.mapped_by(model)
    run_one(stage_named(name), directory, config, shard=Shard.parse(shard), force=force)


@app.command(rich_help_panel=_START)
def init(run: RunArgument) -> None:
    """Make a run folder with a commented run.toml: region, season, archive, model, labels.

    Example: [bold]smalti init wheat-2024[/], edit wheat-2024/run.toml, [bold]smalti plan wheat-2024 --dry-run[/]
    """
    from preproc.run.template import init_run

    directory = Run(run)
    init_run(directory)
    then = f"`smalti plan {directory.quoted} --dry-run`"
    say(f"wrote {directory.config}: set region, dates, archive and labels, then {then}")


@app.command(rich_help_panel=_START)
def demo(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Where to put the demonstration.")] = Path("demo"),
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Make the archive and run.toml, and stop.")
    ] = False,
) -> None:
    """Simulate a small archive with known truth and run everything on it: the whole chain in minutes, offline."""
    from preproc.run.chain import run_all, summarise
    from preproc.run.config import load_config
    from preproc.simulate.demo import write_demo_run

    directory = Run(run)
    write_demo_run(run)
    if prepare_only:
        say(f"prepared {directory.config}; go on with `smalti run {directory.quoted}`")
        return
    config = load_config(directory)
    run_all(directory, config)
    print(summarise(directory, config))


@app.command("run", rich_help_panel=_START)
def run_command(run: RunArgument, force: ForceOption = False) -> None:
    """Run all stages in order on this machine, skipping what is complete.

    Without \\[labels] in run.toml it ends with the mosaic of embeddings; with them, with map, accuracy and report.
    """
    from infer.contract import Plan
    from preproc.preflight import refuse
    from preproc.run.chain import run_all, summarise
    from preproc.run.config import load_config

    directory = Run(run)
    config = load_config(directory)
    refuse(directory, config, Plan.read(directory) if directory.plan.exists() else None)
    run_all(directory, config, force=force)
    print(summarise(directory, config))


@app.command(rich_help_panel=_STAGES)
def plan(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show tiles, scenes and cost; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Search the archive again.")] = False,
) -> None:
    """Cut the region into tiles and search the archive, once. Other stages read what it found.

    Example: [bold]smalti plan RUN --dry-run[/] tells tiles, scenes, hours and disk before anything is paid for.
    """
    if dry_run:
        from preproc.plan.stage import dry_run as describe
        from preproc.preflight import preflight
        from preproc.run.checks import Verdict
        from preproc.run.config import load_config

        directory = Run(run)
        config = load_config(directory)
        text, foreseen = describe(directory, config)
        print(text)
        found = preflight(directory, config, foreseen)
        print(f"\n{found.as_text()}")
        raise typer.Exit(EXIT_BAD_INPUT if found.worst is Verdict.FAILED else EXIT_OK)
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
def stitch(
    run: RunArgument,
    shard: ShardOption = "0/1",
    force: ForceOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read a finished mosaic back and compare it with the embeddings.")
    ] = False,
) -> None:
    """Make the embeddings a Zarr store and GeoTIFFs: RUN/mosaic.

    Shards make sheets; without --shard they are joined.
    """
    if check:
        from preproc.mosaic.check import check_mosaic
        from preproc.run.config import load_config

        print(check_mosaic(Run(run), load_config(Run(run))))
        return
    _stage("stitch", run, shard, force)


@app.command(rich_help_panel=_STAGES)
def sample(run: RunArgument, shard: ShardOption = "0/1", force: ForceOption = False) -> None:
    """Take the embeddings at the labels (\\[labels] in run.toml): RUN/samples.parquet.

    Shards pick labelled pixels of their tiles; without --shard the table is made of them.
    """
    _stage("sample", run, shard, force)


@app.command(rich_help_panel=_STAGES)
def train(run: RunArgument, shard: ShardOption = "0/1", force: ForceOption = False) -> None:
    """Train a classifier, or a model of a number, tuned by Optuna on folds that keep a group together: RUN/model.

    Shards work on one study together (of a segmentation head, each on its own networks); without --shard it is ended.
    """
    _stage("train", run, shard, force)


@app.command(rich_help_panel=_STAGES)
def predict(
    run: RunArgument,
    shard: ShardOption = "0/1",
    force: ForceOption = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help=r"A model trained elsewhere: its model/, a copy of it, or its run. As \[predict] model.",
        ),
    ] = None,
) -> None:
    """Map the classes wall to wall, with their confidence, or a number with its interval: RUN/map.

    Shards predict sheets; without --shard they are joined.

    Example: [bold]smalti predict RUN --model ../2023/model[/] maps a run without labels.
    """
    _stage("predict", run, shard, force, model)


ReferenceFileOption = Annotated[
    Path | None, typer.Option("--reference", metavar="FILE", help="With --map: points whose true class is known.")
]
LegendOption = Annotated[
    Path | None, typer.Option(metavar="CSV", help="Names of a GeoTIFF's classes: columns code and name.")
]


@app.command(rich_help_panel=_STAGES)
def validate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The run's folder; none with --map.")] = None,
    force: ForceOption = False,
    map_file: Annotated[
        Path | None, typer.Option("--map", metavar="FILE", help="Any classified GeoTIFF instead of a run.")
    ] = None,
    reference: ReferenceFileOption = None,
    class_: Annotated[
        str, typer.Option("--class", metavar="ATTRIBUTE", help="Of the points: their true class.")
    ] = "class",
    design: Annotated[str, typer.Option(help="How points were drawn: stratified or random.")] = "stratified",
    stratum: Annotated[
        str | None,
        typer.Option(metavar="ATTRIBUTE", help="Of the points: their stratum, if strata are not the map's classes."),
    ] = None,
    strata: Annotated[str | None, typer.Option(metavar="A=SIZE,B=SIZE", help="Sizes of such strata.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the reference file.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of its text, where it states none.")] = None,
    legend: LegendOption = None,
    output: Annotated[Path | None, typer.Option(metavar="JSON", help="Write the figures there as well.")] = None,
) -> None:
    """Measure how well the classes are told apart; with a reference sample, how right the map is and what areas are.

    With --map and --reference the same estimates are made of any classified GeoTIFF, without a run.

    Example: [bold]smalti validate --map crops.tif --reference points.gpkg --class crop --legend legend.csv[/]
    """
    if map_file is None and reference is None and run is not None:
        _stage("validate", run, force=force)
        return
    if map_file is None or reference is None or run is not None:
        raise SmaltiError("validate takes either RUN, whose run.toml says the rest, or both --map and --reference")
    from preproc.survey.assess import Assessment, assess

    assess(Assessment(map_file, reference, class_, design, stratum, strata, layer, encoding, legend, output))


@app.command(rich_help_panel=_STAGES)
def report(run: RunArgument, force: ForceOption = False) -> None:
    """Write one self-contained page with maps, accuracy and provenance."""
    _stage("report", run, force=force)


@app.command("import", rich_help_panel=_EXCHANGE)
def import_command(
    run: RunArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A geotessera Zarr store, or its npy tiles.")],
    fill: Annotated[
        bool, typer.Option("--fill", help="Leave tiles that are not whole there to `smalti fetch` and `smalti infer`.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Take all tiles again, those of the engine too.")] = False,
) -> None:
    """Take published embeddings into a planned run, instead of computing them.

    SOURCE is a folder or an address (https://, s3://, gs://) of a Zarr v3 store
    as geotessera writes it, an Icechunk repository of one (….icechunk), or a
    folder of its npy tiles with tessera_metadata.json. The model in run.toml has
    to be the one that they were made with, and the season theirs: a calendar
    year, unless smalti made the store. Afterwards sample, train, predict,
    validate and report work as ever, without a GPU.

    Example: [bold]smalti plan RUN[/], [bold]smalti import RUN store.zarr --fill[/], [bold]smalti run RUN[/]
    """
    from preproc.exchange.importing import import_embeddings
    from preproc.run.config import load_config

    import_embeddings(Run(run), load_config(Run(run)), source, fill=fill, force=force)


@app.command("export", rich_help_panel=_EXCHANGE)
def export_command(
    run: RunArgument,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A folder, s3://, az://, gs:// or https:// (WebDAV).")
    ],
    kind: Annotated[
        Literal["zarr", "geotessera", "cog", "geoparquet", "stac", "torchgeo"],
        typer.Option("--as", metavar="FORMAT", help="One of those above."),
    ] = "stac",
    every: Annotated[int, typer.Option(min=1, max=1000, help="geoparquet: every N-th pixel in both directions.")] = 10,
    points: Annotated[
        Path | None, typer.Option("--points", metavar="FILE", help="geoparquet: the pixels under these points instead.")
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="ATTRIBUTE", help="Of the points, for the column id; else a number.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Of the file of points, if it has several.")] = None,
    force: ForceOption = False,
) -> None:
    """Write the embeddings in a form that other programs read. What is there is not written again.

    \b
    --as stac        the mosaic: STAC, with its COGs and its store
    --as cog         the mosaic's GeoTIFFs alone: GDAL, QGIS, R
    --as zarr        its Zarr v3 store alone: xarray, geotessera
    --as geotessera  npy tiles of 0.1 degree: geotessera
    --as torchgeo    the same tiles as float32 GeoTIFFs: torchgeo
    --as geoparquet  a row a pixel: every tenth, or under --points

    Example: [bold]smalti export RUN plots --as geoparquet --points plots.gpkg --id plot[/]
    """
    from preproc.exchange.export import PointsWanted, export
    from preproc.run.config import load_config

    wanted = PointsWanted(every, points, id_, layer)
    gaps = Run(run).config.exists() and load_config(Run(run)).stitch.missing == "nodata"
    print(export(Run(run), target, kind, points=wanted, gaps=gaps, force=force))


@app.command(rich_help_panel=_SURVEY)
def design(
    target: Annotated[Path, typer.Argument(metavar="RUN|MAP", help="A run with a map, or a classified GeoTIFF.")],
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to; RUN/survey by default.")] = None,
    standard_error: Annotated[float, typer.Option(help="Wished, of overall accuracy.")] = 0.02,
    allocation: Annotated[str, typer.Option(help="How points are shared: proportional, neyman or equal.")] = (
        "proportional"
    ),
    minimum: Annotated[int, typer.Option(help="Points of a class, at the least.")] = 50,
    sizes: Annotated[str | None, typer.Option(metavar="A=N,B=N", help="Points of each class, by hand.")] = None,
    users: Annotated[str | None, typer.Option(metavar="A=U,B=U", help="Expected user's accuracies.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another sample.")] = 1,
    legend: LegendOption = None,
    more: Annotated[bool, typer.Option("--more", help="How many more points a wished interval takes.")] = False,
    interval: Annotated[float, typer.Option(help="With --more: half of the 95 % interval, as a share.")] = 0.02,
    of: Annotated[str, typer.Option(help="With --more: interval of overall, users (each class) or areas.")] = "overall",
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --more, of a GeoTIFF: the points labelled so far.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With --more: write the sample with them added there.")
    ] = None,
) -> None:
    """Draw a stratified random reference sample of a map: points to label, for `validate`.

    The number of points follows from the wished standard error (Olofsson et al. 2014); ids are in random order, and the
    files to label do not tell the mapped class. label.html is where they are labelled, offline, with the keyboard.

    Example: [bold]smalti design RUN[/], label, name the saved file in \\[validate], [bold]smalti validate RUN[/]
    """
    from preproc.survey.design import Wishes, design

    wishes = Wishes(target, output, standard_error, allocation, minimum, sizes, users, seed, legend)
    if not more:
        if reference is not None or draw is not None:
            raise SmaltiError("--reference and --draw go with --more")
        design(wishes)
        return
    from preproc.survey.further import MoreWishes, further

    further(wishes, MoreWishes(interval, of, reference, draw=draw))


@app.command(rich_help_panel=_SURVEY)
def suspects(
    run: RunArgument,
    confidence: Annotated[
        float, typer.Option(help="List groups of which the classifier gives another class so much probability.")
    ] = 0.7,
) -> None:
    """List labels that may be wrong: the classifier is sure of another class, or they are unlike their own."""
    from preproc.run.config import load_config
    from preproc.survey.suspects import suspects

    suspects(Run(run), load_config(Run(run)), confidence)


@app.command(rich_help_panel=_SURVEY)
def suggest(
    run: RunArgument,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to; RUN/suggestions by default.")] = None,
    count: Annotated[int, typer.Option(help="How many places.")] = 100,
    apart: Annotated[float, typer.Option(help="Metres between any two of them, at the least.")] = 200.0,
    candidates: Annotated[int, typer.Option(help="Places of the map that are looked at.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Another seed looks at other places.")] = 1,
) -> None:
    """Say where further training labels would help most: where the classifier is unsure and no label is alike."""
    from preproc.run.config import load_config
    from preproc.survey.suggest import SuggestWishes, suggest

    suggest(Run(run), load_config(Run(run)), SuggestWishes(output, count, apart, candidates, seed))


@app.command(rich_help_panel=_SURVEY)
def parcels(
    run: RunArgument,
    polygons: Annotated[Path, typer.Argument(metavar="POLYGONS", help="A vector file of parcels.")],
    id_: Annotated[str | None, typer.Option("--id", metavar="ATTRIBUTE", help="Names a parcel, each once.")] = None,
    class_: Annotated[
        str | None, typer.Option("--class", metavar="ATTRIBUTE", help="The declared class, to be checked by the map.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the file.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of its text, where it states none.")] = None,
    pixels: Annotated[float, typer.Option("--min-pixels", help="Smaller parcels cannot be told.")] = 4.0,
    share: Annotated[float, typer.Option(help="Nor those in which the majority has less than this share.")] = 0.5,
    train: Annotated[bool, typer.Option("--train", help="Learn the declared classes from the parcels' means.")] = False,
) -> None:
    """Look at a run by parcel: one vector each (GeoParquet), the map's majority, declared against mapped.

    Example: [bold]smalti parcels RUN fields.gpkg --id field --class crop[/]
    """
    from preproc.run.config import load_config
    from preproc.survey.parcels import ParcelWishes, parcels

    asked = ParcelWishes(polygons, id_, class_, layer, encoding, pixels, share, train)
    parcels(Run(run), load_config(Run(run)), asked)


@app.command(rich_help_panel=_CLUSTER)
def mirror(
    run: RunArgument,
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="A folder (RUN/mirror), s3://, az://, gs:// or https:// (WebDAV)."),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Whole files, not only the blocks that tiles need.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Verify the checksum of what was copied before.")] = False,
) -> None:
    """Copy what a planned run needs of the archive, with a catalogue, for nodes without internet.

    Example: [bold]smalti mirror RUN[/] on a node with internet, then \\[archive] source = "static" as it says.
    """
    from preproc.mirror.mirror import mirror as copy
    from preproc.run.config import load_config

    print(copy(Run(run), load_config(Run(run)), target, whole=whole, deep=deep))


@app.command(rich_help_panel=_CLUSTER)
def submit(
    run: RunArgument,
    site: SiteOption = None,
    stages: Annotated[str | None, typer.Option(metavar="A,B", help="Only these stages, such as fetch,infer.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print scripts, resources and cost.")] = False,
) -> None:
    """Queue what is missing as Slurm arrays that wait for each other.

    Example: [bold]smalti doctor RUN[/], [bold]smalti submit RUN --dry-run[/], [bold]smalti submit RUN[/]
    """
    from preproc.cluster.submit import Request, submit
    from preproc.run.config import load_config

    print(submit(Run(run), load_config(Run(run)), Request(site, stages, dry_run)))


@app.command(rich_help_panel=_CLUSTER)
def resubmit(run: RunArgument, site: SiteOption = None) -> None:
    """Queue again what failed, beside what is still queued."""
    from preproc.cluster.submit import Request, submit
    from preproc.run.config import load_config

    print(submit(Run(run), load_config(Run(run)), Request(site, again=True)))


@app.command(rich_help_panel=_CLUSTER)
def cancel(run: RunArgument) -> None:
    """Cancel the queued jobs of a run; what is complete stays."""
    from preproc.cluster.submit import cancel

    print(cancel(Run(run)))


@app.command(rich_help_panel=_CLUSTER)
def doctor(
    run: RunArgument,
    site: SiteOption = None,
    probe: Annotated[bool, typer.Option("--probe", help="Also look from a short job on the GPU partition.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Look for everything that would make jobs fail, before they are queued. Exit code 1 if something would."""
    from preproc.cluster.doctor import Verdict, examine
    from preproc.run.config import load_config

    findings = examine(Run(run), load_config(Run(run)), site, probe=probe)
    print(findings.as_json() if as_json else findings.as_text())
    if findings.worst is Verdict.FAILED:
        raise typer.Exit(EXIT_FAILED)


@container_app.command("build")
def container_build(
    flavour: Annotated[str, typer.Argument(metavar="cuda|rocm|cpu", help="For GPUs of NVIDIA, of AMD, or for none.")],
    output: Annotated[
        Path | None, typer.Option(metavar="SIF", help="The image; smalti-cuda.sif and so on, here, by default.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Another base: an image's name, localimage:FILE ...")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Folder of wheels: build without the network.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep downloaded layers there.")] = None,
) -> None:
    """Build the engine's image with apptainer or singularity, test it and record its checksum.

    Example: [bold]smalti container build rocm[/], then container = "smalti-rocm.sif" in section site of run.toml
    """
    from preproc.cluster.image import ImageRequest, build_image

    target = output or Path(f"smalti-{flavour}.sif")
    print(build_image(ImageRequest(flavour, target, base, wheels, cache)))


@app.command(rich_help_panel=_LOOK)
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Verify every checksum (reads all bytes).")] = False,
    watch: Annotated[float, typer.Option("--watch", metavar="SECONDS", help="Look again until all is over.")] = 0,
) -> None:
    """Show what is done, missing, stale and broken, and the jobs. Exit code 0 if all is complete, 1 otherwise."""
    from preproc.cluster.run_overview import Watcher, show
    from preproc.run.config import load_config

    config = load_config(Run(run))
    watcher = Watcher(Run(run), config, checksums=deep, once=as_json or watch <= 0)
    overview = watcher.look()
    if as_json:
        print(json.dumps(overview.as_json(), indent=1))
    else:
        overview = show(overview, watcher.look, watch)
    if not overview.complete:
        raise typer.Exit(EXIT_FAILED)


@app.command(rich_help_panel=_LOOK)
def clean(
    run: RunArgument,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="fetch (arrays of embedded tiles, the default), stitch, predict or leftovers; may be repeated.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; say what would go.")] = False,
) -> None:
    """Free what can be rebuilt, and say what rebuilding it would cost.

    A tile's arrays go when its embedding is complete and every byte of it was read back; the record of the tile stays.
    """
    from preproc.run.clean import clean
    from preproc.run.config import load_config

    for freed in clean(Run(run), load_config(Run(run)), stage or (), dry_run=dry_run):
        print(freed.line(dry_run=dry_run))


@app.command(rich_help_panel=_EXPLORE)
def cluster(
    run: RunArgument,
    count: Annotated[int, typer.Option("--groups", "-k", help="How many groups, 2 to 254.")] = 12,
    seed: Annotated[int, typer.Option(help="Another seed is another start of the search.")] = 0,
    force: ForceOption = False,
) -> None:
    """Divide the pixels into groups whose embeddings are alike: RUN/groups, a class map without labels.

    It has nothing to do with a computing cluster: see `smalti submit` for that.
    """
    from preproc.explore.groups import find_groups
    from preproc.run.config import load_config

    find_groups(Run(run), load_config(Run(run)), count, seed, force=force)


@app.command(rich_help_panel=_EXPLORE)
def similar(
    run: RunArgument,
    at: Annotated[list[str], typer.Option("--at", metavar="LON,LAT", help="An example, in degrees; may be repeated.")],
    unlike: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="LON,LAT", help="What is nearer to this than to any example is left out."),
    ] = None,
    places: Annotated[int, typer.Option(min=1, max=100_000, help="Points to list: the best, 100 m apart.")] = 100,
    force: ForceOption = False,
) -> None:
    """Find every place like some given ones: RUN/similar, a raster of similarity and the best places as points.

    Example: [bold]smalti similar RUN --at 4.05,50.75 --at 4.07,50.71 --not 4.01,50.70[/]
    """
    from preproc.explore.similar import find_similar, parse_places
    from preproc.run.config import load_config

    here, there = parse_places(at, "--at"), parse_places(unlike or [], "--not")
    find_similar(Run(run), load_config(Run(run)), here, there, places, force=force)


@app.command(rich_help_panel=_START)
def compare(
    run: RunArgument,
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Names of `smalti weights list`, files, or demo+monthly."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Of catboost, linear, knn, mlp; linear and the run's own by default."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Differences are taken from it: monthly, or the first.")
    ] = None,
    deals: Annotated[int, typer.Option(min=1, max=100, help="How often the folds are dealt anew.")] = 5,
    pixels: Annotated[int, typer.Option(min=50, help="At most; of every group an equal share.")] = 10_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take; write nothing.")] = False,
) -> None:
    """Find out which model is worth it here, before any of them embeds the whole region.

    Only labelled pixels are embedded, so it takes minutes where a map takes hours: `smalti plan` and `smalti fetch`
    have to be done, nothing else. Same pixels, same folds, paired intervals, learning curves, seconds and bytes a
    pixel: RUN/compare/index.html, compare.csv, compare.json. A model that fails does not stop the others.

    A model is a name, a checkpoint file, or several names side by side; by default the run's own and monthly medians.

    Example: [bold]smalti compare RUN --models demo,monthly,demo+monthly,my-encoder.pt[/]
    """
    from preproc.compare.compare import Wishes
    from preproc.compare.compare import compare as run_comparison
    from preproc.compare.compare import dry_run as describe
    from preproc.run.config import load_config

    def parts(text: str | None) -> tuple[str, ...]:
        return tuple(part.strip() for part in (text or "").split(",") if part.strip())

    wishes = Wishes(parts(models), parts(methods), against, deals, pixels)
    act = describe if dry_run else run_comparison
    print(act(Run(run), load_config(Run(run)), wishes))


model_app = typer.Typer(
    no_args_is_help=True, help="Trained classifiers and models of numbers, which may be copied and map other runs."
)
app.add_typer(model_app, name="model", rich_help_panel=_LOOK)


@model_app.command("show")
def model_show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's model/, a copy of it, or the run.")],
) -> None:
    """Tell what a model was trained on, how well it does and where it may be used; every checksum is verified.

    Example: [bold]smalti model show ../2023/model[/]
    """
    from preproc.classify.card import show

    print(show(folder))


@app.command(rich_help_panel=_LOOK)
def atlas(
    run: RunArgument,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="A new folder; RUN/atlas by default.")] = None,
    beside: Annotated[
        Path | None, typer.Option("--beside", metavar="RUN", help="Show the layers of this run, too, for the swipe.")
    ] = None,
) -> None:
    """Write what the run gives as a map for a browser: one folder that needs nothing from elsewhere.

    A click tells a place's values, finds every place like it, or places a label:
    the page shows at once what map the labels would give, and saves them as a
    file to train on.
    """
    from preproc.atlas.atlas import write_atlas

    print(write_atlas(Run(run), out, beside=None if beside is None else Run(beside)))


@app.command(rich_help_panel=_LOOK)
def view(
    folder: Annotated[Path, typer.Argument(metavar="ATLAS", help="What `smalti atlas` wrote, or its run.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE.gpkg", help="Save the labels that are drawn here; begin with those that it has."),
    ] = None,
) -> None:
    """Show an atlas in the browser, on this machine alone (with `ssh -L 8765:127.0.0.1:8765` on yours).

    Of a run a click tells the season's curve as well, while the tiles' time series are there. Open the whole
    address, with what comes after #: with it the page saves labels as a GeoPackage, in FILE or as a download.

    Example: [bold]smalti view RUN --labels RUN/labels.gpkg[/]
    """
    from preproc.atlas.serve import serving

    inside = folder / "atlas"
    of_run = inside.is_dir() and (folder / "plan.json").is_file()
    shown = inside if inside.is_dir() else folder
    with serving(shown, port, Run(folder) if of_run else None, labels) as (server, address):
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        server.serve_forever()


weights_app = typer.Typer(no_args_is_help=True, help="Published checkpoints: what is known, what is here, is it whole.")
app.add_typer(weights_app, name="weights", rich_help_panel=_LOOK)


@weights_app.command("list")
def weights_list() -> None:
    """Show the registered models and which are on this machine."""
    from preproc.weights import list_weights

    print(list_weights())


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="A registered model, see `smalti weights list`.")],
    mirror: Annotated[str | None, typer.Option(help="Another address of the hub, or of GitHub's files.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A file that was brought here by other means (no internet).")
    ] = None,
) -> None:
    """Download a checkpoint once and keep its checksum; from then on another file is refused.

    Example: [bold]smalti weights fetch tessera-v2-small[/]; demo and monthly come with smalti.
    """
    from preproc.weights import fetch_weights

    print(fetch_weights(name, mirror=mirror, source=source))


@weights_app.command("verify")
def weights_verify() -> None:
    """Read every checkpoint on this machine and compare it with its record."""
    from preproc.weights import verify_weights

    print(verify_weights())


@app.command(rich_help_panel=_START)
def simulate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to put the archive.")],
    extent_km: Annotated[float, typer.Option(help="Side of the region in kilometres.")] = 2.0,
    s2_dates: Annotated[int, typer.Option(help="Sentinel-2 dates.")] = 30,
    s1_dates: Annotated[int, typer.Option(help="Sentinel-1 dates of each orbit direction.")] = 31,
    seed: Annotated[int, typer.Option(help="Another seed is another landscape.")] = 1,
) -> None:
    """Make an archive with known truth: parcels, clouds, speckle and the quirks of real archives, as STAC and COGs.

    Example: [bold]smalti simulate archive --extent-km 1[/], to be named in a run.toml; `smalti demo` does both.
    """
    from preproc.simulate import SimulationOptions
    from preproc.simulate.demo import simulate_archive

    options = SimulationOptions(extent_km=extent_km, s2_dates=s2_dates, s1_dates=s1_dates, seed=seed)
    print(simulate_archive(folder, options).folder / "items.json")


def _in_one_line(text: str) -> str:
    """Paragraphs without the line breaks of the source, for a terminal has its own width; tables (\\b) keep theirs."""
    parts = cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in parts)


for _app in (app, container_app, model_app, weights_app):
    for _command in _app.registered_commands:
        _command.help = _in_one_line(getattr(_command.callback, "__doc__", None) or "")


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not a KeyboardInterrupt, which the command-line library would answer with exit code 1."""


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):  # batch systems send it twice; tidying up is not to be interrupted
        signal.signal(number, signal.SIG_IGN)
    raise _Interrupted


def main() -> None:
    """Entry point of `smalti`: runs a command and turns failures into one clear message and an exit code."""
    gc.set_threshold(100_000, 20, 20)  # a country's tiles are many objects, nearly none of which is garbage
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    speak_any_encoding()
    dropped = drop_foreign_data_paths()
    if dropped:
        say(f"{', '.join(dropped)} of another installation: left out, because it gives wrong coordinates")
    try:
        app()
    except SmaltiError as error:
        console.print(f"smalti: {error}", style="red")
        sys.exit(error.exit_code)
    except _Interrupted:
        console.print("smalti: interrupted; the same command goes on where it stopped")
        sys.exit(EXIT_TRY_AGAIN)


if __name__ == "__main__":
    main()
