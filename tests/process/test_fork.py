"""Fork: a child sends its own events and never its parent's."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from meter_agent.sandbox import Sandbox
from meter_agent.sandbox.server import SandboxServer
from tests.process.scripts import DEFAULT_AGENT, run
from tests.wire.servers import answer, listening

SESSION = json.dumps(
    {
        "object": "v2.billing.meter_event_session",
        "authentication_token": "token_1",
        "created": "2026-01-01T00:00:00.000Z",
        "expires_at": "2026-01-01T00:15:00.000Z",
    }
).encode()


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    with SandboxServer(sandbox) as running:
        yield running


def customers(sandbox: Sandbox) -> Counter[str]:
    return Counter(entry["customer"] for entry in sandbox.ledger())


def test_parent_and_child_each_bill_their_own_events_once(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60)
        record = agent.record
        for _ in range(5):
            record("tokens", "parent")
        child = os.fork()
        if not child:
            assert agent.stats().recorded == 0
            for _ in range(3):
                record("tokens", "child")
            assert agent.stats().recorded == 3
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
    )
    assert done.returncode == 0
    assert customers(sandbox) == {"parent": 5, "child": 3}
    assert sandbox.totals()["duplicates"] == 0


def test_a_fork_in_the_middle_of_an_import_by_a_sender_leaves_a_child_that_works(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        agent = meter_agent  # the default one, whose first sender imports
        agent.record("tokens", "parent")
        while "requests" not in sys.modules:
            time.sleep(0.0001)
        assert sys.modules["requests"].__spec__._initializing, "the fork comes too late"
        child = os.fork()
        if not child:
            agent.record("tokens", "child")
            delivered = agent.close(20).delivered
            os._exit(delivered != 1 or sys.getswitchinterval() != 0.005)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
        before=DEFAULT_AGENT,
    )
    assert done.returncode == 0
    assert customers(sandbox) == {"parent": 1, "child": 1}


@pytest.mark.parametrize("module", ["urllib3.util.url", "requests.adapters", "tenacity.wait"])
def test_a_fork_with_half_of_a_package_imported_leaves_a_child_that_works(
    sandbox: Sandbox, server: SandboxServer, module: str
) -> None:
    """Of a package that is forgotten, the finished submodules have to be forgotten too."""
    done = run(
        f"""
        import importlib.machinery, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork beside threads
        reached, forked = threading.Event(), threading.Event()
        class Halt:
            def find_spec(self, name, path=None, target=None):
                if name != {module!r} or forked.is_set():
                    return None
                spec = importlib.machinery.PathFinder.find_spec(name, path)
                execute = spec.loader.exec_module
                def halt(module):
                    reached.set()
                    forked.wait()
                    execute(module)
                spec.loader.exec_module = halt
                return spec
        sys.meta_path.insert(0, Halt())
        agent = meter_agent  # the default one, whose first sender imports
        agent.record("tokens", "parent")
        assert reached.wait(20)
        child = os.fork()
        forked.set()
        if not child:
            agent.record("tokens", "child")
            os._exit(agent.close(20).delivered != 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
        before=DEFAULT_AGENT,
    )
    assert "sender_died" not in done.stderr
    assert done.returncode == 0
    assert customers(sandbox) == {"parent": 1, "child": 1}


def test_a_child_of_a_child_does_the_same(sandbox: Sandbox, server: SandboxServer) -> None:
    run(
        """
        agent = MeterAgent(sandbox_url=URL)
        agent.record("tokens", "parent")
        assert agent.flush(20)
        if not os.fork():
            agent.record("tokens", "child")
            if not os.fork():
                agent.record("tokens", "grandchild")
                agent.close()
                os._exit(0)
            os.wait()
            agent.close()
            os._exit(0)
        os.wait()
        agent.record("tokens", "parent")
        """,
        server.url,
    )
    assert customers(sandbox) == {"parent": 2, "child": 1, "grandchild": 1}


