"""The engines that a router sends requests to, as it knows them."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from pdctl.deployment.process_start import ProcessStarter
from pdctl.deployment.verify import Engine
from pdctl.errors import StepTimeoutError
from pdctl.planning.plan import Plan, ProcessPlan

REGISTER_TIMEOUT_S = 30.0
_POLL_S = 0.1

Engines = dict[str, list[Engine]]  # by role


async def wait_known(
    plan: Plan, starter: ProcessStarter, endpoint: str, report: Callable[[str], None] = lambda text: None
) -> Engines:
    """Return the engines once the router knows them all; another router than pdctl's does not tell."""
    heads = [engine for engine in plan.engines if engine.head is None]
    urls = {starter.url(engine, port): engine for engine in heads for port in engine.api_ports}
    models = (
        await _wait_registered(urls, starter, plan.router.host, endpoint, report)
        if plan.has_own_router
        else dict.fromkeys(urls, "")
    )
    found: Engines = {"prefill": [], "decode": [], "mixed": []}
    for url, engine in urls.items():
        model = models[url] or await _own_name(starter, engine.host, url) or plan.model
        found[engine.role].append(Engine(engine.name, url, model))
    return found


async def _wait_registered(
    urls: dict[str, ProcessPlan], starter: ProcessStarter, router: str, endpoint: str, report: Callable[[str], None]
) -> dict[str, str]:
    """The model's name that each engine has registered; empty where it has not given any."""
    deadline = monotonic() + REGISTER_TIMEOUT_S
    while True:
        answer = await starter.get(router, f"{endpoint}/registered")
        registered: dict[str, list[dict[str, Any]]] = answer.json() if answer is not None else {}
        entries = {(role, f"http://{e['host_ip']}:{e['port']}"): e for role, all_ in registered.items() for e in all_}
        missing = [engine.name for url, engine in urls.items() if (engine.role, url) not in entries]
        if not missing:
            report(f"the router knows {len(urls)} engines")
            return {url: entries[engine.role, url].get("model") or "" for url, engine in urls.items()}
        starter.wait_for("register at the router", *dict.fromkeys(missing))
        if monotonic() > deadline:
            names = ", ".join(dict.fromkeys(missing))
            raise StepTimeoutError(f"{names} did not register at the router within {REGISTER_TIMEOUT_S:g} s")
        await asyncio.sleep(_POLL_S)  # the router tells only who asks


async def _own_name(starter: ProcessStarter, host: str, url: str) -> str | None:
    """What an engine calls its model, as OpenAI's API has it."""
    answer = await starter.get(host, f"{url}/v1/models")
    try:
        return str(answer.json()["data"][0]["id"]) if answer is not None else None
    except (ValueError, KeyError, IndexError, TypeError):
        return None
