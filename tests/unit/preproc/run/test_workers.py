"""Units built in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from infer.contract import Run, SmaltiError, write_bytes, write_manifest
from preproc.run.config import Config, parse_config
from preproc.run.stage import Session, StageFailedError, Unit, run_stage
from preproc.run.workers import OneAtATime, in_order, side_by_side, worker_count

TOML = '[region]\nmgrs = ["31UES"]\nstart = "2021-01-01"\nend = "2021-12-31"\n[archive]\nsource = "mpc"\n'


@dataclass
class Maker:
    """Writes who built a unit; what it does with some units is in their names."""

    def __call__(self, unit: Unit) -> None:
        if unit.name == "bad":
            raise SmaltiError("bad is bad", exit_code=7)
        if unit.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.name == "bug":
            raise KeyError("nobody thought of this")
        if unit.name == "slow":
            time.sleep(60)
        path = unit.manifest.with_suffix(".txt")
        write_bytes(path, f"{os.getpid()} {len(os.sched_getaffinity(0))}".encode())
        write_manifest(unit.manifest, unit.kind, inputs=unit.inputs, files=[path])


@dataclass
class Toy:
    names: tuple[str, ...]
    name: str = "toy"
    noun: str = "toys"
    sharded: bool = True
    apart: bool = False

    def open(self, run: Run, config: Config) -> Session:
        units = [Unit(n, run.root / f"{n}.json", "toy", {}) for n in self.names]
        return Session(units, lambda due: side_by_side(due.units, Maker(), worker_count(config)))


def config(workers: int) -> Config:
    return parse_config(f"{TOML}[site]\nworkers = {workers}\n", Path("run.toml"))


def test_processes_share_the_units_and_the_cores_and_one_bad_or_killed_one_stops_no_other(tmp_path: Path) -> None:
    names = ("a", "bad", "b", "killed", "c", "d", "e", "f")
    with pytest.raises(StageFailedError) as raised:
        run_stage(Toy(names), Run(tmp_path), config(2))
    assert "bad: bad is bad" in str(raised.value)
    assert "killed: its process was ended (killed: perhaps for want of memory" in str(raised.value)
    told = [(tmp_path / f"{name}.txt").read_text().split() for name in "abcdef"]
    assert str(os.getpid()) not in {pid for pid, _ in told}
    cores = len(os.sched_getaffinity(0))
    assert {int(count) for _, count in told} <= {max(1, cores // 2), max(1, -(-cores // 2))}
    assert run_stage(Toy(tuple("abcdef")), Run(tmp_path), config(2)).complete_before == 6


def test_one_worker_is_this_process_and_a_bug_is_not_taken_for_a_failure(tmp_path: Path) -> None:
    run_stage(Toy(("a", "b")), Run(tmp_path), config(1))
    assert (tmp_path / "a.txt").read_text().split()[0] == str(os.getpid())
    with pytest.raises(RuntimeError, match="nobody thought of this"):
        run_stage(Toy(("bug", "c")), Run(tmp_path), config(2))


def test_few_pixels_are_not_worth_many_processes() -> None:
    assert worker_count(config(8)) == 8
    assert worker_count(config(8), 3 * 512 * 512) == 3
    assert worker_count(config(2), 10**9) == 2
    assert worker_count(config(0)) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import signal, sys\nfrom pathlib import Path\nfrom infer.contract import Run\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from preproc.run.stage import run_stage\n"
        "from test_workers import Toy, config\n"
        "def leave(number, frame): raise SystemExit(3)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, leave)\n"
        f"    run_stage(Toy(('a', 'b', 'slow', 'slow2')), Run(Path({str(tmp_path)!r})), config(2))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (tmp_path / "slow2.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = (Path("/proc") / str(process.pid) / "task" / str(process.pid) / "children").read_text().split()
    process.send_signal(number)
    assert process.wait(30) == (3 if number == signal.SIGTERM else -signal.SIGKILL)
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    assert not any(_alive(child) for child in children)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_threads_keep_the_order_and_work_a_few_items_ahead_only() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        if number == 30:
            raise SmaltiError("thirty")
        return number * number

    found = []
    with pytest.raises(SmaltiError, match="thirty"):
        for number, square in in_order(items(), work, 2):
            assert len(taken) <= number + 6
            found.append((number, square))
    assert found == [(number, number * number) for number in range(30)]


def alone(folder: Path, end: int = 0) -> int:
    """Which process this is, where no other call is under way in it."""
    mark = folder / str(os.getpid())
    mark.touch(exist_ok=False)
    time.sleep(0.05)
    mark.unlink()
    if end and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), end)
    return os.getpid()


def test_calls_of_threads_have_a_process_to_themselves(tmp_path: Path) -> None:
    patient, impatient = OneAtATime(60.0), OneAtATime(0.0)
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: patient.call(alone, tmp_path), range(6))) == {os.getpid()}
        found = list(pool.map(lambda _: impatient.call(alone, tmp_path), range(12)))
        assert len(set(found)) > 1, "while one is at work here, others go elsewhere"
        ended = [pool.submit(impatient.call, alone, tmp_path, signal.SIGKILL) for _ in range(3)]
        errors = [call.exception() for call in ended]
        assert any(isinstance(error, SmaltiError) and "was ended" in str(error) for error in errors)
        assert all(error is None or isinstance(error, SmaltiError) for error in errors)
        assert len(set(pool.map(lambda _: impatient.call(alone, tmp_path), range(12)))) > 1, "others take their place"
