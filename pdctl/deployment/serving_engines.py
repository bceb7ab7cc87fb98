"""The engines that a router sends requests to, as it knows them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from pdctl.deployment.engine_keys import engine_key
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
    """Return the engines once the router knows them all. Another than pdctl's says how many it knows, or nothing."""
    heads = [engine for engine in plan.engines if engine.head is None]
    urls = {starter.url(engine, port): engine for engine in heads for port in engine.api_ports}
    models = dict.fromkeys(urls, "")
    if plan.has_own_router:
        models = await _wait_registered(urls, starter, plan.router.host, f"{endpoint}/registered", report)
    elif plan.registered_path:
        await _wait_counted(urls, starter, plan.router.host, endpoint + plan.registered_path, report)
    found: Engines = {"prefill": [], "decode": [], "mixed": []}
    for url, engine in urls.items():
        key = engine_key(engine)
        model = models[url] or await _own_name(starter, engine.host, url, key) or plan.model
        found[engine.role].append(Engine(engine.name, url, model, key))
    return found


async def _wait_registered(
    urls: dict[str, ProcessPlan], starter: ProcessStarter, router: str, url: str, report: Callable[[str], None]
) -> dict[str, str]:
    """The model's name that each engine has registered; empty where it has not given any."""
    models: dict[tuple[str, str], str] = {}  # by role and URL

    async def missing() -> list[str]:
        answer = await starter.get(router, url)
        registered: dict[str, list[dict[str, Any]]] = answer.json() if answer is not None else {}
        known = [(role, entry) for role, entries in registered.items() for entry in entries]
        models.clear()
        models.update({(role, f"http://{e['host_ip']}:{e['port']}"): e.get("model") or "" for role, e in known})
        return [engine.name for url, engine in urls.items() if (engine.role, url) not in models]

    await _wait_until_none(missing, starter)
    report(f"the router knows {len(urls)} engines")
    return {url: models[engine.role, url] for url, engine in urls.items()}


async def _wait_counted(
    urls: dict[str, ProcessPlan], starter: ProcessStarter, router: str, url: str, report: Callable[[str], None]
) -> None:
    """Wait for as many engines of each role as there are: which ones the router does not say."""
    wanted = Counter(engine.role for engine in urls.values())

    async def missing() -> list[str]:
        answer = await starter.get(router, url)
        known: dict[str, int] = answer.json() if answer is not None else {}
        return [engine.name for engine in urls.values() if known.get(engine.role, 0) < wanted[engine.role]]

    await _wait_until_none(missing, starter)
    report(f"the router knows {len(urls)} engines")


async def _wait_until_none(missing: Callable[[], Awaitable[list[str]]], starter: ProcessStarter) -> None:
    """Wait until no engine is missing at the router; StepTimeoutError names those that are."""
    deadline = monotonic() + REGISTER_TIMEOUT_S
    while names := list(dict.fromkeys(await missing())):
        starter.wait_for("register at the router", *names)
        if monotonic() > deadline:
            raise StepTimeoutError(f"{', '.join(names)} did not register at the router within {REGISTER_TIMEOUT_S:g} s")
        await asyncio.sleep(_POLL_S)  # the router tells only who asks


async def _own_name(starter: ProcessStarter, host: str, url: str, key: str) -> str | None:
    """What an engine calls its model, as OpenAI's API has it."""
    answer = await starter.get(host, f"{url}/v1/models", key)
    try:
        return str(answer.json()["data"][0]["id"]) if answer is not None else None
    except (ValueError, KeyError, IndexError, TypeError):
        return None
