"""Break the code in ways that a tired developer might, and see the tests fail: `make mutants`.

Each mutant is one edit to one file of a copy of the project. It has to die: first the simulated
worlds are run against it, which then name a seed, and where they see nothing, the tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]

ROOT = Path(__file__).parent.parent
WORLDS = "300"
TESTS = (
    "tests/buffer",
    "tests/test_pace.py",
    "tests/test_session.py",
    "tests/test_delivery.py",
    "tests/test_answer.py",
    "tests/agent",
    "tests/spool",
    "tests/crash/test_marks.py",
    "tests/simulation/test_interrupts.py",
    "tests/wire/test_transport.py",
    "tests/wire/test_connections.py",
)
SECONDS_MAX = 300.0


class Mutant(NamedTuple):
    """One edit."""

    what: str
    file: str
    old: str
    new: str

    def source(self) -> str:
        """The mutated source; the edit has to fit in exactly one place."""
        source = (ROOT / "meter_agent" / self.file).read_text()
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.what}: its text is {source.count(self.old)} times in {self.file}"
            )
        return source.replace(self.old, self.new)


MUTANTS = (
    Mutant(
        "record() rings no bell",
        "_buffer.py",
        "                self._gate.alarm = 0  # as `refuse()` has set it, perhaps just before\n"
        "            self._call_sender()",
        "                self._gate.alarm = 0",
    ),
    Mutant(
        "the bell is looked for before the wish is taken down",
        "_buffer.py",
        "            self._wanted = NEVER\n"
        "            self._gate.alarm = self._nearly_full * _PIECES\n"
        "            if self._refusal is not None:\n"
        "                self._gate.alarm = 0  # as `refuse()` has set it, perhaps just before\n"
        "            self._call_sender()",
        "            self._call_sender()\n            self._wanted = NEVER\n"
        "            self._gate.alarm = self._nearly_full * _PIECES",
    ),
    Mutant(
        "a batch one larger than asked for",
        "_buffer.py",
        "            events = self._pop(min(limit, len(self)))",
        "            events = self._pop(min(limit + 1, len(self)))",
    ),
    Mutant(
        "one event more than the capacity",
        "_buffer.py",
        "            if len(self) < self._capacity:\n                entered",
        "            if len(self) <= self._capacity:\n                entered",
    ),
    Mutant(
        "the rest of a call without memory is taken for an event",
        "_buffer.py",
        "        if begins and set(map(type, begins)) != {_Details}:",
        "        if False:",
    ),
    Mutant(
        "settled, though close() had accounted for it",
        "_event_buffer.py",
        "            if batch.abandoned:\n                return False\n            if len(events)",
        "            if len(events)",
    ),
    Mutant(
        "in flight is forgotten by flush()",
        "_buffer.py",
        "(batch.floor for batch in self._in_flight), default",
        "(batch.floor for batch in ()), default",
    ),
    Mutant(
        "a place that becomes free is told to nobody",
        "_buffer.py",
        "            self._open_door_if_room()\n        self._call_waiting(batch.size)",
        "            self._open_door_if_room()",
    ),
    Mutant(
        "callers without a place ring each other",
        "_event_buffer.py",
        "                if leaves and (rung or (called and entered)):",
        "                if rung:",
    ),
    Mutant(
        "an event that slipped in at the close stays",
        "_buffer.py",
        "        if self._sealed:\n            return self._take_back(event)",
        "",
    ),
    Mutant(
        "a sender tells nobody that it is done",
        "_flusher.py",
        "                    self._last_was_slow = seconds > self._flush_interval_seconds\n"
        "                self._progress.tell()",
        "                    self._last_was_slow = seconds > self._flush_interval_seconds",
    ),
    Mutant(
        "a full spool drops what a dead process may have sent",
        "_segment.py",
        "                    self._perhaps_sent_through = piece.end",
        "                    pass",
    ),
    Mutant(
        "a Ctrl-C leaves a condition locked",
        "_runtime.py",
        '    __enter__ = property(attrgetter("_lock.__enter__"))',
        "",
    ),
    Mutant(
        "a Ctrl-C takes the right to start a sender with it",
        "_flusher.py",
        "            del self._nobody_sends[0]\n        except IndexError:\n"
        "            return  # another thread was quicker",
        "            self._nobody_sends.pop()\n        except IndexError:\n"
        "            return  # another thread was quicker",
    ),
    Mutant(
        "a signal handler waits for senders that wait for it",
        "_flusher.py",
        " or self._runtime.holds_lock()",
        "",
    ),
    Mutant(
        "a signal handler that strikes while a sender starts waits for it",
        "_flusher.py",
        "        self._starting_in[me] = None",
        "        pass",
    ),
    Mutant(
        "a Ctrl-C in close() leaves an agent that nobody ends",
        "_pipeline.py",
        "                self._to_be_ended.append(True)",
        "                pass",
    ),
    Mutant(
        "a close() within the same close() waits for itself",
        "_pipeline.py",
        "            self._ending_in = me",
        "            pass",
    ),
    Mutant(
        "flush() waits for full batches",
        "_schedule.py",
        "if ending or self._is_hurried():",
        "if ending:",
    ),
    Mutant(
        "what a dying sender held is lost",
        "_flusher.py",
        "            self._buffer.give_back(batch)\n        return False",
        "            pass\n        return False",
    ),
    Mutant(
        "the watch is not handed over",
        "_flusher.py",
        "                self._watching = True\n",
        "                self._watching = bool(self._busy)\n",
    ),
    Mutant(
        "the alarm is set after the look",
        "_flusher.py",
        "            self._buffer.set_alarm(1 if empty else self._schedule.full)\n"
        "            with self._changed:\n"
        "                seconds = 0.0 if self._is_over() else self._due_in(eager=False)\n",
        "            with self._changed:\n"
        "                seconds = 0.0 if self._is_over() else self._due_in(eager=False)\n"
        "            self._buffer.set_alarm(1 if empty else self._schedule.full)\n",
    ),
    Mutant(
        "senders without a chance call each other",
        "_flusher.py",
        "        if self._gave_up or len(self._senders) >= self._max_in_flight:",
        "        if len(self._senders) >= self._max_in_flight:",
    ),
    Mutant(
        "identifiers begin again after 256 of a batch",
        "_identifier.py",
        "divmod(position + len(names), 256)",
        "divmod(position, 256)",
    ),
    Mutant(
        "the idempotency key knows only how a body begins",
        "_stream.py",
        "range(0, len(body), _PIECE_BYTES)",
        "range(0, min(len(body), _PIECE_BYTES), _PIECE_BYTES)",
    ),
    Mutant(
        "a batch that failed is sent again without being told so",
        "_delivery.py",
        "            return answers.pop() if answers else self._attempt(batch, part)",
        "            return self._attempt(batch, part)",
    ),
    Mutant(
        "a refused token is kept",
        "_delivery.py",
        "        self._sessions.drop(token)\n",
        "",
    ),
    Mutant(
        "every answer but silence means: not accepted",
        "_delivery.py",
        "        if not _may_hold(answer, part):",
        "        if answer.status is not None:",
    ),
    Mutant(
        "an accepted batch is not attempted while it is counted",
        "_delivery.py",
        "answer.verdict in {Verdict.ACCEPTED, Verdict.DUPLICATE}\n\n\ndef _without",
        "False\n\n\ndef _without",
    ),
    Mutant(
        "the resend window is longer than it says",
        "_resend_window.py",
        ">= self._seconds\n",
        ">= 2 * self._seconds\n",
    ),
    Mutant(
        "the resend window is not looked at after the session",
        "_delivery.py",
        "        if too_late := self._window.too_late(batch, part):\n"
        "            return too_late, True  # opening the session took its time\n",
        "",
    ),
    Mutant(
        "a split forgets its second half",
        "_delivery.py",
        "        return [part[middle:], part[:middle]]",
        "        return [part[:middle]]",
    ),
    Mutant(
        "settled before it was sent",
        "_delivery.py",
        "                answer = self._attempt_until_final(batch, part)\n",
        "                settle(part, Outcome.DELIVERED, None, None)\n"
        "                answer = self._attempt_until_final(batch, part)\n",
    ),
    Mutant(
        "every failure on the way counts",
        "_pace.py",
        "            if ticket.failures_seen >= self._lengthened_by:",
        "            if True:",
    ),
    Mutant(
        "everybody probes",
        "_pace.py",
        "            self._probing = ticket\n",
        "            pass\n",
    ),
    Mutant(
        "no back-off",
        "_pace.py",
        "                self._resume_at = now + self._back_off_seconds(slowly)",
        "                self._resume_at = now",
    ),
    Mutant(
        "a session is asked for twice",
        "_session.py",
        "                if not self._opening:",
        "                if True:",
    ),
    Mutant(
        "the new session is dropped for the old one's sake",
        "_session.py",
        "            if self._session and self._session.grant.token == token:",
        "            if self._session:",
    ),
    Mutant(
        "who waits for a session is not told",
        "_session.py",
        "                result = self._kept(outcome, began)\n"
        "                self._changed.notify_all()",
        "                result = self._kept(outcome, began)",
    ),
    Mutant(
        "letters without a count",
        "_sender.py",
        "        self._buffer.settle_claim(batch)\n",
        "",
    ),
    Mutant(
        "letters whether or not close() has spoken",
        "_sender.py",
        "        if self._buffer.claim(batch, part, outcome):",
        "        if self._buffer.claim(batch, part, outcome) or True:",
    ),
    Mutant(
        "unanswered events count as dropped",
        "_pipeline.py",
        "            self._buffer.settle_abandoned(batch, count, Outcome.UNCERTAIN)",
        "            self._buffer.settle_abandoned(batch, count, Outcome.SHUTDOWN)",
    ),
    Mutant(
        "close() takes no account of what is in flight",
        "_pipeline.py",
        "        self._flusher.stop()\n        self._account_for_rest(deadline)",
        "        self._flusher.stop()",
    ),
    Mutant(
        "urllib3 retries behind our back",
        "_transport.py",
        "max_retries=0",
        "max_retries=3",
    ),
    Mutant(
        "429 counts as perhaps accepted",
        "_answer_table.py",
        "        Verdict.RATE_LIMITED,\n    ),",
        "        Verdict.RETRY,\n        maybe_accepted=True,\n    ),",
    ),
    Mutant(
        "a success on the way ends the back-off",
        "_pace.py",
        "if self._failures and ticket.failures_seen == self._failures_reported:",
        "if self._failures:",
    ),
    Mutant(
        "any 2xx is Stripe's",
        "_answer_table.py",
        '        is_stripes = is_empty_object or _text(headers.get("Request-Id")) is not None\n',
        "        is_stripes = True\n",
    ),
    Mutant(
        "any refusal is Stripe's",
        "_answer_table.py",
        "        is_stripes = bool(message and (code or type_))\n",
        "        is_stripes = True\n",
    ),
    Mutant(
        "an ambiguous attempt is forgotten",
        "_delivery.py",
        "        elif not answer.maybe_accepted:\n",
        "        else:\n",
    ),
    Mutant(
        "no kind is ever paused",
        "_brake.py",
        "            if run.count < _RUN:\n",
        "            if True:\n",
    ),
    Mutant(
        "a duplicate is taken for a bad event",
        "_answer_table.py",
        "        Verdict.DUPLICATE,\n    ),",
        "        Verdict.REJECTED,\n    ),",
    ),
    Mutant(
        "spool: what has ended is not marked",
        "_segment.py",
        "        self.mark(offset, form.SETTLED)\n",
        "",
    ),
    Mutant(
        "spool: sent without a mark",
        "_spool.py",
        "                    self._mark(batch.places[id(event)], mark)\n",
        "                    pass\n",
    ),
    Mutant(
        "spool: marked after it was sent",
        "_delivery.py",
        "        if not self._attempts.begin_attempt(batch, part):\n            return None\n"
        "        answer = self._stream.send(\n            token,\n"
        "            [event.body for event in part],\n"
        "            may_repeat=lambda: self._window.allows(batch, part),\n        )\n",
        "        answer = self._stream.send(\n            token,\n"
        "            [event.body for event in part],\n"
        "            may_repeat=lambda: self._window.allows(batch, part),\n        )\n"
        "        if not self._attempts.begin_attempt(batch, part):\n            return None\n",
    ),
    Mutant(
        "spool: each retry marks anew",
        "_spool.py",
        "                if id(event) not in before:",
        "                if True:",
    ),
    Mutant(
        "spool: a mark is kept though it was surely refused",
        "_spool.py",
        "                        self._mark(place, form.NEVER_ATTEMPTED)",
        "                        pass",
    ),
    Mutant(
        "spool: what the dead process has sent is taken for unsent",
        "_spool.py",
        "                if first is not None:",
        "                if first is not None and first > wall:",
    ),
    Mutant(
        "spool: sent to another destination",
        "_segment_name.py",
        "    elif not header.destination.agrees_with(mine):",
        "    elif header.destination[2:] != mine[2:]:",
    ),
    Mutant(
        "spool: a restored copy is sent as new",
        "_spool_place.py",
        "        if first is None and self.segment.is_copy:",
        "        if first is None and not self.body:",
    ),
    Mutant(
        "spool: two agents of a process get the same file",
        "_segment_lock.py",
        "    return key if _claims.setdefault(key, mine) is mine else None",
        "    return key if _claims.setdefault(key, mine) else None",
    ),
    Mutant(
        "spool: what is behind a damaged record is lost",
        "_spool_format.py",
        "            if offset >= 0:\n                continue\n",
        "",
    ),
    Mutant(
        "spool: a mark is zero on its way to a new value",
        "_spool_format.py",
        "    data[start : start + _MARK.size] = _MARK.pack(mark)",
        "    _MARK.pack_into(data, start, mark)",
    ),
    Mutant(
        "spool: what stands behind the body of an event is not looked at",
        "_spool_body.py",
        "        if end != len(text):",
        "        if end > len(text):",
    ),
    Mutant(
        "spool: recovered counts what had ended",
        "_segment.py",
        "            elif piece.mark != form.SETTLED:",
        "            else:",
    ),
    Mutant(
        "spool: a file goes while its events are on the way",
        "_segment_line.py",
        "            if segment.sealed and not segment.open:",
        "            if segment.sealed and not segment.waiting:",
    ),
    Mutant(
        "spool: an append wakes nobody",
        "_spool.py",
        "        self._own.gate.alarm = NEVER\n        self._call_sender()",
        "        self._own.gate.alarm = NEVER",
    ),
    Mutant(
        "spool: looked for orphans only once",
        "_spool_care.py",
        "        return self._looked_at + ADOPT_SECONDS",
        "        return self._looked_at + 1e9",
    ),
    Mutant(
        "spool: more on the disk than is allowed",
        "_spool_directory.py",
        "        if self.bytes_reserved() > self._bytes_max:\n            raise SpoolFullError",
        "        if self.bytes_reserved() > 2 * self._bytes_max:\n            raise SpoolFullError",
    ),
    Mutant(
        "spool: what stays in it is counted twice",
        "_spool.py",
        "            batch.size -= kept\n",
        "",
    ),
    Mutant(
        "spool: looks at its files for ever while it closes",
        "_spool.py",
        "        if self._refusal is not None:\n            return None\n        return max(",
        "        return max(",
    ),
)


def killer_of(mutant: Mutant) -> str | None:
    """What notices *mutant*; None: nothing does."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        for folder in ("meter_agent", "tests"):
            shutil.copytree(ROOT / folder, copy / folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / "meter_agent" / mutant.file).write_text(mutant.source())
        lines = _run(copy, "-m", "tests.simulation", "--seeds", WORLDS, "--failures", "1")
        if lines:
            return f"world {lines[0].partition(':')[0]}"
        lines = _run(copy, "-m", "pytest", "-q", "-x", "--tb=no", *TESTS)
        return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), None)


def _run(copy: Path, *arguments: str) -> list[str]:
    # What a run that failed has printed; empty when it did not fail.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ["FAILED to end"]
    if not process.returncode:
        return []
    return process.stdout.splitlines() or ["FAILED to run"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--only", default="", help="mutants whose description holds this text")
    only = parser.parse_args().only
    mutants = [mutant for mutant in MUTANTS if only in mutant.what]
    survivors = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for mutant, killer in zip(mutants, pool.map(killer_of, mutants), strict=True):
            survivors += killer is None
            print(f"{mutant.file:14} {mutant.what}: {killer or 'SURVIVED'}", flush=True)
    print(f"{len(mutants)} mutants, {survivors} survived")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
