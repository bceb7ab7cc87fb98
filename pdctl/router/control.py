"""What the router answers itself: registration, lists, health, models, metrics, aborts."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import msgspec

from pdctl.router.fetch import FetchError, fetch
from pdctl.router.instance import Instance, parse_registration
from pdctl.router.intake import RETRY_AFTER
from pdctl.router.messages import JSON, Request
from pdctl.router.metrics import CONTENT_TYPE
from pdctl.router.registry import RegistrationError
from pdctl.router.server import Client
from pdctl.router.tokens import authorized, bearer

if TYPE_CHECKING:
    from pdctl.router.app import Router

log = logging.getLogger(__name__)


class AbortRequest(msgspec.Struct):
    """What is posted to /v1/abort_requests."""

    abort_all: bool = False
    req_ids: list[str] = []


class Job:
    """A control call that has to wait for an engine."""

    def __init__(self, client: Client, work: Awaitable[tuple[int, object]]) -> None:
        self._client = client
        self._work = work
        self._task = asyncio.get_running_loop().create_task(self._run())

    def client_left(self) -> None:
        """Nobody waits any more."""
        self._task.cancel()

    def pause(self) -> None:
        """Its answer is small."""

    def resume(self) -> None:
        """Its answer is small."""

    async def _run(self) -> None:
        try:
            status, answer = await self._work
        except Exception:
            log.exception("a control call failed")
            status, answer = 500, {"detail": "internal error: see the router's log"}
        self._client.reply(status, msgspec.json.encode(answer))


class Control:
    """The handlers, by path and method."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._started = int(time.time())

    def register(self, request: Request, client: Client) -> Job:
        """POST /register: an engine's first or repeated registration."""
        return Job(client, self._register(request))

    def abort(self, request: Request, client: Client) -> Job:
        """POST /v1/abort_requests: passed on to every engine."""
        return Job(client, self._abort(request))

    def registered(self, request: Request, client: Client) -> None:
        """GET /registered: what the live instances say about themselves."""
        live = self._router.registry.live
        answer = {
            "prefill": [i.registration for i in live("prefill")],
            "decode": [i.registration for i in live("decode")],
            "mixed": [i.registration for i in live("mixed")],
        }
        client.reply(200, msgspec.json.encode(answer))

    def registered_number(self, request: Request, client: Client) -> None:
        """GET /registered_number: how many there are of each role."""
        live = self._router.registry.live
        numbers = {"mixed": len(live("mixed")), "prefill": len(live("prefill")), "decode": len(live("decode"))}
        client.reply(200, msgspec.json.encode(numbers))

    def health(self, request: Request, client: Client) -> None:
        """GET /health: whether a request can be served."""
        reason = "the router is stopping" if self._router.stopping else self._router.registry.missing()
        if reason is None:
            client.reply(200, b'{"status":"ok"}')
        else:
            client.error(503, reason, code="not_ready", headers=RETRY_AFTER)

    def alive(self, request: Request, client: Client) -> None:
        """GET /health/live: that this process answers."""
        client.reply(200, b'{"status":"alive"}')

    def models(self, request: Request, client: Client) -> None:
        """GET /v1/models: the names under which the live instances serve."""
        client.reply(200, msgspec.json.encode({"object": "list", "data": list(self._models().values())}))

    def model(self, request: Request, client: Client) -> None:
        """GET /v1/models/{name}: one of them."""
        name = unquote_to_bytes(request.path.removeprefix(b"/v1/models/")).decode(errors="replace")
        model = self._models().get(name)
        if model is None:
            client.error(404, f"the model {name} is not served here", code="model_not_found")
        else:
            client.reply(200, msgspec.json.encode(model))

    def metrics(self, request: Request, client: Client) -> None:
        """GET /metrics: Prometheus text."""
        router = self._router
        gauges = {"requests_in_flight": len(router.in_flight), "client_connections": len(router.server.clients)}
        page = router.metrics.render(router.registry.instances.values(), gauges)
        client.reply(200, page, content_type=CONTENT_TYPE)

    async def _register(self, request: Request) -> tuple[int, object]:
        if not authorized(self._router.settings.token, request):
            return 401, {"detail": "a registration needs the deployment's token"}
        try:
            await self._router.registry.register(parse_registration(request.body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RegistrationError) as error:
            return 400, {"detail": str(error)}
        return 200, {"status": "success"}

    async def _abort(self, request: Request) -> tuple[int, object]:
        if not authorized(self._router.settings.token, request):
            return 401, {"detail": "aborting requests needs the deployment's token"}
        try:
            wanted = msgspec.json.decode(request.body, type=AbortRequest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return 400, {"detail": str(error)}
        if wanted.abort_all == bool(wanted.req_ids):
            return 400, {"detail": 'give either "abort_all": true or "req_ids": [...]'}
        wanted.req_ids = [self._engine_id(request_id) for request_id in wanted.req_ids]
        body = msgspec.json.encode(wanted)
        live = [instance for instance in self._router.registry.instances.values() if instance.live]
        answers = await asyncio.gather(*(self._pass_on(instance, request.path, body) for instance in live))
        results = {instance.url: answer for instance, (_, answer) in zip(live, answers, strict=True)}
        return 200 if all(done for done, _ in answers) else 502, {"results": results}

    def _engine_id(self, request_id: str) -> str:
        exchange = self._router.in_flight.get(request_id)
        return request_id if exchange is None else exchange.engine_id

    async def _pass_on(self, instance: Instance, path: bytes, body: bytes) -> tuple[bool, str]:
        limits, token = self._router.settings.limits, self._router.settings.token
        headers = b"content-type: %b\r\n%b" % (JSON, bearer(token))
        try:
            status = await fetch(instance, b"POST", path, headers=headers, body=body, timeout=limits.abort_timeout)
        except FetchError as error:
            return False, str(error)
        return 200 <= status < 300, f"answered {status}"

    def _models(self) -> dict[str, dict[str, object]]:
        models: dict[str, dict[str, object]] = {}
        for instance in self._router.registry.instances.values():
            registration = instance.registration
            if not instance.live or not registration.model:
                continue
            model = models.setdefault(
                registration.model,
                {"id": registration.model, "object": "model", "created": self._started, "owned_by": "pdctl"},
            )
            if registration.max_model_len is not None:
                shortest = min(
                    int(str(model.get("max_model_len", registration.max_model_len))), registration.max_model_len
                )
                model["max_model_len"] = shortest
        return models
