"""Runs the applications of the documentation under real servers, against a real sandbox."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from meter_agent.sandbox import Sandbox
from tests.docs.test_docs import DOCS, blocks
from tests.patience import PATIENCE_SECONDS
from tests.process.scripts import environment

WEB_SERVERS = DOCS / "howto" / "web-servers.md"
CELERY = DOCS / "howto" / "celery.md"
FINAL_LINE = re.compile(r"INFO.*meter_agent\.closed")


def write_snippet(page: Path, name: str, directory: Path) -> None:
    """Put the file *name* that *page* shows into *directory*."""
    (snippet,) = blocks(page, f"python {name}")
    (directory / name).write_text(snippet, encoding="utf-8")


class Server:
    """A process whose lines are read while it runs."""

    def __init__(
        self, command: Sequence[str], sandbox_url: str, directory: Path, **settings: str
    ) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [*([] if os.path.isabs(command[0]) else [sys.executable, "-m"]), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env=environment(sandbox_url)
            | {
                "METER_AGENT_SANDBOX_URL": sandbox_url,
                # Whatever arrives was sent because the process ended.
                "METER_AGENT_FLUSH_INTERVAL_SECONDS": "60",
                "HOME": str(directory),
                "NO_PROXY": "127.0.0.1",
            }
            | settings,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Return the match when *pattern* was found *times* times in what the server says."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._changed:
            while True:
                found = list(re.finditer(pattern, "".join(self._lines)))
                if len(found) >= times:
                    return found[times - 1]
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no {pattern!r} in:\n{''.join(self._lines)}")
                self._changed.wait(left)

    def get(self, path: str) -> str:
        """Make one request, over a connection of its own."""
        return self.ask(f"/customers/{path}")

    def ask(self, path: str, **headers: str) -> str:
        """As `get()`, of any path."""
        address = self.wait_for(r"127\.0\.0\.1:[1-9]\d*")[0]
        request = urllib.request.Request(f"http://{address}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            text: str = answer.read().decode()
        return text

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Send the signal, wait for the end, and return all that the server said."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> str:
        self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)  # until the last child has closed its end of the pipe
        return self.output

    def kill(self) -> None:
        """Leave nothing of the whole process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running(
    command: Sequence[str], sandbox_url: str, directory: Path, **settings: str
) -> Iterator[Server]:
    server = Server(command, sandbox_url, directory, **settings)
    try:
        yield server
    finally:
        server.kill()


def customers(sandbox: Sandbox) -> Counter[str]:
    return Counter(entry["customer"] for entry in sandbox.ledger())


def assert_each_once(sandbox: Sandbox, expected: Sequence[str]) -> None:
    assert customers(sandbox) == dict.fromkeys(expected, 1)
    assert sandbox.totals()["duplicates"] == 0


def assert_quiet_end(output: str, *, final_lines: int | None = None) -> None:
    """No traceback; and so many processes that wrote a final ledger in which nothing is lost."""
    assert "Traceback" not in output, output
    assert "WARNING:meter_agent" not in output, output
    assert "ERROR:meter_agent" not in output, output
    found = len(FINAL_LINE.findall(output))
    assert found == final_lines if final_lines is not None else found, output
