"""Functions called in interpreters of their own.

What one client imports or leaves behind is never seen by the next.

python -m benchmarks.child benchmarks.memory:hold '{"client": "posthog"}'
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

PATIENCE_SECONDS = 300
_PREFIXES = ("METER_AGENT_", "STRIPE_", "OTEL_", "POSTHOG_")
# The last: where no bytecode may be written, a package that is not installed is compiled each time.
_NAMES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "pythondontwritebytecode"}


def call(function: str, wrapper: Iterable[str] = (), **arguments: Any) -> dict[str, Any]:
    """Call *function* (`module:name`) in a fresh interpreter and return the dict that it returns.

    Args:
        function: Module and name.
        wrapper: Words of a command that the interpreter is run by.
        **arguments: Passed as JSON.

    Raises:
        RuntimeError: It failed; the message holds what it printed.
    """
    return _last_line([*wrapper, *command(function, **arguments)])


def script(text: str) -> dict[str, Any]:
    """Run *text* in a fresh interpreter that has imported nothing; return what it prints last."""
    return _last_line([sys.executable, "-c", text])


def _last_line(words: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        words,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return dict(json.loads(lines[-1]))


def command(function: str, **arguments: Any) -> list[str]:
    """Return the command that calls *function*."""
    return [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)]


def environment(**more: str) -> dict[str, str]:
    """Return the environment without what would change how a client works or loads."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_PREFIXES) and name.lower() not in _NAMES
    }
    return kept | more


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(result), flush=True)
    # What a client does at exit is measured elsewhere; some wait 15 s for requests that are held.
    os._exit(0)


if __name__ == "__main__":
    main()
