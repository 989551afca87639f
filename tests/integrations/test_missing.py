"""Glue without its framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS


@pytest.mark.parametrize("framework", ["starlette", "flask", "django"])
def test_it_says_what_is_missing(framework: str, tmp_path: Path) -> None:
    (tmp_path / f"{framework}.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-c", f"import meter_agent.integrations.{framework}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    needs = f"meter_agent.integrations.{framework} needs the package '{framework}'"
    assert needs in done.stderr
