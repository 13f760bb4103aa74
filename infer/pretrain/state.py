"""What a training leaves on disk: the state it resumes from, its metrics and plot, and the exported student."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infer.contract import (
    FormatError,
    SmaltiError,
    atomic_file,
    parse_json,
    read_json,
    read_regular,
    sha256_json,
    write_bytes,
    write_json,
)
from infer.pretrain.options import Recipe, differences
from infer.pretrain.tiles import TileSet
from infer.torch_file import Saved, read_torch

_KIND = "smalti/pretraining"


@dataclass(frozen=True)
class Folder:
    """Names of a training's files."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The recipe and the fingerprint of the tiles."""
        return self.root / "recipe.json"

    @property
    def state(self) -> Path:
        """Everything that resuming needs."""
        return self.root / "state.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """The plot of the metrics."""
        return self.root / "curve.svg"

    @property
    def student(self) -> Path:
        """The averaged weights in the published format."""
        return self.root / "student.pt"


def fingerprint(tiles: TileSet) -> dict[str, Any]:
    """Which tiles a training reads: their number, pixels and a hash over what their manifests say (or their shapes)."""
    parts = []
    for tile, chance in zip(tiles.tiles, tiles.chance, strict=True):
        known = {name: record["sha256"] for name, record in tile.manifest.files.items()}
        shapes = [list(tile.bands_thwb.shape), list(tile.sar_asc_thwp.shape), list(tile.sar_desc_thwp.shape)]
        parts.append([tile.name, known or shapes, float(chance)])
    return {
        "tiles": len(tiles.tiles),
        "pixels": sum(map(len, tiles.usable)),
        "sha256": sha256_json(parts),
    }


def claim(folder: Folder, recipe: Recipe, tiles: TileSet) -> None:
    """Write the recipe, or check that the folder belongs to the same one.

    Raises:
        SmaltiError: naming what differs.
    """
    content = {"format": _KIND, "recipe": recipe.as_json(), "tiles": fingerprint(tiles)}
    if folder.recipe.exists():
        found = read_json(folder.recipe, what="the recipe of a training", remedy="name another folder")
        other = found.get("recipe", {}) if isinstance(found, dict) else {}
        # Through JSON, so that tuples and lists compare as what is on disk.
        differing = differences(json.loads(json.dumps(content["recipe"])), other)
        if isinstance(found, dict) and not differing and found.get("tiles") != content["tiles"]:
            differing = ["tiles"]
        if differing:
            raise SmaltiError(
                f"{folder.recipe}: this folder holds a training with another {', '.join(differing)}: "
                "name another folder, or delete this one"
            )
        return
    write_json(folder.recipe, content)


def saved_bytes(content: Saved) -> bytes:
    """torch.save to memory: a path would put its (temporary) name into the file."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def save_state(folder: Folder, content: Saved) -> None:
    """Replace the state atomically: a kill leaves the one before."""
    with atomic_file(folder.state) as temporary:
        temporary.write_bytes(saved_bytes(content))


def load_state(folder: Folder) -> dict[str, Any] | None:
    """The state to resume from, or None.

    Raises:
        FormatError: if it is damaged.
    """
    if not folder.state.exists():
        return None
    content = read_torch(folder.state, "delete it to start from the beginning")
    if content.get("format") != _KIND:
        raise FormatError(f"{folder.state}: not the state of a training: delete it to start from the beginning")
    return content


def state_content(**parts: Any) -> dict[str, Any]:
    """The state's table with its mark."""
    return {"format": _KIND, **parts}


def read_metrics(folder: Folder, before: int) -> list[dict[str, float]]:
    """The metrics of steps up to `before`; later ones belong to work that was lost. A cut last line is dropped."""
    if not folder.metrics.exists():
        return []
    records: list[dict[str, float]] = []
    for line in read_regular(folder.metrics).splitlines():
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not all(type(value) in (int, float) for value in record.values()):
            break
        if record.get("step", before + 1) <= before:
            records.append(record)
    return records


def write_metrics(folder: Folder, records: Sequence[Mapping[str, float]]) -> None:
    """Write metrics and plot."""
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    write_bytes(folder.metrics, lines.encode())
    write_bytes(folder.curve, curve_svg(records).encode())


def export(folder: Folder, student: nn.Module, recipe: Recipe, tiles: TileSet, label: str) -> None:
    """Write the student in the published v2 format, which every TESSERA reader of that family takes."""
    state = {name: value.detach().float().cpu().contiguous().clone() for name, value in student.state_dict().items()}
    content = {
        "args": recipe.published_args(),
        "model": state,
        "smalti": {
            "trained": True,
            "label": label,
            "normalisation": "v2-student",
            "recipe": recipe.as_json(),
            "tiles": fingerprint(tiles),
        },
    }
    write_bytes(folder.student, saved_bytes(content))


_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 640, 130, 64, 26, 34
_SHOWN = (
    ("loss", "loss"),
    ("effective_rank", "effective rank of watched embeddings"),
    ("spread_min", "smallest spread of a dimension"),
    ("cosine_centred", "cosine with a third of the observations missing (centred)"),
)


def _panel(title: str, points: Sequence[tuple[float, float]], top: float, last: float) -> list[str]:
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    path = " ".join(
        f"{_LEFT + x / max(last, 1) * (_WIDTH - _LEFT - 16):.1f},{top + _HEIGHT * (1 - (y - low) / (high - low)):.1f}"
        for x, y in points
    )
    return [
        f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 16}" height="{_HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{high:.4g}</text>',
        f'<text x="{_LEFT - 6}" y="{top + _HEIGHT}" text-anchor="end">{low:.4g}</text>',
        f'<polyline points="{path}" fill="none" stroke="#2a6f97" stroke-width="1.4"/>',
    ]


def curve_svg(records: Sequence[Mapping[str, float]]) -> str:
    """Draw the metrics over the steps.

    Args:
        records: lines of metrics.jsonl; each has `step` and some of the figures.

    Returns:
        A whole SVG document, the same for the same records.
    """
    last = max((record["step"] for record in records), default=0)
    parts: list[str] = []
    top = float(_TOP)
    for key, title in _SHOWN:
        points = [(r["step"], r[key]) for r in records if key in r and math.isfinite(r[key])]
        if not points:
            continue
        parts += _panel(title, points, top, last)
        top += _HEIGHT + _GAP
    parts.append(f'<text x="{_WIDTH - 16}" y="{top - 12}" text-anchor="end">step {last:g}</text>')
    style = 'font-family="sans-serif" font-size="11"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:g}" width="{_WIDTH}" {style}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])
