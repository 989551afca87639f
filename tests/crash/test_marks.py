"""What a process leaves of a mark when it is killed while it writes one."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

from meter_agent import _spool_format as form
from tests.crash.lives import Start

LOOKS = 300_000
ATTEMPTED = form.attempted_mark(1_795_000_000)

WRITES_MARKS = """
import mmap
from meter_agent import _spool_format as form
with open({path!r}, "r+b") as file:
    data = mmap.mmap(file.fileno(), 0)
print("writing", flush=True)
while True:
    form.write_mark(data, 0, {attempted})
    form.write_mark(data, 0, form.SETTLED)
"""


def test_a_mark_is_the_old_one_or_the_new_one_at_every_moment(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "marks"
    path.write_bytes(bytes(mmap.PAGESIZE))
    process = start(WRITES_MARKS.format(path=str(path), attempted=ATTEMPTED), "")
    assert process.stdout.readline() == "writing\n"
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # An item of a cast view is read at once, as a kill would leave it.
    with data, memoryview(data) as view, view.cast("Q") as numbers:
        at = form.MARK_AT // numbers.itemsize
        while not numbers[at]:
            assert process.poll() is None
        seen = {numbers[at].to_bytes(8, sys.byteorder) for _ in range(LOOKS)}
    assert {int.from_bytes(mark, "little") for mark in seen} <= {ATTEMPTED, form.SETTLED}
