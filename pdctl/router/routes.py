"""What is to be found where: the router's paths, and the methods that each takes."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from pdctl.router.client.server import Client, Work
from pdctl.router.control import Control
from pdctl.router.messages import Request
from pdctl.router.operations import INSTANCES, Operations
from pdctl.router.requests.intake import accept

if TYPE_CHECKING:
    from pdctl.router.app import Router

log = logging.getLogger(__name__)

Handler = Callable[[Request, Client], Work | None]
Methods = dict[bytes, Handler]

_MODEL = b"/v1/models/"  # and a name


class Routes:
    """Answers every request, or says why not."""

    def __init__(self, router: "Router") -> None:
        control, operations = Control(router), Operations(router)

        def forward(request: Request, client: Client) -> Work | None:
            return accept(router, request, client)

        self._paths: dict[bytes, Methods] = {
            b"/v1/chat/completions": {b"POST": forward},
            b"/v1/completions": {b"POST": forward},
            b"/v1/models": _readable(control.models),
            b"/health": _readable(control.health),
            b"/health/live": _readable(control.alive),
            b"/health_generate": _readable(control.generate),
            b"/metrics": _readable(control.metrics),
            b"/register": {b"POST": operations.register},
            b"/registered": _readable(operations.registered),
            b"/registered_number": _readable(operations.registered_number),
            b"/instances": _readable(operations.instances),
            b"/v1/abort_requests": {b"POST": operations.abort},
        }
        self._model = _readable(control.model)
        self._instance: Methods = {b"DELETE": operations.remove, b"POST": operations.drain}

    def answer(self, request: Request, client: Client) -> Work | None:
        """Answer a request, or begin to."""
        try:
            return self._answer(request, client)
        except Exception:  # its connection, and whatever called it, must not be left half-way
            log.exception("a request to %s failed", request.path.decode("latin-1"))
            client.error(500, "internal error: see the router's log", code="internal_error")
            return None

    def _answer(self, request: Request, client: Client) -> Work | None:
        methods = self._methods(request.path)
        handler = methods.get(request.method)
        if handler is not None:
            return handler(request, client)
        path = request.path.decode("latin-1")
        allow = b"allow: %b\r\n" % b", ".join((*(methods or (b"GET", b"HEAD", b"POST")), b"OPTIONS"))
        if request.method == b"OPTIONS" and (methods or path == "*"):
            client.reply(204, b"", headers=allow)
        elif methods:
            client.error(405, f"{path} does not take {request.method.decode()}", headers=allow)
        else:
            client.error(404, f"there is nothing at {path}", code="not_found")
        return None

    def _methods(self, path: bytes) -> Methods:
        methods = self._paths.get(path)
        if methods is not None:
            return methods
        if path.startswith(_MODEL):
            return self._model
        return self._instance if path.startswith(INSTANCES) else {}


def _readable(handler: Handler) -> Methods:
    return {b"GET": handler, b"HEAD": handler}
