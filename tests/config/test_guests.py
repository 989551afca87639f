"""Importing the settings costs nothing, and each of them is explained."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from docs import _generate
from meter_agent._config import SETTINGS


def test_importing_reads_no_environment_and_loads_no_heavy_module() -> None:
    code = (
        "import os, sys, types\n"
        "package = types.ModuleType('meter_agent'); package.__path__ = ['meter_agent']\n"
        "sys.modules['meter_agent'] = package\n"
        "before = set(sys.modules)\n"
        "os.environ = None\n"
        "import meter_agent._config\n"
        "print(*set(sys.modules) - before)\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=_generate.DOCS.parent,
    ).stdout.split()
    heavy = {"requests", "structlog", "tenacity", "asyncio", "ssl", "socket", "urllib.parse"}
    assert not heavy & set(loaded)


def test_the_reference_page_of_the_settings_is_up_to_date() -> None:
    assert _generate.stale_pages() == []


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_every_setting_is_explained_in_a_sentence_that_fits_a_table(setting: Any) -> None:
    assert setting.help.endswith(".")
    assert "|" not in setting.help + setting.kind.rule
    assert "\n" not in setting.help
    assert setting.kind.rule.startswith("must ")
