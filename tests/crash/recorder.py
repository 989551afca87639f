"""A process that records at full speed until it is killed: `recorder.py URL SPOOL LOG LIFE`.

LOG is a mapped file of one counter for each thread. A thread raises its counter when `record()` has
returned True, so that whoever reads the file knows which events must not be lost.
"""

from __future__ import annotations

import mmap
import sys
import threading
from pathlib import Path

from meter_agent import MeterAgent

THREADS = 4
NUMBERS = 1_000_000
"""Events of one thread in one life, at most."""


def main(url: str, spool: str, log: str, life: int) -> None:
    with Path(log).open("r+b") as file:
        # An item of a cast view is stored at once. `struct.pack_into` zeroes its bytes first, and a
        # kill in between would leave a count of none.
        counters = memoryview(mmap.mmap(file.fileno(), 8 * THREADS)).cast("Q")
    agent = MeterAgent(
        sandbox_url=url,
        spool_dir=spool,
        spool_bytes=64 * 1024 * 1024,
        flush_interval_seconds=0.01,
        retry_base_seconds=0.01,
        retry_max_seconds=0.1,
    )

    def produce(thread: int) -> None:
        first = (life * THREADS + thread) * NUMBERS
        number = 0
        while agent.record("tokens", "cus_1", first + number + 1):
            number += 1
            counters[thread] = number

    threads = [threading.Thread(target=produce, args=(n,)) for n in range(THREADS)]
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
