"""Run many simulated worlds: `python -m tests.simulation --seeds 20000`, or one: `--seed 7`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.simulation.run import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this world alone")
    parser.add_argument("--failures", type=int, default=10, help="stop after so many")
    parser.add_argument("--width", type=int, default=2000, help="characters of each report")
    arguments = parser.parse_args()
    first, count = arguments.first, arguments.seeds
    if arguments.seed is not None:
        first, count = arguments.seed, 1
    failed: list[int] = []
    seed = first
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(first, first + count):
            try:
                run_seed(seed, Path(directory))
            except Exception as error:  # noqa: BLE001 - reported, and the next world is tried
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {error}"[: arguments.width])
                if arguments.seed is not None:
                    traceback.print_exception(error)
                if len(failed) == arguments.failures:
                    break
    print(
        f"{seed - first + 1} worlds in {time.monotonic() - began:.1f} s, failed: {failed or 'none'}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
