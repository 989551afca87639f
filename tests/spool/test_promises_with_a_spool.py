"""What an agent promises holds with a spool as well: the tests of agents in memory, once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meter_agent import MeterAgent
from tests.agent import (
    test_batches,
    test_callbacks,
    test_events,
    test_flush,
    test_object,
    test_resend_window,
    test_trouble,
)
from tests.conftest import MakeAgent

OTHERWISE = {
    # An agent with a spool looks for orphans every 30 seconds.
    "test_an_idle_agent_makes_no_wake_ups",
    # And so it has a thread before the first event.
    "test_an_event_is_sent_although_its_agent_was_retired_while_it_was_recorded",
    "test_the_next_record_replaces_a_sender_that_died_in_its_sleep",
    "test_a_sender_that_dies_before_anybody_waits_for_the_close_is_replaced",
    "test_a_batch_is_sent_when_no_memory_was_left_to_start_a_helper",
    "test_flush_does_the_work_where_the_thread_that_another_call_was_starting_cannot_be",
    # What a close leaves stays in the spool.
    "test_a_callback_that_closes_at_every_failure_makes_no_storm",
    # The capacity of a spool is in bytes.
    "test_a_batch_of_one_leaves_the_watcher_asleep_while_another_sender_is_busy",
    # It reaches into the buffer in memory.
    "test_a_clock_before_1970_makes_letters_and_not_dead_senders",
}
_here = globals()
_MODULES = (
    test_batches,
    test_callbacks,
    test_events,
    test_flush,
    test_object,
    test_resend_window,
    test_trouble,
)
for _module in _MODULES:
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and _name not in OTHERWISE:
            _here[_name] = _test


@pytest.fixture
def make_agent(make_agent: MakeAgent, tmp_path: Path) -> MakeAgent:
    """Build agents with a spool."""

    def make(**settings: Any) -> MeterAgent:
        return make_agent(**({"spool_dir": tmp_path / "spool"} | settings))

    return make
