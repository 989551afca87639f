"""The command line as a user has it: a process of its own."""

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import ProxyHandler, build_opener

from tests.patience import PATIENCE_SECONDS

_MEASURING = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE_")}
"""What makes coverage measure a process; no test has it in its environment."""


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, measured by coverage if the tests are."""
    environ = {**_MEASURING, **(options.pop("env", None) or os.environ)}
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=environ,
        **options,
    )


@contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and see to it that it does not outlive the test."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*arguments), **{**pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "meter_agent", *map(str, arguments)]


def first_line(process: subprocess.Popen[str], stream: Any) -> str:
    """The first line, which has to come within the patience of a test."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        assert selector.select(PATIENCE_SECONDS), "no line came"
        line: str = stream.readline()
    return line.rstrip("\n")


def fetch(url: str) -> bytes:
    """GET *url*, whatever proxy the environment names."""
    with build_opener(ProxyHandler({})).open(url, timeout=PATIENCE_SECONDS) as answer:
        body: bytes = answer.read()
    return body
