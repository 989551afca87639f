"""Kill and restart many times: `python -m tests.crash --rounds 100`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.rounds import run_rounds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--rounds", type=int, default=100, help="how many kills of each kind")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    arguments = parser.parse_args()
    clean = True
    for cut in (False, True):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            report = run_rounds(
                arguments.rounds, seed=arguments.seed, directory=Path(directory), cut=cut
            )
        clean = clean and report.clean
        print(f"{'connections cut' if cut else 'healthy server'}: {report}", flush=True)
        print(f"  in {time.monotonic() - began:.0f} s: {'clean' if report.clean else 'NOT CLEAN'}")
    return not clean


if __name__ == "__main__":
    sys.exit(main())
