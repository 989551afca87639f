"""The pages about speed show the figures of the run that is kept, and every target of it."""

from __future__ import annotations

import re

import pytest

from benchmarks import pages, results, targets
from docs import _generate

EXPLANATION = _generate.DOCS / "explanation"
RUN = results.load(results.STORED)
TABLES = pages.sections(RUN)


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_tables_are_those_of_the_stored_run(name: str) -> None:
    text = (EXPLANATION / name).read_text()
    assert "<!-- measured: " in text
    assert pages.filled(text, TABLES) == text


def test_every_measurement_and_every_plot_is_shown() -> None:
    text = "".join((EXPLANATION / name).read_text() for name in pages.PAGES)
    shown = set(re.findall(r"<!-- measured: (\w+) -->", text))
    assert shown == set(TABLES)
    assert set(results.MEASUREMENTS) <= shown
    plots = {path.name for path in pages.PLOTS.glob("*.svg")}
    assert plots
    assert {plot for plot in plots if f"](plots/{plot})" not in text} == set()


def test_every_target_is_judged() -> None:
    verdicts = targets.judge(RUN["measurements"])
    assert len(verdicts) == 19
    assert all(verdict.target in TABLES["targets"] for verdict in verdicts)
