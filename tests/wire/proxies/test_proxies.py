"""Real nginx, real haproxy, TLS: whatever they do with requests, each event is billed once."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest

from meter_agent import MeterAgent, MeterAgentError
from meter_agent.sandbox import Fault, Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.conftest import wait_until
from tests.wire.front import assert_billed_once, real_agent, record
from tests.wire.proxies.conftest import OpenProxy
from tests.wire.proxies.running import free_port

BOTH = ["nginx", "haproxy"]
PATIENCE_SECONDS = 60


class Refusals:
    """An *on_error* that knows when there were three."""

    def __init__(self) -> None:
        self.errors: list[MeterAgentError] = []
        self._three = threading.Event()

    def __call__(self, error: MeterAgentError) -> None:
        self.errors.append(error)
        if len(self.errors) >= 3:
            self._three.set()

    def wait_for_three(self) -> None:
        assert self._three.wait(PATIENCE_SECONDS), self.errors


def finish(agent: MeterAgent, sandbox: Sandbox, count: int) -> None:
    assert agent.flush(PATIENCE_SECONDS)
    assert_billed_once(sandbox, agent.close(PATIENCE_SECONDS), count)


@pytest.mark.parametrize("kind", BOTH)
def test_events_pass_a_proxy_over_few_connections(
    open_proxy: OpenProxy, sandbox: Sandbox, kind: str
) -> None:
    agent = real_agent(open_proxy(kind).url)
    record(agent, 1000)
    assert agent.flush(PATIENCE_SECONDS)
    final = agent.close(PATIENCE_SECONDS)
    assert_billed_once(sandbox, final, 1000)
    assert (final.retries, final.splits, final.last_error) == (0, 0, None)


LIMITED = {
    "nginx": ("nginx", "client_max_body_size 4k;"),
    "nginx, which hangs up at once": ("nginx", "client_max_body_size 4k; lingering_close off;"),
    "haproxy": (
        "haproxy",
        "http-request deny deny_status 413 if { req.hdr(content-length) -m int gt 4096 }",
    ),
}


@pytest.mark.parametrize("limited", LIMITED)
def test_a_body_limit_of_a_proxy_is_kept_and_everything_is_delivered(
    open_proxy: OpenProxy, sandbox: Sandbox, limited: str
) -> None:
    agent = real_agent(open_proxy(*LIMITED[limited]).url)
    record(agent, 500)
    assert agent.flush(PATIENCE_SECONDS)
    final = agent.close(PATIENCE_SECONDS)
    assert_billed_once(sandbox, final, 500)
    assert final.splits > 0
    assert "413" in str(final.last_error)


@pytest.mark.parametrize("limited", ["nginx", "nginx, which hangs up at once"])
def test_a_large_body_that_a_proxy_refuses_unread_is_sent_in_parts(
    open_proxy: OpenProxy, sandbox: Sandbox, limited: str
) -> None:
    agent = real_agent(open_proxy(*LIMITED[limited]).url)
    for n in range(100):
        payload = {f"k{n}": "x" * 100 for n in range(20)}
        assert agent.record("tokens", f"cus_{n}", n + 1, payload=payload)
    finish(agent, sandbox, 100)


@pytest.mark.parametrize("kind", BOTH)
def test_a_proxy_that_is_reloaded_under_load_loses_and_doubles_nothing(
    open_proxy: OpenProxy, sandbox: Sandbox, kind: str
) -> None:
    # So slow that each reload meets requests under way.
    sandbox.add_fault(Fault("delay", seconds=0.02, on="any"))
    proxy = open_proxy(kind)
    agent = real_agent(proxy.url, max_in_flight=4)
    over = threading.Event()
    recorded: list[int] = []

    def keep_recording() -> None:
        while not over.wait(0.005):
            for _ in range(20):
                recorded.append(len(recorded) + 1)
                agent.record("tokens", "cus_1", recorded[-1])

    recording = threading.Thread(target=keep_recording, daemon=True)
    recording.start()
    try:
        for _ in range(4):
            proxy.reload()
            assert wait_until(agent, partial(has_delivered, agent, agent.stats().delivered + 300))
    finally:
        over.set()
        recording.join(PATIENCE_SECONDS)
    finish(agent, sandbox, len(recorded))


def has_delivered(agent: MeterAgent, count: int) -> bool:
    return agent.stats().delivered >= count


MISCONFIGURED = {
    "nginx answers 204": ("nginx", "return 204;", "204"),
    "nginx answers 200": ("nginx", "default_type text/html; return 200 'It works!';", "200"),
    "nginx answers 200 and nothing": ("nginx", "return 200;", "200"),
    "nginx answers JSON": (
        "nginx",
        """default_type application/json; return 200 '{"status":"queued"}';""",
        "200",
    ),
    "nginx has no such page": ("nginx", "return 404;", "404"),
    "nginx has no such file": ("nginx", "root /nonexistent; try_files $uri =404;", "404"),
    "nginx redirects": ("nginx", "return 301 https://example.invalid$request_uri;", "301"),
    "nginx wants a password": ("nginx", "auth_basic x; auth_basic_user_file /dev/null;", "401"),
    "nginx forbids": ("nginx", "deny all;", "403"),
    "nginx allows GET only": ("nginx", "limit_except GET { deny all; }", "403"),
    "nginx limits the rate": (
        "nginx",
        "limit_except GET { deny all; } error_page 403 =429 /429;",
        "429",
    ),
    "nginx hangs up": ("nginx", "return 444;", "closed|aborted|reset"),
    "haproxy answers 204": ("haproxy", "http-request return status 204", "204"),
    "haproxy finds the request bad": ("haproxy", "http-request deny deny_status 400", "400"),
    "haproxy has waited too long": ("haproxy", "http-request deny deny_status 408", "408"),
    "haproxy limits the rate": ("haproxy", "http-request deny deny_status 429", "429"),
    "haproxy has no such backend": (
        "haproxy",
        "use_backend none if TRUE\nbackend none\n  server gone 127.0.0.1:1",
        "503",
    ),
    "haproxy resets": ("haproxy", "http-request reject", "closed|aborted|reset"),
}


@pytest.mark.parametrize("what", MISCONFIGURED)
def test_what_a_proxy_answers_itself_settles_nothing_and_once_it_forwards_all_is_delivered(
    open_proxy: OpenProxy, sandbox: Sandbox, what: str
) -> None:
    kind, rules, told = MISCONFIGURED[what]
    refusals = Refusals()
    proxy = open_proxy(kind, rules)
    agent = real_agent(proxy.url, on_error=refusals)
    record(agent, 250)
    refusals.wait_for_three()
    stats = agent.stats()
    assert (stats.delivered, stats.dead_lettered, stats.uncertain) == (0, 0, 0)
    assert any(word in str(stats.last_error) for word in told.split("|"))
    proxy.configure("")
    proxy.reload()
    finish(agent, sandbox, 250)


@pytest.mark.parametrize("kind", BOTH)
def test_when_only_events_are_misrouted_sessions_are_no_reason_to_count_them(
    open_proxy: OpenProxy, sandbox: Sandbox, kind: str
) -> None:
    rules = {
        "nginx": "if ($uri ~ meter_event_stream) { return 204; }",
        "haproxy": "http-request return status 204 if { path_end meter_event_stream }",
    }
    refusals = Refusals()
    proxy = open_proxy(kind, rules[kind])
    agent = real_agent(proxy.url, on_error=refusals)
    record(agent, 250)
    refusals.wait_for_three()
    stats = agent.stats()
    assert (stats.sessions, stats.delivered, stats.uncertain) == (1, 0, 0)
    proxy.configure("")
    proxy.reload()
    finish(agent, sandbox, 250)


CLOSING = {
    "nginx after three requests": ("nginx", "keepalive_requests 3;"),
    "nginx after each request": ("nginx", "keepalive_timeout 0;"),
    "haproxy after each request": ("haproxy", "option httpclose"),
}


@pytest.mark.parametrize("closing", CLOSING)
def test_connections_that_a_proxy_ends_cost_no_retry(
    open_proxy: OpenProxy, sandbox: Sandbox, closing: str
) -> None:
    agent = real_agent(open_proxy(*CLOSING[closing]).url)
    record(agent, 2000)
    assert agent.flush(PATIENCE_SECONDS)
    final = agent.close(PATIENCE_SECONDS)
    assert_billed_once(sandbox, final, 2000)
    assert (final.retries, final.last_error) == (0, None)


IDLE = {
    "nginx": ("nginx", "keepalive_timeout 1s;"),
    "haproxy": ("haproxy", "timeout http-keep-alive 1"),
}


@pytest.mark.parametrize("idle", IDLE)
def test_connections_that_a_proxy_ends_while_idle_cost_no_retry(
    open_proxy: OpenProxy, sandbox: Sandbox, idle: str
) -> None:
    agent = real_agent(open_proxy(*IDLE[idle]).url)
    pause = threading.Event()
    for n in range(4):
        agent.record("tokens", "cus_1", n + 1)
        assert agent.flush(PATIENCE_SECONDS)
        pause.wait(1.5 if idle == "nginx" else 0.1)  # it closes in between
    final = agent.close(PATIENCE_SECONDS)
    assert_billed_once(sandbox, final, 4)
    assert final.last_error is None


@pytest.mark.parametrize(("kind", "status"), [("nginx", "502"), ("haproxy", "503")])
def test_a_proxy_whose_server_is_down_holds_events_up_and_loses_none(
    open_proxy: OpenProxy, sandbox: Sandbox, kind: str, status: str
) -> None:
    port = free_port()
    # nginx asks a server that failed again after 10 s, unless it is told to.
    rules = {"nginx": "proxy_next_upstream off; proxy_connect_timeout 2s;", "haproxy": ""}
    proxy = open_proxy(kind, rules[kind], upstream=f"http://127.0.0.1:{port}")
    refusals = Refusals()
    agent = real_agent(proxy.url, on_error=refusals)
    record(agent, 250)
    refusals.wait_for_three()
    assert status in str(agent.stats().last_error)
    with SandboxServer(sandbox, port=port):
        finish(agent, sandbox, 250)


@pytest.mark.parametrize("kind", BOTH)
def test_a_server_that_breaks_off_behind_a_proxy_again_and_again_is_billed_once(
    open_proxy: OpenProxy, sandbox: Sandbox, kind: str
) -> None:
    # nginx sends such a request again itself, to the same server over another connection.
    rules = {"nginx": "proxy_next_upstream error timeout non_idempotent;", "haproxy": ""}
    sandbox.add_fault(Fault("reset", when="after", probability=0.3, times=10))
    sandbox.add_fault(Fault("truncate", probability=0.3, times=10))
    agent = real_agent(open_proxy(kind, rules[kind]).url, max_in_flight=4)
    record(agent, 3000)
    finish(agent, sandbox, 3000)
    assert sandbox.totals()["duplicates"] > 0


def test_a_proxy_that_is_missing_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.wire.proxies import running

    monkeypatch.setattr(running, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match=r"\.ci/debian-tool no-such-proxy"):
        running.program("no-such-proxy")
