"""The pytest plugin as its users have it: found by its entry point, in projects of their own."""

from __future__ import annotations

import re
import sys

import pytest

from tests.docs.test_docs import DOCS
from tests.hosts.servers import write_snippet

pytest_plugins = ["pytester"]

PAGE = DOCS / "howto" / "test-your-code.md"


@pytest.fixture(autouse=True)
def haste(pytester: pytest.Pytester) -> None:
    """Projects whose failing tests do not wait for long."""
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture
        def meter_agent_settings():
            return {"shutdown_timeout_seconds": 0.3}
        """
    )


def run(pytester: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(f"import meter_agent\n{code}")
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_a_run_that_uses_no_fixture_imports_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_it(request):
            assert request.config.pluginmanager.has_plugin("meter_agent")
            print("found", sorted({name.split(".")[0] for name in sys.modules} & {
                "meter_agent", "requests", "urllib3", "ssl", "structlog", "starlette", "uvicorn",
            }))
        """
    )
    # Alone, because other plugins import some of these.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    done = pytester.runpytest_subprocess("-s", "-p", "meter_agent")
    done.assert_outcomes(passed=1)
    assert "found []" in done.stdout.str()


def test_each_test_has_its_own_events_and_the_default_agent_is_back(
    pytester: pytest.Pytester,
) -> None:
    code = """
def test_one(meter_events):
    meter_agent.record("tokens", "cus_1", 5)
    assert meter_events.total("tokens", customer="cus_1") == 5
def test_other(meter_events):
    assert meter_events.all == []
    meter_events.assert_recorded("tokens", times=0)
def test_none():
    assert not meter_agent.record("tokens", "cus_1")
    assert meter_agent.stats().dropped == {"not_configured": 1}
"""
    run(pytester, code).assert_outcomes(passed=3)


def test_what_was_recorded_instead_stands_below_the_line_that_failed(
    pytester: pytest.Pytester,
) -> None:
    code = """
def test_it(meter_events):
    meter_agent.record("tokens", "cus_1", 5)
    meter_events.assert_recorded("tokens", value=6)
"""
    done = run(pytester, code)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            '>   *meter_events.assert_recorded("tokens", value=6)',
            "E * expected an event with event_name='tokens', value=6; found 0",
            "E * recorded 1 event, the nearest first:",
            "E *   'tokens'  'cus_1'  5  other value",
        ]
    )
    assert "_events.py" not in done.stdout.str(), "the frames of the package are hidden"


def test_the_sandbox_is_one_server_and_as_new_in_each_test(pytester: pytest.Pytester) -> None:
    code = """
import pytest
urls = set()
@pytest.mark.parametrize("number", range(3))
def test_it(meter_sandbox, number):
    urls.add(meter_sandbox.url)
    assert len(urls) == 1
    assert (meter_sandbox.all, meter_sandbox.sandbox.faults) == ([], [])
    meter_sandbox.inject("status", status=503, times=1)
    meter_sandbox.inject("delay", seconds=60, on="session", probability=0.0)
    meter_agent.record("tokens", "cus_1", 5)
    assert meter_agent.flush(20)
    assert meter_sandbox.total("tokens") == 5
"""
    run(pytester, code).assert_outcomes(passed=3)


def test_a_decorated_test_freezes_the_clock_of_its_events(pytester: pytest.Pytester) -> None:
    code = """
from freezegun import freeze_time
@freeze_time("2026-11-25")
def test_it(meter_events):
    meter_agent.record("tokens", "cus_1")
    meter_agent.record("tokens", "cus_1", timestamp=__import__("time").time() - 60)
    assert [str(event.timestamp) for event in meter_events.all] == [
        "2026-11-25 00:00:00+00:00", "2026-11-24 23:59:00+00:00",
    ]
"""
    run(pytester, code).assert_outcomes(passed=1)


def test_a_proxy_of_the_environment_does_not_come_between_a_test_and_its_sandbox(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    code = """
def test_it(meter_sandbox):
    meter_agent.record("tokens", "cus_1", 5)
    assert meter_agent.flush(20)
    assert meter_sandbox.total("tokens") == 5
"""
    run(pytester, code).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [
                'meter_sandbox.inject("status", status=503)',
                'meter_agent.record("tokens", "cus_1")',
                "while not meter_agent.stats().last_error: meter_agent.flush(0.01)",
            ],
            "1 of 1 event(s) were not delivered when the test ended (uncertain=1, last error: HTTP",
        ),
        (
            ["meter_sandbox.kept = meter_agent.MeterAgent()"],
            "1 agent(s) built in this test were not closed: close each one where the application",
        ),
    ],
)
def test_what_a_test_leaves_behind_fails_it_and_the_next_one_is_not_disturbed(
    pytester: pytest.Pytester, lines: list[str], said: str
) -> None:
    body = "\n    ".join(lines)
    code = f"""
def test_it(meter_sandbox):
    {body}
def test_next(meter_sandbox):
    meter_agent.record("tokens", "cus_1")
"""
    done = run(pytester, code)
    done.assert_outcomes(passed=2, errors=1)
    output = done.stdout.str()
    assert "ERROR at teardown of test_it" in output
    assert re.search(rf"^{re.escape(said)}", output, re.MULTILINE)
    assert "pytest_meter_agent.py" not in output, "no traceback of the package"


