"""`/_sandbox/`: the same controls that Python has, as JSON.

It is part of the state machine and not of the web application, so that every door has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from meter_agent.sandbox._errors import StripeError
from meter_agent.sandbox._faults import Fault
from meter_agent.sandbox._meters import Meter
from meter_agent.sandbox._reply import Reply, json_reply

if TYPE_CHECKING:
    from meter_agent.sandbox._sandbox import Sandbox

__all__ = ["answer", "is_control"]

_PREFIX = "/_sandbox"
_PAGE = 1000

_Query = Mapping[str, str]
_Action = Callable[["Sandbox", _Query, Any], object]


def is_control(path: str) -> bool:
    """Whether *path* is one of the controls."""
    return path == _PREFIX or path.startswith(_PREFIX + "/")


def answer(sandbox: Sandbox, method: str, path: str, query: str, body: bytes) -> Reply:
    """Answer one request to the controls."""
    try:
        actions = _ROUTES.get(path.removeprefix(_PREFIX).strip("/"))
        if actions is None:
            raise StripeError.not_found(path)
        action = actions.get(method.upper())
        if action is None:
            raise StripeError.method_not_allowed(method, path, ", ".join(actions))
        document = json.loads(body) if body else None
        return json_reply(200, action(sandbox, dict(parse_qsl(query)), document))
    except StripeError as error:
        return error.reply()
    except (ValueError, RecursionError) as error:
        return StripeError.invalid(str(error)).reply()


def _totals(sandbox: Sandbox, _query: _Query, _document: Any) -> object:
    return sandbox.totals()


def _ledger(sandbox: Sandbox, query: _Query, _document: Any) -> object:
    events = sandbox.ledger(
        event_name=query.get("event_name"),
        customer=query.get("customer"),
        identifier=query.get("identifier"),
        offset=_count(query, "offset", 0),
        limit=_count(query, "limit", _PAGE),
    )
    return {"events": events}


def _rejected(sandbox: Sandbox, query: _Query, _document: Any) -> object:
    return {"rejected": _last(sandbox.rejected, query)}


def _requests(sandbox: Sandbox, query: _Query, _document: Any) -> object:
    return {"requests": [asdict(request) for request in _last(sandbox.requests, query)]}


def _faults(sandbox: Sandbox, _query: _Query, _document: Any) -> object:
    return {"faults": [fault.to_json() for fault in sandbox.faults]}


def _add_faults(sandbox: Sandbox, query: _Query, document: Any) -> object:
    # All or none: a list with one wrong fault changes nothing.
    faults = [
        Fault.from_json(each) for each in (document if isinstance(document, list) else [document])
    ]
    for fault in faults:
        sandbox.add_fault(fault)
    return _faults(sandbox, query, document)


def _clear_faults(sandbox: Sandbox, query: _Query, document: Any) -> object:
    sandbox.clear_faults()
    return _faults(sandbox, query, document)


def _meters(sandbox: Sandbox, _query: _Query, _document: Any) -> object:
    return {"meters": sandbox.meters}


def _set_meters(sandbox: Sandbox, query: _Query, document: Any) -> object:
    if not isinstance(document, list):
        raise ValueError("meters: send a list of event names or of objects with event_name")  # noqa: TRY004 - one type for bad input
    sandbox.set_meters([Meter.from_json(each) for each in document])
    return _meters(sandbox, query, document)


def _forget_meters(sandbox: Sandbox, query: _Query, document: Any) -> object:
    sandbox.set_meters(None)
    return _meters(sandbox, query, document)


def _clock(sandbox: Sandbox, _query: _Query, _document: Any) -> object:
    return {"now": sandbox.now()}


def _move_clock(sandbox: Sandbox, query: _Query, document: Any) -> object:
    name, value = _only_item(document)
    if name not in ("advance", "now") or isinstance(value, bool):
        raise ValueError('clock: send {"advance": seconds} or {"now": unix seconds}')
    if not isinstance(value, int | float) or not abs(value) < 1e11:
        raise ValueError(f"clock: {name} must be a number of seconds")
    sandbox.advance(value if name == "advance" else value - sandbox.now())
    return _clock(sandbox, query, document)


def _revoke(sandbox: Sandbox, _query: _Query, _document: Any) -> object:
    sandbox.revoke_sessions()
    return {}


def _reset(sandbox: Sandbox, _query: _Query, _document: Any) -> object:
    sandbox.reset()
    return {}


_ROUTES: dict[str, dict[str, _Action]] = {
    "totals": {"GET": _totals},
    "ledger": {"GET": _ledger},
    "rejected": {"GET": _rejected},
    "requests": {"GET": _requests},
    "faults": {"GET": _faults, "POST": _add_faults, "DELETE": _clear_faults},
    "meters": {"GET": _meters, "POST": _set_meters, "DELETE": _forget_meters},
    "clock": {"GET": _clock, "POST": _move_clock},
    "revoke": {"POST": _revoke},
    "reset": {"POST": _reset},
}


def _only_item(document: Any) -> tuple[str, Any]:
    if not isinstance(document, dict) or len(document) != 1:
        return "", None
    return next(iter(document.items()))


def _last(rows: list[Any], query: _Query) -> list[Any]:
    limit = _count(query, "limit", _PAGE)
    return rows[-limit:] if limit else []


def _count(query: _Query, name: str, usual: int) -> int:
    text = query.get(name, str(usual))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError(f"{name}: must be a whole number, 0 or more")
    return int(text)
