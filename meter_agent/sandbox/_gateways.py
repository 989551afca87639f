"""Answers of what stands between an application and Stripe, in their usual forms.

None of them is Stripe's, and none carries a `Request-Id`. Faults name them: `nginx-413`.
"""

from collections.abc import Mapping

from meter_agent.sandbox._reply import Reply

__all__ = ["GATEWAY_ANSWERS"]

_JSON = "application/json"
_HTML = "text/html"


def _reply(status: int, media_type: str | None, body: str, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content_type = {} if media_type is None else {"Content-Type": media_type}
    return Reply(status, {**content_type, **named}, body.encode(), is_stripes=False)


def _nginx(status: int, reason: str) -> Reply:
    title = f"{status} {reason}"
    body = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1>"
        "</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    return _reply(status, _HTML, body, Server="nginx")


def _haproxy(status: int, reason: str, text: str) -> Reply:
    body = f"<html><body><h1>{status} {reason}</h1>\n{text}\n</body></html>\n"
    return _reply(status, _HTML, body, Cache_Control="no-cache")


def _cloudflare(status: int, title: str) -> Reply:
    body = f"<!DOCTYPE html>\n<html><head><title>{title} | Cloudflare</title></head></html>\n"
    return _reply(status, "text/html; charset=UTF-8", body, Server="cloudflare", CF_RAY="8f-FRA")


def _api_gateway(status: int, message: str) -> Reply:
    body = f'{{"message":"{message}"}}'
    return _reply(status, _JSON, body, x_amzn_RequestId="6f1c2b9e-2c53-4f0d-9d4b-0e2f4c1a7b55")


def _kong(status: int, message: str) -> Reply:
    body = f'{{\n  "message":"{message}"\n}}'
    return _reply(status, f"{_JSON}; charset=utf-8", body, Server="kong/3.7.1")


GATEWAY_ANSWERS: Mapping[str, Reply] = {
    "api-gateway-400": _api_gateway(400, "Bad Request"),
    "api-gateway-403": _api_gateway(403, "Forbidden"),
    "api-gateway-404": _api_gateway(404, "Not Found"),
    "api-gateway-413": _api_gateway(413, "Request Entity Too Large"),
    "cloudflare-403": _cloudflare(403, "Attention Required!"),
    "cloudflare-502": _cloudflare(502, "502: Bad gateway"),
    "envoy-400": _reply(400, None, "", server="envoy"),
    "envoy-404": _reply(404, None, "", server="envoy"),
    "envoy-503": _reply(
        503,
        "text/plain",
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        server="envoy",
    ),
    "google-404": _reply(
        404, _JSON, '{"error":{"code":404,"message":"Not found.","status":"NOT_FOUND"}}'
    ),
    "haproxy-400": _haproxy(400, "Bad request", "Your browser sent an invalid request."),
    "haproxy-403": _haproxy(403, "Forbidden", "Request forbidden by administrative rules."),
    "haproxy-503": _haproxy(503, "Service Unavailable", "No server is available."),
    "kong-401": _kong(401, "Unauthorized"),
    "kong-404": _kong(404, "no Route matched with those values"),
    "kong-502": _kong(502, "An invalid response was received from the upstream server"),
    "nginx-200": _nginx(200, "Welcome to nginx!"),
    "nginx-204": _reply(204, None, "", Server="nginx"),
    "nginx-400": _nginx(400, "Bad Request"),
    "nginx-403": _nginx(403, "Forbidden"),
    "nginx-404": _nginx(404, "Not Found"),
    "nginx-413": _nginx(413, "Request Entity Too Large"),
    "nginx-502": _nginx(502, "Bad Gateway"),
    "oauth-400": _reply(400, _JSON, '{"error":"invalid_request"}'),
    "portal-200": _reply(200, _HTML, "<html><body>Log in to the guest network</body></html>"),
    "portal-302": _reply(302, None, "", Location="http://portal.example/login"),
    "proxy-200": _reply(200, None, ""),
    "queue-200": _reply(200, _JSON, '{"status":"queued"}'),
    "route-404": _reply(404, _JSON, '{"error":{"message":"no route"}}'),
    "validator-422": _reply(422, _JSON, '{"detail":"x"}'),
}
"""By name, which ends in the status."""
