"""The whole examination, and the quick part of it that `up` begins with."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pdctl.doctor.asking import Question, ask_all, ask_systems
from pdctl.doctor.checkup import judge
from pdctl.doctor.facts import Facts, used_hosts
from pdctl.doctor.finding import Finding, errors, warnings
from pdctl.doctor.meeting import hold_meeting
from pdctl.errors import PdctlError, PlanError, UnfitError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan, ports_to_probe
from pdctl.profiles import Profile, load_profile
from pdctl.topology.models import Topology


async def examine(
    topology: Topology, root: Path, *, current: Plan | None = None, report: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Examine all hosts of a topology at once. `root`: where this machine keeps the files of deployments.

    A host that does not answer is a finding, and the others go on. Nothing is changed anywhere. `current`: what runs of
    the deployment now: what its processes have is theirs.
    """
    profile = load_profile(topology.engine)
    ports, refusal = _ports(topology, profile)
    report(f"looking at {', '.join(used_hosts(topology))}")
    hosts, silent = await ask_all(Question(topology, profile, root, reads_model=True), ports)
    facts = _planned(Facts(topology, profile, hosts, silent, refusal=refusal), current)
    if facts.is_spread:
        report("the hosts try whether they reach each other")
        facts = await hold_meeting(facts, root)
    return judge(facts)


async def refuse_unfit(
    topology: Topology, profile: Profile, inventories: Mapping[str, Inventory], plan: Plan, root: Path
) -> list[Finding]:
    """The quick part: no connections between hosts, no model is read. Returns the warnings.

    Raises UnfitError for what would keep the plan's processes from running.
    """
    hosts, silent = await ask_systems(Question(topology, profile, root, reads_model=False), inventories)
    findings = judge(Facts(topology, profile, hosts, silent, plan))
    if bad := errors(findings):
        first, *others = [finding.line for finding in bad]
        raise UnfitError(first, detail="\n".join(others))
    return warnings(findings)


def _ports(topology: Topology, profile: Profile) -> tuple[dict[str, list[int]], PdctlError | None]:
    """The ports to look at, or why there cannot be a plan whatever the hosts have."""
    try:
        return ports_to_probe(topology, profile), None
    except PlanError as error:
        return {}, error


def _planned(facts: Facts, current: Plan | None) -> Facts:
    """Add the plan, or why there is none; without all hosts nothing can be said."""
    if facts.silent or facts.refusal:
        return facts
    inventories = {name: host.inventory for name, host in facts.hosts.items()}
    try:
        return replace(facts, plan=make_plan(facts.topology, facts.profile, inventories, current))
    except PdctlError as error:
        return replace(facts, refusal=error)
