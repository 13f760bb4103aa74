"""Several accelerators on a node: one process each, the shard's tiles divided among them, the cores too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from infer.contract import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_TRY_AGAIN, Shard
from infer.progress import on_stop


def part_of(shard: Shard, member: int, members: int) -> Shard:
    """The tiles of a shard that member `member` of `members` does: every `members`-th of them."""
    return Shard(shard.index + shard.count * member, shard.count * members)


def take_cores(member: int, members: int) -> None:
    """Keep this process on its share of the allotted cores, so that members do not crowd each other."""
    if members == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[member::members] or [cores[member % len(cores)]]
    os.sched_setaffinity(0, mine)


def worst(codes: Sequence[int]) -> int:
    """One exit code for several: bad input first, then failures, then interruptions."""
    for code in (EXIT_BAD_INPUT, EXIT_FAILED, EXIT_TRY_AGAIN):
        if code in codes:
            return code
    return EXIT_OK if set(codes) <= {EXIT_OK} else EXIT_FAILED


def run_members(arguments: Sequence[str], shard: Shard, members: int) -> int:
    """Run `python -m infer` once per accelerator and wait for all.

    Args:
        arguments: the command line without `--shard` and `--processes`.
        shard: what to divide.
        members: number of processes.

    Returns:
        The exit code for all of them.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def relay(number: int) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    with on_stop(relay):
        for member in range(members):
            own = ["--shard", str(part_of(shard, member, members)), "--member", f"{member}/{members}"]
            processes.append(subprocess.Popen([sys.executable, "-m", "infer", *arguments, *own]))
        return worst([process.wait() for process in processes])
