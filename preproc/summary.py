"""The last lines of a run: where the map, the report and the accuracy are."""

from __future__ import annotations

from infer.contract import Run, read_manifest
from preproc.config import Config


def summarise(run: Run, config: Config) -> str:
    """Paths of what a person opens next, and the figures of the classifier.

    Raises:
        SmaltiError: if a manifest is not what it should be.
    """
    lines: list[str] = []
    mosaic = read_manifest(run.mosaic / "mosaic.json", "mosaic", remedy=f"run `smalti stitch {run.root}`")
    lines += _files("embeddings", run, "mosaic", mosaic, ".tif")
    if config.labels is not None:
        made = read_manifest(run.map / "map.json", "map", remedy=f"run `smalti predict {run.root}`")
        lines += _files("map", run, "map", made, ".tif")
        lines += _accuracy(run)
        lines.append(f"report      {run.report / 'index.html'}")
    return "\n".join(lines)


def _files(label: str, run: Run, folder: str, manifest: dict[str, dict[str, object]], suffix: str) -> list[str]:
    names = [name for name in manifest["files"] if name.endswith(suffix) and "/" not in name]
    return [f"{label:<11} {run.root / folder / name}" for name in names]


def _accuracy(run: Run) -> list[str]:
    accuracy = read_manifest(run.accuracy, "accuracy", remedy=f"run `smalti validate {run.root}`")
    return [f"accuracy    {accuracy['headline']}  ({run.accuracy})"]
