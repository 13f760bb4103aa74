"""What a container sees on a node: PyTorch, GPUs, one matrix product, leaked variables. Standard library, torch, numpy.

`smalti doctor --probe` runs it in place of the engine, in the same job script: python3 slurm/probe.py RUN --shard I/N.
Each line that starts with "smalti-probe: " is a finding as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHS = os.environ.get("SMALTI_GPU_ARCHS", "").split()
GPUS = int(os.environ.get("SMALTI_GPUS", "0"))


def tell(check, verdict, text, remedy=""):
    """Print one finding."""
    print(
        "smalti-probe: " + json.dumps({"check": check, "verdict": verdict, "text": text, "remedy": remedy}), flush=True
    )


def check_torch():
    """Versions, and whether this build fits the site's GPUs. Returns torch, or None."""
    try:
        import numpy
        import torch
    except ImportError as error:
        tell("torch", "failed", str(error), "the image lacks it: build one, see docs/containers.md")
        return None
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"HIP {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    tell(
        "torch",
        "ok",
        f"torch {torch.__version__} for {build}, numpy {numpy.__version__}, Python {sys.version.split()[0]}",
    )
    if GPUS and not (torch.version.cuda or torch.version.hip):
        tell("torch", "failed", "a CPU build on a GPU partition", "use the cuda or rocm image")
    known = torch.cuda.get_arch_list() if GPUS and torch.cuda.is_available() else []
    if known and ARCHS and not set(ARCHS) & {name.split(":")[0] for name in known}:
        tell("torch", "failed", f"built for {' '.join(known)}, not for {' '.join(ARCHS)}", "use another base image")
    return torch


def check_gpus(torch):
    """Number of GPUs, and a product of matrices of whole numbers, which is exact."""
    device = "cpu"
    if GPUS:
        found = torch.cuda.device_count()
        if found == 0:
            tell(
                "gpus",
                "failed",
                "no GPU in the container",
                "look at runtime.gpu_flag, jobs.infer.gpu_style and visible_devices",
            )
            return
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(found))
        tell("gpus", "ok", f"{found}: {names}")
        device = "cuda"
    a = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64).remainder(7).to(device)
    product = (a @ a.T).cpu().double()
    expected = a.cpu().double() @ a.cpu().double().T
    if not torch.equal(product, expected):
        tell("matrix product", "failed", f"wrong on {device}", "driver and image do not fit: use another base image")
    else:
        tell("matrix product", "ok", f"right on {device}")


def check_surroundings(run):
    """CPUs, variables that leaked in, the run directory, temporary files, the engine."""
    cpus = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    verdict = "ok" if threads.isdigit() and int(threads) <= cpus else "warning"
    tell(
        "cpus", verdict, f"{cpus} by the affinity mask, OMP_NUM_THREADS={threads or 'unset'}", "look at jobs.infer.cpus"
    )
    leaked = [
        name for name in ("PYTHONHOME", "PROJ_DATA", "PROJ_LIB", "GDAL_DATA", "LD_PRELOAD") if os.environ.get(name)
    ]
    user = [path for path in sys.path if "/.local/" in path]
    if leaked or user:
        tell("environment", "warning", f"leaked in: {', '.join(leaked + user)}", "run with --cleanenv and python3 -s")
    else:
        tell("environment", "ok", "clean")
    try:
        (run / "logs").mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=run / "logs", prefix=".probe."):
            tell("run directory", "ok", "can be written")
    except OSError as error:
        tell("run directory", "failed", str(error), "add its file system to runtime.binds")
    with tempfile.TemporaryDirectory() as folder:
        free = os.statvfs(folder)
        tell("temporary files", "ok", f"{folder.rpartition('/')[0]}: {free.f_bavail * free.f_frsize / 1e9:.1f} GB free")
    try:
        import infer
    except ImportError as error:
        tell("engine", "failed", str(error), 'set [site.runtime] engine = "checkout", or build an image')
        return
    tested = subprocess.run([sys.executable, "-s", "-m", "infer", "--self-test"], capture_output=True, text=True)
    said = (tested.stdout + tested.stderr).strip().splitlines() or [f"exit code {tested.returncode}"]
    verdict = "ok" if tested.returncode == 0 else "failed"
    tell("engine", verdict, f"infer at {Path(infer.__file__).parent}; self-test: {said[-1]}", "look at the probe's log")
    print(*said, sep="\n")


if __name__ == "__main__":
    torch = check_torch()
    if torch is not None:
        check_gpus(torch)
    check_surroundings(Path(sys.argv[1]))
