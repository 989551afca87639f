"""The tutorial is true: a newcomer who does what it says sees what it shows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meter_agent.sandbox.server import SandboxServer
from tests.patience import PATIENCE_SECONDS

TUTORIAL = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Newcomer:
    """A shell in an empty folder, whose exports last."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            nobody = free.getsockname()[1]
        self._ports = {"12111": str(port), "12112": str(nobody)}
        self._environ = {
            name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
        }
        self._environ |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def here(self, text: str) -> str:
        """Return *text* with the ports of this test."""
        for theirs, ours in self._ports.items():
            text = text.replace(theirs, ours)
        return text

    def run(self, command: str) -> tuple[int, str]:
        """Run a command of the page; return its exit code, and what it printed."""
        environ = self.folder / "environ"
        # Where nobody listens the wait at the end is in vain; elsewhere this machine may be slow.
        in_vain = self._ports["12112"] in self._environ.get("METER_AGENT_SANDBOX_URL", "")
        self._environ["METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS"] = "1" if in_vain else "30"
        done = subprocess.run(
            ["bash", "-c", f"{self.here(command)}\nstatus=$?; env -0 > '{environ}'; exit $status"],
            cwd=self.folder,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        pairs = environ.read_text().split("\0")
        self._environ = dict(pair.split("=", 1) for pair in pairs if pair)
        return done.returncode, done.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    with SandboxServer() as server:
        yield Newcomer(tmp_path, int(server.url.rpartition(":")[2]))


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block with the lines that it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *lines = part.rstrip("\n").split("\n")
        yield command, lines


def shown(line: str) -> str:
    """Return the pattern of a line that the page shows; three dots stand for anything."""
    return ".*".join(map(re.escape, line.split("...")))


def test_every_command_prints_what_the_tutorial_shows(newcomer: Newcomer) -> None:
    seen = 0
    for fence in _FENCE.finditer(TUTORIAL.read_text()):
        language, _, remark = fence["info"].partition(" ")
        if language == "python":
            (newcomer.folder / remark).write_text(fence["text"])
        if language != "console" or remark in {"notest", "sandbox"}:
            continue
        expected = [0] if not remark else [int(remark.removeprefix("exit="))]
        commands = list(steps(fence["text"]))
        for command, lines in commands:
            code, output = newcomer.run(command)
            # A block with a remark is about a command that finds something wrong.
            assert code in expected, (command, output)
            rest = output
            for line in lines:
                found = re.search(f"^{shown(newcomer.here(line))}$", rest, re.MULTILINE)
                assert found, f"{command}\n{line}\nis not in\n{rest}"
                rest = rest[found.end() :]
            seen += 1
    assert seen > 20


def test_the_sandbox_is_started_as_the_tutorial_says() -> None:
    (block,) = [f["text"] for f in _FENCE.finditer(TUTORIAL.read_text()) if "sandbox" in f["info"]]
    ((command, lines),) = steps(block)
    words = command.split()
    with subprocess.Popen(
        [sys.executable, "-m", "meter_agent", *words[1:], "--port", "0", "--stop-on-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+\n", process.stdout.readline())
        process.stdin.close()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert lines == ["http://127.0.0.1:12111"]  # its default port
