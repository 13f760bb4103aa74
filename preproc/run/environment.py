"""What the shell or a module system left in the environment that would spoil coordinates.

Nothing is imported that reads these variables: they must be gone before GDAL and PROJ are loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_DATA_VARIABLES = ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA")


def drop_foreign_data_paths() -> list[str]:
    """Unset PROJ_DATA, PROJ_LIB and GDAL_DATA if they point outside this Python's own installation.

    Another installation's files (a module system's, a desktop GIS's) give silently wrong coordinates.

    Returns:
        The names that were unset.
    """
    own = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()} - {Path("/"), Path("/usr"), Path("/usr/local")}
    dropped = []
    for name in _DATA_VARIABLES:
        value = os.environ.get(name)
        if value is None:
            continue
        path = Path(value).resolve()
        if not any(path.is_relative_to(root) for root in own):
            del os.environ[name]
            dropped.append(name)
    return dropped
