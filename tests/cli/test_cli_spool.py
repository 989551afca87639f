"""`meter-agent spool ls`, `show`, `verify` and `export` as a user runs them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from meter_agent import _spool_format as form
from meter_agent._ledger import Outcome
from meter_agent._runtime import SystemRuntime
from meter_agent._spool_header import HEADER_BYTES
from tests.spool.owners import owner, record_one
from tests.spool.spools import ENCODER, Spool, take, take_all

from .processes import command, run


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    return path


def die_with(path: Path, *values: Any) -> Path:
    """Leave a segment with *values* behind, as a dead process does."""
    before = set(path.glob("*.segment"))
    buffer = Spool(path, SystemRuntime())
    for value in values:
        assert buffer.record("tokens", "cus_1", value)
    buffer.die()
    (segment,) = set(path.glob("*.segment")) - before
    return segment


def damage(segment: Path, text: bytes) -> None:
    content = bytearray(segment.read_bytes())
    content[content.index(text)] ^= 1
    segment.write_bytes(content)


def rows(output: str) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


# -- ls ------------------------------------------------------------------------------------------


def test_ls_tells_owners_from_orphans_and_how_far_the_events_have_come(spool: Path) -> None:
    # The owner first: it adopts what it finds when it starts.
    with owner(spool, events=4) as process:
        buffer = Spool(spool, SystemRuntime())
        for n in range(6):
            buffer.record("tokens", "cus_1", n)
        batch = take(buffer.buffer, 3)
        buffer.buffer.begin_attempt(batch, batch.open)
        buffer.buffer.settle(batch, batch.open[:1], Outcome.DELIVERED)
        buffer.die()
        outcome = run("spool", "ls", "--json", spool)
        table = run("spool", "ls", spool)
    assert outcome.returncode == table.returncode == 0
    live, orphan = rows(outcome.stdout)
    assert (orphan["state"], orphan["owner"]) == ("orphan", None)
    assert [orphan[k] for k in ("never_sent", "maybe_accepted", "ended")] == [3, 2, 1]
    assert (live["state"], live["owner"]) == ("live", process.pid)
    assert [live[k] for k in ("never_sent", "maybe_accepted", "ended")] == [4, 0, 0]
    assert live["bytes"] == 65_536
    assert 0 <= live["age_seconds"] < 60
    heading, second, first = table.stdout.splitlines()
    names = "SEGMENT OWNER NEVER SENT MAYBE ACCEPTED ENDED BYTES AGE DESTINATION"
    assert " ".join(heading.split()) == names
    assert live["destination"] == {"host": "127.0.0.1", "mode": "emulator"}
    assert second.endswith("127.0.0.1 (emulator)")
    assert first.split()[:6] == [orphan["segment"], "orphan", "3", "2", "1", "65536"]
    assert second.split()[:3] == [live["segment"], "alive", str(process.pid)]
    assert table.stderr == "2 segments, 9 events not ended\n"


def test_looking_takes_nothing_from_an_owner_and_nothing_from_an_heir(spool: Path) -> None:
    with owner(spool, events=4) as process:
        for command in ("ls", "verify", "export"):
            assert run("spool", command, spool).returncode == 0
            assert record_one(process)
        (segment,) = spool.glob("*.segment")
        assert run("spool", "show", segment.name, spool).returncode == 0
        heir = Spool(spool, SystemRuntime())
        heir.buffer.tend()
        assert heir.buffer.counts().recovered == 0
    heir = Spool(spool, SystemRuntime())
    heir.buffer.tend()
    assert len(take_all(heir.buffer)) == 7


def test_the_directory_is_that_of_the_environment_if_none_is_named(spool: Path) -> None:
    die_with(spool, 1, 2)
    outcome = run("spool", "ls", env=os.environ | {"METER_AGENT_SPOOL_DIR": str(spool)})
    assert outcome.stdout.splitlines()[1].split()[2] == "2"


def test_an_empty_directory_has_nothing_to_show(spool: Path) -> None:
    outcome = run("spool", "ls", spool)
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert outcome.stderr == "0 segments, 0 events not ended\n"


@pytest.mark.parametrize("command", ["ls", "verify", "export", "replay"])
def test_a_directory_that_is_not_there_is_a_usage_error_and_is_not_made(
    tmp_path: Path, command: str
) -> None:
    outcome = run("spool", command, tmp_path / "none")
    assert outcome.returncode == 2
    assert outcome.stderr == f"meter-agent spool {command}: {tmp_path}/none is not a directory\n"
    assert not (tmp_path / "none").exists()


def test_without_a_directory_it_is_said_how_to_name_one() -> None:
    outcome = run("spool", "ls")
    assert outcome.returncode == 2
    assert "METER_AGENT_SPOOL_DIR" in outcome.stderr


def test_without_a_command_the_help_is_shown_on_stderr() -> None:
    outcome = run("spool")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "replay" in outcome.stderr


def test_what_is_not_ours_is_told_and_the_rest_is_listed(spool: Path) -> None:
    die_with(spool, 1)
    (spool / "0-\x07.segment").write_bytes(bytes(100))
    outcome = run("spool", "ls", spool)
    assert outcome.returncode == 3
    assert len(outcome.stdout.splitlines()) == 2
    assert "left alone: neither its header nor its name is that of a segment" in outcome.stderr
    assert "\x07" not in outcome.stderr + outcome.stdout


# -- show ----------------------------------------------------------------------------------------


def test_show_prints_each_event_with_its_identifier_and_state(spool: Path) -> None:
    segment = die_with(spool, 5, "seven")
    outcome = run("spool", "show", segment.name[:20], spool)
    destination, heading, first, second = outcome.stdout.splitlines()
    assert outcome.returncode == 0
    assert destination == "destination: any host (any mode)"
    assert heading.split()[0] == "OFFSET"
    assert first.split()[0] == str(HEADER_BYTES)
    assert first.split()[-3:] == ["tokens", "cus_1", "5"]
    assert "invalid: value='seven'" in second
    events = rows(run("spool", "show", segment.name, spool, "--json").stdout)
    assert events[0]["event"] | {"identifier": "?"} == {
        "event_name": "tokens",
        "customer_id": "cus_1",
        "value": 5,
        "timestamp": None,
        "identifier": "?",
        "payload": None,
    }
    assert events[0]["event"]["identifier"] in first
    assert [event["state"] for event in events] == ["never_sent", "never_sent"]
    assert events[0]["rule"] is None
    assert "value='seven'" in events[1]["rule"]


def test_show_escapes_what_could_move_the_cursor(spool: Path) -> None:
    buffer = Spool(spool, SystemRuntime())
    buffer.record("tokens", "cus_\u202e1", 1)
    buffer.die()
    (segment,) = spool.glob("*.segment")
    outcome = run("spool", "show", segment.name, spool)
    assert "\u202e" not in outcome.stdout
    assert "cus_\\u202e1" in outcome.stdout


def test_show_wants_one_segment(spool: Path) -> None:
    die_with(spool, 1)
    die_with(spool, 2)
    assert "2 segments begin with '1'" in run("spool", "show", "1", spool).stderr
    outcome = run("spool", "show", "x", spool)
    assert outcome.returncode == 2
    assert "no segment begins with 'x'" in outcome.stderr


# -- verify --------------------------------------------------------------------------------------


def test_verify_is_content_with_what_is_whole(spool: Path) -> None:
    die_with(spool, 1, 2, 3)
    with owner(spool, events=2):
        outcome = run("spool", "verify", spool)
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert outcome.stderr == "2 segments, 5 events, no damage\n"


def test_verify_tells_the_bytes_that_are_damaged(spool: Path) -> None:
    segment = die_with(spool, 1, 2, 3)
    damage(segment, b'"cus_1",2]')
    outcome = run("spool", "verify", spool, "--json")
    assert outcome.returncode == 1
    (row,) = rows(outcome.stdout)
    (problem,) = row["problems"]
    assert row["events"] == 2
    assert problem["problem"] == "no intact record"
    piece = segment.read_bytes()[problem["offset"] : problem["end"]]
    assert piece.startswith(form.RECORD_MAGIC)
    assert piece.endswith(b",2]")
    text = run("spool", "verify", spool).stdout
    where = f"bytes {problem['offset']} to {problem['end']}"
    assert text == f"{segment.name}: {where}: no intact record\n"


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (30, "the header is damaged"),
        (HEADER_BYTES + form.MARK_AT, "the mark is damaged"),
        (-1, "no intact record"),
    ],
)
def test_verify_reads_every_byte(spool: Path, at: int, told: str) -> None:
    segment = die_with(spool, 1)
    content = bytearray(segment.read_bytes())
    content[at] ^= 1
    segment.write_bytes(content)
    outcome = run("spool", "verify", spool)
    assert outcome.returncode == 1
    assert told in outcome.stdout
    assert outcome.stdout.count("\n") == 1


def test_verify_tells_a_file_that_was_cut_off_and_one_that_nobody_can_understand(
    spool: Path,
) -> None:
    cut, strange = die_with(spool, 1), die_with(spool, 2)
    os.truncate(cut, 500)
    body = b"what?"
    with strange.open("r+b") as file:
        file.seek(HEADER_BYTES)
        head = form.RECORD_HEAD.pack(form.RECORD_MAGIC, len(body), 0, crc32(body))
        file.write(head + body + bytes(100))
    outcome = run("spool", "verify", spool)
    assert outcome.returncode == 1
    assert set(outcome.stdout.splitlines()) == {
        f"{cut.name}: bytes 500 to 65536: the file ends too early",
        f"{strange.name}: bytes 1024 to 1049: the record cannot be understood",
    }


def test_an_empty_file_of_a_process_that_died_while_making_it_is_no_damage(spool: Path) -> None:
    os.truncate(die_with(spool, 1), 0)
    assert run("spool", "verify", spool).returncode == 0


def test_verify_that_could_not_read_everything_says_so(spool: Path) -> None:
    die_with(spool, 1).rename(spool / "other.segment")
    (spool / "quarantine").mkdir()
    (spool / "quarantine" / "x-64.bytes").write_bytes(b"x")
    (spool / "1.segment").mkdir()
    outcome = run("spool", "verify", spool)
    assert outcome.returncode == 3
    assert outcome.stderr.splitlines() == [
        "1.segment: left alone: it is not a regular file",
        "1 segment, 1 event, no damage; 1 damaged piece in quarantine",
    ]


# -- export --------------------------------------------------------------------------------------


def test_export_writes_what_would_go_over_the_wire(spool: Path) -> None:
    die_with(spool, 5, "seven")
    outcome = run("spool", "export", spool)
    assert outcome.returncode == 0
    event, invalid = rows(outcome.stdout)
    heir = Spool(spool, SystemRuntime())
    heir.buffer.tend()
    batch = heir.buffer.take(1)
    assert batch is not None
    ((identifier, recorded),) = heir.buffer.recorded(batch)
    assert event["event"] == json.loads(ENCODER.encode(recorded, identifier).body)
    assert (event["message"], event["uncertain"], event["attempted_at"]) == (None, False, None)
    assert set(invalid["event"]) == set(event["event"])
    assert invalid["event"]["payload"] == {"stripe_customer_id": "cus_1", "value": "seven"}
    assert "value='seven'" in invalid["message"]
    heir.die()
    assert "2 events: still in the spool" in outcome.stderr


def test_export_knows_the_payload_keys_of_the_environment_and_needs_no_key(spool: Path) -> None:
    die_with(spool, 5)
    outcome = run("spool", "export", spool, env=os.environ | {"METER_AGENT_VALUE_KEY": "amount"})
    (row,) = rows(outcome.stdout)
    assert row["event"]["payload"] == {"stripe_customer_id": "cus_1", "amount": "5"}


def test_export_leaves_out_what_has_ended_and_marks_what_stripe_may_have(spool: Path) -> None:
    buffer = Spool(spool, SystemRuntime())
    for n in range(3):
        buffer.record("tokens", "cus_1", n)
    batch = take(buffer.buffer, 2)
    first, second = batch.open
    buffer.buffer.begin_attempt(batch, [first, second])
    buffer.buffer.settle(batch, [first], Outcome.DELIVERED)
    buffer.die()
    maybe, never = rows(run("spool", "export", spool).stdout)
    assert maybe["event"]["identifier"] == second.identifier
    assert maybe["uncertain"]
    assert maybe["attempted_at"] is not None
    assert not never["uncertain"]


def test_export_writes_a_new_file_for_its_owner_alone(spool: Path, tmp_path: Path) -> None:
    die_with(spool, 5)
    output = tmp_path / "events.jsonl"
    assert run("spool", "export", spool, "--output", output).stdout == ""
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert len(rows(output.read_text())) == 1
    again = run("spool", "export", spool, "--output", output)
    assert again.returncode == 2
    assert "File exists" in again.stderr


def test_export_says_what_it_could_not_read(spool: Path) -> None:
    damage(die_with(spool, 1, 2, 3), b'"cus_1",2]')
    outcome = run("spool", "export", spool)
    assert outcome.returncode == 3
    assert [row["event"]["payload"]["value"] for row in rows(outcome.stdout)] == ["1", "3"]
    assert "1 damaged piece left out" in outcome.stderr


def test_a_full_disk_is_one_line(spool: Path) -> None:
    die_with(spool, 1)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("spool", "ls", spool),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        6,
        "meter-agent: the output cannot be written: No space left on device\n",
    )


def test_a_wrong_setting_is_one_line(spool: Path) -> None:
    environ = os.environ | {"METER_AGENT_BATCH_SIZE": "0", "METER_AGENT_STRICT": "maybe"}
    outcome = run("spool", "export", spool, env=environ)
    assert outcome.returncode == 2
    assert outcome.stderr.count("\n") == 1
    assert "METER_AGENT_BATCH_SIZE" in outcome.stderr
    assert "METER_AGENT_STRICT" in outcome.stderr


def test_a_reader_that_stops_in_the_middle_gets_no_traceback(spool: Path) -> None:
    segment = die_with(spool, *range(800))
    with subprocess.Popen(
        command("spool", "show", segment.name, spool),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
