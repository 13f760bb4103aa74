"""Atomic outputs: complete or absent, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infer.contract import (
    SmaltiError,
    atomic_dir,
    atomic_file,
    remove_stale_temporaries,
    temporary_path,
    write_bytes,
    write_json,
    write_npy,
)
from infer.contract.atomic import sha256_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    before = target.read_bytes()
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SmaltiError, match=r"folder: cannot be written: a folder of that name is in the way"):
        write_bytes(tmp_path / "folder", b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(SmaltiError, match=r"out: cannot be written: a file stands where a folder is needed"):
        write_bytes(tmp_path / "file" / "out", b"x")
    with (
        pytest.raises(SmaltiError, match=r"out: cannot be written: a file stands where a folder is needed"),
        atomic_dir(tmp_path / "file" / "out"),
    ):
        pass


def test_json_has_the_same_bytes_whatever_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": [1, 2]})
    write_json(tmp_path / "b", {"a": [1, 2], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1}) != sha256_json({"a": 2, "b": 2})


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "tile"
    for text in ("old", "new"):
        with atomic_dir(target) as folder:
            (folder / text).write_text(text)
    assert [child.name for child in target.iterdir()] == ["new"]
    assert [child.name for child in tmp_path.iterdir()] == ["tile"]


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "tile"
    with atomic_dir(target) as folder:
        (folder / "good").write_text("good")
    with pytest.raises(RuntimeError), atomic_dir(target) as folder:
        (folder / "bad").write_text("bad")
        raise RuntimeError
    assert [child.name for child in target.iterdir()] == ["good"]


def test_names_of_temporaries_tell_host_job_and_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    name = temporary_path(tmp_path / "tile.json").name
    assert name.startswith(".tile.json.")
    assert name.endswith(f".77_3.{os.getpid()}.tmp")


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_holds_is_not(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from infer.contract import atomic_dir\n"
        "with atomic_dir(Path(sys.argv[1]) / 'tile') as folder:\n"
        "    (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    mine = temporary_path(tmp_path / "other")
    mine.write_text("at work")
    assert len(list(tmp_path.iterdir())) == 2
    assert remove_stale_temporaries(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [mine]


def test_temporaries_of_other_hosts_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".tile.some-other-node.1_2.99999999.tmp").write_text("x")
    assert remove_stale_temporaries(tmp_path) == 0


@pytest.mark.parametrize("shape", [(0,), (0, 3, 2), (4, 5), (3, 2, 2)])
@pytest.mark.parametrize("dtype", ["<u2", "u1", "<i2", "<f4", "i1"])
def test_arrays_come_back_as_they_were(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    write_npy(tmp_path / "a.npy", array.T)
    back = np.load(tmp_path / "a.npy", allow_pickle=False)
    np.testing.assert_array_equal(back, array.T)
    assert back.dtype == array.dtype


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        message = r"big: cannot be written: no space left .* run the same command again"
        with pytest.raises(SmaltiError, match=message), atomic_file(tmp_path / "big") as temporary:
            if kind == "bytes":
                temporary.write_bytes(b"x" * 1_000_000)
            else:
                write_npy(temporary, np.zeros(1_000_000, np.uint8))
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)
