"""One host of a cluster: namespaces of its own for network, files, processes, name and shared memory, and an sshd."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.cluster.namespaces import (
    ENDS_WITH_US,
    LIMIT_S,
    Found,
    inside_network,
    ip,
    namespace,
    only_child,
    scan,
    until,
    wait_for_ready,
)

LAUNCHER_ADDRESS = "10.213.0.1"
NO_NAME_SERVER = "rule add dport 53 prohibit"  # refused at once: the machine's own is not there
HOME = Path("/srv/home")
PYTHON = Path(sys.executable).resolve()  # the one below our environment: has nothing but the standard library
_HERE = Path(__file__).parent
_COVERED = tuple(Path(path) for path in ("/tmp", "/run", "/dev/shm", "/srv"))
_PIPE = subprocess.PIPE


@dataclass(frozen=True)
class Spec:
    """How a host differs from one that just works."""

    host_key: Literal["known", "unknown", "changed"] = "known"  # to the launcher
    login: Literal["key", "password"] = "key"  # that sshd lets in
    via: str | None = None  # the host through which alone the launcher reaches it; other hosts reach it as any
    python: Path | None = PYTHON  # the one Python that an ssh session finds, as python3; None: it finds none
    clock_s: float | None = None  # its wall clock is so much ahead; None: it is right, and `shift_clock` cannot be used


@dataclass
class ClusterHost:
    """A host. Its network and disk live as long as the cluster; its processes from one `power_on` to the next end."""

    name: str
    spec: Spec
    address: str
    port: str  # the cluster's end of its cable
    hub: int  # the process that keeps the cluster's own network
    folder: Path  # outside the host: what is copied to it
    shared: Sequence[Path]  # folders that it sees although they lie where it has its own
    _disk: subprocess.Popen[str] = field(init=False)
    _boot: subprocess.Popen[str] | None = field(init=False, default=None)
    _init: int = field(init=False, default=0)

    def make(self) -> None:
        """Begin to make the namespaces that outlive reboots; `connect` goes on."""
        self._write_files()
        (self.folder / "disk").mkdir()
        script = ["sh", _HERE / "host_disk.sh", self.folder, self.name, self.spec.python or "", *self._covered()]
        argv = [*ENDS_WITH_US, "unshare", "--net", "--mount", "--uts", *script]
        self._disk = subprocess.Popen(argv, cwd="/", stdin=_PIPE, stdout=_PIPE, stderr=_PIPE, text=True)

    def connect(self) -> None:
        """Lay the cable between host and cluster."""
        wait_for_ready(self._disk)
        there = f"/proc/{self._disk.pid}/ns/net"
        ip(
            self.hub,
            f"link add name {self.port} type veth peer name eth0 netns {there}",
            f"link set {self.port} master hub up",
            *([f"route add unreachable {self.address}/32"] if self.spec.via else []),
        )
        up = ("link set eth0 up", "link set lo up", f"route add default via {LAUNCHER_ADDRESS}", NO_NAME_SERVER)
        ip(self._disk.pid, f"addr add {self.address}/24 dev eth0", *up)

    def destroy(self) -> None:
        """End all that runs, and remove all that is."""
        try:
            if self._boot is not None:
                self.power_off()
        finally:
            self._disk.communicate(timeout=LIMIT_S)

    def power_on(self) -> None:
        """Begin to boot; `wait_until_up` waits for its end."""
        assert self._boot is None, f"{self.name} is on"
        script = ["sh", _HERE / "host_boot.sh", str(uuid.uuid4()), *self._covered()]
        enter = ["nsenter", "--net", "--mount", "--uts", f"--target={self._disk.pid}"]
        argv = [*ENDS_WITH_US, *enter, "unshare", "--pid", "--ipc", "--fork", "--kill-child", *script]
        self._boot = subprocess.Popen(argv, cwd="/", stdin=subprocess.DEVNULL, stdout=_PIPE, stderr=_PIPE, text=True)

    def wait_until_up(self) -> None:
        """Wait until sshd listens and the cable is in."""
        self._find_init()
        until(self._listens, f"sshd of {self.name}, see {self.path('/srv/sshd.log')}")
        self.link_up()

    def power_off(self) -> None:
        """Kill everything at once, with the network gone first, as when the power fails: nobody is told."""
        assert self._boot is not None, f"{self.name} is off"
        self.link_down()
        if self._boot.poll() is None:
            self._find_init()
            os.kill(self._init, signal.SIGKILL)
        self._boot.communicate(timeout=LIMIT_S)
        self._boot, self._init = None, 0

    def reboot(self) -> None:
        """Lose power, and boot again: files are there, but for /tmp, /run and /dev/shm, and the boot id is another."""
        self.power_off()
        self.power_on()
        self.wait_until_up()

    def link_down(self) -> None:
        """Pull the cable: nothing comes through, nobody is told."""
        ip(self.hub, f"link set {self.port} down")

    def link_up(self) -> None:
        """Put the cable in again."""
        ip(self.hub, f"link set {self.port} up")

    def limit_rate(self, rate: str | None) -> None:
        """Let no more than a rate through, such as "1mbit", each way; None: as fast as it goes."""
        shape = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "2s"] if rate else ["root"]
        for pid, device in ((self.hub, self.port), (self._disk.pid, "eth0")):
            with inside_network(pid):
                subprocess.run(
                    ["tc", "qdisc", "replace" if rate else "del", "dev", device, *shape], check=True, timeout=LIMIT_S
                )

    def ip(self, *commands: str) -> None:
        """Run commands of `ip` in its network, such as "route add unreachable 10.213.0.12" for a firewall."""
        ip(self._disk.pid, *commands)

    def freeze(self) -> None:
        """Stop every process: the kernel still takes connections, and nothing answers."""
        for _ in range(2):  # what is started meanwhile too
            self._send_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let every process go on."""
        self._send_all(signal.SIGCONT)

    def fill_disk(self) -> None:
        """Leave no room on its disk."""
        info = os.statvfs(self.path("/srv"))
        self._resize_disk(f"{(info.f_blocks - info.f_bfree) * info.f_frsize}")

    def free_disk(self) -> None:
        """Make room on its disk again."""
        self._resize_disk("50%")

    def shift_clock(self, seconds: float) -> None:
        """Set its wall clock so much ahead of the right time, for programs that run and those to come."""
        assert self.spec.clock_s is not None, "only a host that begins with a clock_s has a clock that can be set"
        with open(self.path("/srv/etc/clock"), "r+b") as file:
            file.write(_clock(seconds))

    def run(self, *argv: str | Path, timeout_s: float = LIMIT_S) -> str:
        """Run a command on the host, past its sshd; returns what it wrote, raises CalledProcessError when it fails."""
        enter = ["/usr/bin/nsenter", f"--target={self._init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/"]
        done = subprocess.run(
            [*enter, *argv], env=self._environment(), capture_output=True, text=True, timeout=timeout_s, check=True
        )
        return done.stdout

    def path(self, inner: str | Path) -> Path:
        """A file of the host, as seen from outside."""
        return Path(f"/proc/{self._disk.pid}/root{inner}")

    def processes(self, among: Sequence[Found] | None = None) -> list[Found]:
        """What runs there, but for the first process and sshd, found through /proc."""
        every = self._everything(among)
        sshd = {process.pid for process in every if process.argv[0].startswith(("/usr/sbin/sshd", "sshd: "))}
        return [process for process in every if process.inner_pid != 1 and process.pid not in sshd]

    def cpu_s(self) -> float:
        """The processor time of all that has run there since it was switched on, its sshd included."""
        return sum(_cpu_s(process.pid) for process in self._everything())

    def _find_init(self) -> None:
        if self._boot is not None and not self._init:
            wait_for_ready(self._boot)
            self._init = only_child(self._boot.pid)

    def _everything(self, among: Sequence[Found] | None = None) -> list[Found]:
        if not self._init:
            return []
        pids = namespace(self._init, "pid")
        return [process for process in (scan() if among is None else among) if process.pids == pids]

    def _send_all(self, signal_number: signal.Signals) -> None:
        for process in self._everything():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)

    def _listens(self) -> bool:
        assert self._boot is not None
        if self._boot.poll() is not None:
            raise RuntimeError(f"{self.name}: sshd ended: {self.path('/srv/sshd.log').read_text()}")
        with inside_network(self._disk.pid), socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", 22)) == 0

    def _resize_disk(self, size: str) -> None:
        self.run("mount", "-o", f"remount,size={size}", "/srv")

    def _covered(self) -> list[Path]:
        return [path for path in self.shared if any(path.is_relative_to(covered) for covered in _COVERED)]

    def _environment(self) -> dict[str, str]:
        environment = {"PATH": "/srv/bin", "HOME": str(HOME)}
        if self.spec.clock_s is not None:
            environment |= {"LD_PRELOAD": "/srv/etc/clock.so", "CLOCK_SHIFT_FILE": "/srv/etc/clock"}
        return environment

    def _write_files(self) -> None:
        etc = self.folder / "etc"
        (etc / "passwd").write_text(_with_home(Path("/etc/passwd").read_text()))
        (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n")
        variables = " ".join(f"{key}={value}" for key, value in self._environment().items() if key != "HOME")
        (etc / "sshd_config").write_text(
            "HostKey /srv/etc/host_key\nPidFile none\nUsePAM no\nPermitRootLogin yes\nKbdInteractiveAuthentication no\n"
            f"PasswordAuthentication {'yes' if self.spec.login == 'password' else 'no'}\nSetEnv {variables}\n"
        )
        if self.spec.clock_s is not None:
            (etc / "clock").write_bytes(_clock(self.spec.clock_s))
            build = ["gcc", "-shared", "-fPIC", "-O2", "-o", etc / "clock.so", _HERE / "clock_shift.c", "-ldl"]
            subprocess.run(build, check=True, timeout=LIMIT_S)


def missing() -> str | None:
    """Why this machine cannot make hosts; None when it can."""
    if os.geteuid() != 0:
        return "only root can make hosts of namespaces"
    tools = {"ip": "iproute2", "ssh": "openssh-client", "gcc": "gcc libc6-dev", "/usr/sbin/sshd": "openssh-server"}
    packages = [package for tool, package in tools.items() if shutil.which(tool) is None]
    if packages:
        return f"hosts of namespaces need: apt-get install {' '.join(packages)}"
    try_it = "ip link add name a0 type veth peer name b0 && ip link add name c0 type bridge && mount -t tmpfs a /tmp"
    argv = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "sh", "-c", try_it]
    tried = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
    if tried.returncode != 0:
        return (
            f"root may not make hosts of namespaces here (`docker run --privileged` would do): {tried.stderr.strip()}"
        )
    return None


def _with_home(passwd: str) -> str:
    """A passwd file whose root has another home and the plainest shell."""
    lines = [line for line in passwd.splitlines() if not line.startswith("root:")]
    return "\n".join([f"root:x:0:0:root:{HOME}:/bin/sh", *lines, ""])


def _cpu_s(pid: int) -> float:
    """Of a process and its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _clock(seconds: float) -> bytes:
    return struct.pack("=q", round(seconds * 1e9))
