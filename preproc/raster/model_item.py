"""The encoder of a run as a STAC item (extension mlm), beside the items of what it made; and the table of the items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from infer.contract import BANDS, SAR_BANDS, JsonObject, atomic_file, write_bytes
from infer.contract.registry import JOIN, known_model
from preproc.raster.provenance import RunProvenance

MODEL_ITEM = "model"
"""Name of the model's item, without its ending."""
TABLE = "items.parquet"
"""stac-geoparquet of the items."""
_MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
_RASTER = "https://stac-extensions.github.io/raster/v1.1.0/schema.json"
_SCIENTIFIC = "https://stac-extensions.github.io/scientific/v1.0.0/schema.json"
_STAC = "1.1.0"
_ARCHITECTURES = {
    "v1.0": "two Transformer encoders (Sentinel-2, Sentinel-1), recurrent pooling, fusion",
    "v1.0-qat": "two Transformer encoders (Sentinel-2, Sentinel-1), recurrent pooling, fusion",
    "v1.1": "two Transformer encoders (Sentinel-2, Sentinel-1), recurrent pooling, fusion",
    "monthly": "none: monthly medians",
    "presto": "one Transformer encoder over tokens of monthly medians (Presto)",
    "galileo-nano": "one Transformer encoder over tokens of monthly medians (Galileo), pixel by pixel",
}
_ARCHITECTURE = "two Transformer encoders (Sentinel-2, Sentinel-1), attention pooling, fusion"


def model_address(facts: RunProvenance) -> str:
    """Where a published model's file is; of others their checksum."""
    known = known_model(facts.model)
    return known.url if known is not None and known.url else f"urn:sha256:{facts.checkpoint}"


def _architecture(family: str) -> str:
    return "; beside it: ".join(_ARCHITECTURES.get(part, _ARCHITECTURE) for part in family.split(JOIN))


def _taken(family: str) -> str:
    monthly = ["monthly" in _ARCHITECTURES.get(part, "") for part in family.split(JOIN)]
    texts = {True: "monthly medians", False: "z-scores, by the checkpoint's statistics,"}
    told = " and ".join(dict.fromkeys(texts[one] for one in monthly))
    return f"{told[0].upper()}{told[1:]}"


def write_model_item(path: Path, facts: RunProvenance, geometry: JsonObject, bbox: Sequence[float]) -> None:
    """Write the item of the encoder.

    Args:
        path: of the item (.json).
        facts: about the embeddings.
        geometry: where it was applied: where it was trained is its publisher's to say.
        bbox: of that.
    """
    known = known_model(facts.model)
    properties: dict[str, Any] = {
        "title": f"Encoder of these embeddings: {facts.label}",
        "description": "Place and period are those of the embeddings beside this item, not those of the training.",
        "datetime": None,
        "start_datetime": f"{facts.window[0]}T00:00:00Z",
        "end_datetime": f"{facts.window[1]}T23:59:59Z",
        "mlm:name": facts.model,
        "mlm:architecture": _architecture(facts.family),
        "mlm:tasks": ["similarity-search"],
        "mlm:framework": "PyTorch",
        "mlm:pretrained": facts.trained,
        "mlm:input": [
            _input("sentinel-2", BANDS, f"{_taken(facts.family)} of clear digital numbers"),
            _input("sentinel-1", SAR_BANDS, f"{_taken(facts.family)} of dB of both orbits"),
        ],
        "mlm:output": [
            {
                "name": "embedding",
                "tasks": ["similarity-search"],
                "description": "One vector a pixel and season",
                "result": {"shape": [-1, facts.dim], "dim_order": ["batch", "embedding"], "data_type": "float32"},
            }
        ],
        "smalti:checkpoint": facts.checkpoint,
        "smalti:family": facts.family,
    }
    extensions = [_MLM, _RASTER]
    if known is not None and known.parameters is not None:
        properties["mlm:total_parameters"] = known.parameters
    if facts.encoder.licence is not None:
        properties["license"] = facts.encoder.licence
    if facts.encoder.citation is not None:
        properties["sci:citation"] = facts.encoder.citation
        extensions.append(_SCIENTIFIC)
    asset = {
        "href": model_address(facts),
        "title": "Weights",
        "type": "application/octet-stream; framework=pytorch",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "torch.save",
        "raster:bands": [{"name": name} for name in (*BANDS, *SAR_BANDS)],  # mlm wants them described somewhere
    }
    item = {
        "type": "Feature",
        "stac_version": _STAC,
        "stac_extensions": extensions,
        "id": f"{facts.model}-{facts.checkpoint[:10]}",
        "geometry": dict(geometry),
        "bbox": list(bbox),
        "properties": properties,
        "links": [],
        "assets": {"weights": asset},
    }
    write_bytes(path, (json.dumps(item, indent=1, allow_nan=False) + "\n").encode())


def _input(name: str, bands: Sequence[str], description: str) -> dict[str, Any]:
    """A series of tokens: so many observations of a pixel, each with its day of the year beside the bands."""
    shape = {"shape": [-1, -1, len(bands) + 1], "dim_order": ["batch", "time", "channel"], "data_type": "float32"}
    return {"name": name, "bands": list(bands), "input": shape, "description": f"{description}; day of year last"}


def write_table(path: Path, items: Sequence[Path]) -> None:
    """Write the items as stac-geoparquet, a row an item: what a catalogue of thousands is searched by at once."""
    rows = []
    for source in items:
        item = json.loads(source.read_bytes())
        properties = item.pop("properties")
        for key in ("start_datetime", "end_datetime"):
            properties[key] = pa.scalar(properties[key]).cast(pa.timestamp("us", "UTC")).as_py()
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(float, item["bbox"]), strict=True))
        geometry = shapely.to_wkb(shapely.geometry.shape(item["geometry"]))
        rows.append({**item, **properties, "geometry": geometry, "bbox": box, "datetime": None})
    table = pa.Table.from_pylist(rows)
    if "datetime" in table.column_names:  # all of them are periods
        index = table.column_names.index("datetime")
        table = table.set_column(index, "datetime", pa.nulls(len(rows), pa.timestamp("us", "UTC")))
    column = {"encoding": "WKB", "geometry_types": []}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = table.replace_schema_metadata({"geo": json.dumps(geo), "stac:geoparquet_version": "1.0.0"})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)
