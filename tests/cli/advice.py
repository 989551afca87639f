"""Advice that is followed: its commands run in a shell, and the environment they leave is taken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meter_agent.cli.app import app
from tests.patience import PATIENCE_SECONDS

_COMMAND = re.compile(r"`([^`]+)`")


class Patient:
    """An environment in which the doctor is asked, and whose advice is followed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        # What advice calls is this package's own script.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        monkeypatch.setenv("PATH", path)

    def set(self, **variables: object) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, str(value))

    def ask(self, *arguments: str) -> Diagnosis:
        result = CliRunner().invoke(app, ["doctor", "--json", *arguments], prog_name="meter-agent")
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return Diagnosis(result)

    def follow(self, advice: str, which: int = 0, ends_with: int = 0) -> None:
        """Run the command of *advice*; what it exports and unsets holds from now on."""
        command = _COMMAND.findall(advice)[which]
        done = subprocess.run(
            ["bash", "-c", f"{command} >&2; test $? = {ends_with} && env -0"],
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        pairs = dict(pair.split("=", 1) for pair in done.stdout.decode().split("\0") if pair)
        for name in {*os.environ} - {*pairs}:
            self._monkeypatch.delenv(name)
        for name, value in pairs.items():
            if os.environ.get(name) != value and name not in {"_", "SHLVL", "PWD", "OLDPWD"}:
                self._monkeypatch.setenv(name, value)


class Diagnosis:
    """What the doctor said."""

    def __init__(self, result: Result) -> None:
        self.exit_code = result.exit_code
        self.findings: list[dict[str, Any]] = [
            json.loads(line) for line in result.stdout.splitlines()
        ]
        self.text = result.output

    def states(self, check: str) -> list[str]:
        return [each["state"] for each in self.findings if each["check"] == check]

    def of(self, check: str) -> dict[str, Any]:
        """The one finding of *check* that is not ok, or else the only one."""
        found = [each for each in self.findings if each["check"] == check]
        bad = [each for each in found if each["state"] in {"warning", "failed"}] or found
        assert len(bad) == 1, self.findings
        return bad[0]


def assert_cured(
    patient: Patient,
    check: str,
    state: str,
    *arguments: str,
    which: int = 0,
    follow: Callable[[str], object] | None = None,
    exit_code: int = 0,
) -> None:
    """The check has *state* and ends so; its advice is followed, and it passes."""
    before = patient.ask(*arguments)
    finding = before.of(check)
    assert (finding["state"], before.exit_code) == (state, exit_code), finding
    assert finding["advice"] is not None
    if follow is None:
        patient.follow(finding["advice"], which)
    else:
        follow(finding["advice"])
    after = patient.ask(*arguments)
    assert set(after.states(check)) == {"ok"}, after.text
    assert after.exit_code == 0
