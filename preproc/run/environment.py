"""What the shell or a module system left in the environment that would spoil coordinates or words.

Nothing is imported that reads these variables: they must be gone before GDAL and PROJ are loaded.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path

_PLAIN = {"²": "2", "·": ".", "×": "x", "–": "-", "—": "-", "…": "...", "“": '"', "”": '"', "’": "'"}
"""What stands for a sign where it cannot be written; lines of tables have a rule of their own, letters are escaped."""
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


def speak_any_encoding() -> None:
    """Let standard output and error write any text, whatever encoding the locale gives them (LC_ALL=C gives ASCII)."""
    codecs.register_error("smalti.plain", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="smalti.plain")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign) or _line(sign) or _escaped(sign) for sign in signs), error.end


def _line(sign: str) -> str:
    """Of the box drawings: - and | as they run, + where they meet; nothing for other signs."""
    if not "\u2500" <= sign <= "\u257f":
        return ""
    return "-" if sign in "─━═╌╍┄┅" else "|" if sign in "│┃║╎╏┆┇" else "+"


def _escaped(sign: str) -> str:
    return sign.encode("ascii", "backslashreplace").decode()
