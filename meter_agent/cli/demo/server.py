"""The sandbox as a process of its own, as far from the agent as Stripe is: across a socket.

Whatever becomes of this process, the other one ends: its standard input is a pipe that only we
hold, and it stops when that pipe closes, which also `kill -9` does.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import tempfile
from http.client import HTTPConnection, HTTPException
from typing import IO, Any, Self
from urllib.parse import urlsplit

__all__ = ["SandboxProcess", "SandboxProcessError"]

_START_SECONDS = 15.0
_STOP_SECONDS = 5.0
_ANSWER_SECONDS = 10.0


class SandboxProcessError(Exception):
    """The sandbox does not start or does not answer."""


class SandboxProcess:
    """A running sandbox; use it as a context manager.

    Args:
        seed: Draws its faults.
        session_seconds: Life of its session tokens.

    Raises:
        SandboxProcessError: It did not start; the message has its own last words.
    """

    def __init__(self, *, seed: int, session_seconds: float) -> None:
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and options made here
            _command(seed, session_seconds),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            # A Ctrl-C in the terminal is for us: we still want to deliver before the sandbox goes.
            start_new_session=True,
        )
        try:
            self.url = self._read_url()
        except BaseException:
            self.stop()
            raise

    def get(self, path: str) -> Any:
        """Return what the sandbox answers to a GET below `/_sandbox/`."""
        return self._ask("GET", path, None)

    def post(self, path: str, document: object) -> Any:
        """Return what the sandbox answers to a POST below `/_sandbox/`."""
        return self._ask("POST", path, json.dumps(document))

    def stop(self) -> None:
        """End the process; idempotent."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._talk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _read_url(self) -> str:
        output: IO[bytes] | None = self._process.stdout
        assert output is not None  # noqa: S101 - it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            line = output.readline() if selector.select(_START_SECONDS) else b""
        if not line:
            raise SandboxProcessError(f"the sandbox did not start: {self._last_words()}")
        return line.decode().strip()

    def _last_words(self) -> str:
        self._talk.seek(0)
        return self._talk.read()[-500:].decode(errors="replace").strip() or "it said nothing"

    def _ask(self, method: str, path: str, body: str | None) -> Any:
        # Not through requests: no proxy of the environment shall stand between.
        address = urlsplit(self.url)
        connection = HTTPConnection(
            address.hostname or "", address.port or 0, timeout=_ANSWER_SECONDS
        )
        try:
            connection.request(method, f"/_sandbox/{path}", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise SandboxProcessError(f"the sandbox does not answer: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise SandboxProcessError(f"the sandbox refused {method} {path}: {answer}")
        return answer


def _command(seed: int, session_seconds: float) -> list[str]:
    options = {"--port": 0, "--seed": seed, "--session-seconds": session_seconds}
    pairs = [f"{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "meter_agent", "sandbox", "--stop-on-eof", *pairs]
