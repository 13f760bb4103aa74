"""What an earlier plan left in a run: tiles and embeddings that the plan of now does not name, and nothing reads."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from infer.contract import Run, planned_tiles

_NAMED = 4


def leftovers(run: Run) -> dict[str, list[str]]:
    """Folder of the run -> names of tiles in it that are not in the plan, sorted; folders without any are left out.

    Raises:
        FormatError: if there is no plan.
    """
    planned = {tile.name for tile in planned_tiles(run)}
    found = {
        "tiles": [entry.name for entry in _entries(run.tiles) if entry.is_dir(follow_symlinks=False)],
        "embeddings": [entry.name.removesuffix(".json") for entry in _entries(run.embeddings) if _manifest(entry)],
    }
    left = {folder: sorted(set(names) - planned) for folder, names in found.items()}
    return {folder: names for folder, names in left.items() if names}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """All but what is being written."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _manifest(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".json")


def leftover_lines(run: Run, left: dict[str, list[str]]) -> list[str]:
    """The same for people: how many, and how to be rid of them. Pure."""
    lines = []
    for folder, names in left.items():
        place = shlex.quote(str(run.root / folder))
        files = " ".join(
            shlex.quote(name) if folder == "tiles" else f"{shlex.quote(name)}[._]*" for name in names[:_NAMED]
        )
        more = f"; all are listed by `smalti status {run.quoted} --json`" if len(names) > _NAMED else ""
        count = f"{len(names):,} tile{'s are' if len(names) > 1 else ' is'} not in the plan"
        lines.append(f"{folder}/: {count}, and nothing reads what is left: `cd {place} && rm -r {files}`{more}")
    return lines
