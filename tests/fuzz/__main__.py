"""Change one file of a finished run at random, ask smalti for something, and see that it answers as it should.

    PYTHONPATH=.:tests python -m fuzz --minutes 60

Whatever a file holds, a command gives its result or one clear line within 20 seconds and 1 GiB, without a traceback,
and no byte changes outside the run. Everything that breaks this is told with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fuzz.campaign import Campaign, finished_run


def main() -> int:
    """Run cases until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the first case; the next has the next")
    parser.add_argument("--cases", type=int, help="instead of a time: how many")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smalti-fuzz-") as folder:
        finished, work = Path(folder) / "finished", Path(folder) / "work"
        work.mkdir()
        campaign = Campaign(finished_run(finished), work)
        end = time.monotonic() + 60 * given.minutes
        seed, codes, findings = given.seed, Counter[str](), []
        while (seed < given.seed + given.cases) if given.cases else (time.monotonic() < end):
            result = campaign.case(seed)
            codes[f"{result.command} -> {result.code}"] += 1
            if result.fault:
                findings.append(result)
                print(f"seed {seed}: {result}", flush=True)
            seed += 1
            if not seed % 100:
                print(f"{seed - given.seed} cases, {len(findings)} findings", file=sys.stderr, flush=True)
    for what, count in sorted(codes.items()):
        print(f"{count:6d} {what}")
    print(f"{seed - given.seed} cases, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
