"""A host reached by OpenSSH's own client: the user's configuration, agent, jumps and known hosts all count."""

import asyncio
import shlex
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from pdctl.errors import HostUnreachableError, PdctlError
from pdctl.hosts.archive import agent_archive
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.hosts.command import Feed, Finished, kill_program, run_command, start_program

SSH_FAILED = 255  # ssh's own exit code: anything else is the command's
NO_ARCHIVE, NO_PYTHON = 93, 94
SHIP_TIMEOUT_S = 60.0
CONNECT_S = 10.0  # for ssh to reach the host
END_S = 0.5  # for a connection's ssh to end once its input has
# For the user's login shell, whichever that is, one line that has sh run it. The first Python that will do runs the
# agent, if the host has it.
_FOLDER = "folder=${{XDG_CACHE_HOME:-$HOME/.cache}}/pdctl; "
_SCRIPT = (
    _FOLDER + 'test -f "$folder/{archive}" || exit {no_archive}; for python in {pythons}; do '
    'if "$python" -c "import sys; sys.exit(sys.version_info < (3, 9))" 2> /dev/null; then '
    'exec env {env} "$python" -I "$folder/{archive}" {arguments}; fi; done; exit {no_python}'
)
_PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(14, 8, -1)))
# In one step: an agent that is there is whole.
_SHIP = (
    _FOLDER + 'umask 077; mkdir -p "$folder" && cat > "$folder/.{archive}.$$" '
    '&& mv "$folder/.{archive}.$$" "$folder/{archive}"'
)


class SshTarget(NamedTuple):
    """How a host is reached."""

    destination: str  # [user@]host, or a name of the user's configuration
    python: str | None = None  # tried before those on the host's PATH
    accept_new: bool = False  # a host key that was never seen is kept and trusted from then on


class SshCarrier:
    """See Carrier.

    Each connection is one of its own: one that is stuck, of ours or of the user's, holds up no other.
    """

    def __init__(self, name: str, target: SshTarget) -> None:
        self._name = name
        self._target = target

    async def run(self, arguments: Sequence[str], *, timeout_s: float, feed: Feed, env: Mapping[str, str]) -> Finished:
        """See Carrier. The agent is sent where the host has none of this version."""
        deadline = monotonic() + timeout_s
        argv = self._ssh(self._script(arguments, env), timeout_s)
        finished = await run_command(argv, timeout_s=timeout_s, feed=feed)
        if finished.code == NO_ARCHIVE:
            await self._ship()
            finished = await run_command(argv, timeout_s=max(1.0, deadline - monotonic()), feed=feed)
        self._check(finished.code, finished.errors)
        return finished

    def command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """See Carrier."""
        variables = (f"{key}={value}" for key, value in env.items())
        return self._ssh(f"exec env {shlex.join([*variables, *argv])}", CONNECT_S)

    async def connect(self, folder: Path, timeout_s: float) -> AgentClient:
        """See Carrier."""
        argv = self._ssh(self._script(["connect", "--dir", str(folder)], {}), timeout_s)
        process = await start_program(argv)
        assert process.stdin
        assert process.stdout
        client = AgentClient(self._name, process.stdout, process.stdin, on_close=lambda: _end(process))
        try:
            await client.greet(timeout_s)
        except AgentGoneError as error:
            raise await self._why(process, error) from None
        return client

    async def _why(self, process: Process, error: AgentGoneError) -> PdctlError:
        """What ended a connection that never spoke."""
        assert process.stderr
        said = (await process.stderr.read()).decode(errors="replace").strip()
        try:
            self._check(process.returncode or 0, said)
        except HostUnreachableError as unreachable:
            return unreachable
        if process.returncode is not None and process.returncode < 0:  # ended here: it had neither begun nor failed
            return HostUnreachableError(f"host {self._name}: {error}, by `ssh {self._target.destination}`")
        return AgentGoneError(f"no agent runs on host {self._name}" + (f": {said}" if said else ""))

    async def _ship(self) -> None:
        archive = agent_archive()
        argv = self._ssh(_SHIP.format(archive=archive.name), SHIP_TIMEOUT_S)
        finished = await run_command(argv, timeout_s=SHIP_TIMEOUT_S, feed=Feed(archive.content))
        self._check(finished.code, finished.errors)
        if finished.code != 0:
            raise PdctlError(f"host {self._name}: the agent cannot be kept in ~/.cache/pdctl: {finished.errors}")

    def _ssh(self, script: str, timeout_s: float) -> list[str]:
        keys = "accept-new" if self._target.accept_new else "yes"
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": keys,
            "ConnectTimeout": str(max(1, int(min(timeout_s, CONNECT_S)))),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlPath": "none",
            "ClearAllForwardings": "yes",
        }
        flags = [text for key, value in options.items() for text in ("-o", f"{key}={value}")]
        return ["ssh", "-T", *flags, "--", self._target.destination, f"exec sh -c {shlex.quote(script)}"]

    def _script(self, arguments: Sequence[str], env: Mapping[str, str]) -> str:
        pythons = [self._target.python, *_PYTHONS] if self._target.python else _PYTHONS
        return _SCRIPT.format(
            archive=agent_archive().name,
            no_archive=NO_ARCHIVE,
            no_python=NO_PYTHON,
            pythons=shlex.join(pythons),
            env=shlex.join(f"{key}={value}" for key, value in env.items()),
            arguments=shlex.join(arguments),
        )

    def _check(self, code: int, errors: str) -> None:
        if code == SSH_FAILED:
            raise HostUnreachableError(f"host {self._name}: `ssh {self._target.destination}`: {_reason(errors)}")
        if code == NO_PYTHON:
            raise PdctlError(
                f"host {self._name}: no Python 3.9 or newer among {', '.join(_PYTHONS)} there: install one, or name it"
                f" with `hosts: {{{self._name}: {{python: ...}}}}`"
            )


async def _end(process: Process) -> None:
    """Its input has ended, and with it the connection, unless the way there is blocked."""
    with suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            await process.wait()
            return
    await kill_program(process)


def _reason(errors: str) -> str:
    """What ssh said, with what to do."""
    said = [line for line in errors.splitlines() if line.strip() and not line.startswith(("@", "**"))]
    last = said[-1] if said else "it failed and said nothing"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in errors:
        return "its host key is not the one that is known: if that is right, remove the old one with `ssh-keygen -R`"
    if "Host key verification failed" in errors:
        return "its host key is not known: check it with `ssh` by hand, or trust new ones with `host_keys: accept-new`"
    if "Permission denied" in errors:
        return f"{last}: pdctl asks for no password: let a key in there (`ssh-copy-id`), or load it (`ssh-add`)"
    return last
