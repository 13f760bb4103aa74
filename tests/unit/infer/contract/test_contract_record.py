"""Records: what is written is read, and of what does not fit one line says which key it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import pytest

from infer.contract import FormatError
from infer.contract.record import from_json, to_json


@dataclass(frozen=True)
class Inner:
    share: float | None
    pair: tuple[int, str]


@dataclass(frozen=True)
class Outer:
    count: int
    name: str
    kept: Literal["int8", "float32"]
    day: date
    sure: bool
    inner: Inner
    many: tuple[Inner, ...]
    by_name: Mapping[str, float]
    free: Mapping[str, Any]
    seconds: int = field(metadata={"was": "cpu_seconds"})
    gpu_seconds: int | None = None


CONTENT: dict[str, Any] = {
    "count": 3,
    "name": "Blé",
    "kept": "int8",
    "day": "2021-07-01",
    "sure": True,
    "inner": {"share": None, "pair": [1, "a"]},
    "many": [{"share": 1, "pair": [2, "b"]}, {"share": 0.5, "pair": [3, "c"]}],
    "by_name": {"a": 1.5, "b": 2},
    "free": {"x": [1, {"y": None}]},
    "seconds": 5,
}
WHERE = Path("run/some.json")


def read(content: Any) -> Outer:
    return from_json(Outer, content, WHERE, "do it again")


def test_what_is_written_is_what_was_read() -> None:
    record = read(CONTENT)
    assert record.many[1] == Inner(0.5, (3, "c"))
    assert record.day == date(2021, 7, 1)
    assert json.dumps(to_json(record)) == json.dumps(CONTENT), "1 stays 1, and an absent key stays absent"
    assert read(to_json(record)) == record


def test_other_versions_may_know_more_or_say_it_otherwise() -> None:
    older = {**CONTENT, "cpu_seconds": 5, "shards": {"fetch": 1}}
    del older["seconds"]
    assert read(older) == read(CONTENT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 3.0}, "count = 3.0 is not a whole number"),
        ({"count": True}, "count = True is not a whole number"),
        ({"count": 10**30}, "count = (int) is not a whole number"),
        ({"name": None}, "name = None is not text"),
        ({"name": "\ud800"}, "name = '\\ud800' is not text"),
        ({"kept": "int16"}, "kept = 'int16' is not one of int8, float32"),
        ({"kept": ["int8"]}, "kept = (list) is not one of int8, float32"),
        ({"day": "2021-02-30"}, "day = '2021-02-30' is not a day such as 2021-07-01"),
        ({"day": 20210701}, "day = 20210701 is not a day such as 2021-07-01"),
        ({"sure": 1}, "sure = 1 is not true or false"),
        ({"inner": []}, "inner = (list) is not a table"),
        ({"inner": {"share": 1}}, "inner.pair is missing"),
        ({"inner": {"share": "x", "pair": [1, "a"]}}, "inner.share = 'x' is not a number"),
        ({"inner": {"share": float("nan"), "pair": [1, "a"]}}, "inner.share = (float) is not a number"),
        ({"inner": {"share": 1, "pair": [1]}}, "inner.pair = (list) is not a list of 2"),
        ({"many": {"a": 1}}, "many = (dict) is not a list"),
        ({"many": [CONTENT["inner"], None]}, "many[1] = None is not a table"),
        ({"by_name": {"a": "b"}}, "by_name.a = 'b' is not a number"),
        ({"by_name": {"\n\x1b": "b"}}, r"by_name.\n\x1b = 'b' is not a number"),
        ({"gpu_seconds": "1"}, "gpu_seconds = '1' is not a whole number"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=rf"^run/some\.json: {re.escape(said)}: do it again$"):
        read({**CONTENT, **change})


@pytest.mark.parametrize("content", [None, [], "x", 3])
def test_what_is_no_table_at_all(content: Any) -> None:
    with pytest.raises(FormatError, match=r"^run/some\.json: it = .* is not a table: do it again$"):
        read(content)
