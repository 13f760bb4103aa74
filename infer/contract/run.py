"""The run directory: where each stage's output is, the model that was asked for, and who may write.

RUN/run.toml  plan.json  model.json  items/  tiles/<tile>/  embeddings/  mosaic/  samples.parquet  model/  map/
report/  logs/
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from infer.contract.atomic import read_json, write_json
from infer.contract.embedding import MOST_OBSERVED
from infer.contract.errors import BusyError, FormatError, SmaltiError, writing
from infer.contract.manifest import FORMAT_VERSION
from infer.contract.names import brief_name, name_problem
from infer.contract.shard import Shard

PIXEL_SIZE = 10
"""Ground size of a pixel in metres."""


@dataclass(frozen=True)
class Run:
    """Paths of one run directory."""

    root: Path

    @property
    def quoted(self) -> str:
        """The folder as a shell takes it, for commands that messages advise."""
        return shlex.quote(str(self.root))

    @property
    def config(self) -> Path:
        """run.toml."""
        return self.root / "run.toml"

    @property
    def plan(self) -> Path:
        """plan.json: tiles, shards, estimate."""
        return self.root / "plan.json"

    @property
    def model_job(self) -> Path:
        """model.json: what the engine is asked to run."""
        return self.root / "model.json"

    @property
    def items(self) -> Path:
        """STAC items of the search, unsigned."""
        return self.root / "items"

    @property
    def tiles(self) -> Path:
        """One folder a tile."""
        return self.root / "tiles"

    @property
    def embeddings(self) -> Path:
        """`<tile>.npy`, `<tile>_scales.npy`, `<tile>.json`."""
        return self.root / "embeddings"

    @property
    def mosaic(self) -> Path:
        """Cloud-optimised GeoTIFFs of the embeddings."""
        return self.root / "mosaic"

    @property
    def mosaic_manifest(self) -> Path:
        """Of the mosaic, all zones together."""
        return self.mosaic / "mosaic.json"

    @property
    def samples(self) -> Path:
        """samples.parquet."""
        return self.root / "samples.parquet"

    @property
    def samples_manifest(self) -> Path:
        """Of samples.parquet, beside it."""
        return self.root / "samples.json"

    @property
    def model(self) -> Path:
        """The trained classifier."""
        return self.root / "model"

    @property
    def model_manifest(self) -> Path:
        """Of the trained classifier (`model_job` is about the encoder)."""
        return self.model / "model.json"

    @property
    def map(self) -> Path:
        """Class map and confidence."""
        return self.root / "map"

    @property
    def map_manifest(self) -> Path:
        """Of the map, all zones together."""
        return self.map / "map.json"

    @property
    def accuracy(self) -> Path:
        """accuracy.json."""
        return self.root / "accuracy.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report"

    @property
    def logs(self) -> Path:
        """Logs: the only place for times, hosts and durations."""
        return self.root / "logs"


@dataclass(frozen=True)
class ModelJob:
    """What the engine is asked to run (RUN/model.json), resolved from run.toml by the venv side."""

    name: str | None
    """A registered model, or None when a checkpoint file is named."""
    checkpoint: str | None
    """Path of a checkpoint, absolute or relative to the run directory, or None when a name is given."""
    output: Literal["float32", "int8"]
    dim: int
    """Leading dimensions kept (Matryoshka prefix); 0 keeps what the family writes by default."""
    precision: Literal["auto", "float32", "bfloat16"]
    allow_source_mismatch: bool = False
    """Run a checkpoint on tiles of another data source than it was trained on."""
    min_clear_s2: int = 0
    """Pixels with fewer clear Sentinel-2 observations get no embedding."""


def write_model_job(run: Run, job: ModelJob) -> None:
    """Write RUN/model.json if it differs from what is there."""
    content = {"format": "smalti/model-job", "format_version": FORMAT_VERSION, **asdict(job)}
    if run.model_job.exists() and read_json(run.model_job, what="the model job", remedy="delete it") == content:
        return
    write_json(run.model_job, content)


def read_model_job(run: Run) -> ModelJob:
    """Read RUN/model.json.

    Raises:
        FormatError: if it is missing or not what it should be.
    """
    remedy = f"run `smalti plan {run.quoted}` again"
    content = read_json(run.model_job, what="the model job", remedy=remedy)
    if not isinstance(content, dict) or content.pop("format", None) != "smalti/model-job":
        raise FormatError(f"{run.model_job}: not a smalti model job: {remedy}")
    if content.pop("format_version", None) != FORMAT_VERSION:
        raise FormatError(f"{run.model_job}: another format version than {FORMAT_VERSION}: {remedy}")
    try:
        job = ModelJob(**content)
    except TypeError as error:
        raise FormatError(f"{run.model_job}: {error}: {remedy}") from error
    fits = {
        "name": job.name is None or isinstance(job.name, str),
        "checkpoint": job.checkpoint is None or name_problem(Path(str(job.checkpoint)).name) is None,
        "output": job.output in ("float32", "int8"),
        "dim": type(job.dim) is int and 0 <= job.dim < 2**20,
        "precision": job.precision in ("auto", "float32", "bfloat16"),
        "allow_source_mismatch": isinstance(job.allow_source_mismatch, bool),
        "min_clear_s2": type(job.min_clear_s2) is int and 0 <= job.min_clear_s2 <= MOST_OBSERVED,
    }
    wrong = [key for key, good in fits.items() if not good]
    if wrong:
        key = wrong[0]
        raise FormatError(f"{run.model_job}: {key} = {brief_name(content[key])} is no {key} of a model: {remedy}")
    return job


def check_folder(run: Run) -> None:
    """Make sure that a run is a folder.

    Raises:
        SmaltiError: if it is a file, such as its run.toml, or is not there.
    """
    if run.root.is_dir():
        return
    if run.root.exists():
        raise SmaltiError(f"{run.root}: is a file, and a run is a folder: give `{shlex.quote(str(run.root.parent))}`")
    raise SmaltiError(f"{run.root}: no such run directory: make one with `smalti init {run.quoted}`")


def _flock(path: Path, *, exclusive: bool, stack: ExitStack) -> bool:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise SmaltiError(f"{path}: this file system refuses locks ({error}): mount it with flock") from error
    return True


@contextmanager
def stage_lock(run: Run, stage: str, shard: Shard | None = None) -> Iterator[None]:
    """Keep a second process off the same work; the lock vanishes with the process, however it ends.

    A whole stage excludes everything else of that stage; different shards of it run side by side.

    Raises:
        BusyError: if another live process holds it.
    """
    shard = shard or Shard()
    folder = run.logs / "locks"
    with ExitStack() as stack:
        free = _flock(folder / f"{stage}.lock", exclusive=shard.whole, stack=stack)
        if free and not shard.whole:
            free = _flock(folder / f"{stage}.{shard.index}of{shard.count}.lock", exclusive=True, stack=stack)
        if not free:
            raise BusyError(
                f"{run.root}: another process is working on `{stage}`"
                f"{'' if shard.whole else f' --shard {shard}'}: wait for it, or stop it first"
            )
        yield
