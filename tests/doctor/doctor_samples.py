"""Hosts as they answer, of which a test changes what it is about."""

from collections.abc import Iterator
from typing import Any

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.system import Meeting, ModelFile, System
from pdctl.planning.inventory import Inventory
from pdctl.planning.planner import make_plan
from pdctl.profiles import Profile, load_profile
from pdctl.topology.models import Topology

GIB = 1 << 30
MODEL = "/models/m"
WEIGHTS = {
    "config.json": {"size": 700, "digest": "c"},
    "model-1.safetensors": {"size": 5 * GIB, "digest": "w1"},
    "model-2.safetensors": {"size": 5 * GIB, "digest": "w2"},
}


def make_system(address: str = "10.0.0.1", **changes: Any) -> System:
    fields = {
        "clock": (1000.1, 1000.3),
        "python": "3.11.2",
        "interpreter": {"path": "/opt/bin/python", "version": "3.11.2"},
        "driver": "570.86.15",
        "open_files": 1 << 20,
        "shm": {"total_bytes": 64 * GIB, "free_bytes": 64 * GIB},
        "netdevs": [{"name": "lo", "mtu": 65536, "address": "127.0.0.1"}, netdev(address)],
        "disk": {"path": "/state", "writable": True, "free_bytes": 100 * GIB, "free_files": 10**6},
        "ports": {"ephemeral": (32768, 60999)},
        "login": {"user": "ops", "kills_processes": False, "removes_ipc": False},
        "model": make_model(),
    }
    return System.model_validate({**fields, **changes})


def make_model(**changes: Any) -> dict[str, Any]:
    return {"kind": "path", "path": MODEL, "exists": True, "free_bytes": 9 * GIB, "files": WEIGHTS, **changes}


def model_files(**changes: dict[str, Any] | None) -> dict[str, Any]:
    """The weights, some of them others, or not there."""
    named = {name.replace("_json", ".json").replace("model_", "model-"): one for name, one in changes.items()}
    named = {name if "." in name else f"{name}.safetensors": one for name, one in named.items()}
    return {name: ModelFile.model_validate(one) for name, one in {**WEIGHTS, **named}.items() if one}


def netdev(address: str, mtu: int = 1500) -> dict[str, Any]:
    return {"name": "eth0", "mtu": mtu, "address": address}


def make_inventory(address: str = "10.0.0.1", **changes: Any) -> Inventory:
    fields = {
        "hostname": "test",
        "address": address,
        "cpus": 4,
        "memory_bytes": 8 * GIB,
        "python": "/opt/bin/python",
        "prepared_python": "/opt/bin/python",
        "engine_version": "0.1.0",
        "free_disk_bytes": GIB,
    }
    return Inventory.model_validate({**fields, **changes})


def make_host(
    name: str = "a",
    address: str = "10.0.0.1",
    *,
    ssh: str | None = "",
    inventory: Inventory | None = None,
    given_address: str | None = None,
    asked: tuple[float, float] = (1000.0, 1000.4),
    **system: Any,
) -> HostFacts:
    """A host that ssh reaches by its name (`ssh`: None for this machine)."""
    return HostFacts(
        name=name,
        ssh=name if ssh == "" else ssh,
        inventory=inventory or make_inventory(address),
        system=make_system(address, **system),
        asked=asked,
        given_address=given_address,
    )


def two_hosts(**of_b: Any) -> list[HostFacts]:
    return [make_host(), make_host("b", "10.0.0.2", **of_b)]


def make_topology(hosts: list[HostFacts], **changes: Any) -> Topology:
    """Prefill on the first of the hosts, decode on the last, and the router on the first."""
    written = {host.name: {"ssh": host.ssh, "address": host.given_address} for host in hosts}
    fields = {
        "model": MODEL,
        "hosts": written,
        "router": {"host": hosts[0].name},
        "prefill": [{"host": hosts[0].name}],
        "decode": [{"host": hosts[-1].name}],
    }
    return Topology.model_validate({**fields, **changes})


def make_facts(
    *hosts: HostFacts,
    engine: str | Profile = "builtin",
    planned: bool = True,
    meetings: dict[str, Meeting] | None = None,
    topology: dict[str, Any] | None = None,
) -> Facts:
    profile = load_profile(engine) if isinstance(engine, str) else engine
    made = make_topology(list(hosts), **(topology or {}))
    plan = make_plan(made, profile, {host.name: host.inventory for host in hosts}) if planned else None
    return Facts(made, profile, {host.name: host for host in hosts}, plan=plan, meetings=meetings or {})


def shown(findings: Iterator[Finding]) -> list[str]:
    """As in `warning a: clock: ...`."""
    return [f"{finding.level} {finding.host}: {finding.text}" for finding in findings]


def worst(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level != "ok"]
