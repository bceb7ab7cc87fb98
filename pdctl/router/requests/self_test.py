"""A request of the router's own, which goes the way of all requests: whether it is served is the truth about health."""

import asyncio
import os
from typing import TYPE_CHECKING

import msgspec

from pdctl.router.messages import Request
from pdctl.router.openai_errors import error_object
from pdctl.router.requests.body import parse_body
from pdctl.router.requests.exchange import Exchange
from pdctl.router.requests.selection import SelectionError

if TYPE_CHECKING:
    from pdctl.router.app import Router

_PATH = b"/v1/completions"
_TIMEOUT = 30.0


async def generate(router: "Router", model: str) -> tuple[int, object]:
    """Have one token generated; the status of the answer, and the error if it is one."""
    body = msgspec.json.encode({"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0})
    request = Request(
        method=b"POST",
        target=_PATH,
        path=_PATH,
        headers={},
        forwarded=b"content-type: application/json\r\n",
        body=body,
        http11=True,
        keep_alive=True,
    )
    asker = Asker()
    exchange = Exchange(
        router, asker, request, parse_body(body, chat=False), f"health-{os.urandom(8).hex()}", None, None
    )
    try:
        exchange.start()
        async with asyncio.timeout(_TIMEOUT):
            status = await asyncio.shield(asker.answered)  # a cancelled future would look answered
    except SelectionError as error:
        return error.status, error_object(error.status, str(error), error.code)
    except TimeoutError:
        return 504, error_object(504, f"no token was generated within {_TIMEOUT:g} s", "timeout")
    finally:
        if not asker.answered.done():
            exchange.client_left()
    return status, asker.body or error_object(status, "the engines gave no reason", None)


class Asker:
    """Takes an answer as a client does."""

    takes_chunks = False
    address = "the router itself"

    def __init__(self) -> None:
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.body = b""
        self._status = 0

    def start(self, status: int, headers: bytes, length: int | None, *, framed: bool = False) -> None:
        """Begin the answer."""
        self._status = status

    def write(self, body: bytes, *, end: bool) -> None:
        """A piece of its body."""
        self.body += body
        if end and not self.answered.done():
            self.answered.set_result(self._status)

    def error(self, status: int, message: str, *, code: str | None = None, headers: bytes = b"") -> None:
        """An error of the router."""
        self.start(status, headers, None)
        self.write(msgspec.json.encode(error_object(status, message, code)), end=True)

    def break_off(self, last: bytes | None = None) -> None:
        """The answer ends in the middle."""
        self._status = 502
        self.write(b"", end=True)
