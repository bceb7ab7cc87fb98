"""What a profile cannot do of a topology, found before anything is planned."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from packaging.version import InvalidVersion

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.user_args import spelled
from pdctl.profiles import EngineRole, Profile, RouterProfile
from pdctl.profiles.templates import Template, in_range
from pdctl.topology.models import EngineGroup, Topology

# Placeholders of what the plan itself has to know, and the keys of a topology that say it.
_KEYS = {
    "gpus": "gpus",
    "tp": "tp",
    "dp": "dp",
    **dict.fromkeys(("nodes", "tp_nodes", "node_rank", "dp_local", "dp_start"), "hosts"),
}


def refuse_unsupported(topology: Topology, profile: Profile, router: RouterProfile | None) -> None:
    """Raise PlanError for engines, or a router (None: pdctl's own), that cannot be as the topology wants them."""
    for role, index, group in topology.groups():
        if group.replicas:
            _refuse_role(profile, role)
            _refuse_limits(profile, f"{role}[{index}]", group)
            _refuse_shares(profile, f"{role}[{index}]", group)
            _refuse_overrides(profile, role, index, group)
    _refuse_names_of_interpreters(topology, profile, router)
    if router and topology.router.bind and not _holds(router.command, "host"):
        raise PlanError(f"router.bind: {router.name} cannot be told an address, it listens on all: leave it out")


def refuse_versions(topology: Topology, profile: Profile, inventories: Mapping[str, Inventory]) -> None:
    """Raise PlanError for a host whose engine has a version that the profile is not for."""
    for name in engine_hosts(topology):
        inventory, packages = inventories[name], profile.packages
        version = inventory.engine_version
        if not version or not packages:
            continue
        found = f"hosts.{name}: it has {inventory.engine_package} {version}"
        own = f"give a profile of your own with `extends: {profile.name}`"
        try:
            fits = in_range(version, packages.versions)
        except InvalidVersion:
            raise PlanError(
                f"{found}, which is no version as Python's packages have them: {own} and `packages: null`, "
                "then the newest is assumed"
            ) from None
        if not fits:
            raise PlanError(
                f"{found}, and the profile {profile.name!r} is for {packages.versions}: install another, or {own}"
            )


def engine_hosts(topology: Topology) -> list[str]:
    """Return the hosts that run engines."""
    used = {host for _, _, group in topology.groups() if group.replicas for host in group.nodes}
    return [name for name in topology.hosts if name in used]


def _refuse_role(profile: Profile, role: EngineRole) -> None:
    if role not in profile.roles:
        raise PlanError(f"{role}: engine {profile.name!r} has no such role: it has {', '.join(profile.roles)}")


def _refuse_limits(profile: Profile, at: str, group: EngineGroup) -> None:
    for key, limit in (("tp", profile.limits.max_tp), ("dp", profile.limits.max_dp)):
        asked = getattr(group, key)
        if limit is not None and asked > limit:
            raise PlanError(f"{at}.{key}: engine {profile.name!r} goes up to {key} {limit}, got {asked}")
    if group.dp < profile.limits.min_dp:
        raise PlanError(f"{at}.dp: engine {profile.name!r} begins with dp {profile.limits.min_dp}, got {group.dp}")
    if len(group.nodes) > 1 and profile.follower is None:
        raise PlanError(f"{at}.hosts: one engine {profile.name!r} cannot span several hosts")


def _refuse_shares(profile: Profile, at: str, group: EngineGroup) -> None:
    """Each host has the same number of whole data parallel ranks, or an equal share of the tensor parallel ones."""
    tp, dp, hosts = group.tp, group.dp, len(group.nodes)
    if profile.dp_shares_gpus and tp % dp:
        raise PlanError(
            f"{at}.dp: with engine {profile.name!r} the dp ranks share the tp GPUs equally: tp {tp} is no multiple of "
            f"dp {dp}"
        )
    key, value = ("dp", dp) if dp > 1 and not profile.dp_shares_gpus else ("tp", tp)
    if value % hosts:
        raise PlanError(f"{at}.{key}: {key} {value} cannot be shared equally by {hosts} hosts")


def _refuse_overrides(profile: Profile, role: EngineRole, index: int, group: EngineGroup) -> None:
    arguments = profile.arguments(role, follower=True)
    tokens = [text for template in arguments for text in template.texts]
    keys = {spelled(flag): key for flag, value in pairwise(tokens) if (key := _key(value)) and flag.startswith("--")}
    for name in group.args:
        at, flag = f"{role}[{index}].args.{name}", spelled(f"--{name}")
        if key := keys.get(flag):
            raise PlanError(f"{at}: the plan has to know it: use `{key}:` of {role} instead")
        whole, dot, _ = flag.partition(".")
        if dot and any(spelled(given) == whole for given in (*tokens, *(f"--{other}" for other in group.args))):
            raise PlanError(
                f"{at}: {whole} is given as a whole too, and would be dropped for this: give all by its keys"
            )
    for name, template in profile.environment(role).items():
        if name in group.env and (key := _key(template.texts[0])):
            raise PlanError(f"{role}[{index}].env.{name}: the plan has to know it: use `{key}:` of {role} instead")


def _key(text: str) -> str | None:
    return next((key for placeholder, key in _KEYS.items() if text == f"{{{placeholder}}}"), None)


def _refuse_names_of_interpreters(topology: Topology, profile: Profile, router: RouterProfile | None) -> None:
    """A command beside an interpreter is found only by the interpreter's path."""
    wanted = {name for name in engine_hosts(topology) if _holds(_of_engines(profile), "bin")}
    if router and _holds(router.command, "bin"):
        wanted.add(topology.router.host)
    for name in wanted:
        python = topology.hosts[name].python
        if python and "/" not in python:
            raise PlanError(
                f"hosts.{name}.python: {python} is a name: give its whole path, as what is started is beside it"
            )


def _of_engines(profile: Profile) -> Iterator[Template]:
    for role in profile.roles:
        yield from profile.arguments(role, follower=True)
        yield from profile.environment(role).values()


def _holds(templates: Iterable[Template], placeholder: str) -> bool:
    return any(placeholder in template.placeholders() for template in templates)
