"""Logging as a guest: the application's handlers, nothing configured, nothing repeated."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import meter_agent
from meter_agent._log import LOG_EVENTS, EventLog, write
from meter_agent._runtime import SystemRuntime
from tests.patience import PATIENCE_SECONDS
from tests.virtual import VirtualRuntime


def test_a_line_arrives_at_the_applications_handlers_with_its_fields(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    assert EventLog(runtime).say("meter_agent.request_failed", status=503, error="no")
    (line,) = caplog.records
    assert (line.name, line.levelno, line.getMessage()) == (
        "meter_agent",
        logging.WARNING,
        "meter_agent.request_failed status=503 error=no",
    )
    assert line.__dict__["event"] == "meter_agent.request_failed"
    assert (line.__dict__["status"], line.__dict__["error"]) == (503, "no")
    assert not structlog.is_configured()


def test_a_field_cannot_forge_a_line(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    EventLog(runtime).say("meter_agent.request_failed", error="no\nERROR \x1b[2Jforged\u202e")
    assert caplog.records[0].__dict__["error"] == "no\\nERROR \\x1b[2Jforged\\u202e"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7, "7"),
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ("x delivered=9", '"x delivered=9"'),
        ('he said "no"', '"he said \\"no\\""'),
        ("x\nERROR forged\x1b[0m\u2028", r'"x\nERROR forged\x1b[0m\u2028"'),
        ({"shutdown": 3}, "\"{'shutdown': 3}\""),
        (ValueError("a\nb"), r"a\nb"),
    ],
    ids=repr,
)
def test_the_message_has_each_field_as_one_value_in_one_line(
    caplog: pytest.LogCaptureFixture, value: object, shown: str
) -> None:
    write("meter_agent.closed", logging.WARNING, error=value, delivered=1)
    assert caplog.messages == [f"meter_agent.closed error={shown} delivered=1"]


def test_a_field_without_a_value_is_in_the_record_and_not_in_the_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    write("meter_agent.closed", logging.WARNING, last_error=None, delivered=1)
    (line,) = caplog.records
    assert line.getMessage() == "meter_agent.closed delivered=1"
    assert line.__dict__["last_error"] is None


def test_lines_of_one_event_have_one_template(caplog: pytest.LogCaptureFixture) -> None:
    for status in (500, 503):
        write("meter_agent.request_failed", logging.WARNING, status=status)
    assert {line.msg for line in caplog.records} == {"meter_agent.request_failed status=%s"}


def say_here(runtime: VirtualRuntime) -> None:
    EventLog(runtime).say("meter_agent.request_failed", status=503)


def test_the_place_of_a_line_is_the_code_that_says_it(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    say_here(runtime)
    write("meter_agent.closed", logging.WARNING)
    assert [(line.pathname, line.funcName) for line in caplog.records] == [
        (__file__, "say_here"),
        (__file__, "test_the_place_of_a_line_is_the_code_that_says_it"),
    ]


@pytest.fixture
def configured_structlog() -> Iterator[Callable[..., None]]:
    """Configure structlog as an application does; undone afterwards."""
    logger, logger_class = logging.getLogger("meter_agent"), logging.getLoggerClass()
    kind = type(logger)
    yield structlog.configure
    structlog.reset_defaults()
    logging.setLoggerClass(logger_class)
    logger.__class__ = kind


def test_where_structlog_writes_to_logging_the_place_is_right_and_the_processors_run(
    runtime: VirtualRuntime,
    caplog: pytest.LogCaptureFixture,
    configured_structlog: Callable[..., None],
) -> None:
    """Also when the logger is older than the configuration of structlog."""
    logging.getLogger("meter_agent")
    configured_structlog(
        processors=[structlog.processors.KeyValueRenderer(key_order=["event", "status"])],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    say_here(runtime)
    (line,) = caplog.records
    assert line.getMessage() == "event='meter_agent.request_failed' status=503"
    assert (line.pathname, line.funcName) == (__file__, "say_here")


def test_where_structlog_writes_by_itself_a_line_has_name_fields_level_and_place(
    runtime: VirtualRuntime, configured_structlog: Callable[..., None]
) -> None:
    written = structlog.testing.LogCapture()
    place = structlog.processors.CallsiteParameter
    configured_structlog(
        processors=[
            structlog.processors.CallsiteParameterAdder([place.PATHNAME, place.FUNC_NAME]),
            written,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    say_here(runtime)
    write("meter_agent.session_opened", logging.DEBUG)
    assert written.entries == [
        {
            "event": "meter_agent.request_failed",
            "status": 503,
            "log_level": "warning",
            "pathname": __file__,
            "func_name": "say_here",
        }
    ]


def test_structlogs_asynchronous_logger_writes_a_line_without_being_awaited(
    runtime: VirtualRuntime,
    caplog: pytest.LogCaptureFixture,
    configured_structlog: Callable[..., None],
) -> None:
    """It cannot be made outside of an event loop: there, the line goes to `logging`."""
    configured_structlog(
        processors=[structlog.processors.KeyValueRenderer(key_order=["event", "status"])],
        wrapper_class=structlog.stdlib.AsyncBoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )

    async def say_in_the_loop() -> None:
        say_here(runtime)

    asyncio.run(say_in_the_loop())
    write("meter_agent.session_opened", logging.WARNING)
    assert [line.getMessage() for line in caplog.records] == [
        "event='meter_agent.request_failed' status=503",
        "meter_agent.session_opened",
    ]
    assert (caplog.records[0].pathname, caplog.records[0].funcName) == (__file__, "say_here")


def test_a_line_that_a_processor_of_structlog_fails_on_goes_to_logging(
    runtime: VirtualRuntime,
    caplog: pytest.LogCaptureFixture,
    configured_structlog: Callable[..., None],
) -> None:
    def add_request(_logger: object, _method: str, event: dict[str, str]) -> dict[str, str]:
        return {**event, "request": event["request_id"]}

    configured_structlog(processors=[add_request, structlog.processors.JSONRenderer()])
    say_here(runtime)
    (line,) = caplog.records
    assert line.getMessage() == "meter_agent.request_failed status=503"
    assert (line.pathname, line.funcName) == (__file__, "say_here")


@pytest.mark.parametrize("name", ["event", "status"])
def test_a_record_factory_that_sets_an_attribute_of_the_same_name_costs_no_line(
    runtime: VirtualRuntime,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    factory = logging.getLogRecordFactory()

    def with_attribute(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = factory(*arguments, **options)
        setattr(record, name, None)
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", with_attribute)
    say_here(runtime)
    (line,) = caplog.records
    assert line.getMessage() == "meter_agent.request_failed status=503"
    assert (line.pathname, line.funcName) == (__file__, "say_here")


def test_structlog_is_not_used_while_the_application_has_not_configured_it(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write("meter_agent.closed", logging.WARNING, delivered=1)
    assert caplog.messages == ["meter_agent.closed delivered=1"]
    assert capsys.readouterr().out == ""


def test_a_line_that_repeats_is_written_once_per_interval_with_what_was_held_back(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(runtime)
    written = [log.say("meter_agent.request_failed") for _ in range(1000)]
    assert written == [True] + [False] * 999
    assert log.say("meter_agent.batch_split")
    assert log.say("meter_agent.request_failed", key="another site")
    runtime.advance(31)
    assert log.say("meter_agent.request_failed")
    assert caplog.records[-1].__dict__["held_back"] == 999
    assert len(caplog.records) == 4


def test_a_level_that_nobody_listens_to_costs_no_line(
    runtime: VirtualRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    EventLog(runtime).say("meter_agent.session_opened", logging.DEBUG)
    assert caplog.records == []


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the disk of the log server is full")


def test_a_handler_that_raises_does_not_reach_the_agent() -> None:
    logger = logging.getLogger("meter_agent")
    handler = Broken()
    logger.addHandler(handler)
    try:
        write("meter_agent.closed", logging.ERROR, recorded=1)
    finally:
        logger.removeHandler(handler)


def test_an_application_without_logging_hears_nothing() -> None:
    script = (
        "import sys; from meter_agent._log import write; "
        "write('meter_agent.closed', 40, recorded=1); "
        "assert 'logging' not in sys.modules; assert 'structlog' not in sys.modules; "
        "import logging; write('meter_agent.closed', 40, recorded=1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_every_log_event_in_the_code_is_listed_and_every_listed_one_is_used() -> None:
    package = Path(meter_agent.__file__).parent
    used = {
        name
        for path in (*package.glob("*.py"), *package.glob("integrations/_prometheus*.py"))
        if path.name != "_log.py"
        for name in re.findall(r'"(meter_agent\.[a-z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert used == set(LOG_EVENTS)


def test_the_last_word_waits_for_a_line_that_another_thread_is_just_writing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = EventLog(SystemRuntime())
    inside, release = threading.Event(), threading.Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            inside.set()
            assert release.wait(20)

    handler = Slow()
    logging.getLogger("meter_agent").addHandler(handler)
    try:
        writer = threading.Thread(target=log.say, args=("meter_agent.request_failed",))
        writer.start()
        assert inside.wait(20)
        log.fall_silent(time.monotonic() + 0.05)
        assert log._writing == 1, "a handler that blocks is waited for until the deadline only"
        releaser = threading.Timer(0.05, release.set)
        releaser.start()
        log.fall_silent(time.monotonic() + 20)
        assert log._writing == 0
        assert not log.say("meter_agent.batch_split")
    finally:
        release.set()
        logging.getLogger("meter_agent").removeHandler(handler)
        writer.join()
