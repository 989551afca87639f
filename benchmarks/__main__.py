"""Measures everything, or what is named, and stores it.

python -m benchmarks [--quick] [--output FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, results, sinks, targets
from benchmarks.plan import Plan

_BATCH_BYTES = 19_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(results.MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under three minutes")
    parser.add_argument("--output", type=Path, help="where the results go, as JSON")
    options = parser.parse_args()
    names = options.names or results.names(quick=options.quick)
    if unknown := set(names) - set(results.MEASUREMENTS):
        parser.error(f"there is no measurement {', '.join(unknown)}")
    run = _measure(names, quick=options.quick)
    print(f"\n## targets\n\n{targets.tables(run['measurements'])}\n{results.machine(run)}")
    if options.output is not None:
        results.save(run, options.output)
        print(f"written to {options.output}")


def _measure(names: list[str], *, quick: bool) -> dict[str, Any]:
    began = time.perf_counter()
    made: dict[str, Any] = {}
    with sinks.running() as sink:
        speed = sinks.speed(sink.prompt, b"x" * _BATCH_BYTES, 1.0)
        print(f"the sink answers {speed:,.0f} requests of 100 events a second")
        for name in names:
            measurement, lap = results.measurement(name), time.perf_counter()
            # By way of JSON: what is printed now is what will be read from the file.
            made[name] = json.loads(json.dumps(measurement.measure(Plan(sink, quick))))
            took = time.perf_counter() - lap
            print(f"\n## {name} ({took:.0f} s)\n\n{measurement.tables(made[name])}", flush=True)
    return {
        "quick": quick,
        "seconds": time.perf_counter() - began,
        "machine": machine.describe(),
        "sink": {"loop": sink.loop, "requests_per_second": speed},
        "measurements": made,
    }


if __name__ == "__main__":
    main()
