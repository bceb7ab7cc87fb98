"""Whether each host has the engine, and in the same version as the others."""

from collections.abc import Iterator

from pdctl import __version__
from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.profiles.models import Packages

OWN_PACKAGE = "pdctl"


def check_python(facts: Facts) -> Iterator[Finding]:
    """The interpreter of the engine works; on the hosts of one engine it has one version."""
    found: dict[str, str] = {}
    for name, host in facts.engine_hosts.items():
        interpreter = host.system.interpreter
        if interpreter.version is None:
            text = f"{interpreter.path} {interpreter.problem}"
            remedy = f"name the one that has the engine: `hosts: {{{name}: {{python: ...}}}}` in the topology file"
            yield Finding("error", name, "python", text, remedy)
            continue
        found[name] = interpreter.version
        yield Finding("ok", name, "python", f"{interpreter.version}, {interpreter.path}")
    yield from _differing_pythons(facts, found)


def check_engine(facts: Facts) -> Iterator[Finding]:
    """Each host has the engine; those that hand KV to each other have one version of it."""
    packages = facts.profile.packages
    if packages is None:
        return
    versions: dict[str, str] = {}
    for name, host in facts.engine_hosts.items():
        if problem := _problem(packages, host):
            yield Finding("error", name, "engine", problem, packages.install)
        elif version := host.inventory.engine_version:
            versions[name] = version
            yield Finding("ok", name, "engine", f"{facts.profile.name} {version}")
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{version} on {name}" for name, version in versions.items())
        alone = facts.topology.replicas("mixed") > 0  # these hand no KV to each other
        text = f"the hosts have different versions of {facts.profile.name}: {shown}"
        yield Finding("warning" if alone else "error", "", "engine", text, packages.install)


def _problem(packages: Packages, host: HostFacts) -> str | None:
    """What is wrong with a host's engine. Of an interpreter that does not work, check_python has told."""
    if host.system.interpreter.version is None:
        return None
    version = host.inventory.engine_version
    if version and OWN_PACKAGE in packages.names and version != __version__:
        return f"{host.system.interpreter.path} has pdctl {version}, this is {__version__}"
    return host.inventory.engine_problem


def _differing_pythons(facts: Facts, found: dict[str, str]) -> Iterator[Finding]:
    """The processes of an engine that spans hosts hand Python's own objects to each other."""
    minors = {name: version.rpartition(".")[0] for name, version in found.items()}
    for role, index, group in facts.topology.groups():
        versions = {minors[name] for name in group.nodes if name in minors}
        if group.replicas and len(versions) > 1:
            text = f"the hosts of one engine have different ones: {', '.join(sorted(versions))}"
            yield Finding("error", "", "python", f"{role}[{index}]: {text}", "install the same one on all of them")
