"""What STAC's extensions ask of the fields that smalti writes, for pystac's validator without a network.

Written from the extensions' tables of fields: each says which fields there must be and of which kind, and allows no
unknown field with its prefix. SMALTI_STAC_SCHEMAS names a folder with the published schemas (*.json) to use instead.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pystac.validation import RegisteredValidator
from pystac.validation.local_validator import get_local_schema_cache

_ROOT = "https://stac-extensions.github.io"
TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "number"}
NAMES = {"type": "array", "items": TEXT}
EXPRESSION = {"type": "object", "required": ["format", "expression"], "properties": {"format": TEXT}}
SHAPED = {
    "type": "object",
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}},
        "dim_order": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[a-z-_]+$"}},
        "data_type": {"enum": ["int8", "uint8", "int16", "uint16", "float32"]},
    },
}
CLASSES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["value", "name"],
        "properties": {
            "value": {"type": "integer"},
            "name": {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
            "title": TEXT,
            "description": TEXT,
            "color_hint": {"type": "string", "pattern": "^[0-9A-F]{6}$"},
        },
        "additionalProperties": False,
    },
}
TASKS = {"type": "array", "minItems": 1, "items": {"enum": ["classification", "regression", "similarity-search"]}}


def _prefixed(prefix: str, fields: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """An object whose fields with a prefix are those."""
    return {
        "type": "object",
        "properties": {f"{prefix}:{name}": kind for name, kind in fields.items()},
        "patternProperties": {f"^(?!{prefix}:)": {}},
        "required": required or [],
        "additionalProperties": False,
    }


def _item(properties: dict[str, Any] | None = None, assets: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "required": ["properties", "assets"],
        "properties": {"properties": properties or {}, "assets": {"additionalProperties": assets or {}}},
    }


_EMBEDDING = _prefixed(  # v1.0.0 by its list of changes: its schema itself could not be had
    "emb",
    {
        "type": {"enum": ["pixel", "chip"]},
        "dimensions": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1}},
        "quantization_method": TEXT,
        "original_data_type": {"enum": ["int8", "uint8", "int16", "uint16", "float16", "float32", "float64"]},
    },
    ["emb:type", "emb:dimensions"],
)
_MODEL = _prefixed(
    "mlm",
    {
        "name": TEXT,
        "architecture": TEXT,
        "tasks": TASKS,
        "framework": {"enum": ["PyTorch"]},
        "total_parameters": {"type": "integer", "minimum": 1},
        "pretrained": {"type": "boolean"},
        "input": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "bands", "input"],
                "properties": {"name": TEXT, "bands": NAMES, "input": SHAPED, "description": TEXT},
            },
        },
        "output": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "tasks", "result"],
                "properties": {"name": TEXT, "tasks": TASKS, "result": SHAPED, "description": TEXT},
            },
        },
    },
    ["mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"],
)
_WEIGHTS = {
    "if": {"properties": {"roles": {"contains": {"const": "mlm:model"}}}},
    "then": {"required": ["mlm:artifact_type", "raster:bands"]},
    "else": {"not": {"required": ["mlm:artifact_type"]}},
}
_TRANSFORM = {"type": "array", "minItems": 6, "maxItems": 9, "items": NUMBER}
SCHEMAS: dict[str, dict[str, Any]] = {
    f"{_ROOT}/embeddings/v1.0.0/schema.json": {
        "if": {"properties": {"type": {"const": "Feature"}}},
        "then": _item(_EMBEDDING),
        "else": _EMBEDDING,
    },
    f"{_ROOT}/mlm/v1.4.0/schema.json": _item(_MODEL, _WEIGHTS),
    f"{_ROOT}/processing/v1.2.0/schema.json": _item(
        _prefixed(
            "processing",
            {
                "lineage": TEXT,
                "level": {"type": "string", "pattern": "^(RAW|L[0-4][A-Z]?)$"},
                "software": {"type": "object", "additionalProperties": TEXT},
            },
            ["processing:level"],
        )
    ),
    f"{_ROOT}/scientific/v1.0.0/schema.json": {"type": "object"},
    f"{_ROOT}/projection/v2.0.0/schema.json": _item(
        _prefixed(
            "proj",
            {
                "code": {"type": "string", "pattern": "^EPSG:[0-9]+$"},
                "shape": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer"}},
                "transform": _TRANSFORM,
                "bbox": {"type": "array", "minItems": 4, "maxItems": 4, "items": NUMBER},
            },
            ["proj:code"],
        )
    ),
    f"{_ROOT}/raster/v1.1.0/schema.json": _item(
        assets=_prefixed(
            "raster",
            {
                "bands": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "properties": {
                            "data_type": {"enum": ["int8", "uint8", "float32"]},
                            "nodata": {"oneOf": [NUMBER, {"const": "nan"}]},
                            "spatial_resolution": NUMBER,
                        }
                    },
                }
            },
        )
    ),
    f"{_ROOT}/file/v2.1.0/schema.json": _item(
        assets=_prefixed(
            "file", {"checksum": {"type": "string", "pattern": "^1220[0-9a-f]{64}$"}, "size": {"type": "integer"}}
        )
    ),
    f"{_ROOT}/classification/v2.0.0/schema.json": _item(
        assets={
            "properties": {
                "classification:classes": CLASSES,
                "bands": {"items": {"properties": {"classification:classes": CLASSES}}},
            }
        }
    ),
}


def use_local_schemas() -> None:
    """Let pystac's validator use these schemas and the core's that come with it, and never a network."""
    cache = RegisteredValidator.get_validator().schema_cache  # type: ignore[attr-defined]
    core = get_local_schema_cache()
    cache.update(core)
    cache.update({key: {"$schema": "http://json-schema.org/draft-07/schema#", **made} for key, made in SCHEMAS.items()})
    folder = os.environ.get("SMALTI_STAC_SCHEMAS")
    if folder is None:
        return
    for path in Path(folder).glob("*.json"):
        schema = json.loads(path.read_text())
        cache.update({schema["$id"].rstrip("#") + end: schema for end in ("", "#")})
    older = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"  # mlm refers to it
    cache.setdefault(older, cache[f"{_ROOT}/processing/v1.2.0/schema.json"])
