"""What clients may ask of the router itself: models, health, figures."""

import time
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import msgspec

from pdctl.router.client.server import Client
from pdctl.router.figures.metrics import CONTENT_TYPE
from pdctl.router.job import Job, Reply
from pdctl.router.messages import RETRY_AFTER, Request
from pdctl.router.openai_errors import error_object
from pdctl.router.requests.intake import WWW_AUTHENTICATE, IntakeError, authenticate
from pdctl.router.requests.self_test import generate

if TYPE_CHECKING:
    from pdctl.router.app import Router


class Control:
    """The handlers, by path and method."""

    def __init__(self, router: "Router") -> None:
        self._router = router
        self._started = int(time.time())

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
        """GET /v1/models: the names under which the live instances serve. Needs an API key, as requests do."""
        if self._refused(request, client):
            return
        client.reply(200, msgspec.json.encode({"object": "list", "data": list(self._models().values())}))

    def model(self, request: Request, client: Client) -> None:
        """GET /v1/models/{name}: one of them."""
        if self._refused(request, client):
            return
        name = unquote_to_bytes(request.path.removeprefix(b"/v1/models/")).decode(errors="replace")
        model = self._models().get(name)
        if model is None:
            client.error(404, f"the model {name} is not served here", code="model_not_found")
        else:
            client.reply(200, msgspec.json.encode(model))

    def metrics(self, request: Request, client: Client) -> Job:
        """GET /metrics: Prometheus text, of all workers together."""
        return Job(client, self._metrics(), CONTENT_TYPE)

    def generate(self, request: Request, client: Client) -> Job | None:
        """GET /health_generate: whether a request is served, found out by one of one token. Needs an API key."""
        return None if self._refused(request, client) else Job(client, self._generate())

    def _refused(self, request: Request, client: Client) -> bool:
        try:
            authenticate(self._router, request)
        except IntakeError as error:
            client.error(error.status, str(error), code=error.code, headers=WWW_AUTHENTICATE)
            return True
        return False

    async def _metrics(self) -> Reply:
        router, metrics = self._router, self._router.metrics
        others = await router.bus.collect()
        metrics.workers.value, metrics.workers_reporting.value = router.settings.workers, 1 + others.answered
        return 200, metrics.render(router.figures(), others.figures, others.last_known)

    async def _generate(self) -> Reply:
        router = self._router
        if router.stopping or not router.registry.groups:
            return 503, error_object(503, "the router is stopping", "not_ready")
        for group in router.registry.groups.values():
            status, answer = await generate(router, group.model)
            if status != 200:
                return status, answer
        return 200, {"status": "ok"}

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