def test_a_storm_of_forks_while_threads_record_neither_hangs_nor_doubles(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork beside threads
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01)
        assert agent.record("tokens", "parent") and agent.flush(20)
        stop = threading.Event()
        counts = [0] * 8
        def produce(mine):
            while not stop.is_set() and counts[mine] < 3_000:
                counts[mine] += agent.record("tokens", "parent")
                if not counts[mine] % 100:
                    time.sleep(0.001)
        threads = [threading.Thread(target=produce, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        children = []
        for n in range(20):
            child = os.fork()
            if not child:
                for _ in range(3):
                    assert agent.record("tokens", "child")
                os._exit(agent.close(20).delivered != 3)
            children.append(child)
        for child in children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stop.set()
        for thread in threads:
            thread.join()
        agent.close(30)
        print(sum(counts))
        """,
        server.url,
    )
    assert done.returncode == 0
    assert customers(sandbox) == {"parent": int(done.stdout) + 1, "child": 60}
    assert sandbox.totals()["duplicates"] == 0


def test_a_fork_that_no_python_hook_sees_is_noticed_by_the_first_record(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        import ctypes
        libc = ctypes.PyDLL(None)
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60)
        agent.record("tokens", "parent")
        assert agent.flush(20)
        agent.record("tokens", "parent")
        # Such a fork copies the interpreter's own lock as it stands, so the sender must be fast
        # asleep, and nothing that Python can see tells a thread that sleeps from one about to.
        time.sleep(0.5)
        child = libc.fork()
        if not child:
            agent.record("tokens", "child")
            agent.close(10)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
    )
    assert done.returncode == 0
    assert customers(sandbox) == {"parent": 2, "child": 1}


def test_threads_of_a_child_that_no_hook_saw_lose_none_of_their_first_events(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        import ctypes
        libc = ctypes.PyDLL(None)
        agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=60)
        for n in range(5):
            child = libc.fork()  # from a single thread: nothing has been recorded here yet
            if not child:
                sys.setswitchinterval(1e-6)
                together = threading.Barrier(8)
                def record():
                    together.wait()
                    assert agent.record("tokens", "child")
                threads = [threading.Thread(target=record) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                os._exit(agent.close(20).delivered != 8)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
    )
    assert done.returncode == 0
    assert customers(sandbox) == {"child": 40}


def test_a_child_opens_connections_and_a_session_of_its_own(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    run(
        """
        agent = MeterAgent(sandbox_url=URL)
        agent.record("tokens", "parent")
        assert agent.flush(20)
        child = os.fork()
        if not child:
            agent.record("tokens", "child")
            assert agent.flush(20)
            assert agent.stats().sessions == 1
            os._exit(0)
        agent.record("tokens", "parent")
        assert agent.flush(20)
        os.waitpid(child, 0)
        """,
        server.url,
    )
    assert customers(sandbox) == {"parent": 2, "child": 1}
    assert sum(r.path.endswith("meter_event_session") for r in sandbox.requests) == 2


def test_no_byte_of_a_child_travels_on_a_connection_of_its_parent() -> None:
    ports: dict[str, set[int]] = {"parent": set(), "child": set()}

    def note_port(connection: socket.socket, request: bytes) -> None:
        if b"meter_event_session" in request:
            answer(connection, SESSION, "200 OK", "Request-Id: req_1")
            return
        customer = json.loads(request.partition(b"\r\n\r\n")[2])["events"][0]["payload"]
        ports[customer["stripe_customer_id"]].add(connection.getpeername()[1])
        answer(connection)

    with listening(note_port) as listener:
        done = run(
            """
            import gc
            agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01, max_in_flight=1)
            def use(customer):
                agent.record("tokens", customer)
                assert agent.flush(20)
            use("parent")
            for _ in range(3):
                child = os.fork()
                if not child:
                    gc.collect()  # what is left of the parent's connections goes
                    use("child")
                    sys.exit(0)
                use("parent")
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                use("parent")
            """,
            listener.url,
        )
    assert done.returncode == 0
    assert len(ports["parent"]) == 1  # kept alive through three children
    assert len(ports["child"]) == 3
    assert not ports["parent"] & ports["child"]


def test_agents_that_are_gone_leave_nothing_for_a_child_to_start_over(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    done = run(
        """
        import gc
        from meter_agent import _lifecycle
        for n in range(50):
            agent = MeterAgent(sandbox_url=URL, flush_interval_seconds=0.01)
            agent.record("tokens", "parent")
            if n % 2:
                assert agent.close(20).delivered == 1
        del agent
        gc.collect()
        left_at = time.monotonic() + 20
        while _lifecycle._state.pipelines or threading.active_count() > 1:
            assert time.monotonic() < left_at, _lifecycle._state.pipelines
            time.sleep(0.01)
        child = os.fork()
        if not child:
            assert not _lifecycle._state.pipelines
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
    )
    assert done.returncode == 0
    assert customers(sandbox) == {"parent": 50}


def test_a_child_of_a_closed_agent_stays_closed(server: SandboxServer) -> None:
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL)
        agent.close()
        child = os.fork()
        if not child:
            os._exit(agent.record("tokens", "child") or agent.stats().dropped != {"closed": 1})
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        server.url,
    )
    assert done.stdout.strip() == "0"


def test_a_lock_that_another_thread_of_the_parent_held_is_nobodys_in_the_child(
    server: SandboxServer,
) -> None:
    """Where a thread of the child gets the number of that one, it could pass for its owner."""
    done = run(
        """
        agent = MeterAgent(sandbox_url=URL)
        inside, over = threading.Event(), threading.Event()
        def hold():
            with agent._pipeline._buffer._lock:
                inside.set()
                over.wait()
        threading.Thread(target=hold).start()
        inside.wait()
        child = os.fork()
        if not child:
            def work():
                agent.record("tokens", "child")
                flushed = agent.flush(20)
                agent.record("tokens", "child")
                os._exit(not flushed or agent.close(20).delivered != 2)
            worker = threading.Thread(target=work)
            worker.start()
            worker.join()  # it ends the process
            os._exit(2)
        over.set()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        server.url,
    )
    assert done.stdout.strip() == "0"


def test_a_child_forked_while_its_parent_ends_by_sigterm_ends_as_it_likes(
    server: SandboxServer,
) -> None:
    done = run(
        """
        from meter_agent import _lifecycle
        agent = MeterAgent(sandbox_url=URL)
        _lifecycle._state.kill_with = signal.SIGTERM  # as after the signal, until the drain is over
        child = os.fork()
        if child:
            _lifecycle._state.kill_with = None
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """,
        server.url,
    )
    assert done.returncode == 0


def test_a_package_that_requests_only_asks_for_keeps_no_sender_from_its_work(
    sandbox: Sandbox, server: SandboxServer
) -> None:
    # A fork in the middle of its import leaves the child without it, and here warnings are errors.
    done = run(
        """
        sys.modules["charset_normalizer"] = sys.modules["chardet"] = None
        agent = MeterAgent(sandbox_url=URL)
        agent.record("tokens", "child")
        assert agent.close(20).delivered == 1
        import requests
        assert requests.exceptions.Timeout  # as the application knows it
        """,
        server.url,
    )
    assert done.returncode == 0
    assert "sender_died" not in done.stderr
    assert customers(sandbox) == {"child": 1}
