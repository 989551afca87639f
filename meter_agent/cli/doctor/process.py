"""What can be seen from outside of how the service runs; most of it cannot."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from meter_agent import Config
from meter_agent.cli.doctor.finding import Finding, failed, not_checked, ok, warning

__all__ = ["check_process", "check_resend_window"]

_DEDUPLICATION_SECONDS = 24 * 3600
"""Stripe, API reference of meter events: identifiers are unique for at least 24 hours."""
_MARGIN_SECONDS = 600
"""For requests that are under way when the window ends, and for clocks that are adjusted."""
_GUNICORN_GRACEFUL_SECONDS = 30.0


def check_resend_window(config: Config) -> Finding:
    """Return whether the last repetition reaches Stripe while it remembers the first."""
    window = config.resend_window_seconds
    request = config.connect_timeout_seconds + config.read_timeout_seconds
    left = _DEDUPLICATION_SECONDS - window - request
    detail = (
        f"an event is sent again for {window / 3600:.2f} h, a request may take {request:g} s, and"
        " Stripe remembers identifiers for 24 h"
    )
    advice = "`unset METER_AGENT_RESEND_WINDOW_SECONDS` for its default, 23 hours"
    if left < 0:
        return failed("resend window", f"{detail}: one may be billed twice", advice)
    if left < _MARGIN_SECONDS:
        return warning("resend window", f"{detail}: that is {left:.0f} s apart", advice)
    return ok("resend window", detail)


def check_process(config: Config, environ: Mapping[str, str] = os.environ) -> Finding:
    """Return what the environment tells of the server, and what follows for the agent."""
    arguments = environ.get("GUNICORN_CMD_ARGS", "").strip()
    if arguments:
        return _check_gunicorn(config, arguments)
    if any(name.startswith("UWSGI_") for name in environ):
        return _check_uwsgi(environ)
    if config.handle_sigterm:
        return not_checked(
            "process",
            "SIGTERM delivers what waits if the main thread builds the agent, which cannot be seen"
            " from here: call meter_agent.get_agent() where the server loads the application; a"
            " first record() in a request thread comes too late (docs/howto/web-servers)",
        )
    return not_checked(
        "process",
        "nothing here tells what runs the service; Python alone ends by SIGTERM without a word to"
        " the agent: meter_agent.configure(handle_sigterm=True) where the server loads the"
        " application, in the main thread, or what docs/howto/fork-and-exit says",
    )


def _check_gunicorn(config: Config, arguments: str) -> Finding:
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        return warning(
            "process", f"GUNICORN_CMD_ARGS={arguments!r}: {error}", "correct GUNICORN_CMD_ARGS"
        )
    budget = config.shutdown_timeout_seconds
    graceful = _number(_option(words, "--graceful-timeout"), _GUNICORN_GRACEFUL_SECONDS)
    if budget >= graceful:
        return warning(
            "process",
            f"gunicorn kills a worker after {graceful:g} s, and the agent may take {budget:g} s to"
            " deliver at its end",
            f"`export METER_AGENT_SHUTDOWN_TIMEOUT_SECONDS={graceful / 2:g}`",
        )
    worker = _option(words, "--worker-class", "-k") or "sync"
    if "uvicorn" in worker.lower():
        return not_checked(
            "process",
            f"gunicorn with {worker}: delivers at its end if the application has the lifespan of"
            " docs/howto/web-servers, which cannot be seen from here",
        )
    return ok(
        "process", f"gunicorn with {worker} workers tells the agent of its end, also with --preload"
    )


def _check_uwsgi(environ: Mapping[str, str]) -> Finding:
    told = environ.get("UWSGI_ENABLE_THREADS") or environ.get("UWSGI_THREADS")
    if told:
        return ok("process", "uWSGI lets an application have threads")
    return warning(
        "process",
        "uWSGI stops the threads of an application, and with them the agent's, unless it is told"
        " otherwise; its files are not read here",
        "`export UWSGI_ENABLE_THREADS=true`, or enable-threads = true in its file",
    )


def _option(words: list[str], *names: str) -> str | None:
    value = None
    for place, word in enumerate(words):
        name, equals, behind = word.partition("=")
        if name in names:
            value = behind if equals else next(iter(words[place + 1 :]), None)
        elif word[:2] in names and len(word) > 2 and not word.startswith("--"):
            value = word[2:]
    return value


def _number(text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        return default
