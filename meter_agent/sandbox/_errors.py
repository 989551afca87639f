"""Stripe-shaped refusals: the v2 error envelope, each kind written once.

Where Stripe publishes a code it is used; `session_token_required`, `invalid_fields` and the like
stand for answers that Stripe does not document, so nothing should depend on their text.
"""

from meter_agent.sandbox._reply import Reply, json_reply

__all__ = ["StripeError", "default_error"]

_DOC_URL = "https://docs.stripe.com/error-codes"


class StripeError(Exception):
    """A request, or one event of it, that is refused."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str | None = None,  # noqa: A002  # the name on the wire
        async_code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type
        self.async_code = async_code
        """The code of Stripe's error report when the stream finds this out only later."""
        self.headers = headers or {}

    def reply(self) -> Reply:
        """The envelope `{"error": {...}}` with this error's status."""
        error = {"code": self.code, "message": self.message}
        if self.type is not None:
            error |= {"type": self.type, "doc_url": f"{_DOC_URL}#{self.code}"}
        return json_reply(self.status, {"error": error}, self.headers)

    @classmethod
    def unauthorized(cls, code: str, message: str) -> "StripeError":
        """A credential that never was valid here. It says nothing about an expired session."""
        return cls(401, code, message)

    @classmethod
    def session_expired(cls, status: int) -> "StripeError":
        """The token was good once."""
        return cls(
            status,
            "billing_meter_event_session_expired",
            "The temporary session token has expired.",
            type="temporary_session_expired",
        )

    @classmethod
    def invalid(cls, message: str) -> "StripeError":
        """The request's shape is wrong."""
        return cls(400, "invalid_fields", message)

    @classmethod
    def not_found(cls, path: str) -> "StripeError":
        """No such path."""
        return cls(404, "not_found", f"Unrecognized request URL ({path}).")

    @classmethod
    def method_not_allowed(cls, method: str, path: str, allowed: str) -> "StripeError":
        """The path exists, the method does not."""
        message = f"{method} is not supported on {path}; use {allowed}."
        return cls(405, "method_not_allowed", message, headers={"Allow": allowed})

    @classmethod
    def idempotency(cls, key: str) -> "StripeError":
        """A key came back with another body. Stripe sends no `type` with this one."""
        return cls(
            409,
            "idempotency_error",
            f"An idempotent retry occurred with different request parameters (key {key[:64]}).",
        )

    @classmethod
    def duplicate(cls, identifier: str) -> "StripeError":
        """The identifier was used within the last 24 hours."""
        return cls(
            400,
            "duplicate_meter_event",
            f"An event already exists with identifier {identifier}",
        )


def default_error(status: int, code: str | None, message: str | None) -> StripeError:
    """The error that a bare HTTP *status* stands for, unless told otherwise."""
    usual_code, type_ = _USUAL.get(status, ("api_error", None))
    text = message or f"The sandbox was told to answer {status}."
    return StripeError(status, code or usual_code, text, type=type_)


_USUAL: dict[int, tuple[str, str | None]] = {
    400: ("invalid_fields", None),
    401: ("invalid_api_key", None),
    403: ("permission_denied", None),
    404: ("not_found", None),
    409: ("idempotency_error", None),
    413: ("request_too_large", None),
    429: ("rate_limit_exceeded", "rate_limit"),
}
