"""What the commands are made of."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from rich.console import Console

from meter_agent import AuthenticationError, Stats, StreamUnavailableError
from meter_agent._log import INFO, WARNING, write
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.log_lines import warnings_said
from meter_agent.cli.moments import MomentError, parse_moment
from meter_agent.cli.patience import GaveUpError, Patience
from meter_agent.cli.printing import Columns, ago, printable
from meter_agent.cli.progress import Pace, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.3, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float | None, text: str) -> None:
    assert ago(seconds) == text


def test_columns_stand_below_each_other_and_what_is_wide_is_not_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Columns(name=6, events=-6)
    table.row("a", 12)
    table.row("a long name", 3)
    assert capsys.readouterr().out == "NAME    EVENTS\na           12\na long name       3\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cus_é 1", "cus_é 1"),
        ("a\nb\x1b[2J", "a\\nb\\x1b[2J"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("cus_1\u3164", "cus_1\\u3164"),
        ("a\ufe0f\u034fb\u2800", "a\\ufe0f\\u034fb\\u2800"),
        ("日本 é 😀", "日本 é 😀"),
    ],
)
def test_what_is_printed_is_one_line_of_letters(text: str, shown: str) -> None:
    assert printable(text) == shown


# -- moments -------------------------------------------------------------------------------------

MOMENT = datetime(2026, 1, 31, 12, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    "given",
    [
        1_769_861_700,
        1_769_861_700.0,
        "1769861700",
        " 1769861700.000 ",
        Decimal(1769861700),
        "2026-01-31T12:15:00Z",
        "2026-01-31 13:15:00.0000000+01:00",
        MOMENT,
        MOMENT.astimezone(timezone(timedelta(hours=-8))),
    ],
)
def test_a_moment_is_understood_as_people_write_it(given: object) -> None:
    assert parse_moment(given, None) == MOMENT.timestamp()


@pytest.mark.parametrize("given", ["2026-01-31T12:15:00", "2026-01-31", datetime(2026, 1, 31)])
def test_a_moment_without_a_zone_is_none_until_there_is_one(given: object) -> None:
    with pytest.raises(MomentError, match="names no time zone"):
        parse_moment(given, None)
    assert parse_moment(given, UTC) in {MOMENT.timestamp(), MOMENT.timestamp() - 12.25 * 3600}


@pytest.mark.parametrize("given", ["soon", "", True, None, -5, 1e30, "9" * 20, "0001-01-01T00:00"])
def test_what_is_no_moment_is_refused(given: object) -> None:
    with pytest.raises(MomentError):
        parse_moment(given, timezone(timedelta(hours=23)))


# -- patience ------------------------------------------------------------------------------------


def test_patience_ends_when_nothing_is_delivered_and_names_the_last_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    patience = Patience(10)
    patience.check(Stats(delivered=1))
    patience.hear(StreamUnavailableError("HTTP 503"))
    now = 109.9
    patience.check(Stats(delivered=1))
    patience.check(Stats(delivered=1, dead_lettered=1))
    now = 119.8
    patience.check(Stats(delivered=1, dead_lettered=1))
    now = 119.9
    with pytest.raises(GaveUpError, match=r"nothing was delivered for 10 s: HTTP 503") as gave_up:
        patience.check(Stats(delivered=1, dead_lettered=1))
    assert gave_up.value.exit_code is ExitCode.UNREACHABLE


def test_patience_names_the_refusal_where_no_request_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    patience = Patience(10)
    paused = Stats(dead_lettered=20, last_error="HTTP 400 from h (no_meter): no such meter")
    patience.check(paused)
    now = 110.0
    with pytest.raises(GaveUpError, match="no such meter"):
        patience.check(paused)


def test_one_refusal_may_be_that_of_a_session_and_two_are_those_of_the_key() -> None:
    patience = Patience(1e9)
    patience.check(Stats())
    patience.hear(AuthenticationError("HTTP 401"))
    patience.check(Stats())
    patience.check(Stats(delivered=1))
    patience.hear(AuthenticationError("HTTP 401"))
    patience.check(Stats(delivered=1))
    patience.hear(AuthenticationError("HTTP 401"))
    with pytest.raises(GaveUpError, match="the key is refused: HTTP 401") as gave_up:
        patience.check(Stats(delivered=1))
    assert gave_up.value.exit_code is ExitCode.AUTHENTICATION


# -- progress ------------------------------------------------------------------------------------


def test_on_a_terminal_there_is_a_bar_and_lines_stand_above_it() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, _environ={})
    with progress("replay", console) as shown:
        shown.say("[bold]as it is[/bold]")
        shown.show(2, 8, "delivered 2")
    assert "[bold]as it is[/bold]" in screen.getvalue()
    assert "2/8" in screen.getvalue()
    assert "delivered 2" in screen.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    screen = io.StringIO()
    with progress("replay", Console(file=screen, _environ={})) as shown:
        for completed in (0, 1, 2):
            shown.show(completed, 8, "")
        now += 2
        shown.show(3, 8, "")
        shown.show(8, 8, "")
    lines = screen.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["0/8", "3/8", "8/8"]


def test_the_pace_tells_rate_and_time_left_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(completed=50_000)
    assert pace.tell(50_000, 100_000) == "0/s"
    now = 110.0
    assert pace.tell(60_000, 100_000) == "1,000/s  0:00:40 left"
    assert pace.tell(60_000, 7_260_000) == "1,000/s  2:00:00 left"


def test_warnings_of_the_agent_are_lines_with_their_fields_and_end_with_the_command() -> None:
    said: list[str] = []
    with warnings_said(said.append):
        write("meter_agent.request_failed", WARNING, error="a\nb", code=None)
        write("meter_agent.session_opened", INFO)
    write("meter_agent.request_failed", WARNING)
    assert said == ["meter_agent.request_failed error=a\\nb"]
