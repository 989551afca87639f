"""`dead-letters ls`, `show` and `export`."""

from __future__ import annotations

import json
from typing import IO, Any

from meter_agent.cli.dead_letters.letters import Letter, Letters
from meter_agent.cli.dead_letters.resent import Resent
from meter_agent.cli.printing import Columns, json_line, print_json, say
from meter_agent.cli.wire_shape import Keys, wire_shape

__all__ = ["export_letters", "list_letters", "show_letters"]


def list_letters(letters: Letters, resent: Resent, *, as_json: bool) -> None:
    """Print a line for each letter."""
    table = Columns(
        line=-6, reason=9, settled_at=24, identifier=36, event=20, customer=20, resent=9, message=0
    )
    for letter in letters:
        if as_json:
            print_json(_document(letter, resent))
            continue
        event, fields = letter.event, letter.fields
        payload = event.get("payload")
        customer = event.get("customer_id") or (
            payload.get("stripe_customer_id") if isinstance(payload, dict) else None
        )
        table.row(
            letter.line,
            letter.reason,
            fields.get("settled_at") or "?",
            letter.identifier or "-",
            event.get("event_name") or "-",
            customer or "-",
            resent.state(letter) or "-",
            fields.get("message") or "",
        )


def show_letters(letters: Letters, resent: Resent, *, as_json: bool) -> None:
    """Print each letter with all that it says."""
    for letter in letters:
        document = _document(letter, resent)
        if as_json:
            print_json(document)
            continue
        for name, value in document.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            say(f"{name}: {shown}")
        say()


def export_letters(letters: Letters, keys: Keys, output: IO[str]) -> None:
    """Write the event of each letter as a line; *keys* are the payload keys of the settings."""
    for letter in letters:
        output.write(json_line(wire_shape(letter.event, keys)) + "\n")


def _document(letter: Letter, resent: Resent) -> dict[str, Any]:
    because = resent.because(letter)
    return (
        {"line": letter.line}
        | letter.fields
        | {"resent": resent.state(letter)}
        | ({} if because is None else {"because": because})
    )
