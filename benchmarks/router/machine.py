"""The machine that everything runs on."""

import os
import platform
import resource
from pathlib import Path

import psutil


class OtherProcesses:
    """Counts the CPU time of all processes but this one and its descendants: what disturbs a measurement."""

    def __init__(self) -> None:
        self._begin = _others_s()

    def used_s(self) -> float:
        """Seconds of CPU since this was made; those of descendants that ended since count as others'."""
        return max(0.0, _others_s() - self._begin)


def allow_many_connections() -> None:
    """Raise this process's limit of open files as far as it goes; its children inherit that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def describe() -> str:
    """Its processor and kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}"


def _others_s() -> float:
    machine = psutil.cpu_times()
    this = psutil.Process()
    ours = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    busy = machine.user + machine.nice + machine.system + machine.steal
    return float(busy - sum(times.user + times.system for times in ours))
