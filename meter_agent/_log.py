"""Log events, written to the logger `meter_agent` of the standard library; nothing is configured.

The message is the name of the event and its fields as `key=value` pairs; the fields are attributes
of the record as well (`extra`). An application that has configured structlog gets name and fields
through structlog instead. Both configurations belong to the application and are not changed.

Nothing is imported here: beside threads that compute, an import takes seconds, and `close()` writes
a line. In a process that has not imported `logging`, nobody listens.

A line that repeats is written at most once per interval, with the number that was held back.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Final

from meter_agent._printable import one_line
from meter_agent._runtime import Runtime

__all__ = ["DEBUG", "ERROR", "INFO", "LOG_EVENTS", "WARNING", "EventLog"]

# The levels of `logging`, which `import meter_agent` does not import: it costs 6 ms.
DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
ERROR: Final = 40

_LOGGER_NAME = "meter_agent"
_INTERVAL_SECONDS = 30.0

LOG_EVENTS = {
    "meter_agent.not_configured": "The default agent could not be built; its events are refused.",
    "meter_agent.unknown_setting": "An environment variable looks like a setting but is none.",
    "meter_agent.session_opened": "A meter event session was opened.",
    "meter_agent.request_failed": "A request did not end in an accepted batch; it is sent again.",
    "meter_agent.credentials_refused": "Stripe refused the key; events are kept, asking slowly.",
    "meter_agent.batch_split": "Stripe refused a batch; it is cut in two to find the bad event.",
    "meter_agent.events_paused": "Stripe refuses every event of a name; they are kept and tried.",
    "meter_agent.identifier_reused": "Two different events have one identifier; Stripe bills one.",
    "meter_agent.event_dead_lettered": "An event cannot be billed as it is.",
    "meter_agent.events_uncertain": "Stripe may or may not have events; a human must decide.",
    "meter_agent.events_dropped": "Events were dropped; *reason* says why.",
    "meter_agent.dropped_not_kept": "More events were dropped than wait to be handed over.",
    "meter_agent.spool_recovered": "Events of a dead process were in the spool; they are sent.",
    "meter_agent.spool_failed": "The spool cannot be used; memory takes over for a while.",
    "meter_agent.spool_file_left_alone": "A file in the spool is not sent; *error* says why.",
    "meter_agent.spool_written_anew": "A file of the spool was deleted; its events have a new one.",
    "meter_agent.spool_damaged": "Damage was found in the spool; *error* says where it is kept.",
    "meter_agent.dead_letters_unwritable": "The dead-letter file could not be written.",
    "meter_agent.callback_failed": "A callback of the application raised.",
    "meter_agent.metrics_unwritable": "The metrics of this process cannot be written.",
    "meter_agent.sender_died": "A sender thread ended with an error; another takes over.",
    "meter_agent.sigterm_not_handled": "SIGTERM is left as it is; *reason* and *advice* say more.",
    "meter_agent.closed": "The agent closed; the line holds the final ledger.",
}
"""Every log event and what it means; the reference page is generated from this."""


class EventLog:
    """Writes log events, each name at most once per interval."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.condition()
        self._next_at: dict[tuple[str, str], float] = {}
        self._held_back: dict[tuple[str, str], int] = {}
        self._silent = False
        self._writing = 0

    def fall_silent(self, deadline: float) -> None:
        """Say nothing more: the last word is somebody else's.

        A line that another thread is just writing is waited for until *deadline* (monotonic
        seconds), so that it does not come after that word.
        """
        with self._lock:
            self._silent = True
            while self._writing and (left := deadline - self._runtime.monotonic()) > 0:
                self._lock.wait(left)

    def say(
        self,
        event: str,
        /,
        level: int = WARNING,
        *,
        key: str = "",
        stacklevel: int = 1,
        **fields: Any,
    ) -> bool:
        """Write *event* now, or count it when the same (event, *key*) was written just before.

        *stacklevel* is that of `logging`: 1 names the caller as the place of the line.

        Returns whether it was written.

        Never raises: a broken handler of the application must not stop a sender.
        """
        with self._lock:
            held_back = None if self._silent else self._due(event, key)
            self._writing += held_back is not None
        if held_back is None:
            return False
        if held_back:
            fields["held_back"] = held_back
        try:
            write(event, level, stacklevel=stacklevel + 1, **fields)
        finally:
            with self._lock:
                self._writing -= 1
                self._lock.notify_all()
        return True

    def _due(self, event: str, key: str) -> int | None:
        now = self._runtime.monotonic()
        site = (event, key)
        if now < self._next_at.get(site, now):
            self._held_back[site] = self._held_back.get(site, 0) + 1
            return None
        self._next_at[site] = now + _INTERVAL_SECONDS
        return self._held_back.pop(site, 0)


