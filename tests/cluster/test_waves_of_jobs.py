"""A run whose tiles do not fit on the disk, on a real Slurm: waves, one disturbed, under a budget that holds."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.cluster import Campaign, make_campaign
from support.runs import digest, smalti
from test_campaign import batch_shell, stop_engine

from infer.contract import Plan, Run
from preproc.run.waves import tile_space

FITTING = 4
"""Tiles that fit on the disk: of nine, divided among six tasks, two tasks a wave."""
COMPARED = ("embeddings", "mosaic", "map")
"""What the two ways of running have in common, byte by byte; tiles/ is what they differ in."""


def settle(campaign: Campaign, more: str = "") -> None:
    """Four sheets, a short search, and further settings of the site."""
    path = campaign.root / "run.toml"
    text = path.read_text().replace("trials = 12", "trials = 2")
    path.write_text(text.replace("[model]", "[stitch]\nsheet = 256\n\n[model]", 1) + more)


def made(root: Path) -> dict[str, str]:
    """Path -> SHA-256 of what is compared."""
    return {path: sha for path, sha in digest(root).items() if path.split("/")[0] in COMPARED}


@contextmanager
def sampled(tiles: Path) -> Iterator[list[int]]:
    """What the arrays in a folder of tiles take, half-made ones as well, looked at all the time."""
    seen = [0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            total = 0
            for path in tiles.rglob("*.npy"):
                with suppress(OSError):  # let go meanwhile
                    total += path.stat().st_size
            seen.append(total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_waves_under_a_budget_with_a_killed_task(workshop: Path, image: Path) -> None:
    local = make_campaign(workshop / "all-at-once", workshop, image, labels=True)
    settle(local)
    smalti("run", local.root)
    plan = Plan.read(Run(local.root))
    one = tile_space(plan.tile_size, plan.season.s2_days, plan.season.s1_days).bytes
    budget = round(1.1 * one * (FITTING + 0.4))

    campaign = make_campaign(workshop / "it's in waves #1", workshop, image, labels=True)
    settle(campaign, f"tile_space = {budget}\n")
    path = campaign.root / "run.toml"
    path.write_text(path.read_text().replace("[tiles]\n", '[tiles]\nkeep = "record"\n', 1))
    with sampled(campaign.root / "tiles") as seen:
        told = campaign.submit()
        assert {f"fetch-{wave}" for wave in (1, 2, 3)} <= set(re.findall(r"fetch-\d", told)), told
        engine = stop_engine(campaign, 0)  # of the first wave: the others go on behind it
        with suppress(ProcessLookupError):
            os.kill(batch_shell(engine), signal.SIGKILL)
        with suppress(ProcessLookupError):  # Slurm may have been quicker
            os.kill(engine, signal.SIGKILL)
        campaign.finished()
        assert not campaign.status()["complete"]
        for _ in range(3):  # tiles of the killed task took room that others had to wait for
            campaign.resubmit()
            campaign.finished()
            if campaign.status()["complete"]:
                break
    status = campaign.status()
    assert status["complete"], status
    assert max(seen) <= budget
    assert max(seen) > one, "there was something to see"
    assert list((campaign.root / "logs" / "slurm").glob("infer-[0-9]*_[0-9]*.log")), "of a folder named so oddly"
    fetch = next(stage for stage in status["stages"] if stage["stage"] == "fetch")
    assert fetch["counts"] == {"released": len(plan.tiles)}
    assert list((campaign.root / "tiles").rglob("*.npy")) == []
    assert made(campaign.root) == made(local.root)
