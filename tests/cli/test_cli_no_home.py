"""Commands of a user without a home directory: a container with a numeric user, a cron job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

from .letters import letter, write

Environ = dict[str, str]

_HOMELESS = """
import pwd, sys

def getpwuid(number):
    raise KeyError(number)

pwd.getpwuid = getpwuid
from meter_agent.__main__ import main
main()
"""


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture
def environ(stripe: Sandbox) -> Iterator[Environ]:
    with SandboxServer(stripe) as server:
        names = ("HOME", "XDG_STATE_HOME")
        without = {name: text for name, text in os.environ.items() if name not in names}
        yield {**without, "NO_PROXY": "127.0.0.1", "METER_AGENT_SANDBOX_URL": server.url}


def run(*arguments: object, env: Environ) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _HOMELESS, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=env,
    )


@pytest.fixture
def usage(tmp_path: Path) -> list[object]:
    path = tmp_path / "usage.csv"
    path.write_text("org,n\ncus_1,7\n")
    maps = ["--map", "customer=org", "--map", "value=n"]
    return ["import", path, "--event", "tokens", *maps]


def test_a_dry_run_keeps_nothing_and_needs_no_home(environ: Environ, usage: list[object]) -> None:
    outcome = run(*usage, "--dry-run", env=environ)
    assert outcome.returncode == 0
    assert "1 would be sent" in outcome.stdout


@pytest.mark.parametrize("home", [None, "", "here"])
def test_an_import_that_has_nowhere_to_note_its_progress_names_option_and_variable(
    home: str | None, environ: Environ, usage: list[object], stripe: Sandbox
) -> None:
    if home is not None:
        environ["HOME"] = home
    outcome = run(*usage, env=environ)
    assert outcome.returncode == 2
    assert "XDG_STATE_HOME" in outcome.stderr
    assert "--state-dir" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert stripe.totals()["accepted"] == 0


def test_an_import_goes_on_where_the_option_says(
    environ: Environ, usage: list[object], stripe: Sandbox, tmp_path: Path
) -> None:
    assert run(*usage, "--state-dir", tmp_path / "state", env=environ).returncode == 0
    assert stripe.totals()["accepted"] == 1


@pytest.mark.parametrize("name", ["HOME", "XDG_STATE_HOME"])
def test_an_import_goes_on_where_the_environment_says(
    name: str, environ: Environ, usage: list[object], tmp_path: Path
) -> None:
    environ[name] = str(tmp_path / "there")
    assert run(*usage, env=environ).returncode == 0
    assert list((tmp_path / "there").rglob("*.journal"))


def test_commands_that_keep_nothing_need_no_home(environ: Environ, tmp_path: Path) -> None:
    letters = write(tmp_path / "letters.jsonl", letter("event-1"))
    spool = tmp_path / "spool"
    spool.mkdir(mode=0o700)
    for arguments in (
        ["status"],
        ["status", "--json"],
        ["doctor", "--offline"],
        ["config", "show"],
        ["send", "tokens", "cus_1"],
        ["send", "tokens", "cus_1", "--dry-run"],
        ["dead-letters", "ls", letters],
        ["dead-letters", "resend", letters, "--yes"],
        ["spool", "ls", spool],
        ["spool", "replay", spool],
    ):
        outcome = run(*arguments, env=environ)
        assert (arguments, outcome.returncode, outcome.stderr.count("Traceback")) == (
            arguments,
            0,
            0,
        )


def test_status_says_that_it_does_not_know_where_imports_are_noted(environ: Environ) -> None:
    outcome = run("status", env=environ)
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("imports")]
    assert "--state-dir" in line
