"""What the system allows a user's processes: shared memory, open files, and to outlive the login."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.units import size

SHM_BYTES = 1 << 30  # what NCCL and the engines' own queues take, with a margin; containers begin with 64 MiB
OPEN_FILES = 8192  # each request at the router takes up to three


def check_shm(facts: Facts) -> Iterator[Finding]:
    """Engines of several processes exchange data there."""
    for name, host in facts.engine_hosts.items():
        shm = host.system.shm
        if shm is not None and shm.free_bytes >= SHM_BYTES:
            yield Finding("ok", name, "shm", f"{size(shm.free_bytes)} free in /dev/shm")
        elif _needs_shm(facts, name):
            text = f"{size(shm.free_bytes)} of {size(shm.total_bytes)} free in /dev/shm" if shm else "no /dev/shm"
            remedy = "sudo mount -o remount,size=16G /dev/shm (a container: --shm-size=16g, or --ipc=host)"
            yield Finding("warning", name, "shm", text, remedy)


def check_open_files(facts: Facts) -> Iterator[Finding]:
    """Every request takes some."""
    for name, host in facts.hosts.items():
        limit = host.system.open_files
        if limit is None or limit >= OPEN_FILES:
            yield Finding("ok", name, "open files", f"up to {limit}" if limit is not None else "unlimited")
            continue
        remedy = "echo '* - nofile 1048576' | sudo tee /etc/security/limits.d/nofile.conf, and log in again"
        yield Finding("warning", name, "open files", f"a process may open {limit} only", remedy)


def check_login(facts: Facts) -> Iterator[Finding]:
    """Where a logout ends all processes of the user, nothing that is started by ssh lives on."""
    for host in facts.hosts.values():
        if host.system.login.kills_processes:
            yield _kills(host)
        elif host.system.login.removes_ipc and _needs_shm(facts, host.name):
            user = host.system.login.user
            text = f"when {user} logs out, systemd removes what {user}'s processes have in /dev/shm"
            yield Finding("warning", host.name, "login", text, f"loginctl enable-linger {user}")


def _kills(host: HostFacts) -> Finding:
    return Finding(
        "error" if host.ssh else "warning",
        host.name,
        "login",
        f"when {host.system.login.user} logs out, systemd ends what was started: KillUserProcesses is set",
        "set KillUserProcesses=no in /etc/systemd/logind.conf, then sudo systemctl restart systemd-logind",
    )


def _needs_shm(facts: Facts, host: str) -> bool:
    """Whether an engine there has several processes, or uses CUDA's libraries."""
    return facts.profile.gpus == "required" or any(group.tp * group.dp > 1 for group in facts.groups_on(host))
