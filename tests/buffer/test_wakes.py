"""Nobody sleeps through an event, and nobody is woken for nothing."""

from __future__ import annotations

from tests.buffer.buffers import make_buffer


def test_the_first_event_wakes_a_sender_and_the_following_ones_do_not() -> None:
    buffer, wakes = make_buffer()
    record = buffer.recorder()
    for _ in range(50):
        record("tokens", "cus_1")
    assert wakes.count == 1


def test_the_event_that_fills_the_batch_wakes_the_sender_that_asked_for_it() -> None:
    buffer, wakes = make_buffer()
    record = buffer.recorder()
    record("tokens", "cus_1")
    buffer.set_alarm(100)
    for _ in range(98):
        record("tokens", "cus_1")
    assert wakes.count == 1
    record("tokens", "cus_1")
    assert wakes.count == 2


def test_a_door_that_a_sender_opens_at_the_wrong_moment_is_closed_by_the_next_event() -> None:
    buffer, _ = make_buffer(capacity=3000)
    record = buffer.recorder()
    for _ in range(3000 - 1024):
        record("tokens", "cus_1")
    assert buffer._door[0] == 0
    for alarm in (1, 100, None):
        buffer._door[0] = 1
        if alarm is None:
            buffer.unset_alarm()
        else:
            buffer.set_alarm(alarm)
        record("tokens", "cus_1")
        assert buffer._door[0] == 0


def test_a_batch_that_can_never_fill_rings_when_the_buffer_is_full() -> None:
    buffer, wakes = make_buffer(capacity=3)
    record = buffer.recorder()
    record("tokens", "cus_1")
    buffer.set_alarm(100)
    record("tokens", "cus_1")
    record("tokens", "cus_1")
    assert wakes.count == 2


def test_an_event_that_finds_no_place_wakes_a_sender_that_is_still_wanted() -> None:
    buffer, wakes = make_buffer(capacity=1)
    record = buffer.recorder()
    assert record("tokens", "cus_1")
    buffer.set_alarm(1)  # as it is done when no thread could be started
    before = wakes.count
    assert not record("tokens", "cus_1")
    assert wakes.count == before + 1
