"""A server may say what it likes: it fills neither the memory nor the time of the application."""

from __future__ import annotations

import gzip
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from meter_agent.sandbox import Sandbox
from tests.patience import PATIENCE_SECONDS
from tests.process.scripts import environment
from tests.wire.front import Exchange, Front

GIGABYTE = 1_000_000_000
GROWTH_KIB_MAX = 40 * 1024
ROOT = Path(__file__).parent.parent.parent
BLOCK = b"x" * 1_000_000

SCRIPT = """
    import os, resource, sys, time
    from meter_agent import MeterAgent
    url = os.environ["SANDBOX"]
    def peak_kib():
        if sys.platform != "linux":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        # Linux lets a process inherit the ru_maxrss of the one that started it.
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    agent = MeterAgent(
        api_key="sk_test_1", api_url=url, events_url=url,
        flush_interval_seconds=0.01, retry_base_seconds=0.01, retry_max_seconds=0.01,
    )
    agent.record("tokens", "cus_1", 1)
    assert agent.flush(20)
    before, began = peak_kib(), time.monotonic()
    agent.record("tokens", "cus_1", 2)
    assert agent.flush(40)
    took, growth = time.monotonic() - began, peak_kib() - before
    final = agent.close(20)
    assert final.delivered == 2 and final.balanced, final
    print(growth, took, final.retries, final.last_error, sep="|")
"""


def long_body(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIGABYTE)
    for _ in range(GIGABYTE // len(BLOCK)):
        exchange.connection.sendall(BLOCK)


def chunked_body(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(GIGABYTE // len(BLOCK)):
        exchange.connection.sendall(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK))


def one_huge_chunk(exchange: Exchange) -> None:
    exchange.connection.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % GIGABYTE
    )
    for _ in range(GIGABYTE // len(BLOCK)):
        exchange.connection.sendall(BLOCK)


def body_without_length(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(GIGABYTE // len(BLOCK)):
        exchange.connection.sendall(BLOCK)


def gzip_bomb(exchange: Exchange) -> None:
    # A gigabyte in a hundred members, a megabyte on the wire.
    exchange.say(200, gzip.compress(b" " * 10_000_000) * 100, "Content-Encoding: gzip")


def many_headers(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(GIGABYTE // len(BLOCK)):
        exchange.connection.sendall(b"X-Header: " + BLOCK[:60_000] + b"\r\n")


def one_long_header(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Header: ")
    for _ in range(GIGABYTE // len(BLOCK)):
        exchange.connection.sendall(BLOCK)


def interim_answers(exchange: Exchange) -> None:
    _for_ever(exchange, b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def early_hints(exchange: Exchange) -> None:
    _for_ever(exchange, b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000)


def trailers(exchange: Exchange) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    _for_ever(exchange, head, b"X: y\r\n" * 10_000)


def chunk_extensions(exchange: Exchange) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    _for_ever(exchange, head, b"1;" + b"x" * 60_000 + b"\r\n{\r\n")


def compressed_nothing(exchange: Exchange) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10]
    _for_ever(exchange, head, b"\0\0\0\xff\xff" * 10_000)  # empty blocks, the last never comes


def _for_ever(exchange: Exchange, head: bytes, again: bytes) -> None:
    exchange.connection.sendall(head)
    for _ in range(GIGABYTE // len(again)):
        exchange.connection.sendall(again)


ENDLESS = [interim_answers, early_hints, trailers, chunk_extensions, compressed_nothing]


def deep_json(exchange: Exchange) -> None:
    exchange.say(400, b'{"error":' * 7_000)


@pytest.mark.parametrize("on", ["session", "stream"])
@pytest.mark.parametrize(
    "flood",
    [
        long_body,
        chunked_body,
        one_huge_chunk,
        body_without_length,
        gzip_bomb,
        many_headers,
        one_long_header,
        deep_json,
        *ENDLESS,
    ],
)
def test_a_gigabyte_of_answer_costs_little_memory_and_time_and_no_event(
    sandbox: Sandbox, flood: Callable[[Exchange], None], on: str
) -> None:
    struck: list[str] = []

    def behave(exchange: Exchange) -> None:
        armed = sandbox.totals()["accepted"] == 1
        if armed and on == "session" and exchange.for_stream and not struck:
            sandbox.revoke_sessions()
        if armed and exchange.for_stream is (on == "stream") and len(struck) < 2:
            struck.append(exchange.path)
            flood(exchange)
        else:
            exchange.serve()

    front = Front(sandbox, behave=behave)
    with front.open() as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)],
            env=environment(server.url) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    growth_kib, seconds, retries, last_error = done.stdout.split("|")
    assert len(struck) == 2
    assert int(growth_kib) < GROWTH_KIB_MAX
    assert float(seconds) < 20
    # Two, unless one of them counted as a kept-alive connection that was closed.
    assert int(retries) >= 1
    assert last_error.strip() != "None"
    assert sandbox.totals()["totals"] == {"tokens": {"cus_1": "3"}}


CLOSING = """
    import os, time
    from meter_agent import MeterAgent
    url = os.environ["SANDBOX"]
    agent = MeterAgent(api_key="sk_test_1", api_url=url, events_url=url)
    for n in range(1000):
        agent.record("tokens", "cus_1", 1)
    waiting, computing = time.monotonic(), time.process_time()
    agent.flush(3)
    waiting, computing = time.monotonic() - waiting, time.process_time() - computing
    began = time.monotonic()
    final = agent.close(2)
    took = time.monotonic() - began
    assert final.balanced and final.delivered == 0, final
    print(took, computing / waiting, sep="|")
"""


@pytest.mark.parametrize("endless", [*ENDLESS, one_long_header, chunked_body])
def test_beside_a_server_whose_answers_never_end_no_core_burns_and_close_keeps_its_limit(
    sandbox: Sandbox, endless: Callable[[Exchange], None]
) -> None:
    def behave(exchange: Exchange) -> None:
        if exchange.for_stream:
            endless(exchange)
        else:
            exchange.serve()

    with Front(sandbox, behave=behave).open() as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(CLOSING)],
            env=environment(server.url) | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    took, busy_share = map(float, done.stdout.split("|"))
    assert took < 2.5
    # The modules that are imported for the first request are in it.
    assert busy_share < 0.4
