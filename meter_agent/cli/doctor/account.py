"""What the key opens: a session, and the list of meters."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from meter_agent import Config
from meter_agent._answer import Answer, Verdict
from meter_agent._connection import open_stream
from meter_agent._event import PayloadKeys
from meter_agent._ledger import Traffic
from meter_agent._runtime import SystemRuntime
from meter_agent.cli.doctor.finding import Finding, failed, ok, warning
from meter_agent.cli.doctor.hosts import other_side_fails
from meter_agent.cli.doctor.settings import RESTRICTED_KEY
from meter_agent.cli.exit_codes import ExitCode
from meter_agent.cli.sandbox_control import SandboxControlError, read_control
from meter_agent.cli.send.verdict import VERDICTS

__all__ = ["Account"]

_SECONDS = 10.0
_PAGES_MAX = 250
_SHOWN_MAX = 5
_PERMISSION = re.compile(r"'(?P<name>\w+)' permission")
"""Stripe names the one that is missing: "Having the 'rak_..._read' permission would allow ..."."""


class _Meter(NamedTuple):
    event_name: str
    active: bool
    keys: PayloadKeys


class Account:
    """Asks Stripe with the key of *config*, and records nothing.

    Args:
        config: The settings.
        key_origin: The variable that the key comes from.
    """

    def __init__(self, config: Config, key_origin: str) -> None:
        self._config = config
        self._key_origin = key_origin
        self._stream = open_stream(
            config, SystemRuntime(), traffic=Traffic(), seconds_left=lambda: _SECONDS
        )

    def close(self) -> None:
        """Close the connections."""
        self._stream.close()

    def check_session(self) -> Finding:
        """Return whether a session can be opened; it is not used, and ends by itself."""
        answer = self._stream.open_session()
        if not isinstance(answer, Answer):
            seconds = answer.lifetime_seconds
            return ok("session", "one was opened" + (f", for {seconds:.0f} s" if seconds else ""))
        return self._refusal("session", answer)

    def _refusal(self, check: str, answer: Answer) -> Finding:
        advice, exit_code = self._remedy(answer)
        if self._config.sandbox_url is not None:
            # It takes any key and any account, unless it was told to refuse them.
            advice = other_side_fails(self._config)
        return failed(check, answer.message, advice, exit_code)

    def _remedy(self, answer: Answer) -> tuple[str, ExitCode]:
        if answer.status == 403:
            return _permission(answer), ExitCode.AUTHENTICATION
        if answer.status == 401:
            advice = (
                f"put a key that is not revoked, of the right account and mode, into "
                f"{self._key_origin} (Dashboard: Developers, API keys)"
            )
            return advice, ExitCode.AUTHENTICATION
        if answer.verdict is Verdict.UNAUTHORIZED:
            advice = "correct METER_AGENT_STRIPE_VERSION, _STRIPE_ACCOUNT and _STRIPE_CONTEXT"
            return f"{advice}, or unset them", ExitCode.USAGE
        return other_side_fails(self._config), ExitCode.UNREACHABLE

    # -- meters --------------------------------------------------------------------------------

    def check_meters(self, events: Collection[str]) -> Iterator[Finding]:
        """Yield whether there is a meter for each event name, and looks where we write.

        Args:
            events: Event names that are recorded, beside those of `payload_keys`.
        """
        meters = self._list_meters()
        if isinstance(meters, Answer):
            yield self._unlisted(meters)
            return
        if self._takes_everything(meters):
            yield ok("meters", "this sandbox has one for every event name")
            return
        wanted = dict.fromkeys([*events, *self._config.payload_keys])
        if not wanted:
            yield from self._survey(meters)
        for event_name in wanted:
            yield self._check_meter(event_name, meters)

    def _list_meters(self) -> dict[str, _Meter] | Answer:
        meters: dict[str, _Meter] = {}
        after: str | None = None
        for _ in range(_PAGES_MAX):
            answer = self._stream.list_meters(after)
            if answer.verdict is not Verdict.ACCEPTED:
                return answer
            page = (answer.body or {}).get("data") or []
            try:
                for meter in map(_meter, page):
                    # It belongs to one active meter; archived ones may have had it before.
                    if meter.event_name not in meters or meter.active:
                        meters[meter.event_name] = meter
                after = page[-1]["id"] if page else None
            except (KeyError, TypeError):
                text = "an answer that is no list of meters; is a proxy answering?"
                return Answer(Verdict.RETRY, text, status=answer.status)
            if after is None or not (answer.body or {}).get("has_more"):
                break
        return meters

    def _unlisted(self, answer: Answer) -> Finding:
        if answer.status != 403 or self._config.sandbox_url is not None:
            return self._refusal("meters", answer)
        return warning("meters", f"not compared: {answer.message}", _permission(answer))

    def _takes_everything(self, meters: Mapping[str, _Meter]) -> bool:
        if self._config.sandbox_url is None or meters:
            return False
        try:
            return read_control(self._config, "meters")["meters"] is None
        except SandboxControlError:
            return False

    def _survey(self, meters: Mapping[str, _Meter]) -> Iterator[Finding]:
        # Nobody said what is recorded: each active meter may be meant.
        active = [meter for meter in meters.values() if meter.active]
        if not active:
            yield failed(
                "meters",
                "the account has no active meter, in this mode",
                self._fix("no_meter"),
                ExitCode.BAD,
            )
            return
        others = [meter for meter in active if meter.keys != self._keys(meter.event_name)]
        if others:
            names = _listed([meter.event_name for meter in others])
            yield warning(
                "meters",
                f"{names}: not under the payload keys that the settings have",
                f"if you record them: {self._payload_keys_for(others)}",
            )
            return
        names = _listed([meter.event_name for meter in active])
        yield ok("meters", f"{len(active)} active: {names}; --event NAME checks a certain one")

    def _check_meter(self, event_name: str, meters: Mapping[str, _Meter]) -> Finding:
        meter = meters.get(event_name)
        if meter is None:
            near = difflib.get_close_matches(event_name, meters, n=1)
            hint = f"is {near[0]} meant? Else " if near else ""
            return failed(
                "meters",
                f"{event_name}: {VERDICTS['no_meter'].meaning}",
                hint + self._fix("no_meter"),
                ExitCode.BAD,
            )
        if not meter.active:
            told, fix = VERDICTS["archived_meter"].meaning, self._fix("archived_meter")
            return failed("meters", f"{event_name}: {told}", fix, ExitCode.BAD)
        keys = self._keys(event_name)
        if meter.keys != keys:
            return failed(
                "meters",
                f"{event_name}: the meter looks for {meter.keys.customer_key} and "
                f"{meter.keys.value_key}, and the settings write {keys.customer_key} and "
                f"{keys.value_key}",
                self._payload_keys_for([meter]),
                ExitCode.BAD,
            )
        return ok("meters", f"{event_name}: active, with {keys.customer_key} and {keys.value_key}")

    def _fix(self, code: str) -> str:
        if self._config.sandbox_url is None:
            return VERDICTS[code].fix
        url = f"{self._config.sandbox_url}/_sandbox/meters"
        return f"have the sandbox take every event name: `curl -s -X DELETE {url}`"

    def _keys(self, event_name: str) -> PayloadKeys:
        default, by_event = self._config.encoder_keys
        return by_event.get(event_name, default)

    def _payload_keys_for(self, meters: Collection[_Meter]) -> str:
        wanted = {name: dict(keys) for name, keys in self._config.payload_keys.items()}
        wanted |= {meter.event_name: meter.keys._asdict() for meter in meters}
        text = json.dumps(wanted).replace("'", r"'\''")
        return f"`export METER_AGENT_PAYLOAD_KEYS='{text}'`"


def _meter(document: Mapping[str, Any]) -> _Meter:
    return _Meter(
        document["event_name"],
        document["status"] == "active",
        PayloadKeys(
            document["customer_mapping"]["event_payload_key"],
            document["value_settings"]["event_payload_key"],
        ),
    )


def _permission(answer: Answer) -> str:
    match = _PERMISSION.search(answer.message)
    if match is None:
        return RESTRICTED_KEY
    return f"give the key the permission {match['name']} (Dashboard: Developers, API keys)"


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_MAX
    return ", ".join(names[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
