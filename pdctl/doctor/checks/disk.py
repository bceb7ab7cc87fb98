"""Whether there is room for state and logs."""

from collections.abc import Iterator

from pdctl.agent.logs import FILE_BYTES, FILES
from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.system import Disk
from pdctl.doctor.units import size

LEAST_BYTES = 16 << 20  # for what the agent keeps beside the logs
LEAST_FILES = 100


def check_disk(facts: Facts) -> Iterator[Finding]:
    """State that cannot be written is an error, logs that cannot grow as far as they may are a warning."""
    yield from (_judge(facts, host) for host in facts.hosts.values())


def _judge(facts: Facts, host: HostFacts) -> Finding:
    disk = host.system.disk
    if not disk.writable:
        remedy = f"sudo chown {host.system.login.user} {disk.path}"
        return Finding("error", host.name, "disk", f"{disk.path} is not writable", remedy)
    free = f"{size(disk.free_bytes)} free at {disk.path}"
    if _is_full(disk):
        files = f", {disk.free_files} more files" if disk.free_files is not None else ""
        return Finding("error", host.name, "disk", f"{free}{files}: it is full", f"du -xh {disk.path} | sort -h")
    count = len(facts.processes_on(host.name))
    logs = count * FILES * FILE_BYTES
    if disk.free_bytes < logs:
        text = f"{free}; the logs of {count} processes take up to {size(logs)}"
        return Finding("warning", host.name, "disk", text, f"du -xh {disk.path} | sort -h")
    return Finding("ok", host.name, "disk", free)


def _is_full(disk: Disk) -> bool:
    return disk.free_bytes < LEAST_BYTES or (disk.free_files is not None and disk.free_files < LEAST_FILES)
