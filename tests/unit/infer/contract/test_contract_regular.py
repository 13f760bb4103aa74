"""What is read by name: pipes and devices, documents without end, headers that lie, names that lead elsewhere."""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infer.contract import (
    FormatError,
    child,
    name_for,
    name_problem,
    open_npy,
    parse_json,
    parse_toml,
    read_json,
    read_regular,
    sha256_file,
    write_json,
)
from infer.contract.manifest import describe_file
from infer.contract.regular import parse_json_parts

DEEP = 100_000


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.mkdir(), "a folder"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        read_regular,
        sha256_file,
        lambda path: open_npy(path, "make it again"),
        lambda path: read_json(path, what="the plan", remedy="plan again"),
    ],
)
def test_what_is_no_file_is_named_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], None], kind: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(FormatError, match=f"^{path}: .*{kind}"):
        read(path)


def test_a_file_larger_than_its_kind_ever_is_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as stream:
        stream.truncate(3 << 40)  # holes only
    with pytest.raises(FormatError, match=r"x\.json: .*larger than 512 MiB"):
        read_json(path, what="the plan", remedy="plan again")


@pytest.mark.parametrize(
    "text",
    [
        "[" * DEEP + "]" * DEEP,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        "[" * 200 + "]" * 200,
        "1" * 10_000,
        "\ufeff{}",
        "",
        b"\xff\xfe{",
    ],
    ids=["lists", "tables", "a little deep", "digits", "byte order mark", "empty", "no UTF"],
)
def test_json_that_only_a_machine_writes_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_some_values_of_a_table_are_parsed_without_the_others(tmp_path: Path) -> None:
    table = {"a": [{"b": 1}] * 50, "files": {"x": 1, "inputs": 2}, "inputs": {"files": 3, "text": '\n "inputs": 4'}}
    write_json(tmp_path / "x.json", table)
    content = (tmp_path / "x.json").read_bytes()
    keys = ("files", "inputs")
    assert parse_json_parts(content, keys) == {key: table[key] for key in keys}
    assert parse_json_parts(content.replace(b"50", b"x" * 50, 1), keys) is not None, "the others are not looked at"
    assert parse_json_parts(content, ("files", "missing")) is None
    assert parse_json_parts(json.dumps(table).encode(), keys) is None, "laid out in another way"
    assert parse_json_parts(content[: content.index(b"inputs") + 20], keys) is None


def test_json_of_a_usual_depth_and_width_is_read() -> None:
    value = {"a": [[[{"b": list(range(100))}]]] * 1000}
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ["a = " + "[" * DEEP + "]" * DEEP, "a" + ".a" * 200 + " = 1", "a = " + "1" * 10_000, "x" * (5 << 20)]
)
def test_toml_without_bounds_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_toml(text)


def _npy(header: str | bytes, body: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(raw) if length is None else length) + raw + body


def _described(descr: str = "'<u2'", shape: str = "(3, 4)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


LIES = {
    "more than it holds": _npy(_described(shape="(1000000, 1000000)"), bytes(24)),
    "an overflow": _npy(_described(shape="(4294967296, 4294967296)"), bytes(24)),
    "a negative axis": _npy(_described(shape="(-3, 4)"), bytes(24)),
    "a true axis": _npy(_described(shape="(True, 4)"), bytes(24)),
    "a shape of text": _npy(_described(shape="('3', 4)"), bytes(24)),
    "objects": _npy(_described("'|O'"), bytes(96)),
    "text": _npy(_described("'<U4'"), bytes(200)),
    "fields": _npy(_described("[('a', '<u2'), ('b', '<u2')]"), bytes(96)),
    "no dtype": _npy(_described("'what'"), bytes(24)),
    "deep": _npy(_described(shape="(" * 300 + ")" * 300), bytes(24)),
    "a call": _npy("__import__('os').abort()\n"),
    "no table": _npy("[1, 2]\n"),
    "another key": _npy("{'shape': (1,), 'x': 1}\n", bytes(24)),
    "a header longer than the file": _npy(_described(), length=60000),
    "a later version": _npy(_described(), bytes(24), b"\x09\x00"),
    "an archive": b"PK\x03\x04" + bytes(100),
    "a byte too few": _npy(_described(), bytes(23)),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_an_array_whose_header_lies_is_refused_in_one_line(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "bands.npy"
    path.write_bytes(LIES[lie])
    with pytest.raises(FormatError, match=r"bands\.npy: not a readable \.npy array \(.*\): fetch it again") as caught:
        open_npy(path, "fetch it again")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("shape", [(0, 3), (), (3, 4), (64, 64, 10)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_honest_array_comes_back_read_only(tmp_path: Path, shape: tuple[int, ...], order: str) -> None:
    values = np.asarray(np.arange(np.prod(shape, dtype=int), dtype=np.int16).reshape(shape), order=order)
    np.save(tmp_path / "x.npy", values)
    found = open_npy(tmp_path / "x.npy", "")
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype
    assert not found.flags.writeable


@given(st.text())
@example("0" * 162)
def test_any_text_gives_a_name_that_stays_in_its_folder(text: str) -> None:
    name = name_for(text)
    assert name_problem(name) is None
    assert name.isascii()
    assert child(Path("/run/tiles"), name).parent == Path("/run/tiles")
    assert name_for(name) == name


@given(st.text(), st.text())
def test_texts_that_differ_get_names_that_differ(one: str, other: str) -> None:
    assert (name_for(one) == name_for(other)) == (one == other)


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "", "a/b", "a\\b", "a\0", "a\n", "\ud800", "x" * 201, None, 3])
def test_a_name_that_leads_elsewhere_makes_no_path(name: str) -> None:
    with pytest.raises(FormatError, match=r"/run/tiles: the name .*: nothing outside this folder is touched"):
        child(Path("/run/tiles"), name)


def test_headers_are_read_by_many_threads_at_once(tmp_path: Path) -> None:
    """Python's collector may let another thread run in the middle of a parse, which Python before 3.12 cannot bear."""
    path, interval, thresholds = tmp_path / "x.npy", sys.getswitchinterval(), gc.get_threshold()
    np.save(path, np.arange(4, dtype=np.int16))

    def busy(_phase: str, _info: object) -> None:
        sum(range(50))

    gc.callbacks.append(busy)
    try:
        sys.setswitchinterval(1e-6)
        gc.set_threshold(5)
        with ThreadPoolExecutor(4) as pool:
            read = pool.map(lambda _: (open_npy(path, "").shape, describe_file(path)["shape"]), range(6000))
            assert all(shapes == ((4,), [4]) for shapes in read)
    finally:
        gc.callbacks.remove(busy)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
