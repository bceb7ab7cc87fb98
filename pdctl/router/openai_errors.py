"""Errors in the shape that OpenAI clients read."""

import msgspec


def error_object(status: int, message: str, code: str | None = None) -> dict[str, object]:
    """The object `{"error": {...}}` of an error with this HTTP status."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_body(status: int, message: str, code: str | None = None) -> bytes:
    """An answer's body."""
    return msgspec.json.encode(error_object(status, message, code))


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    """A server-sent event that ends a stream that has already begun."""
    return b"event: error\ndata: %b\n\n" % error_body(status, message, code)
