"""The deployment's token: what may change the router's engines, and choose among them."""

import hmac
import os
from pathlib import Path

from pdctl.errors import PdctlError
from pdctl.router.messages import Request

TOKEN_FILE = "PDCTL_TOKEN_FILE"


def load_token() -> str | None:
    """The token in the file that the environment names; None if it names none: control calls are open."""
    path = os.environ.get(TOKEN_FILE)
    if path is None:
        return None
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PdctlError(f"{TOKEN_FILE}: cannot read {path}: {error}") from None
    if not token:
        raise PdctlError(f"{TOKEN_FILE}: {path} is empty")
    return token


def same_token(token: str | None, given: bytes) -> bool:
    """Whether the right token is given, or none is needed."""
    return token is None or hmac.compare_digest(token.encode(), given)


def bearer(token: str | None) -> bytes:
    """The header line that carries the token."""
    return b"" if token is None else b"authorization: Bearer %b\r\n" % token.encode()


def authorized(token: str | None, request: Request) -> bool:
    """Whether a control call carries the token, or none is needed."""
    kind, _, given = request.headers.get(b"authorization", b"").partition(b" ")
    return token is None or (kind.lower() == b"bearer" and same_token(token, given.strip()))
