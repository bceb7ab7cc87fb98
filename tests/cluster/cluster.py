"""A cluster of hosts on this machine, made of Linux namespaces, each with an sshd; and this process as their launcher.

    with Cluster({"a": Spec(), "b": Spec(via="a")}, folder) as cluster:
        subprocess.run(["ssh", "b", "hostname"])

Within the block this thread, and all that it starts, is in the cluster's own network, which has no way out: it reaches
the hosts by `cluster["a"].address`, and by `ssh a`, whose keys and known hosts are the cluster's, as is HOME. Threads
that were there before stay outside. At the end nothing is left, whatever happened; should this process be killed, the
kernel ends the hosts.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from unittest.mock import patch

from tests.cluster.cluster_host import LAUNCHER_ADDRESS, NO_NAME_SERVER, ClusterHost, Spec
from tests.cluster.namespaces import (
    ENDS_WITH_US,
    LIMIT_S,
    Found,
    inside_network,
    ip,
    namespace,
    scan,
    until,
    wait_for_ready,
)

LAUNCHER = "launcher"
_FIRST_ADDRESS = 11
_REPOSITORY = Path(__file__).parents[2]
_SSH_CONFIG = """\
Host *
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
  IdentityFile {folder}/key
  IdentitiesOnly yes
"""


class Process(NamedTuple):
    """A process of the cluster."""

    host: str  # or LAUNCHER
    pid: int  # as seen from outside of every host
    inner_pid: int  # as its host sees it
    command: str


class Cluster:
    """See the module. ``folder`` is for its files; ``shared`` are folders of models that the hosts see, read-only.

    Keeps to itself: any number of clusters may be up at once, with the same addresses.
    """

    def __init__(self, hosts: Mapping[str, Spec], folder: Path, shared: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._shared = [*shared, *{_REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}]
        self._specs = hosts
        self._hosts: dict[str, ClusterHost] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            self._make_launcher_files()
            self._hub = self._start_hub(stack)
            self._start_hosts(stack)
            stack.enter_context(inside_network(self._hub.pid))
            stack.callback(self._end_launcher)
            path = f"{self.folder}/{LAUNCHER}/bin:{os.environ['PATH']}"
            stack.enter_context(patch.dict(os.environ, {"PATH": path, "HOME": str(self.folder / LAUNCHER / "home")}))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> ClusterHost:
        return self._hosts[name]

    def __iter__(self) -> Iterator[ClusterHost]:
        return iter(self._hosts.values())

    @property
    def known_hosts(self) -> Path:
        """The launcher's known hosts."""
        return self.folder / LAUNCHER / "known_hosts"

    def processes(self) -> list[Process]:
        """What runs on all hosts, but for their first process and sshd, and what this process has started.

        Found through /proc, not through anybody's books.
        """
        among = scan()
        found = {LAUNCHER: self._launched(among)} | {host.name: host.processes(among) for host in self}
        return [Process(name, p.pid, p.inner_pid, " ".join(p.argv)) for name, every in found.items() for p in every]

    def check_gone(self, within_s: float = 2.0) -> None:
        """Check that nothing runs any more; what served a connection that was cut off may take ``within_s``."""
        with suppress(AssertionError):
            until(lambda: not self.processes(), "the end of all processes", within_s)
        left = self.processes()
        assert not left, f"processes left behind: {left}"

    def _start_hub(self, stack: ExitStack) -> "subprocess.Popen[str]":
        """The process that keeps the network in which all cables end, and in which the launcher is."""
        argv = [*ENDS_WITH_US, "unshare", "--net", "sh", "-c", "echo ready; exec cat > /dev/null"]
        pipe = subprocess.PIPE
        hub = stack.enter_context(subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        wait_for_ready(hub)
        address = f"addr add {LAUNCHER_ADDRESS}/24 dev hub"
        up = ("link set hub up", "link set lo up", "route add default dev hub", NO_NAME_SERVER)
        ip(hub.pid, "link add name hub type bridge", address, *up)
        return hub

    def _start_hosts(self, stack: ExitStack) -> None:
        for place, (name, spec) in enumerate(self._specs.items()):
            address = f"10.213.0.{_FIRST_ADDRESS + place}"
            folder = self.folder / name
            host = ClusterHost(name, spec, address, f"port{place}", self._hub.pid, folder, self._shared)
            host.make()
            stack.callback(host.destroy)
            self._hosts[name] = host
        for host in self:
            host.connect()
            host.power_on()
        for host in self:
            host.wait_until_up()

    def _make_launcher_files(self) -> None:
        folder = self.folder / LAUNCHER
        for path in (folder / "bin", folder / "home", *(self.folder / name / "etc" for name in self._specs)):
            path.mkdir(parents=True)
        ssh = folder / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        _make_keys([folder / "key", *(self.folder / name / "etc" / "host_key" for name in self._specs)])
        key = (folder / "key.pub").read_text()
        config, known, names = [_SSH_CONFIG.format(folder=folder)], [], ["127.0.0.1 localhost\n"]
        for place, (name, spec) in enumerate(self._specs.items()):
            address = f"10.213.0.{_FIRST_ADDRESS + place}"
            etc = self.folder / name / "etc"
            names.append(f"{address} {name}\n")
            config.append(f"Host {name}\n  HostName {address}\n" + (f"  ProxyJump {spec.via}\n" if spec.via else ""))
            if spec.host_key != "unknown":
                shown = key if spec.host_key == "changed" else (etc / "host_key.pub").read_text()
                known.append(f"{name},{address} {shown}")
            if spec.login == "key":
                (etc / "authorized_keys").write_text(key)
        (folder / "ssh_config").write_text("".join(config))
        self.known_hosts.write_text("".join(known))
        for name in self._specs:
            (self.folder / name / "etc" / "hosts").write_text("".join(names))

    def _launched(self, among: Sequence[Found]) -> list[Found]:
        own, network = {os.getpid(), self._hub.pid}, namespace(self._hub.pid, "net")
        return [process for process in among if process.network == network and process.pid not in own]

    def _end_launcher(self) -> None:
        """Kill what this process has started and left."""
        for process in self._launched(scan()):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        until(lambda: not self._launched(scan()), "the end of what the launcher had started", LIMIT_S)


def _make_keys(paths: Sequence[Path]) -> None:
    """Make pairs of keys, all at once."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]
    for making in [subprocess.Popen([*command, path]) for path in paths]:
        if making.wait(LIMIT_S) != 0:
            raise RuntimeError("ssh-keygen failed")
