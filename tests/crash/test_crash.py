"""Processes that are killed while they record, and what becomes of their events."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.rounds import run_rounds

ROUNDS = 10


@pytest.mark.parametrize("cut", [False, True], ids=["healthy server", "connections cut"])
def test_what_was_recorded_before_kill_9_is_billed_once(tmp_path: Path, cut: bool) -> None:
    report = run_rounds(ROUNDS, seed=1, directory=tmp_path, cut=cut)
    assert report.clean, report
    assert report.recorded > 1000
    assert report.resent > 0 or not cut
