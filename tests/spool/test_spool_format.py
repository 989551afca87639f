"""The bytes of a segment, whole and damaged."""

from __future__ import annotations

import mmap
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meter_agent import _spool_format as form
from meter_agent._destination import Destination, destination_of
from meter_agent._spool_format import Damage, Record
from meter_agent._spool_header import (
    HEADER_BYTES,
    OWNER_AT,
    VERSION,
    Header,
    Owner,
    owner_bytes,
    read_header,
    read_owner,
)

HEADER = Header(
    VERSION,
    4096,
    bytes(range(10)),
    1_795_000_000.25,
    77,
    4711,
    12,
    Destination("host", "live", "acct_1"),
)
VERSION_1 = HEADER._replace(version=1, inode=0, generation=0, destination=None)
BODIES = [b'[1,"tokens","cus_1",1]', b'[2,"tokens","cus_2",22]', b'[3,"t","cus_3","0.5"]']


def mapped(content: bytes, size: int | None = None) -> mmap.mmap:
    data = mmap.mmap(-1, size or max(1, len(content)))
    data[: len(content)] = content
    return data


def record(body: bytes, mark: int = 0) -> bytes:
    return form.RECORD_HEAD.pack(form.RECORD_MAGIC, len(body), mark, crc32(body)) + body


def scan(content: bytes) -> list[Record | Damage]:
    data = mapped(content)
    return list(form.scan(data, 0, len(data)))


def bodies(pieces: list[Record | Damage]) -> list[bytes]:
    return [piece.body for piece in pieces if isinstance(piece, Record)]


TEXTS = st.none() | st.text(max_size=300)


@given(st.builds(destination_of, st.just("https://h:1"), st.text(), account=TEXTS, context=TEXTS))
def test_a_header_is_read_as_it_was_written(destination: Destination) -> None:
    header = HEADER._replace(destination=destination)
    assert read_header(header.to_bytes()) == header
    assert len(header.to_bytes()) == header.records_at == HEADER_BYTES == 1024


def test_a_header_of_version_1_is_read_as_it_was_written() -> None:
    # Byte by byte, as that version wrote it.
    written = bytes.fromhex(
        "894d545253500d0a010040004d00000000100000000000000001020304050607"
        "0809000000000000000010b061bfda41000000000000000000000000c5604480"
    )
    assert VERSION_1.to_bytes() == written
    assert read_header(written) == VERSION_1
    assert VERSION_1.records_at == 64


@pytest.mark.parametrize("header", [HEADER, VERSION_1], ids=["2", "1"])
def test_a_header_with_any_bit_flipped_is_none_and_never_another_one(header: Header) -> None:
    whole = header.to_bytes()
    assert header.destination is None or len(whole) > OWNER_AT
    written = len(whole.rstrip(b"\0"))
    for bit in range(8 * written):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        assert read_header(bytes(flipped)) is None or 66 <= bit // 8 < 68  # zeros between fields
    for length in range(written):
        assert read_header(whole[:length]) is None


@given(st.builds(Owner, st.integers(1, 2**32), st.none() | st.integers(0), st.uuids().map(str)))
def test_an_owner_is_read_as_it_was_written(owner: Owner) -> None:
    whole = HEADER.to_bytes()
    assert read_owner(whole) is None
    block = owner_bytes(owner)
    data = whole[:OWNER_AT] + block + whole[OWNER_AT + len(block) :]
    assert len(data) == HEADER_BYTES
    assert (read_owner(data), read_header(data)) == (owner, HEADER)


@given(st.lists(st.binary(min_size=1, max_size=300).filter(lambda b: b"\xff" not in b)))
def test_records_are_read_as_they_were_written(written: list[bytes]) -> None:
    content = b"".join(map(record, written))
    pieces = scan(content + bytes(200))
    assert bodies(pieces) == written
    assert not [piece for piece in pieces if isinstance(piece, Damage)]


