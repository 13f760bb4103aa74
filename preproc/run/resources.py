"""Where the files that come with smalti stand: inside the installed packages, or in the checkout.

setup.py puts the checkout's slurm/ and containers/ into the wheel as preproc/slurm and preproc/containers. They are
handed to bash, sbatch and container programs, so they have to be real files.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_PREPROC = Path(str(files("preproc")))
CHECKOUT = None if (_PREPROC / "slurm").is_dir() else _PREPROC.parent
"""Root of the checkout that smalti runs from; None where it was installed from a wheel."""
_SHIPPED = CHECKOUT or _PREPROC

ENGINE = Path(str(files("infer")))
"""The package infer: all that the engine's container is given of smalti."""
SLURM = _SHIPPED / "slurm"
"""Templates of the job scripts and what they share."""
SITES = SLURM / "sites"
"""The profiles that come with smalti."""
CONTAINERS = _SHIPPED / "containers"
"""The definition of the engine's image, its arguments and the wheelhouse."""