def write(event: str, level: int, *, stacklevel: int = 1, **fields: Any) -> None:
    """Write one line, whatever was written before. Never raises."""
    logging: Any = sys.modules.get("logging")
    structlog: Any = sys.modules.get("structlog")
    if logging is None:
        return
    with contextlib.suppress(Exception):
        # Control characters are escaped: a server's words must not forge a line.
        fields = {
            name: one_line(value) if isinstance(value, str) else value
            for name, value in fields.items()
        }
        if structlog is not None and structlog.is_configured():
            # A processor that raises, because it misses a key that only the application's own lines
            # have for example, does not cost the line: it goes to `logging` instead.
            with contextlib.suppress(Exception):
                _write_by_structlog(structlog, event, level, fields, stacklevel + 1)
                return
        _write_by_logging(logging, event, level, fields, stacklevel + 1)


def _write_by_logging(
    logging: Any, event: str, level: int, fields: dict[str, Any], stacklevel: int
) -> None:
    logger = logging.getLogger(_LOGGER_NAME)
    if not logger.handlers:
        # As the logging HOWTO asks of libraries: without it, an application that configured no
        # logging would find our warnings on its stderr.
        logger.addHandler(logging.NullHandler())
    if not logger.isEnabledFor(level):
        return
    shown = {name: value for name, value in fields.items() if value is not None}
    # With arguments, so that tools that group lines by their template do so by event.
    line = ("".join([event, *(f" {name}=%s" for name in shown)]), *map(_shown, shown.values()))
    try:
        extra = {"event": event, **fields}
        logger.log(level, *line, extra=extra, stacklevel=stacklevel + 1)
    except KeyError:
        # The application's record factory has set an attribute of one of these names, and `logging`
        # overwrites none. The message has the fields too.
        logger.log(level, *line, stacklevel=stacklevel + 1)


def _shown(value: object) -> str:
    # A value that would not stand out as one is quoted.
    text = one_line(str(value))
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _write_by_structlog(
    structlog: Any, event: str, level: int, fields: dict[str, Any], stacklevel: int
) -> None:
    # structlog takes the first frame outside of its own modules for the place of a line, here and
    # in the class of loggers that its `LoggerFactory` makes the default. Its own asynchronous
    # methods name another frame by this variable (private, the same from 23.1 to 26.1).
    logging: Any = sys.modules["logging"]
    logger, made = logging.getLogger(_LOGGER_NAME), logging.getLoggerClass()
    if type(logger) is logging.Logger and made.__module__.startswith("structlog"):
        logger.__class__ = made  # it is older than the configuration of structlog
    place = getattr(structlog.contextvars, "_ASYNC_CALLING_STACK", None)
    token = None if place is None else place.set(sys._getframe(stacklevel))  # noqa: SLF001
    try:
        bound = structlog.get_logger(_LOGGER_NAME).bind()
        # The methods of structlog's asynchronous logger would have to be awaited.
        if isinstance(bound, structlog.stdlib.AsyncBoundLogger):
            bound = bound.sync_bl
        getattr(bound, _METHODS[level])(event, **fields)
    finally:
        if place is not None:
            place.reset(token)


_METHODS = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}