def test_the_two_fixtures_in_one_test_are_a_mistake(pytester: pytest.Pytester) -> None:
    code = "def test_it(meter_events, meter_sandbox): pass"
    done = run(pytester, code)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*a test can use one of them*"])


@pytest.mark.parametrize("fixture", ["meter_events", "meter_sandbox"])
def test_a_live_key_in_the_environment_stops_the_test_before_it_begins(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, fixture: str
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_live_secret")
    done = run(pytester, f"def test_it({fixture}): pass")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*is a live key, and this is a test: unset METER_AGENT_API_KEY*"])
    assert "live_secret" not in done.stdout.str()


UNGUARDED = """
import pytest
def test_first():
    with pytest.raises(RuntimeError):
        meter_agent.configure(api_key="sk_test_1")
def test_second():
    agent = meter_agent.configure(sandbox_url="http://127.0.0.1:1")
    agent.close(0)
"""


def test_the_option_refuses_stripe_in_every_test(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmeter_agent_offline = true")
    run(pytester, UNGUARDED).assert_outcomes(passed=2)


def test_without_the_option_nothing_is_changed_also_after_a_run_with_it(
    pytester: pytest.Pytester,
) -> None:
    ini = pytester.makeini("[pytest]\nmeter_agent_offline = true")
    run(pytester, "def test_it(): pass").assert_outcomes(passed=1)
    ini.unlink()
    run(pytester, UNGUARDED).assert_outcomes(passed=1, failed=1)


def test_settings_of_the_project_reach_the_default_agent(pytester: pytest.Pytester) -> None:
    code = """
def test_memory(meter_events):
    assert meter_agent.get_agent().config.shutdown_timeout_seconds == 0.3
def test_server(meter_sandbox):
    assert meter_agent.get_agent().config.shutdown_timeout_seconds == 0.3
    assert meter_agent.get_agent().config.strict
"""
    run(pytester, code).assert_outcomes(passed=2)


EACH = ["-n", "2", "--dist", "each"]


def test_each_worker_of_xdist_has_a_server_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import pytest
@pytest.mark.parametrize("number", [1, 2])
def test_it(meter_sandbox, number, worker_id, request):
    meter_agent.record("tokens", "cus_1", number)
    assert meter_agent.flush(20)
    assert meter_sandbox.total("tokens") == number
    with open(request.config.rootpath / worker_id, "a") as file:
        print(meter_sandbox.url, file=file)
"""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the others cost seconds
    pytester.makepyfile(f"import meter_agent\n{code}")
    done = pytester.runpytest_subprocess("-p", "xdist", "-p", "meter_agent", *EACH)
    done.assert_outcomes(passed=4)
    urls = [(pytester.path / worker).read_text().splitlines() for worker in ("gw0", "gw1")]
    assert [len(each) for each in urls] == [2, 2]
    assert len({url for each in urls for url in each}) == 2


def test_it_can_be_left_out(pytester: pytest.Pytester) -> None:
    done = run(pytester, "def test_it(meter_events): pass", "-p", "no:meter_agent")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*fixture 'meter_events' not found*"])


def test_the_fixtures_are_told_of_by_pytest_itself(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_inprocess("--fixtures", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["meter_events -- *", "*kept in memory*", "meter_sandbox -- *"])
    done = pytester.runpytest_inprocess("--help", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["*meter_agent_offline (bool)*"])


def test_the_files_of_the_page_do_what_it_says(pytester: pytest.Pytester) -> None:
    for name in ("shop.py", "test_shop.py", "test_outage.py"):
        write_snippet(PAGE, name, pytester.path)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=5)


def test_the_settings_of_the_page_are_settings(pytester: pytest.Pytester) -> None:
    write_snippet(PAGE, "conftest.py", pytester.path)
    code = """
def test_it(meter_events):
    meter_agent.record("output_tokens", "cus_1", 5)
    assert meter_events.all[0].payload["tokens"] == "5"
"""
    run(pytester, code).assert_outcomes(passed=1)


def test_the_script_of_the_page_runs_without_pytest(pytester: pytest.Pytester) -> None:
    for name in ("shop.py", "without_pytest.py"):
        write_snippet(PAGE, name, pytester.path)
    done = pytester.run(sys.executable, "-W", "error", "without_pytest.py")
    assert (done.ret, done.outlines, done.errlines) == (0, ["2", "2"], [])
