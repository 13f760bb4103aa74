"""Node-local disk ([site] scratch): folders are made there and put into the run as a whole, or copied there to be read.

A shared file system then sees few large reads and writes instead of many small ones. What a killed process left on the
scratch disk is removed by the next one on that node.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infer.contract.atomic import atomic_dir, remove_stale_temporaries, temporary_path
from infer.contract.errors import SmaltiError, writing


def scratch_folder(text: str | None) -> Path | None:
    """The folder that [site] scratch names on this node; $NAME and ${NAME} are filled in here. Stale files are removed.

    Raises:
        SmaltiError: if a variable is not set on this node, or the folder cannot be made.
    """
    if text is None:
        return None
    filled = os.path.expandvars(text)
    unset = re.search(r"\$\{?(\w+)", filled)
    if unset is not None:
        raise SmaltiError(f"[site] scratch = {text!r}: ${unset[1]} is not set on this node: name another folder")
    folder = Path(filled).expanduser()
    if not folder.is_absolute():
        raise SmaltiError(f"[site] scratch = {text!r}: give an absolute path (of a disk that each node has)")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(folder)
    return folder


@contextmanager
def staged_dir(path: Path, scratch: Path | None) -> Iterator[Path]:
    """Give a temporary folder; when the block ends well, its files become the folder `path`, atomically.

    Args:
        path: the final place.
        scratch: where the folder is made; None makes it beside `path`.

    Raises:
        SmaltiError: if a file system refuses (full, read-only, forbidden).
    """
    if scratch is None:
        with atomic_dir(path) as folder:
            yield folder
        return
    local = temporary_path(scratch / path.name)
    try:
        shutil.rmtree(local, ignore_errors=True)
        with writing(local):
            local.mkdir(parents=True)
        yield local
        with atomic_dir(path) as folder:
            for file in sorted(local.iterdir()):
                shutil.copyfile(file, folder / file.name)
    finally:
        shutil.rmtree(local, ignore_errors=True)


@contextmanager
def staged_copy(folder: Path, scratch: Path) -> Iterator[Path]:
    """Give a copy of a folder of files, of the same name, on the scratch disk; it is removed when the block ends.

    Arrays that were memory-mapped from it stay readable: the kernel gives the space back with the last of them, however
    the process ends.

    Raises:
        SmaltiError: if the scratch disk refuses (full, read-only, forbidden).
        OSError: if a disk fails in another way.
    """
    local = temporary_path(scratch / folder.name)
    try:
        shutil.rmtree(local, ignore_errors=True)
        with writing(local):
            (local / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, local / folder.name / file.name)
        yield local / folder.name
    finally:
        shutil.rmtree(local, ignore_errors=True)
