"""`meter-agent send`: one event, by hand."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
import uuid
from typing import TYPE_CHECKING, Any

import click

from meter_agent import Config, InvalidEventError
from meter_agent._event import EventEncoder, MeterEvent, RecordedEvent
from meter_agent.cli import delivery_options
from meter_agent.cli.moments import MomentError, parse_moment
from meter_agent.cli.pairs import parse_pairs
from meter_agent.cli.printing import print_json, say
from meter_agent.cli.settings import read_settings
from meter_agent.cli.shell_words import shell_words

if TYPE_CHECKING:
    from meter_agent.cli.send.sending import Sent

__all__ = ["send"]


class _Command(click.Command):
    """A command that knows what is meant by `-5`."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        try:
            return super().parse_args(context, arguments)
        except click.NoSuchOption as error:
            if not error.option_name.lstrip("-").replace(".", "").isdigit():
                raise
            hint = "a negative VALUE stands behind two dashes, and options before them: -- "
            raise click.UsageError(f"{hint}{error.option_name}", context) from None


@click.command(cls=_Command)
@click.argument("event_name", metavar="EVENT")
@click.argument("customer")
@click.argument("value", default="1")
@click.option(
    "--timestamp",
    metavar="TIME",
    help="When it was used: unix seconds, or such as 2026-01-31T12:15:00Z. Default: now.",
)
@click.option(
    "--identifier",
    help="Names the event: Stripe counts an identifier once in 24 hours. Default: a new UUID.",
)
@click.option(
    "--payload", "payload", multiple=True, metavar="KEY=TEXT", help="A further payload key."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the requests, with the key masked. Needs no network."
)
@click.option(
    "--validate",
    is_flag=True,
    help="Have Stripe check it at once. A valid event is recorded, and billed.",
)
@delivery_options.sandbox_url
@delivery_options.patience
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def send(
    context: click.Context,
    /,
    *,
    event_name: str,
    customer: str,
    value: str,
    timestamp: str | None,
    identifier: str | None,
    payload: tuple[str, ...],
    dry_run: bool,
    validate: bool,
    sandbox_url: str | None,
    patience: float,
    as_json: bool,
) -> None:
    """Send one event, wait for its end, and print its identifier and outcome.

    EVENT is the event name of a meter, CUSTOMER a Stripe customer, VALUE a number, by default 1.
    Negative values are corrections, and stand behind two dashes: send EVENT CUSTOMER -- -5

    By default the event takes the way of every other: through the meter event stream, which
    receives it and checks it later. With --validate it goes to POST /v2/billing/meter_events, which
    checks it at once and names what is wrong. That is no rehearsal: a valid event is recorded and
    will be billed. --dry-run sends nothing.

    Exit codes: 1 Stripe refused it, 2 it breaks a rule and was not sent, 3 Stripe may have it, 4
    the key is refused, 5 Stripe cannot be reached.
    """
    config = _alone(read_settings(sandbox_url=sandbox_url))
    if config.disabled:
        raise click.UsageError("METER_AGENT_DISABLED is on")
    now = time.time()
    try:
        event = RecordedEvent(
            now,
            event_name,
            customer,
            value,
            now if timestamp is None else parse_moment(timestamp, None),
            str(uuid.uuid4()) if identifier is None else identifier,
            parse_pairs("--payload", payload) or None,
        )
        encoded = EventEncoder(*config.encoder_keys).encode(event, "")
    except MomentError as error:
        raise click.UsageError(f"--timestamp: {error}") from None
    except InvalidEventError as error:
        raise click.UsageError(shell_words(str(error))) from None
    if dry_run:
        _print_requests(config, event, encoded, validate=validate, as_json=as_json)
        return
    sent = _send(config, event, encoded, validate=validate, patience=patience)
    _print_outcome(encoded, sent, as_json=as_json)
    context.exit(sent.exit_code)


def _alone(config: Config) -> Config:
    # Neither the spool nor the dead letters of a service: what becomes of it is told here.
    return dataclasses.replace(
        config, spool_dir=None, dead_letter_file=None, strict=False, handle_sigterm=False
    )


def _send(
    config: Config,
    event: RecordedEvent,
    encoded: MeterEvent,
    *,
    validate: bool,
    patience: float,
) -> Sent:
    from meter_agent.cli.send.sending import send_event, validate_event

    if validate:
        return validate_event(config, encoded)
    return send_event(config, event, patience_seconds=patience)


def _print_requests(
    config: Config, event: RecordedEvent, encoded: MeterEvent, *, validate: bool, as_json: bool
) -> None:
    from meter_agent.cli.send.dry_run import requests_to_record, requests_to_validate

    requests = (
        requests_to_validate(config, encoded, event.event_name)
        if validate
        else requests_to_record(config, event)
    )
    for request in requests:
        if as_json:
            print_json(request)
        else:
            _print_request(request)
    say("nothing was sent", err=True)


def _print_request(request: dict[str, Any]) -> None:
    say(f"{request['method']} {request['url']}")
    for name, value in request["headers"].items():
        say(f"{name}: {value}")
    say()
    print_json(request["body"])
    say()


def _print_outcome(event: MeterEvent, sent: Sent, *, as_json: bool) -> None:
    from meter_agent.cli.send.verdict import METER_CODES

    document = sent.to_document()
    if as_json:
        print_json({"identifier": event.identifier, **document, "event": json.loads(event.body)})
        return
    say(f"{event.identifier}  {sent.outcome}")
    if sent.code is not None:
        say(f"{sent.code}: {document['meaning'] or sent.message}", err=True)
    if document["meaning"] is not None:
        say(f"Stripe says: {sent.message}", err=True)
        say(f"what to do: {document['fix']}", err=True)
        if sent.code in METER_CODES:
            name = shlex.quote(json.loads(event.body)["event_name"])
            say(f"`meter-agent doctor --event {name}` looks at it", err=True)
    elif sent.code is None and sent.message is not None:
        say(sent.message, err=True)
    say(_WORDS[sent.outcome.value], err=True)


_WORDS = {
    "delivered": "Stripe received it, and checks it later: --validate would have asked",
    "valid": "Stripe checked and recorded it: it will be billed",
    "refused": "this event is not recorded",
    "uncertain": (
        "Stripe may have it: within 24 hours, send it again with the same --identifier and "
        "--timestamp, and it is billed once"
    ),
    "not_sent": "Stripe does not have it",
}
