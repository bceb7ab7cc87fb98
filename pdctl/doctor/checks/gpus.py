"""Whether the GPUs are there and free, and which driver they have."""

from collections.abc import Iterator

from pdctl.doctor.facts import Facts, HostFacts
from pdctl.doctor.finding import Finding
from pdctl.doctor.units import counted
from pdctl.planning.inventory import Gpu

_MISMATCH = "version mismatch"  # the kernel's module is another than the libraries since an update


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """GPUs that cannot be used are an error where engines need them; one that somebody uses is a warning."""
    for name, host in facts.engine_hosts.items():
        if problem := _problem(host):
            remedy = "sudo reboot" if _MISMATCH in problem else "nvidia-smi"
            yield Finding("error" if _needs_gpus(facts, name) else "warning", name, "gpus", problem, remedy)
            continue
        if free := [gpu for gpu in host.inventory.gpus if gpu.is_free]:
            names = ", ".join(sorted({gpu.name for gpu in free}))
            yield Finding("ok", name, "gpus", f"{len(free)} of {len(host.inventory.gpus)} free: {names}")
        yield from (_used(facts, name, gpu) for gpu in host.inventory.gpus if not gpu.is_free)


def check_drivers(facts: Facts) -> Iterator[Finding]:
    """Hosts with different drivers may behave differently."""
    versions = {name: host.system.driver for name, host in facts.engine_hosts.items() if host.system.driver}
    yield from (Finding("ok", name, "driver", f"NVIDIA {version}") for name, version in versions.items())
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{version} on {name}" for name, version in versions.items())
        yield Finding("warning", "", "driver", f"the hosts have different ones: {shown}", "install the same on all")


def _problem(host: HostFacts) -> str | None:
    inventory = host.inventory
    if inventory.gpu_problem or inventory.gpus or not inventory.gpu_places:
        return inventory.gpu_problem
    return f"{counted(len(inventory.gpu_places), 'GPU')} on its PCI bus, but no nvidia-smi: the driver is not installed"


def _needs_gpus(facts: Facts, host: str) -> bool:
    return facts.profile.gpus == "required" or any(group.gpus for group in facts.groups_on(host))


def _used(facts: Facts, host: str, gpu: Gpu) -> Finding:
    by = ", ".join(gpu.users) or "what cannot be seen from here: another container's, or left by a killed process"
    users = [process.name for process in facts.processes_on(host) if gpu.index in process.gpus]
    meant = f"; it is for {', '.join(users)}" if users else ""
    text = f"GPU {gpu.index} ({gpu.name}): {gpu.memory_used_mb} MB in use by {by}{meant}"
    pids = ",".join(user.split()[1] for user in gpu.users)
    return Finding(
        "warning",
        host,
        "gpus",
        text,
        f"ps -fp {pids}, and `kill` what should not be there" if pids else "sudo fuser -v /dev/nvidia*",
    )
