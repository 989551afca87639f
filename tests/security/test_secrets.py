"""Keys and tokens appear nowhere but in the header they are for, at the host they are for."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.traceback import Traceback as RichTraceback
from structlog.tracebacks import ExceptionDictTransformer

from meter_agent import DeadLetter, MeterAgent, MeterAgentError
from meter_agent._agent import build
from meter_agent._stream import _redacted
from meter_agent.sandbox import Fault, Sandbox, SandboxAdapter
from tests.wire.front import Behaviour, Exchange, Front, real_agent
from tests.wire.servers import Listener, answer, listening, reset

HIDDEN = "thisisverysecret" * 6 + "51H"
KEY = "rk_test_" + HIDDEN
"""As long as Stripe's are: 107 characters, which some tools cut before they print them."""
HERE = str(Path(__file__).parent.parent)


class Eavesdropper(logging.Handler):
    """Hears what any tool of an application could: log lines, arguments of callbacks, and at each
    of these moments the whole stack with its local variables.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []
        self.loggers: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name.partition(".")[0])
        self.heard += [record.getMessage(), repr(record.__dict__)]
        self.look_around()

    def be_called(self, told: DeadLetter | MeterAgentError) -> None:
        self.heard += [repr(told), str(told)]
        if isinstance(told, BaseException):
            self.hear_exception(told)
        self.look_around()

    def hear_exception(self, error: BaseException) -> None:
        self.heard.append(repr(error.__dict__))
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        self._hear_stack(trace.stack)
        self.heard += trace.format_exception_only()
        self._hear_crash_pages(error)

    def _hear_crash_pages(self, error: BaseException) -> None:
        kind, traced = type(error), error.__traceback__
        for stack in RichTraceback.extract(kind, error, traced, show_locals=True).stacks:
            for frame in stack.frames:
                if not frame.filename.startswith(HERE):
                    self.heard += [node.render() for node in (frame.locals or {}).values()]
        if traced is not None and isinstance(error, Exception):
            for use_rich in (True, False):
                page = ExceptionDictTransformer(show_locals=True, use_rich=use_rich)
                for told in page((type(error), error, traced)):
                    frames = [f for f in told["frames"] if not f["filename"].startswith(HERE)]
                    self.heard.append(str(frames))

    def look_around(self) -> None:
        frames = traceback.walk_stack(None)
        self._hear_stack(traceback.StackSummary.extract(frames, capture_locals=True))

    def _hear_stack(self, stack: traceback.StackSummary) -> None:
        # The tests themselves know the key.
        ours = [frame for frame in stack if not frame.filename.startswith(HERE)]
        self.heard += [str(frame.locals) for frame in ours]


@pytest.fixture
def ear() -> Iterator[Eavesdropper]:
    made, root = Eavesdropper(), logging.getLogger()
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    yield made
    root.removeHandler(made)
    root.setLevel(level)


@contextmanager
def two_hosts(
    sandbox: Sandbox, *script: Behaviour, for_sessions: Behaviour = Exchange.serve
) -> Iterator[tuple[Listener, Listener]]:
    """Serve sessions and events from two hosts."""
    with (
        Front(sandbox, behave=for_sessions).open() as api,
        Front(sandbox, *script).open() as events,
    ):
        yield api, events


def agent_of(api: Listener, events: Listener, **settings: Any) -> MeterAgent:
    return real_agent(events.url, api_url=api.url, api_key=KEY, **settings)


def tokens_of(sandbox: Sandbox) -> list[str]:
    return list(sandbox._sessions._by_token)


def refuse_aloud(exchange: Exchange) -> None:
    message = f"what a token: {exchange.headers['Authorization']}"
    body = {"error": {"code": exchange.headers["Authorization"], "message": message}}
    exchange.say(401, json.dumps(body).encode())


def speak_in_tongues(padding: int) -> Behaviour:
    """Repeat the secret in what is no HTTP, so that half of it is left where that is cut."""

    def speak(exchange: Exchange) -> None:
        words = "x" * padding + exchange.headers["Authorization"]
        exchange.connection.sendall(f"{words}\r\n\r\n".encode())
        exchange.hang_up()

    return speak


TONGUES = [speak_in_tongues(padding) for padding in range(60, 300, 15)]


def reset_it(exchange: Exchange) -> None:
    reset(exchange.connection)


def no_session_aloud(exchange: Exchange) -> None:
    # A token that cannot be used, among words about the key.
    exchange.say(200, json.dumps({"authentication_token": "é" + KEY, "created": KEY}).encode())


def test_no_secret_appears_in_logs_reprs_errors_letters_or_statistics(
    tmp_path: Path, ear: Eavesdropper
) -> None:
    sandbox = Sandbox(api_keys={KEY})
    sandbox.add_fault(Fault("poison", match={"payload.value": "5"}))
    letters = tmp_path / "letters.jsonl"
    trouble = [refuse_aloud, no_session_aloud, *TONGUES]

    def sessions(exchange: Exchange) -> None:
        behave = trouble.pop(0) if trouble else Exchange.serve
        behave(exchange)

    script = (refuse_aloud, reset_it, *TONGUES, refuse_aloud)
    with two_hosts(sandbox, *script, for_sessions=sessions) as (api, events):
        agent = agent_of(
            api,
            events,
            dead_letter_file=str(letters),
            on_dead_letter=ear.be_called,
            on_error=ear.be_called,
        )
        for n in range(10):
            agent.record("tokens", "cus_1", n)
        assert agent.flush(30)
        middle = agent.stats()
        final = agent.close(20)
    # Behind requests without an answer, the refused one is uncertain.
    assert (final.delivered, final.uncertain) == (9, 1)
    assert ear.loggers >= {"meter_agent", "urllib3"}
    tokens = tokens_of(sandbox)
    assert len(tokens) >= 2
    for shown in (agent, agent.config, agent._pipeline, middle, final):
        ear.heard += [repr(shown), str(shown)]
    ear.heard.append(letters.read_text())
    assert "what a token" in "".join(ear.heard), "the words of the server were heard"
    for secret in (HIDDEN, HIDDEN[:10], *(token[:20] for token in tokens)):
        assert [text for text in ear.heard if secret in text] == []


class Interrupt(BaseException):
    """As Ctrl-C, in the thread of the application."""


@pytest.mark.parametrize("struck", ["session", "stream"])
def test_a_crash_page_of_an_application_that_is_interrupted_while_it_sends_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, ear: Eavesdropper, struck: str
) -> None:
    sandbox = Sandbox(api_keys={KEY})

    class Interrupting(SandboxAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **settings: Any) -> Any:
            if f"meter_event_{struck}" in request.path_url:
                raise Interrupt
            return super().send(request, *args, **settings)

    agent = real_agent("http://127.0.0.1:1", api_key=KEY)
    agent = build(agent.config, open_adapter=lambda: Interrupting(sandbox))

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(agent._runtime, "start_thread", refuse)
    agent.record("tokens", "cus_1")
    with pytest.raises(Interrupt) as raised:
        agent.flush(20)
    ear.hear_exception(raised.value)
    assert "_exchange" in "".join(traceback.format_tb(raised.value.__traceback__))
    for secret in (HIDDEN, *tokens_of(sandbox)):
        assert [text for text in ear.heard if secret in text] == []
    monkeypatch.undo()
    agent.close(0)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_the_key_goes_to_the_api_host_and_the_token_to_the_stream_host_also_after_redirects(
    status: int,
) -> None:
    sandbox = Sandbox(api_keys={KEY})
    sent_on: list[int] = []
    with listening(lambda connection, _: answer(connection)) as elsewhere:

        def redirect_once(exchange: Exchange) -> None:
            sent_on.append(1)
            if len(sent_on) > 2:
                exchange.serve()
            elif len(sent_on) == 1:
                exchange.say(status, b"", f"Location: {elsewhere.url}/stolen")
            else:
                exchange.say(status, b"", f"Location: {events.url}{exchange.path}")

        def redirect(exchange: Exchange) -> None:
            exchange.say(status, b"", f"Location: {api.url}{exchange.path}")

        with two_hosts(sandbox, redirect, redirect, for_sessions=redirect_once) as (api, events):
            agent = agent_of(api, events, flush_interval_seconds=60.0)
            for n in range(10):
                agent.record("tokens", "cus_1", n)
            assert agent.flush(20)
            agent.close(20)
        assert elsewhere.connections == 0
    assert sandbox.totals()["accepted"] == 10
    (token,) = tokens_of(sandbox)
    for request in api.requests:
        assert f"Authorization: Bearer {KEY}\r\n".encode() in request
        assert token.encode() not in request
    for request in events.requests:
        assert f"Authorization: Bearer {token}\r\n".encode() in request
        assert HIDDEN.encode() not in request
    assert (len(api.requests), len(events.requests)) == (3, 3)


@pytest.mark.parametrize(
    "escaped",
    ["ab/cd+token==", "ab\\/cd+token==", "ab/cd\\u002btoken==", "\\u0061b/cd+token=="],
)
def test_a_secret_that_comes_back_in_json_escapes_is_found(escaped: str) -> None:
    body = b'{"error":{"message":"bad token %s"}}' % escaped.encode()
    assert json.loads(body)["error"]["message"] == "bad token ab/cd+token=="
    redacted = json.loads(_redacted(body, "ab/cd+token=="))
    assert "token==" not in redacted["error"]["message"]
