"""Ten thousand shards with simulated outputs: submit, status, resubmit. Durations are printed (pytest -s)."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from support.cluster import Campaign
from support.runs import smalti

from infer.contract import FORMAT_VERSION, Run
from preproc.run.config import load_config
from preproc.run.stage import Unit
from preproc.run.stages import stage_named

SHARDS = 10_000
RUN_TOML = """
[region]
bbox = [5.75, 50.70, 5.98, 50.85]
start = "2021-10-01"
end = "2022-09-30"
[archive]
source = "static"
href = "{archive}/items.json"
[tiles]
size = 16
[model]
name = "demo"
[site]
profile = "local"
job.partition = "parked"
limits = {{ tasks = 10000, max_array = 10000, max_jobs = 30000 }}
"""


def pretend(units: list[Unit], kind: str) -> None:
    """Write manifests without files: complete, as far as anyone can see who does not read the arrays."""
    for unit in units:
        unit.manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": f"smalti/{kind}",
            "format_version": FORMAT_VERSION,
            "inputs": dict(unit.inputs),
            "files": {},
        }
        unit.manifest.write_text(json.dumps(manifest))


def timed(label: str, *arguments: object) -> str:
    started = time.monotonic()
    text = smalti(*arguments, check=False).stdout
    print(f"{label}: {time.monotonic() - started:.1f} s")
    return text


def test_ten_thousand_shards(workshop: Path) -> None:
    root = workshop / "large"
    root.mkdir()
    (root / "run.toml").write_text(RUN_TOML.format(archive=workshop / "demo" / "archive"))
    timed("plan", "plan", root)
    run = Run(root)
    config = load_config(run)
    fetch = stage_named("fetch").load().open(run, config).units
    assert len(fetch) > SHARDS
    pretend(fetch, "tile")
    infer = stage_named("infer").load().open(run, config).units
    pretend([unit for number, unit in enumerate(infer) if number % 2], "embedding")
    campaign = Campaign(root)
    told = timed("submit", "submit", root)
    try:
        found = re.search(r"infer +job \d+ \[([\d:,-]+)\]", told)
        assert found is not None, told
        assert found[1] == "0-9998:2"
        pending = campaign.job("infer")["counts"]["pending"]
        assert pending == SHARDS / 2
        timed("status", "status", root)
        assert "nothing to add" in timed("resubmit", "resubmit", root)
    finally:
        timed("cancel", "cancel", root)
    assert campaign.job("infer")["counts"]["failed"] == SHARDS / 2
    again = timed("resubmit after cancel", "resubmit", root)
    smalti("cancel", root)
    assert "[0-9998:2]" in again
