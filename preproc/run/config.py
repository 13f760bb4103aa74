"""run.toml -> frozen, validated settings. Unknown keys, wrong types and impossible values are refused by name.

Paths in the file are relative to the file; here they are absolute. Nothing else in the project reads run.toml.
"""

from __future__ import annotations

import codecs
import os.path
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from infer.contract import ModelJob, Run, SmaltiError, TomlTable, check_folder, parse_toml, read_toml
from infer.contract.embedding import MOST_OBSERVED
from infer.contract.registry import JOIN, REGISTRY, DataSource, known_model, registered_model
from preproc.run.profile import UNSAFE, SiteSettings
from preproc.run.text import problem_lines


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


def _absolute(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value  # the type check that follows names the key
    if value == "":
        raise ValueError("is empty")
    folder: Path = (info.context or {}).get("folder", Path())
    return (folder / Path(value).expanduser()).absolute()


def _codec(value: str | None) -> str | None:
    if value is not None:
        try:
            codecs.lookup(value)
        except (LookupError, ValueError) as error:
            raise ValueError(f"{value!r} is no encoding that is known: write for example UTF-8 or cp1252") from error
    return value


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?")


def _size(value: Any) -> Any:
    """Bytes of "500GB", "1.5 TB" or "64GiB"."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'{value!r} is not a size: write for example "500GB" or "1.5TB"')
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kMGT".index(unit or " "))


_YEARS = (2014, 2100)
"""Of the first radar image of Sentinel-1, and more than enough."""


class RegionSettings(_Section):
    """Where and when."""

    geometry: Path | None = None
    """Vector file with the region (GeoPackage, GeoJSON, shapefile, GeoParquet, KML ...)."""
    layer: str | None = None
    """Layer of a GeoPackage with several."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees (WGS 84)."""
    mgrs: tuple[str, ...] | None = None
    """Squares of 100 km of the military grid, by which Sentinel-2 tiles are named, for example 31UES."""
    start: date
    """First day, inclusive (UTC)."""
    end: date
    """Last day, inclusive (UTC)."""

    _resolve = field_validator("geometry", mode="before")(_absolute)

    @field_validator("start", "end", mode="before")
    @classmethod
    def _date(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                if not re.fullmatch(r"\d{4}-\d\d-\d\d", value.strip()):
                    raise ValueError(value)  # Python takes 2024-W52 for a Monday
                return date.fromisoformat(value.strip())
            except ValueError as error:
                raise ValueError(f"{value!r} is not a date: write YYYY-MM-DD") from error
        return value

    @field_validator("bbox", mode="before")
    @classmethod
    def _bbox(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 4:
            raise ValueError(f"{value!r}: give four numbers, [west, south, east, north] in degrees")
        return tuple(float(v) if type(v) is int and abs(v) < 1000 else v for v in value)

    @field_validator("mgrs", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(given is not None for given in (self.geometry, self.bbox, self.mgrs)) != 1:
            raise ValueError("give geometry, bbox or mgrs, one of them")
        if self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        if not _YEARS[0] <= self.start.year <= self.end.year <= _YEARS[1]:
            raise ValueError(f"no satellite of Copernicus flies from {self.start} to {self.end}: correct the years")
        if (self.end - self.start).days > 732:
            raise ValueError("the window is longer than two years: TESSERA embeds a season or a year")
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if not (-180 <= west <= 180 and -180 <= east <= 180 and west != east):
                raise ValueError(f"bbox {list(self.bbox)}: longitudes must differ and lie in -180..180")
            if not -80 <= south < north <= 84:
                raise ValueError(f"bbox {list(self.bbox)}: south must be below north, both in -80..84 (UTM)")
        return self


class Archive(_Section):
    """Where the scenes come from."""

    source: Literal["mpc", "earth-search", "static"]
    """Planetary Computer, Earth Search (AWS), or STAC items in a file: a mirror, a simulated or an own archive."""
    href: str | None = None
    """static: an item collection, catalogue or stac-geoparquet, as a path or an address (http, https, s3, gs, az)."""
    also: tuple[Path, ...] = ()
    """static: further folders that its items may name files in, besides the one that href lies in."""
    url: str | None = None
    """Another address of the API (mpc, earth-search)."""
    on_missing: Literal["fail", "drop-date"] = "fail"
    """What to do with a date one of whose files is missing or unreadable for good."""
    data_source: DataSource | None = None
    """Archive that a static copy was made from: decides which checkpoints fit. None: told from the items."""
    workers: Annotated[int, Field(ge=1, le=256)] = 8
    """Reads in flight per process."""
    max_per_host: Annotated[int, Field(ge=1, le=256)] | None = None
    """Of them at most this many from one server; None: no further limit."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders that its items may name files in; none for an archive on the network."""
        if self.href is None or "://" in self.href:
            return ()
        own = Path(self.href).absolute()
        return tuple(os.path.normpath(path) for path in (own if own.is_dir() else own.parent, *self.also))

    @property
    def connections(self) -> int:
        """Connections that a process opens to one server."""
        return min(self.workers, self.max_per_host or self.workers)

    @field_validator("also", mode="before")
    @classmethod
    def _also(cls, value: Any, info: ValidationInfo) -> Any:
        return tuple(_absolute(each, info) for each in value) if isinstance(value, list | tuple) else value

    @field_validator("href", mode="before")
    @classmethod
    def _href(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and "://" not in value:
            return str(_absolute(value, info))
        if isinstance(value, str) and not value.startswith(("http://", "https://", "s3://", "gs://", "az://")):
            raise ValueError(f"{value!r} must be a path, or begin with http://, https://, s3://, gs:// or az://")
        if isinstance(value, str) and value.startswith("az://") and len(value.split("/")) < 5:
            raise ValueError(f"{value!r}: write az://account/container/path")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source == "static" and (self.href is None or self.url is not None):
            raise ValueError('source = "static" needs href (a file or URL of STAC items) and no url')
        if self.source != "static" and self.href is not None:
            raise ValueError(f'href belongs to source = "static"; for "{self.source}" use url, or leave it out')
        if self.also and (self.href is None or "://" in self.href):
            raise ValueError("also names folders of this machine: an archive on the network may name none")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r} must start with http:// or https://")
        return self


class Tiles(_Section):
    """How the region is cut."""

    size: Annotated[int, Field(ge=16, le=2048, multiple_of=2)] = 512
    """Width and height of a tile in 10 m pixels."""
    min_clear: Annotated[float, Field(ge=0, le=1)] = 0.0
    """A date is kept if at least this share of the tile's pixels inside the region is clear (0: any clear pixel).

    Decided tile by tile: above 0 a pixel's dates depend on the size of the tiles, which shows as seams.
    """
    keep: Literal["arrays", "record"] = "arrays"
    """What stays of a tile once its embedding was written and read back: its arrays, or only the record of it.

    "record" keeps manifest, quality and region mask; a tile that is needed again is fetched again.
    """

    @field_validator("min_clear", mode="before")
    @classmethod
    def _float(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value


class Model(_Section):
    """Which encoder, and what to keep of its output."""

    name: str | None = None
    """A registered model, see `smalti weights list`, or several whose numbers stand side by side, such as
    "demo+monthly"; the bundled demo where there is no [model] at all."""
    checkpoint: Path | None = None
    """A checkpoint file instead."""
    output: Literal["int8", "float32"] = "int8"
    """How embeddings are kept: codes with a scale per pixel, or four times the disk."""
    dim: Annotated[int, Field(ge=1, le=4096)] = 128
    """Leading dimensions kept: 128, and with v2 students also 64, 32 or 16. The model `monthly` (plain monthly medians,
    no network) gives 144, always as float32, and several side by side all that theirs give, likewise: these are the
    defaults of those."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the network computes in; auto: bfloat16 on accelerators that have it, float32 elsewhere."""
    allow_source_mismatch: bool = False
    """Use a checkpoint on another archive's data than it was trained on; otherwise that is refused."""

    min_clear_s2: Annotated[int, Field(ge=0, le=MOST_OBSERVED)] = 0
    """Pixels with fewer clear Sentinel-2 observations get no embedding, for what few give does not reproduce: 15 is
    recommended, 0 refuses none. `mosaic/observations_*.tif`, the map and the report say where and how many."""

    _resolve = field_validator("checkpoint", mode="before")(_absolute)

    @field_validator("name")
    @classmethod
    def _registered(cls, value: str | None) -> str | None:
        unknown = [] if value is None else [part for part in value.split(JOIN) if part not in REGISTRY]
        if unknown:
            raise ValueError(f"unknown model {unknown[0]!r}: one of {', '.join(REGISTRY)}, or give checkpoint = a file")
        if value is not None:
            try:
                registered_model(value)
            except SmaltiError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _uncoded(cls, values: Any) -> Any:
        known = known_model(str(values.get("name"))) if isinstance(values, dict) else None
        if known is not None and not known.coded:
            return {"output": "float32", "dim": known.usual_dim, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.name is None) == (self.checkpoint is None):
            raise ValueError("give either name or checkpoint, one of them")
        known = None if self.name is None else registered_model(self.name)
        if known is None or known.coded:
            return self
        if (self.output, self.dim) != ("float32", known.usual_dim) or (
            known.weightless and self.precision == "bfloat16"
        ):
            why = "one scale would crush one of them" if known.joined else "codes cannot say that a month is missing"
            raise ValueError(
                f"{known.name} gives {known.usual_dim} numbers as float32 ({why}): leave out output, dim and precision"
            )
        return self

    def job(self) -> ModelJob:
        """The same for the engine (RUN/model.json)."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        return ModelJob(
            self.name,
            checkpoint,
            self.output,
            self.dim,
            self.precision,
            self.allow_source_mismatch,
            self.min_clear_s2,
        )


class Labels(_Section):
    """Field data: points or polygons in any CRS, in any format that `preproc.region.vector` reads."""

    path: Path
    """GeoJSON, GeoPackage or shapefile."""
    class_: Annotated[str | None, Field(alias="class", min_length=1)] = None
    """Attribute that names the class."""
    value: Annotated[str | None, Field(min_length=1)] = None
    """Instead of class: attribute with a number (yield, height, biomass), which is then mapped with an interval."""
    group: str | None = None
    """Attribute that tells which labels belong together (parcel, farm ...); None: each feature is its own group."""
    district: str | None = None
    """Attribute that names a part of the region (district, municipality ...), for [classify] split or hold_out."""
    layer: str | None = None
    """Layer of a GeoPackage with several."""
    encoding: str | None = None
    """Encoding of the text, where the file (shapefile, CSV, MapInfo) states none or a wrong one: UTF-8, cp1252 ..."""

    _resolve = field_validator("path", mode="before")(_absolute)
    _known = field_validator("encoding")(_codec)

    @property
    def attribute(self) -> str:
        """What is learned: the class, or the number."""
        return self.class_ or self.value or ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.class_ is None) == (self.value is None):
            raise ValueError("give class (the attribute with the class) or value (one with a number), one of them")
        return self


class Train(_Section):
    """Labels of other runs, of other years or regions, that the classifier is trained on beside this run's own."""

    runs: Annotated[tuple[Path, ...], Field(max_length=200)] = ()
    """Folders of runs whose samples.parquet is there, with embeddings of the same kind as this run's."""

    @field_validator("runs", mode="before")
    @classmethod
    def _each(cls, value: Any, info: ValidationInfo) -> Any:
        return tuple(_absolute(each, info) for each in value) if isinstance(value, list | tuple) else value

    @field_validator("runs")
    @classmethod
    def _once(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        twice = next((path for index, path in enumerate(value) if path in value[:index]), None)
        if twice is not None:
            raise ValueError(f"{str(twice)!r} is named twice")
        return value


class Classify(_Section):
    """How the classifier is trained."""

    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Of the cross-validation; a group is never divided between them."""
    split: Literal["group", "block", "district", "year", "region"] = "group"
    """What is on one side of a fold: a group, a square of land, a district ([labels] district), a year or region."""
    block: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """Side in metres of the squares of split = "block"; 0: how far labels resemble each other, estimated from them."""
    hold_out: Annotated[float, Field(ge=0, le=0.5)] | tuple[str, ...] = 0.0
    """What no choice and no training sees, and the finished classifier is tested on once: a share of the groups or
    squares, or names of districts, years or regions."""
    method: Literal["catboost", "knn", "linear", "mlp", "best", "segment"] = "catboost"
    """CatBoost; for few labels kNN, logistic regression or a small perceptron; or whichever of these is best; or a
    segmentation head, which sees a pixel's surroundings as well and is trained by the engine (torch): [segment]."""
    trials: Annotated[int, Field(ge=0, le=1000)] = 20
    """Optuna trials of a method, also where a number is learned; 0 trains with its defaults."""
    threads: Annotated[int, Field(ge=1, le=64)] = 4
    """Of the final fit of CatBoost, whatever the machine has: another number gives (slightly) another classifier."""
    max_rows: Annotated[int, Field(ge=100)] = 200_000
    """Pixels trained on at most; beyond it the same number of each group is drawn, and that is said."""
    learning_curve: bool = True
    """Train on 1, 3, 10, 30 groups a class as well, to see whether more labels would help."""
    baseline: bool | Literal["auto"] = "auto"
    """Whether `validate` trains the same classifier on monthly medians of the same pixels, to say what the embedding
    adds; auto: where that takes about a minute at most."""
    task_type: Literal["CPU", "GPU"] = "CPU"
    """Where CatBoost's final fit runs; GPU needs one of NVIDIA's, and does not promise the same bytes again."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of folds, trials and the pixels drawn: the same seed gives the same map."""
    shrink: Annotated[float, Field(ge=0, le=1000)] = 10.0
    """Polygons are shrunk by this many metres before sampling, so that mixed edge pixels are left out."""
    max_pixels: Annotated[int, Field(ge=1)] = 200
    """At most this many pixels of one group."""
    min_groups: Annotated[int, Field(ge=1)] = 2
    """A class with fewer groups is left out of training, and said."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Below this the report counts a mapped pixel as uncertain."""

    @field_validator("shrink", "confidence", "block", "hold_out", mode="before")
    @classmethod
    def _float(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else float(value) if type(value) is int else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.block and self.split != "block":
            raise ValueError('block belongs to split = "block"')
        if isinstance(self.hold_out, tuple) and self.split in ("group", "block"):
            raise ValueError(
                f'hold_out names parts, and split = "{self.split}" has none with names: give a share such as 0.2, or '
                'split = "district", "year" or "region"'
            )
        if isinstance(self.hold_out, float) and self.hold_out and self.split not in ("group", "block"):
            raise ValueError(f'hold_out = {self.hold_out}: with split = "{self.split}" name the parts, as a list')
        return self


class Segment(_Section):
    """The segmentation head, with [classify] method = "segment": a small U-Net on embeddings."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 250
    """Steps of each network: one a fold, and the one that maps. Thousands of labelled fields are worth thousands."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 8
    """Chips of a step; a multiple of the accelerators that a network is trained on."""
    chip: Annotated[int, Field(ge=16, le=512, multiple_of=4)] = 32
    """Side of a chip in pixels."""
    width: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 24
    """Channels of the network on whole pixels; twice as many on halves and quarters."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    """At its highest: it rises for a tenth of the steps, then falls as half a cosine."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products while training; bfloat16 is for accelerators that have it."""
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Of each network on CPUs, as many networks side by side as there are: another number gives other bits."""


class Predict(_Section):
    """Which classifier maps the run."""

    model: Path | None = None
    """Folder of a classifier that another run trained (its model/, or a copy); None: trained here, from [labels]."""
    probabilities: bool = False
    """Also write the probability of every class, a band of percent each."""

    _resolve = field_validator("model", mode="before")(_absolute)


class Clean(_Section):
    """Cleaning of the map; each step is off unless it is set. The cleaned map stands beside the map: map/cleaned/."""

    smooth: Annotated[int, Field(ge=0, le=15)] = 0
    """Bayesian smoothing of the probabilities over a square of so many pixels (odd, 7 is usual); 0: none.

    It needs `[predict] probabilities = true`.
    """
    smoothness: Annotated[float, Field(gt=0, le=1000)] = 20.0
    """How little a pixel's own probability is believed against its neighbours'."""
    majority: Annotated[int, Field(ge=0, le=15)] = 0
    """The commonest class of a square of so many pixels (odd, 3 is usual); 0: none."""
    minimum_unit: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Hectares: smaller patches of a class are given to the neighbour with most of their border; 0: none."""

    @field_validator("smooth", "majority")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value and (value % 2 == 0 or value == 1):
            raise ValueError(f"{value} pixels: a square around a pixel has an odd side, 3 or more")
        return value

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done, in order, for people; empty: nothing."""
        made = []
        if self.smooth:
            made.append(f"Bayesian smoothing over {self.smooth} x {self.smooth} pixels, smoothness {self.smoothness:g}")
        if self.majority:
            made.append(f"majority of {self.majority} x {self.majority} pixels")
        if self.minimum_unit:
            made.append(f"minimum mapping unit {self.minimum_unit:g} ha")
        return tuple(made)


class Validate(_Section):
    """A reference sample, for the accuracy of the map; without it only the classifier's performance is told."""

    reference: Path
    """Points that were drawn with known probabilities, for example stratified by the map's classes."""
    class_: Annotated[str, Field(alias="class", min_length=1)]
    """Attribute with the reference class, named as in the labels."""
    design: Literal["stratified", "random"]
    """How the points were drawn: at random within strata, or all over the map."""
    layer: str | None = None
    """Layer of a GeoPackage with several."""
    encoding: str | None = None
    """Encoding of the text, where the file (shapefile, CSV, MapInfo) states none or a wrong one: UTF-8, cp1252 ..."""
    stratum: str | None = None
    """Attribute with the stratum; None: the strata are the map's classes."""
    strata: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Size of each stratum (pixels or any unit of area), with `stratum`."""

    _resolve = field_validator("reference", mode="before")(_absolute)
    _known = field_validator("encoding")(_codec)

    @field_validator("strata", mode="before")
    @classmethod
    def _floats(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: float(size) if type(size) is int else size for key, size in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.stratum is None) != (self.strata is None):
            raise ValueError("stratum (the attribute) and strata (the sizes) go together: give both or neither")
        if self.stratum is not None and self.design == "random":
            raise ValueError('stratum belongs to design = "stratified"')
        return self


class Stitch(_Section):
    """How the mosaic of embeddings is written, and the squares in which mosaic and map are made."""

    formats: Annotated[tuple[Literal["zarr", "cog"], ...], Field(min_length=1)] = ("zarr", "cog")
    """A Zarr store in the layout of the published ones, GeoTIFFs, or both: each takes about as much disk."""
    dtype: Literal["float32", "int8"] = "int8"
    """Of the GeoTIFF's bands: codes, with the scales in a file beside them, or four times the disk."""
    sheet: Annotated[int, Field(ge=128, le=16384, multiple_of=128)] = 4096
    """Side in pixels of the squares that are made, and can be made side by side; 4096 is the published stores'."""
    missing: Literal["refuse", "nodata"] = "refuse"
    """Tiles without an embedding: stop what is made of all, or be nodata in mosaic, map and the like, and be listed.

    With "nodata" `smalti run` goes on after tiles have failed, and still ends with exit code 1 as long as some are
    missing. When they are there, the sheets that they touch are made again, and what is said of all.
    """

    @field_validator("formats", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        return (
            tuple(sorted(set(value))) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
        )


_FLOATS: TomlTable = {"formats": ["cog"], "dtype": "float32"}
"""[stitch] where no codes can be kept."""


class Report(_Section):
    """What the report shows beyond the run itself."""

    truth: Path | None = None
    """Raster of what truly is (codes 1..255, 0: not known), with legend.json, a list of code and crop, beside it.

    A simulated archive has such a map: the report then says how much of the run's map is right.
    """

    _resolve = field_validator("truth", mode="before")(_absolute)


class Site(SiteSettings):
    """Where it runs. Tables of the site's profile can be changed here key by key ([site.jobs.infer] time = ...)."""

    profile: Annotated[str, Field(min_length=1)] = "local"
    """A profile of slurm/sites, or the path of a .toml file of one's own."""
    container: Path | None = None
    """Image with the engine; None: this Python when torch is importable."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that build the units of a stage side by side; 0: as many as CPUs are allotted."""
    tile_space: Annotated[int, Field(gt=0)] | None = None
    """Most bytes that tiles may take on disk at a time, for example "500GB": they are fetched and embedded in waves.

    Needs [tiles] keep = "record". None: all tiles are fetched before any is let go.
    """
    tile_files: Annotated[int, Field(gt=0)] | None = None
    """The same for files, of which a tile has 11 before its arrays are let go."""
    scratch: Annotated[str, Field(min_length=1)] | None = None
    """Node-local disk on which fetch makes its tiles and to which the engine copies them before it reads them.

    $NAME is filled in on the node, for example $TMPDIR/smalti.
    """

    _resolve = field_validator("container", mode="before")(_absolute)
    _bytes = field_validator("tile_space", mode="before")(_size)

    @field_validator("scratch")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and UNSAFE.search(value):
            raise ValueError("quotes, backslashes and command substitution have no place in it: job scripts contain it")
        if value is not None and ("$" in re.sub(r"\$(\{\w+\}|\w+)", "", value) or re.match(r"~[^/]", value)):
            raise ValueError(f"{value!r}: write variables as $NAME or ${{NAME}}, and home as ~/")
        return value


class Config(_Section):
    """Everything of run.toml."""

    region: RegionSettings
    archive: Archive
    tiles: Tiles = Tiles()
    model: Model = Model(name="demo")
    labels: Labels | None = None
    train: Train = Train()
    classify: Classify = Classify()
    segment: Segment = Segment()
    predict: Predict = Predict()
    clean: Clean = Clean()
    validate_: Annotated[Validate | None, Field(alias="validate")] = None
    stitch: Stitch = Stitch()
    report: Report = Report()
    site: Site = Site()

    @model_validator(mode="before")
    @classmethod
    def _uncoded_mosaic(cls, values: Any) -> Any:
        """The mosaic of several models side by side is of floats, unless asked for otherwise (and refused below)."""
        model = values.get("model") if isinstance(values, dict) else None
        known = known_model(str(model.get("name"))) if isinstance(model, dict) else None
        stitch = values.get("stitch", {}) if known is not None and known.joined else None
        return {**values, "stitch": {**_FLOATS, **stitch}} if isinstance(stitch, dict) else values

    @model_validator(mode="after")
    def _one_scale_for_one_model(self) -> Self:
        known = None if self.model.name is None else registered_model(self.model.name)
        if known is not None and known.joined and (self.stitch.dtype == "int8" or "zarr" in self.stitch.formats):
            raise ValueError(
                f"[stitch] codes with one scale a pixel would crush the smaller numbers of {known.name}: leave out "
                'formats and dtype, which then are ["cog"] and "float32"'
            )
        return self

    @model_validator(mode="after")
    def _smooths_what_is_there(self) -> Self:
        if self.clean.smooth and not self.predict.probabilities:
            raise ValueError("[clean] smooth needs the probabilities of classes: set [predict] probabilities = true")
        return self

    @property
    def trains(self) -> bool:
        """Whether a classifier is trained in this run."""
        return (self.labels is not None or bool(self.train.runs)) and self.predict.model is None

    @property
    def maps(self) -> bool:
        """Whether this run ends with a map of classes, and not with embeddings."""
        return self.labels is not None or bool(self.train.runs) or self.predict.model is not None

    def mapped_by(self, folder: Path) -> Config:
        """The same, but that a classifier trained elsewhere maps it."""
        predict = self.predict.model_copy(update={"model": folder.absolute()})
        update = {"predict": predict, "labels": None, "train": Train()}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _released(self) -> Self:
        if self.tiles.keep != "record" and (self.site.tile_space or self.site.tile_files):
            raise ValueError('[site] tile_space and tile_files need [tiles] keep = "record": or no tile is let go')
        return self

    @model_validator(mode="after")
    def _one_classifier(self) -> Self:
        if self.labels is not None and self.predict.model is not None:
            raise ValueError("[predict] model names a classifier, and from [labels] another is trained: leave one out")
        if self.train.runs and self.predict.model is not None:
            raise ValueError("[predict] model names a classifier, and [train] runs trains another: leave one out")
        if self.classify.split == "district" and self.labels is not None and self.labels.district is None:
            raise ValueError('[classify] split = "district" needs [labels] district, the attribute')
        if self.labels is not None and self.labels.value is not None:
            if self.validate_ is not None:
                raise ValueError("[validate] measures a map of classes, and [labels] value makes one of numbers")
            if self.clean.steps:
                raise ValueError("[clean] mends a map of classes, and [labels] value makes one of numbers")
            if self.predict.probabilities:
                raise ValueError("[predict] probabilities are of classes, and [labels] value makes a map of numbers")
            if self.classify.method not in ("catboost", "best") or self.classify.task_type == "GPU":
                raise ValueError("[classify] method: numbers ([labels] value) are learned by CatBoost, on the CPU")
        return self


def _message(error: Any) -> str:
    place = [str(part) for part in error["loc"]]
    where = f"[{place[0]}]" + (f" {'.'.join(place[1:])}" if place[1:] else "") if place else ""
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown {'key' if len(place) > 1 else 'section'}"
    if kind == "missing":
        return f"{where}: missing"
    text = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if kind == "value_error" else f" (it is {error['input']!r})"
    return f"{where}: {text[0].lower()}{text[1:]}{shown}" if where else text  # which names its sections


def parse_config(text: str, path: Path) -> Config:
    """Validate the text of a run.toml.

    Args:
        text: TOML.
        path: where it stands; paths in it are relative to its folder.

    Raises:
        SmaltiError: one line a problem, each naming section and key.
    """
    try:
        content = parse_toml(text)
    except ValueError as error:
        raise SmaltiError(f"{path}: not valid TOML: {error}") from error
    try:
        return Config.model_validate(content, context={"folder": path.parent.absolute()})
    except ValidationError as error:
        raise SmaltiError(problem_lines(path, map(_message, error.errors(include_url=False)))) from error


def load_config(run: Run) -> Config:
    """Read and validate RUN/run.toml.

    Raises:
        SmaltiError: if there is no such run, or its settings are not valid.
    """
    check_folder(run)
    try:
        text = read_toml(run.config)
    except FileNotFoundError as error:
        raise SmaltiError(f"{run.config}: missing: write one with `smalti init {run.quoted}`") from error
    except (UnicodeDecodeError, OSError) as error:
        raise SmaltiError(f"{run.config}: cannot be read: {error}") from error
    return parse_config(text, run.config)
