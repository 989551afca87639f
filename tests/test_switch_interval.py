"""Threads hand the interpreter over sooner for a while, and afterwards as before."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from meter_agent._imports import end_short_switch_interval, short_switch_interval

SHORT = pytest.approx(0.0005)
DEFAULT = pytest.approx(0.005)


@pytest.fixture(autouse=True)
def default_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_the_interval_is_short_within_the_block_also_when_it_raises() -> None:
    def interrupted() -> None:
        with short_switch_interval():
            assert sys.getswitchinterval() == SHORT
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sys.getswitchinterval() == DEFAULT


def test_the_last_of_several_blocks_ends_it() -> None:
    first, second = short_switch_interval(), short_switch_interval()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == SHORT
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == DEFAULT


def test_a_shorter_interval_of_the_application_is_left_alone() -> None:
    sys.setswitchinterval(0.0001)
    with short_switch_interval():
        assert sys.getswitchinterval() == pytest.approx(0.0001)
    assert sys.getswitchinterval() == pytest.approx(0.0001)


def test_what_the_application_sets_within_the_block_stays() -> None:
    with short_switch_interval():
        sys.setswitchinterval(0.02)
    assert sys.getswitchinterval() == pytest.approx(0.02)


def test_a_forked_child_has_the_interval_of_the_application() -> None:
    with short_switch_interval():
        end_short_switch_interval()
        assert sys.getswitchinterval() == DEFAULT
