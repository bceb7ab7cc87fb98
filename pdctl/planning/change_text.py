"""The difference between two plans in words; values that are secrets are not shown."""

from collections.abc import Iterator

from pdctl.planning.changes import PlanChange
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.redaction import redact
from pdctl.planning.running import RunningEngine
from pdctl.planning.user_args import is_flag

_ROUTER_GOES = "while the router is started again, new requests are refused"
_LISTED = "; it has to be, as it is told at its start which engines there are"


def describe(change: PlanChange) -> Iterator[str]:
    """Walk the lines: what is added, removed, started again and why, and what that means for requests."""
    for engine in change.added:
        yield f"+ {engine.name} {_place(engine)}"
    for engine in change.removed:
        yield f"- {engine.name} {_place(engine)}"
    for replaced in change.replaced:
        yield f"~ {replaced.name}: {_reasons(change, replaced.name)}"
    if change.router:
        yield f"~ router: {_reasons(change, 'router')}"
        yield f"  {_ROUTER_GOES}{_LISTED if _is_told_of_others(change) else ''}"


def _place(engine: RunningEngine) -> str:
    gpus = engine.head.gpus
    of_each = f", GPU {', '.join(map(str, gpus))}" if gpus else ""
    return f"on {' and '.join(engine.hosts)}{of_each}{' of each' if gpus and len(engine.hosts) > 1 else ''}"


def _reasons(change: PlanChange, name: str) -> str:
    before, after = (_process(plan, name) for plan in (change.current, change.wanted))
    old, new = _settings(before), _settings(after)
    shown_old, shown_new = (_settings(_process(redact(plan), name)) for plan in (change.current, change.wanted))
    differing = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    texts = [f"{key} {_value(shown_old, key)} -> {_value(shown_new, key)}" for key in differing]
    return "; ".join(texts) or "started again as it is"


def _process(plan: Plan, name: str) -> ProcessPlan:
    return next(process for process in plan.processes if process.name == name)


def _value(settings: dict[str, str], key: str) -> str:
    return settings.get(key) or ("(set)" if key in settings else "(none)")


def _settings(process: ProcessPlan) -> dict[str, str]:
    """What was set for a process: its flags with all their values, its variables, where it runs."""
    settings = {"host": process.host, "GPUs": ", ".join(map(str, process.gpus))}
    key = "command"
    for token in process.argv:
        flag, equals, value = token.partition("=")
        if is_flag(token):
            key, token = flag, value if equals else ""
        settings[key] = f"{settings.get(key, '')} {token}".strip()
    return settings | {f"{name}=": value for name, value in process.env.items()}


def _is_told_of_others(change: PlanChange) -> bool:
    """Whether the router's command names engines that come or go."""
    changed = {engine.name for engine in (*change.added, *change.removed)}
    engines = [engine for plan in (change.current, change.wanted) for engine in plan.engines if engine.name in changed]
    places = {f"{engine.address}:{engine.ports[port]}" for engine in engines for port in engine.api_ports}
    told = " ".join([*change.current.router.argv, *change.wanted.router.argv])
    return any(place in told for place in places)
