"""The embeddings' mosaic as a lazy xarray, and workers for it. Needs the extra: pip install 'smalti[interactive]'."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.contract import Run, SmaltiError, read_manifest, verify_files
from preproc.cluster.sbatch import Script, directives
from preproc.cluster.submit import site_of
from preproc.cluster.submitted import slurm_folder
from preproc.run.config import load_config

if TYPE_CHECKING:
    import xarray


def open_mosaic(run: str | Path, zone: str | None = None, chunk: int = 512) -> xarray.DataArray:
    """The mosaic of a run, read when computed.

    Args:
        run: the run directory.
        zone: UTM zone such as "31N"; may be left out where there is only one.
        chunk: edge of a chunk in pixels; a multiple of the blocks of the file (128 or 512) reads each block once.

    Returns:
        float32 (band, y, x) with 128 bands (or those kept), NaN = nodata, and its CRS under `.rio.crs`. A mosaic of
        int8 codes comes multiplied by its scales, lazily too.

    Raises:
        SmaltiError: if there is no mosaic, or it has several zones and none is named.
    """
    try:
        import rioxarray
    except ImportError as error:
        raise SmaltiError(f"{error}: `pip install 'smalti[interactive]'`") from error
    folder = Run(Path(run)).mosaic
    remedy = f"run `smalti stitch {run}`"
    manifest = read_manifest(folder / "mosaic.json", "mosaic", remedy=remedy)
    verify_files(folder / "mosaic.json", manifest, checksums=False, remedy=remedy)
    zones: dict[str, Any] = manifest["zones"]
    if zone is None and len(zones) > 1:
        raise SmaltiError(f"{folder}: the mosaic has zones {', '.join(zones)}: name one")
    chosen = zone or next(iter(zones))
    if chosen not in zones:
        raise SmaltiError(f"{folder}: no zone {chosen} in the mosaic: it has {', '.join(zones)}")
    chunks = {"band": -1, "y": chunk, "x": chunk}
    values: xarray.DataArray = rioxarray.open_rasterio(folder / zones[chosen]["raster"], chunks=chunks, masked=False)
    if zones[chosen]["scales"] is not None:
        scales: xarray.DataArray = rioxarray.open_rasterio(
            folder / zones[chosen]["scales"], chunks=chunks, masked=False
        )
        values = (values.astype("float32") * scales.isel(band=0, drop=True)).rio.write_crs(values.rio.crs)
    return values.rename("embeddings")


def cluster_options(run: str | Path, kind: str = "classify") -> dict[str, Any]:
    """Arguments for dask_jobqueue.SLURMCluster, from the site's profile: one worker process a job.

    Example: `cluster = SLURMCluster(**cluster_options(RUN)); print(cluster.job_script()); cluster.adapt(0, 20)`.
    """
    directory = Run(Path(run).absolute())
    profile = site_of(directory, load_config(directory))
    job = profile.kind(kind)
    logs = slurm_folder(directory)
    logs.mkdir(parents=True, exist_ok=True)
    script = Script(kind, directory.root, Path(sys.executable), logs)
    ours = ("--job-name", "--output", "--open-mode", "--signal", "--requeue", "--cpus-per-task", "--nodes", "--ntasks")
    set_by_dask = ("--time", "--mem=", "--partition", "--account")
    kept = [line for line in directives(job, profile, script) if not line.startswith((*ours, *set_by_dask))]
    return {
        "queue": job.partition or None,
        "account": job.account or None,
        "walltime": job.time,
        "cores": job.cpus,
        "processes": 1,
        "memory": f"{job.memory or '4G'}iB",
        "python": sys.executable,
        "log_directory": str(logs),
        "local_directory": "$TMPDIR" if job.where == "batch" and profile.storage.scratch else None,
        "job_extra_directives": kept,
        "job_script_prologue": ["unset PYTHONPATH PROJ_DATA PROJ_LIB GDAL_DATA", "export PYTHONNOUSERSITE=1"],
    }
