"""Workers for a notebook: dask-jobqueue's arguments from the site's profile. Needs the extra: smalti[interactive]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from infer.contract import Run
from preproc.cluster.sbatch import Script, directives
from preproc.cluster.submit import site_of
from preproc.cluster.submitted import slurm_folder
from preproc.run.config import load_config
from preproc.run.profile import parse_memory


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
    per = {"mem-per-cpu": job.cpus, "mem-per-gpu": job.gpus}.get(job.memory_style, 1)
    return {
        "queue": job.partition or None,
        "account": job.account or None,
        "walltime": job.time,
        "cores": job.cpus,
        "processes": 1,
        "memory": f"{parse_memory(job.memory or '4G') * max(1, per)}MiB",
        "job_directives_skip": [] if job.memory_style == "mem" else ["--mem="],  # Slurm takes one way to ask alone
        "python": sys.executable,
        "log_directory": str(logs),
        "local_directory": "${TMPDIR:-/tmp}" if job.where == "batch" and profile.storage.scratch else None,
        "job_extra_directives": kept,
        "job_script_prologue": [
            "unset PYTHONPATH PROJ_DATA PROJ_LIB GDAL_DATA",
            "export PYTHONNOUSERSITE=1",
            *(f"module {line}" for line in job.modules),
        ],
    }
