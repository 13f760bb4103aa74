"""docs/run-toml.md: complete, and as the settings are now."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from preproc.run.config import Config

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "run-toml.md"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / "run-toml"))


def keys(schema: dict[str, Any], definitions: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted names of all keys, from pydantic's JSON schema: another way than the script's."""
    for name, entry in schema["properties"].items():
        references = [part["$ref"] for part in (entry, *entry.get("anyOf", ())) if "$ref" in part]
        if references:
            yield from keys(definitions[references[0].split("/")[-1]], definitions, f"{above}{name}.")
        else:
            yield above + name


def test_the_page_is_up_to_date(script: dict[str, Any]) -> None:
    assert PAGE.read_text() == script["page"](), "run `make docs`"


def test_every_key_stands_in_its_section() -> None:
    sections = {}
    for chapter in PAGE.read_text().split("\n## ")[1:]:
        headed, _, text = chapter.partition("\n")
        sections |= {name.strip("[] "): text for name in headed.split(",")}
    schema = Config.model_json_schema(by_alias=True)
    named = list(keys(schema, schema["$defs"]))
    assert {"region.start", "labels.class", "validate.strata", "site.profile", "site.jobs.infer.gpu_type"} <= set(named)
    missing = [key for key in named if f"\n| `{key.split('.')[-1]}` |" not in sections[key.rpartition(".")[0]]]
    assert missing == []


def test_a_key_without_a_word_about_it_is_refused(script: dict[str, Any]) -> None:
    class Silent(BaseModel):
        depth: int = 1

    with pytest.raises(SystemExit, match=r"Silent\.depth has no docstring"):
        script["table"](Silent)
