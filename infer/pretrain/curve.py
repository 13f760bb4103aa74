"""A plot of the metrics as SVG, drawn with nothing but the standard library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

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
