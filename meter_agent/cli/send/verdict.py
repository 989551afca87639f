"""What Stripe says to an event, in words, and what there is to do about it."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["METER_CODES", "VERDICTS", "Verdict", "verdict_of"]


class Verdict(NamedTuple):
    """One code of Stripe's, explained."""

    meaning: str
    fix: str


_PAYLOAD_KEYS = "METER_AGENT_PAYLOAD_KEYS (for single event names) or METER_AGENT_{}_KEY (for all)"

# Codes and conditions: Stripe's OpenAPI description of `POST /v2/billing/meter_events` and its
# guide to recording usage; the times are in the description of `timestamp`.
VERDICTS: Final[dict[str, Verdict]] = {
    "no_meter": Verdict(
        "the account has no meter with this event name",
        "correct the event name, or create the meter (Dashboard: Billing, Meters); test and live"
        " mode have meters of their own",
    ),
    "archived_meter": Verdict(
        "the meter with this event name is deactivated",
        "reactivate it (Dashboard: Billing, Meters), or use the event name of an active one",
    ),
    "duplicate_meter_event": Verdict(
        "Stripe has an event with this identifier from the last 24 hours; this one is not counted",
        "nothing, if it is the same event; a different one needs another --identifier",
    ),
    "payload_invalid_value": Verdict(
        "the value is not an amount that Stripe takes",
        "give a plain number of at most 15 digits, 12 of them decimals; some accounts and versions"
        " take positive whole numbers only",
    ),
    "payload_no_value_defined": Verdict(
        "the meter looks for the value under another payload key",
        f"set {_PAYLOAD_KEYS.format('VALUE')} to the meter's value_settings.event_payload_key",
    ),
    "payload_no_customer_defined": Verdict(
        "the meter looks for the customer under another payload key",
        f"set {_PAYLOAD_KEYS.format('CUSTOMER')} to the meter's customer_mapping.event_payload_key",
    ),
    "timestamp_too_far_in_past": Verdict(
        "the timestamp is more than 35 days old",
        "Stripe bills nothing that old with meters; bill it another way",
    ),
    "timestamp_in_future": Verdict(
        "the timestamp is more than 5 minutes ahead",
        "check the clock, and that unix seconds are seconds",
    ),
    "too_many_concurrent_requests": Verdict(
        "another event of this customer and meter was being taken at the same moment",
        "send it again",
    ),
}
"""By code, as Stripe names them."""

METER_CODES: Final = {
    "no_meter",
    "archived_meter",
    "payload_no_value_defined",
    "payload_no_customer_defined",
}
"""Those about the meter, which a doctor can look at."""


def verdict_of(code: str | None) -> Verdict | None:
    """Return what *code* means; None: it is not known here."""
    return VERDICTS.get(code or "")