def test_a_file_that_ends_at_any_byte_gives_the_whole_records_before() -> None:
    content = b"".join(map(record, BODIES))
    ends = [sum(len(record(b)) for b in BODIES[:n]) for n in range(len(BODIES) + 1)]
    for length in range(1, len(content)):
        pieces = scan(content[:length])
        whole = [body for body, end in zip(BODIES, ends[1:], strict=True) if end <= length]
        assert bodies(pieces) == whole
        torn = [piece for piece in pieces if isinstance(piece, Damage)]
        if length in ends:
            assert torn == []
        else:
            assert [piece.offset for piece in torn] == [ends[len(whole)]]


def test_any_bit_flipped_in_a_record_costs_that_record_and_no_other() -> None:
    first, second, third = map(record, BODIES)
    for bit in range(8 * len(second)):
        if form.MARK_AT <= bit // 8 < form.MARK_AT + 8:
            continue  # the mark is no part of the event
        flipped = bytearray(second)
        flipped[bit // 8] ^= 1 << bit % 8
        pieces = scan(first + bytes(flipped) + third + bytes(100))
        assert bodies(pieces) == [BODIES[0], BODIES[2]]
        assert Damage(len(first), len(first) + len(second)) in pieces


def test_any_stretch_of_garbage_costs_nothing_beside_it() -> None:
    first, second, third = map(record, BODIES)
    for garbage in (b"\0" * 7, b"\xff" * 50, form.RECORD_MAGIC, form.RECORD_MAGIC * 3, second[:-1]):
        pieces = scan(first + garbage + third + bytes(30))
        assert bodies(pieces) == [BODIES[0], BODIES[2]]
        assert Damage(len(first), len(first) + len(garbage)) in pieces


@given(st.binary(max_size=500))
def test_no_garbage_at_all_makes_the_reader_fail(garbage: bytes) -> None:
    assert read_header(garbage) is None
    pieces = scan(garbage)
    assert bodies(pieces) == []
    end = 0
    for piece in pieces:
        assert end <= piece.offset < piece.end <= len(garbage)
        end = piece.end


@given(st.floats(0, 2**32 - 1))
def test_a_mark_says_when_the_event_was_first_sent_and_never_later(at: float) -> None:
    assert form.read_mark(form.attempted_mark(at)) == int(at)


def test_marks_are_told_from_each_other_and_from_damage() -> None:
    assert form.read_mark(form.NEVER_ATTEMPTED) is None
    attempted = form.attempted_mark(1_795_000_000)
    for whole in (attempted, form.SETTLED):
        for bit in range(64):
            damaged = whole ^ 1 << bit
            assert damaged not in {form.SETTLED, form.NEVER_ATTEMPTED, attempted}
            # Nobody knows when: the resend window is over.
            assert form.read_mark(damaged) == 0.0
    for bit in range(64):
        assert form.read_mark(form.NEVER_ATTEMPTED ^ 1 << bit) == 0.0


def test_a_mark_is_written_beside_the_event_and_changes_nothing_of_it() -> None:
    content = b"".join(map(record, BODIES))
    data = mapped(content, 4096)
    offset = len(record(BODIES[0]))
    form.write_mark(data, offset, form.SETTLED)
    marks = [p.mark for p in form.scan(data, 0, 4096) if isinstance(p, Record)]
    assert marks == [form.NEVER_ATTEMPTED, form.SETTLED, form.NEVER_ATTEMPTED]
    assert bodies(list(form.scan(data, 0, 4096))) == BODIES


@pytest.mark.parametrize("body", BODIES)
def test_the_length_of_a_record_is_known_from_its_head(body: bytes) -> None:
    data = mapped(record(body), 4096)
    assert form.record_bytes(data, 0, 4096) == len(record(body))
    assert form.record_bytes(data, 0, len(record(body)) - 1) is None
    assert form.record_bytes(data, 1, 4096) is None
