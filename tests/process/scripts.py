"""Runs small scripts as real processes against a sandbox on a real socket."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_SECONDS

PRELUDE = """
import logging, os, signal, sys, threading, time
class Line(logging.Formatter):
    def format(self, record):
        known = logging.makeLogRecord({}).__dict__
        extra = {k: v for k, v in record.__dict__.items() if k not in known and k != "message"}
        return f"{extra.pop('event', None) or record.getMessage()} {extra}"
handler = logging.StreamHandler(sys.stderr)
handler.setFormatter(Line())
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.INFO)
import meter_agent
from meter_agent import MeterAgent
URL = os.environ["SANDBOX"]
def wait_for_a_signal():
    # Not one long sleep: a signal that arrives just before it begins does not end it, because
    # Python runs handlers between bytecodes.
    while True:
        time.sleep(0.01)
"""

# Ahead of a script that uses the default agent.
DEFAULT_AGENT = """
import os
os.environ["METER_AGENT_SANDBOX_URL"] = os.environ["SANDBOX"]
"""


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "SANDBOX": url, "PYTHONUNBUFFERED": "1"}


def start(
    script: str,
    url: str,
    *,
    before: str = "",
    within: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start *script*; *before* runs ahead of everything, `import meter_agent` included.

    *within* is a command that becomes the one behind it, as `env` does.
    """
    text = textwrap.dedent(before) + PRELUDE + textwrap.dedent(script)
    return subprocess.Popen(
        [*within, sys.executable, "-W", "error", "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(url),
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, timeout: float = PATIENCE_SECONDS) -> Any:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(script: str, url: str, **options: Any) -> Any:
    return finish(start(script, url, **options))


def run_file(path: Path, url: str, *arguments: str) -> Any:
    """Run a module that its own children can import, as `multiprocessing` wants it."""
    command = [sys.executable, "-W", "error", str(path), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(url),
        start_new_session=True,
    )
    return finish(process)


def ledger(done: Any) -> dict[str, Any]:
    """Return the fields of the last line of the log, which must be the final ledger and add up."""
    name, _, fields = done.stderr.strip().splitlines()[-1].partition(" ")
    assert name == "meter_agent.closed", done.stderr
    final: dict[str, Any] = ast.literal_eval(fields)
    ended = final["delivered"] + final["dead_lettered"] + final["uncertain"]
    ended += final.get("left_in_spool", 0)
    held = final["recorded"] + final["recovered"]
    assert held == ended + sum(final["dropped"].values()), final
    return final


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.strip() == line:
            return
    raise AssertionError(f"the process ended without saying {line!r}")
