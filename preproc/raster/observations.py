"""How often each pixel was seen, and why it has no embedding where it has none: the layer beside mosaics and maps.

The counts come from beside the embeddings, so that they can be had after the time series are gone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Embedding
from infer.contract.embedding import OBSERVED
from preproc.raster.cog import Layer
from preproc.raster.provenance import RunProvenance

BANDS = ("clear_s2", "s1", "reason", "origin")
NODATA = 255
EMBEDDED, UNSEEN, TOO_FEW = 0, 1, 2
REASONS = {
    EMBEDDED: "embedded",
    UNSEEN: "not observed, or outside the region",
    TOO_FEW: "too few clear Sentinel-2 observations",
}
"""Value of the band `reason` -> what it means."""
COMPUTED, IMPORTED = 0, 1
ORIGINS = {COMPUTED: "computed in this run", IMPORTED: "imported"}
"""Value of the band `origin` -> what it means; the manifest has where from."""


def reason_codes(embedding: Embedding) -> NDArray[np.uint8]:
    """(H, W) of REASONS: a pixel that was observed and is not embedded had too few observations."""
    codes_hw = np.where(embedding.embedded(slice(None), slice(None)), EMBEDDED, UNSEEN).astype(np.uint8)
    if embedding.observations_hwm is not None:
        codes_hw[(codes_hw == UNSEEN) & embedding.observations_hwm.any(axis=2)] = TOO_FEW
    return codes_hw


def observation_values(embedding: Embedding) -> NDArray[np.uint8]:
    """(H, W, 4) in the order of BANDS.

    Counts are NODATA where they were not kept (embeddings of older versions), the origin where there is no embedding.
    """
    codes_hw = reason_codes(embedding)
    values_hwc = np.full((*codes_hw.shape, len(BANDS)), NODATA, dtype=np.uint8)
    if embedding.observations_hwm is not None:
        values_hwc[..., : len(OBSERVED)] = embedding.observations_hwm
    values_hwc[..., BANDS.index("reason")] = codes_hw
    origin = COMPUTED if embedding.manifest.origin is None else IMPORTED
    values_hwc[..., BANDS.index("origin")] = np.where(codes_hw == EMBEDDED, origin, NODATA)
    return values_hwc


def observation_layer(facts: RunProvenance) -> Layer:
    """What the GeoTIFF holds."""
    meaning = {f"SMALTI_REASON_{code}": text for code, text in REASONS.items()}
    meaning |= {f"SMALTI_ORIGIN_{code}": text for code, text in ORIGINS.items()}
    content = {"SMALTI_CONTENT": "observations a pixel (254: so many or more), and why it has no embedding (reason)"}
    return Layer("uint8", NODATA, BANDS, "nearest", {**facts.tags(), **content, **meaning})


def origin_classes() -> list[dict[str, Any]]:
    """classification:classes of the band `origin`."""
    return [{"value": code, "name": text.split()[0], "description": text} for code, text in ORIGINS.items()]


def reason_classes() -> list[dict[str, Any]]:
    """classification:classes of the band `reason`."""
    names = {EMBEDDED: "embedded", UNSEEN: "unseen", TOO_FEW: "too-few"}
    return [{"value": code, "name": names[code], "description": text} for code, text in REASONS.items()]


def tally(counts: Counter[str], codes_hw: NDArray[np.uint8]) -> None:
    """Count the pixels without an embedding, by reason."""
    found = np.bincount(codes_hw.ravel(), minlength=len(REASONS))
    counts.update({text: int(found[code]) for code, text in REASONS.items() if code != EMBEDDED and found[code]})
