"""import.json: which tiles of a run have embeddings that were published by others, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infer.contract.record import Record
from infer.contract.run import Run


@dataclass(frozen=True, kw_only=True)
class ImportManifest(Record):
    """The last import of a run. Its tiles need neither scenes nor an engine."""

    kind = "import"
    stage = "import"

    source: str
    """Address, or the folder's name."""
    dataset: str
    """What the source says of itself, for example "TESSERA 1.1 cambridge"."""
    identity: str
    """Fingerprint of source, year, and what was taken of them: in the `inputs` of every imported embedding."""
    fill: bool
    """The engine is to compute the tiles that are not whole there."""
    tiles: tuple[str, ...]
    """Those that came from there."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/import.json."""
        return run.root / "import.json"


def imported_tiles(run: Run) -> dict[str, str]:
    """Tile -> fingerprint of the import that its embedding has to be from; empty for most runs.

    Raises:
        FormatError: if import.json cannot be read.
    """
    if not ImportManifest.path(run).exists():
        return {}
    made = ImportManifest.read(run)
    return dict.fromkeys(made.tiles, made.identity)
