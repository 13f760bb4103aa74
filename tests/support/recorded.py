"""Where recorded data lies that tests compare with: the reference's golden cases, items of the live services."""

from __future__ import annotations

from pathlib import Path

_TESTS = Path(__file__).parents[1]

GOLDEN = _TESTS / "golden"
"""Checkpoints, tiles and what the reference implementation gives for them: see its README.md."""
STAC_ITEMS = _TESTS / "data" / "stac-items"
"""Items as Planetary Computer and Earth Search gave them: see its README.md."""
