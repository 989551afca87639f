"""A sandbox to import into, and files to import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from meter_agent.cli.app import app
from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer


class Outcome(NamedTuple):
    """What a command left behind."""

    status: int
    lines: list[dict[str, Any]]
    talk: str

    @property
    def report(self) -> dict[str, Any]:
        """The last line of its JSON."""
        assert self.lines, self.talk
        return self.lines[-1]

    def books(self) -> dict[str, int]:
        """The counts that are not zero."""
        names = ("rows", "recorded", "delivered", "dead_lettered", "uncertain", "not_sent")
        counts = {name: self.report[name] for name in (*names, "rejected", "repeated")}
        return {name: count for name, count in counts.items() if count}


class Importer:
    """Imports files into a sandbox, in this process."""

    def __init__(self, stripe: Sandbox, url: str, folder: Path) -> None:
        self.stripe = stripe
        self.url = url
        self.folder = folder
        self.state = folder / "state"

    def __call__(self, *arguments: object, stdin: bytes | None = None) -> Outcome:
        result = CliRunner().invoke(
            app, self.command(*arguments, "--json"), prog_name="meter-agent", input=stdin
        )
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        return Outcome(result.exit_code, lines, result.stderr)

    def command(self, *arguments: object) -> list[str]:
        """The command line, without the name of the program."""
        state = ("--state-dir", self.state)
        return [str(each) for each in ("import", *arguments, *state, "--sandbox-url", self.url)]

    def file(self, name: str, text: str) -> Path:
        """Write a file to import."""
        path = self.folder / name
        path.write_text(text)
        return path

    def billed(self) -> dict[str, dict[str, str]]:
        """What the sandbox has."""
        return self.stripe.totals()["totals"]

    def journal(self) -> Path:
        """The only journal."""
        (path,) = self.state.glob("*.journal")
        return path


@pytest.fixture
def stripe() -> Sandbox:
    return Sandbox()


@pytest.fixture
def importer(
    stripe: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Importer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("METER_AGENT_RETRY_BASE_SECONDS", "0.01")
    monkeypatch.setenv("METER_AGENT_RETRY_MAX_SECONDS", "0.05")
    monkeypatch.setenv("METER_AGENT_MAX_EVENTS_PER_SECOND", "1000000")
    with SandboxServer(stripe) as server:
        yield Importer(stripe, server.url, tmp_path)


TOKENS = ("--event", "tokens", "--customer", "cus_1", "--map", "value=n")
"""Options for files whose only column that matters is `n`."""


def numbers(count: int, first: int = 1) -> str:
    """A CSV file with the numbers from *first*."""
    return "n\n" + "".join(f"{number}\n" for number in range(first, first + count))
