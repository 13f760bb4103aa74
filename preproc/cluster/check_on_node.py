"""Run by a probe job on a node, in the Python of the venv: prints what `smalti doctor` would find there.

python -m preproc.cluster.check_on_node RUN --shard 0/1
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from infer.contract import Run
from preproc.cluster import machine_checks
from preproc.run.checks import flatten
from preproc.run.config import load_config

MARK = "smalti-probe: "
"""What a line with a finding begins with."""


def main(arguments: list[str]) -> int:
    """Print the findings, one a line."""
    run = Run(Path(arguments[0]))
    config = load_config(run)
    groups = (
        machine_checks.check_checkout(),
        machine_checks.check_environment(os.environ, Path.home()),
        machine_checks.check_proj(),
        machine_checks.check_archive(run, config),
        machine_checks.check_run_directory(run),
        machine_checks.check_scratch(config),
    )
    for finding in flatten(groups):
        print(MARK + json.dumps(asdict(finding)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
