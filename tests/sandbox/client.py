"""A caller that knows the protocol, for tests that are about something else."""

import itertools
import json
from typing import Any

from meter_agent.sandbox import Reply, Sandbox

NOW = 1_800_000_000.0
API_KEY = "sk_test_1"
SESSION = "/v2/billing/meter_event_session"
STREAM = "/v2/billing/meter_event_stream"

_numbers = itertools.count(1)


def event(identifier: Any = None, value: str = "1", **fields: Any) -> dict[str, Any]:
    """A good event, unless *fields* spoil it."""
    return {
        "event_name": "api_requests",
        "identifier": f"event-{next(_numbers)}" if identifier is None else identifier,
        "payload": {"stripe_customer_id": "cus_1", "value": value},
        **fields,
    }


def headers(credential: str, **more: str) -> dict[str, str]:
    """What a v2 request must say about itself."""
    return {
        "Authorization": f"Bearer {credential}",
        "Stripe-Version": "2026-10-28.endive",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def stream_body(*events: dict[str, Any]) -> bytes:
    """The body of a stream request."""
    return json.dumps({"events": events}).encode()


def document(reply: Reply) -> Any:
    """The JSON of an answer."""
    return json.loads(reply.body)


def code(reply: Reply) -> str:
    """The code of a refusal."""
    text: str = document(reply)["error"]["code"]
    return text


class Client:
    """Talks to a sandbox without a network."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._token: str | None = None

    def open_session(self, key: str = API_KEY) -> Reply:
        """Ask for a session."""
        return self.sandbox.handle("POST", SESSION, headers(key), b"{}")

    @property
    def token(self) -> str:
        """The token of the session in use."""
        if self._token is None:
            self._token = self.new_token()
        return self._token

    def new_token(self) -> str:
        """The token of a new session."""
        token: str = document(self.open_session())["authentication_token"]
        return token

    def send(self, *events: dict[str, Any], **more_headers: str) -> Reply:
        """Stream *events*."""
        return self.post(stream_body(*events), **more_headers)

    def post(self, body: bytes, **more_headers: str) -> Reply:
        """Stream *body* as it stands."""
        return self.sandbox.handle("POST", STREAM, headers(self.token, **more_headers), body)

    def control(self, method: str, path: str, body: Any = None) -> Reply:
        """Use the controls."""
        text = b"" if body is None else json.dumps(body).encode()
        return self.sandbox.handle(method, f"/_sandbox/{path}", {}, text)

    @property
    def identifiers(self) -> list[str]:
        """What was accepted, in order."""
        return [row["identifier"] for row in self.sandbox.ledger()]
