"""Linux namespaces from the outside: entering a network, finding the processes that are in one."""

import ctypes
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 20.0
# Whoever they are for, processes of the harness end with it, even when it is killed.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")

_libc = ctypes.CDLL(None, use_errno=True)


class Found(NamedTuple):
    """A process as /proc shows it."""

    pid: int  # as seen from outside of every host
    inner_pid: int  # as its host sees it
    argv: list[str]
    network: str  # its namespaces, as in /proc/<pid>/ns
    pids: str


@contextmanager
def inside_network(pid: int) -> Iterator[None]:
    """Put this thread, and all that it starts, into the network of a process."""
    with open("/proc/thread-self/ns/net") as before, open(f"/proc/{pid}/ns/net") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def namespace(pid: int, kind: str) -> str:
    """The name of a process's namespace."""
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def scan() -> list[Found]:
    """Every process of this machine that lives, but for those that may do more than we: none of them is ours."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                found.append(_look(int(entry.name)))
    return [process for process in found if process is not None]


def only_child(pid: int) -> int:
    """The one process that it has started."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def wait_for_ready(process: subprocess.Popen[str]) -> None:
    """Wait for a script of ours to say that it is set up."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], LIMIT_S)
    if not readable:
        raise RuntimeError(f"{process.args} was not ready in {LIMIT_S:g} s")
    if process.stdout.readline() != "ready\n":
        assert process.stderr is not None
        raise RuntimeError(f"{process.args} ended: {process.stderr.read()}")


def ip(pid: int, *commands: str) -> None:
    """Run commands of `ip` in the network of a process, in one go."""
    with inside_network(pid):
        done = subprocess.run(
            ["ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, timeout=LIMIT_S
        )
    if done.returncode != 0:
        raise RuntimeError(f"ip: {done.stderr}")


def until(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Look again and again at something that no event tells of."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited {limit_s:g} s for: {what}"
        time.sleep(0.01)


def _enter(namespace_fd: int) -> None:
    if _libc.setns(namespace_fd, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _look(pid: int) -> Found | None:
    folder = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    if status["State"].split()[0] in "ZX":
        return None
    argv = (folder / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    inner_pid = int(status["NSpid"].split()[-1])
    return Found(pid, inner_pid, argv, namespace(pid, "net"), namespace(pid, "pid"))
