"""What the deployment asks of the router: engines that register, drain and go, requests to abort. Needs its token."""

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import msgspec

from pdctl.router.access.origin import refusal, without_claims
from pdctl.router.access.tokens import authorized, bearer
from pdctl.router.client.server import Client
from pdctl.router.engines.instance import Instance, Registration, parse_registration
from pdctl.router.engines.registry import RegistrationError
from pdctl.router.job import Job, Reply
from pdctl.router.messages import JSON, Request
from pdctl.router.upstream.fetch import FetchError, fetch
from pdctl.router.upstream.pool import address
from pdctl.router.workers.bus import Aborted, Drained, Registered, Removed

if TYPE_CHECKING:
    from pdctl.router.app import Router

INSTANCES = b"/instances/"  # and a key, and perhaps what to do
_MAX_REGISTRATION = 256 * 1024  # bytes: every worker gets a copy of each
_MAX_ABORT = 1024 * 1024  # likewise
_ACTIONS = {"drain": True, "undrain": False}


class AbortRequest(msgspec.Struct):
    """What is posted to /v1/abort_requests."""

    abort_all: bool = False
    req_ids: list[str] = []


class Operations:
    """The handlers, by path and method."""

    def __init__(self, router: "Router") -> None:
        self._router = router

    def register(self, request: Request, client: Client) -> Job:
        """POST /register: an engine's first or repeated registration."""
        return Job(client, self._register(request, client.host))

    def abort(self, request: Request, client: Client) -> Job:
        """POST /v1/abort_requests: passed on to every engine."""
        return Job(client, self._abort(request))

    def registered(self, request: Request, client: Client) -> Job:
        """GET /registered: what the live instances say about themselves; answered when every worker knows of them."""
        live = self._router.registry.live
        answer = {
            "prefill": [i.registration for i in live("prefill")],
            "decode": [i.registration for i in live("decode")],
            "mixed": [i.registration for i in live("mixed")],
        }
        return Job(client, self._when_settled(answer))

    def registered_number(self, request: Request, client: Client) -> Job:
        """GET /registered_number: how many of them there are of each role."""
        live = self._router.registry.live
        numbers = {"mixed": len(live("mixed")), "prefill": len(live("prefill")), "decode": len(live("decode"))}
        return Job(client, self._when_settled(numbers))

    def instances(self, request: Request, client: Client) -> None:
        """GET /instances: every instance that is known, how it is, and what it has to do."""
        answer = [_description(instance) for instance in self._router.registry.instances.values()]
        client.reply(200, msgspec.json.encode(answer))

    def drain(self, request: Request, client: Client) -> Job | None:
        """POST /instances/{id}/drain or /undrain: no more requests for an instance, or requests again."""
        key, _, action = _path(request).rpartition("/")
        draining = _ACTIONS.get(action)
        if draining is None:
            client.error(404, f"an instance takes {' or '.join(_ACTIONS)}, not {action or 'nothing'}", code="not_found")
            return None
        instance = self._find(request, client, key)
        if instance is None:
            return None
        self._router.registry.drain(instance, draining=draining)
        self._router.bus.publish(Drained(instance.key, draining))
        return Job(client, self._when_settled(_description(instance)))

    def remove(self, request: Request, client: Client) -> Job | None:
        """DELETE /instances/{id}: forget an instance; what it is serving ends as it would have."""
        instance = self._find(request, client, _path(request))
        if instance is None:
            return None
        answer = _description(instance)
        self._router.registry.remove(instance)
        self._router.bus.publish(Removed(instance.key))
        return Job(client, self._when_settled(answer))

    async def _when_settled(self, answer: object) -> Reply:
        """Answer when the other workers know."""
        await self._router.bus.settle()
        return 200, answer

    def _find(self, request: Request, client: Client, key: str) -> Instance | None:
        if not authorized(self._router.settings.token, request):
            client.reply(401, msgspec.json.encode({"detail": "changing instances needs the deployment's token"}))
            return None
        instance = self._router.registry.instances.get(key)
        if instance is None:
            client.reply(404, msgspec.json.encode({"detail": f"there is no instance {key}: see GET /instances"}))
        return instance

    async def _register(self, request: Request, peer: str) -> Reply:
        settings = self._router.settings
        has_token = authorized(settings.token, request)
        if not has_token and not settings.admitted:
            return 401, {"detail": "a registration needs the deployment's token"}
        if len(request.body) > _MAX_REGISTRATION:
            return 413, {"detail": f"a registration has at most {_MAX_REGISTRATION} bytes"}
        try:
            registration = parse_registration(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return 400, {"detail": str(error)}
        if not has_token:
            refused = refusal(settings.admitted, registration, peer)
            if refused is not None:
                return 401, {"detail": refused}
            registration = without_claims(registration)
        registry, bus = self._router.registry, self._router.bus
        try:
            news = await registry.register(registration)
        except RegistrationError as error:
            if registry.is_kept_out(_key(registration)):
                bus.publish(Removed(_key(registration)))  # the time until it may come back begins again
            return 400, {"detail": str(error)}
        instance = registry.instances[_key(registration)]
        bus.publish(Registered(registration, instance.engine_id, news, instance.served))
        if news:
            await bus.settle()
        if registration.role != "prefill":
            return 200, {"status": "success"}
        return 200, {"status": "success", "decodes": self._decodes_for(registration)}

    def _decodes_for(self, registration: Registration) -> list[dict[str, object]]:
        """The decode engines that a prefill engine may have to send KV to: it connects before the first request."""
        live = [instance.registration for instance in self._router.registry.live("decode")]
        return [
            {"host_ip": decode.host_ip, "connector_port": decode.connector_port}
            for decode in live
            if decode.model == registration.model and decode.protocol == registration.protocol and decode.connector_port
        ]

    async def _abort(self, request: Request) -> Reply:
        if not authorized(self._router.settings.token, request):
            return 401, {"detail": "aborting requests needs the deployment's token"}
        if len(request.body) > _MAX_ABORT:
            return 413, {"detail": f"a call to abort requests has at most {_MAX_ABORT} bytes: make several"}
        try:
            wanted = msgspec.json.decode(request.body, type=AbortRequest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return 400, {"detail": str(error)}
        if wanted.abort_all == bool(wanted.req_ids):
            return 400, {"detail": 'give either "abort_all": true or "req_ids": [...]'}
        self._router.bus.publish(Aborted(wanted.req_ids))
        self._router.abort(wanted.req_ids)
        await self._router.bus.settle()  # else another worker would try what an engine aborts again
        wanted.req_ids = [name for request_id in wanted.req_ids for name in self._engine_ids(request_id)]
        body = msgspec.json.encode(wanted)
        takers = [i for i in self._router.registry.instances.values() if i.live and i.protocol.takes_aborts]
        answers = await asyncio.gather(*(self._pass_on(instance, request.path, body) for instance in takers))
        results = {instance.url: answer for instance, (_, answer) in zip(takers, answers, strict=True)}
        return 200 if all(done for done, _ in answers) else 502, {"results": results}

    def _engine_ids(self, request_id: str) -> list[str]:
        """What engines may call a request: another worker may have tried it again."""
        attempts = self._router.settings.limits.attempts + self._router.settings.limits.resumes
        return [request_id, *(f"{request_id}-retry{attempt}" for attempt in range(1, attempts))]

    async def _pass_on(self, instance: Instance, path: bytes, body: bytes) -> tuple[bool, str]:
        limits, token = self._router.settings.limits, self._router.settings.token
        headers = b"content-type: %b\r\n%b" % (JSON, bearer(token))
        try:
            answer = await fetch(instance.pool, b"POST", path, headers=headers, body=body, timeout=limits.abort_timeout)
        except FetchError as error:
            return False, str(error)
        return 200 <= answer.status < 300, f"answered {answer.status}"


def _key(registration: Registration) -> str:
    return address(registration.host_ip, registration.port)


def _path(request: Request) -> str:
    return unquote_to_bytes(request.path.removeprefix(INSTANCES)).decode(errors="replace")


def _description(instance: Instance) -> dict[str, object]:
    return {
        "id": instance.key,
        "role": instance.registration.role,
        "model": instance.registration.model,
        "protocol": instance.registration.protocol,
        "state": _state(instance),
        "reason": instance.reason,
        "breaker": instance.breaker.state.name.lower(),
        "requests_in_flight": instance.load.requests,
        "tokens_in_flight": instance.load.tokens,
        "fixed": instance.fixed,
    }


def _state(instance: Instance) -> str:
    if not instance.live:
        return "down"
    if instance.draining:
        return "draining"
    return "paused" if instance.registration.is_paused else "ready"
