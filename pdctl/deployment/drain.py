"""Taking an engine out of the router's choice, and putting it back, through the router's own API."""

import asyncio
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

import httpx

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.snapshot import Snapshot
from pdctl.errors import NotFoundError, RouterError, StepTimeoutError
from pdctl.planning.plan import ProcessPlan

CALL_TIMEOUT_S = 5.0
_POLL_S = 0.2


async def drain(deployment: Deployment, name: str, *, timeout_s: float) -> None:
    """Give an engine no new requests; return when none that the router has sent there is in flight.

    Raises RouterError for a router that is not pdctl's or does not answer, NotFoundError for what is no engine or is
    not known to the router (which then sends it nothing), and StepTimeoutError after ``timeout_s``. Once it has begun,
    only `undrain` gives the engine requests again, whatever was raised.
    """
    keys = await _change(deployment, name, "drain")
    left = 0
    try:
        async with asyncio.timeout(timeout_s):
            while left := await _in_flight(deployment, keys):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)  # the router announces nothing
    except TimeoutError:
        raise StepTimeoutError(
            f"{name} still serves {left} requests {timeout_s:g} s after it was drained; it gets no new ones"
        ) from None


async def undrain(deployment: Deployment, name: str) -> None:
    """Give an engine requests again; raises as `drain` does."""
    await _change(deployment, name, "undrain")


async def _change(deployment: Deployment, name: str, action: str) -> list[str]:
    """Tell the router; return the engine's keys there."""
    if not deployment.plan.has_own_router:
        raise RouterError(f"{deployment.name}: only pdctl's own router can {action} an engine")
    keys = await _keys(deployment, name)
    for key in keys:
        answer = await _call(deployment, "POST", f"/instances/{key}/{action}")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"the router does not know {name} ({key}), and sends it no requests")
        if answer.status_code != HTTPStatus.OK:
            raise RouterError(f"the router refused to {action} {name}: {answer.status_code}: {_detail(answer)}")
    return keys


async def _keys(deployment: Deployment, name: str) -> list[str]:
    """What the router calls an engine: its address, of each data parallel rank that has one."""
    process = _head(deployment, name)
    client = await deployment.client(process.host)
    answers = map(Snapshot.model_validate, await client.call("list"))
    snapshot = next((answer for answer in answers if answer.name == process.name), None)
    if snapshot is None:
        raise NotFoundError(f"{name} was not started: the router sends it no requests")
    urls = [deployment.url(process, snapshot, purpose) for purpose in process.api_ports]
    keys = [url.removeprefix("http://") for url in urls if url is not None]
    if not keys:
        raise NotFoundError(f"{name} has no port yet: the router sends it no requests")
    return keys


def _head(deployment: Deployment, name: str) -> ProcessPlan:
    """The process that has the engine's API."""
    engines = {engine.name: engine for engine in deployment.plan.engines}
    if name not in engines:
        raise NotFoundError(f"deployment {deployment.name!r} has no engine {name!r}, only {', '.join(engines)}")
    return engines[engines[name].head or name]


async def _in_flight(deployment: Deployment, keys: Collection[str]) -> int:
    """The requests at the instances; those that the router has forgotten have none."""
    answer = await _call(deployment, "GET", "/instances")
    if answer.status_code != HTTPStatus.OK:
        raise RouterError(f"the router did not tell of its instances: {answer.status_code}: {_detail(answer)}")
    instances: list[dict[str, Any]] = answer.json()
    return sum(int(instance["requests_in_flight"]) for instance in instances if instance["id"] in keys)


async def _call(deployment: Deployment, method: str, path: str) -> httpx.Response:
    endpoint = deployment.state.endpoint
    if endpoint is None:
        raise RouterError(f"{deployment.name}: the router has not reported its port yet")
    http = deployment.http(deployment.plan.router.host)
    headers = {"Authorization": f"Bearer {deployment.folder.read_token()}"}
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await http.request(method, endpoint + path, headers=headers)
    except (httpx.HTTPError, TimeoutError) as error:
        raise RouterError(f"the router at {endpoint} does not answer: {type(error).__name__}") from error


def _detail(answer: httpx.Response) -> str:
    return " ".join(answer.text.split())[:200]
