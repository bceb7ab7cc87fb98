"""Starting processes through their agents, and waiting until they are ready."""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

import httpx

from pdctl.agent.health_probe import API_PORT
from pdctl.agent.paths import SECRETS
from pdctl.deployment.deployment import TOKEN, Deployment
from pdctl.deployment.secrets import read_secrets
from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.status import port_of
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import StepTimeoutError
from pdctl.planning.plan import ROUTER_PLACEHOLDER, WORK_DIR_PLACEHOLDER, ProcessPlan

TOKEN_FILE = "PDCTL_TOKEN_FILE"
_POLL_S = 0.1
_POLL_TIMEOUT_S = 5.0


class ProcessStarter:
    """Starts processes of a deployment that is watched."""

    def __init__(self, deployment: Deployment, watch: ProcessWatch) -> None:
        self.awaited: Sequence[str] = ()  # the processes that are waited for
        self.waiting_for = "the agent"
        self._deployment = deployment
        self._watch = watch

    async def start(self, process: ProcessPlan, router: str) -> None:
        """Start a process. ``router``: where it finds the router, host:port."""
        client = await self._deployment.client(process.host)
        env = {key: _completed(value, process, router, client.folder) for key, value in process.env.items()}
        answer = await client.call(
            "start",
            name=process.name,
            argv=_command(process, router, client.folder),
            env={**env, **read_secrets(process), TOKEN_FILE: f"{client.folder}/{SECRETS}/{TOKEN}"},
            cwd=process.workdir,
            grace=process.stop_grace_s,
        )
        self._watch.started(Snapshot.model_validate(answer))

    async def supervise(self, process: ProcessPlan, *, serves: bool = True) -> None:
        """Have the agent restart a process from now on: the router at the port that it has.

        ``serves``: it was seen to do so; else the agent finds out.
        """
        client = await self._deployment.client(process.host)
        argv = None
        if process.role == "router":
            port = port_of(process, self._watch.snapshots[process.name], "api") or 0
            argv = _command(at_port(process, port), "", client.folder)
        await client.call(
            "supervise",
            name=process.name,
            restart=process.restart.model_dump(),
            argv=argv,
            probe_url=_probe_url(process),
            ready_s=process.readiness.timeout_s,
            serves=serves,
        )

    async def wait_ready(self, process: ProcessPlan, deadline: float) -> None:
        """Wait until a process is ready; raises StepTimeoutError naming what it did not do."""
        self.wait_for("become ready", process.name)
        if process.readiness.kind == "notify":
            await self._wait_notice(process, deadline)
        elif process.readiness.kind == "http":
            await self._wait_http(process, deadline)

    async def wait_all(self, processes: Sequence[ProcessPlan], report: Callable[[str], None]) -> None:
        """Wait for several that have just been started: the shortest limit first, so that each is kept."""
        started = monotonic()
        for process in sorted(processes, key=lambda process: process.readiness.timeout_s):
            await self.wait_ready(process, started + process.readiness.timeout_s)
            report(f"{process.name} is ready after {monotonic() - started:.1f} s")

    def wait_for(self, what: str, *processes: str) -> None:
        """Note what is being waited for."""
        self.waiting_for = f"{', '.join(processes)} to {what}"
        self.awaited = processes

    def url(self, process: ProcessPlan, purpose: str = "api") -> str:
        """The URL of a port of a process that is ready."""
        url = self._known_url(process, purpose)
        if url is None:
            raise StepTimeoutError(f"{process.name} said that it is ready, but not on which port it listens")
        return url

    async def get(self, host: str, url: str, key: str = "") -> httpx.Response | None:
        """The answer of a process of a host if it is a 200. ``key``: its API key, if it wants one."""
        headers = {"Authorization": f"Bearer {key}"} if key else None
        try:
            answer = await self._deployment.http(host).get(url, headers=headers, timeout=_POLL_TIMEOUT_S)
        except httpx.HTTPError:  # it does not listen yet
            return None
        return answer if answer.status_code == httpx.codes.OK else None

    async def _wait_notice(self, process: ProcessPlan, deadline: float) -> None:
        def is_ready(snapshot: Snapshot) -> bool:
            return snapshot.state == "ready"

        what = f"become ready within {process.readiness.timeout_s:g} s"
        await self._watch.until(process.name, is_ready, deadline - monotonic(), what)

    async def _wait_http(self, process: ProcessPlan, deadline: float) -> None:
        while True:
            url = self._known_url(process, "api")  # a port that is reported comes late
            if url is not None and await self.get(process.host, url + process.readiness.path) is not None:
                return
            if monotonic() > deadline:
                why = f"no 200 from {url}{process.readiness.path}" if url else "it did not say on which port it listens"
                limit = process.readiness.timeout_s
                raise StepTimeoutError(f"{process.name} did not become ready within {limit:g} s: {why}")
            await asyncio.sleep(_POLL_S)  # the process announces nothing

    def _known_url(self, process: ProcessPlan, purpose: str) -> str | None:
        return self._deployment.url(process, self._watch.snapshots[process.name], purpose)


def at_port(router: ProcessPlan, port: int) -> ProcessPlan:
    """The router as it is started again: engines and clients know the port that it was given."""
    argv = list(router.argv)
    if router.ports["api"] or not port or "--port" not in argv:
        return router
    argv[argv.index("--port") + 1] = str(port)
    return router.model_copy(update={"argv": tuple(argv), "ports": {**router.ports, "api": port}})


def _command(process: ProcessPlan, router: str, folder: str) -> list[str]:
    return _after_setup(process.setup, [_completed(argument, process, router, folder) for argument in process.argv])


def _completed(text: str, process: ProcessPlan, router: str, folder: str) -> str:
    work_dir = f"{folder}/work/{process.name}"
    return text.replace(ROUTER_PLACEHOLDER, router).replace(WORK_DIR_PLACEHOLDER, work_dir)


def _probe_url(process: ProcessPlan) -> str | None:
    """At which the agent asks whether it still answers; of the processes of an engine only the head can be asked."""
    if process.readiness.kind == "head":
        return None
    return f"http://{process.address}:{process.ports.get('api') or API_PORT}{process.readiness.path}"


def _after_setup(setup: str | None, argv: list[str]) -> list[str]:
    """The command line, to be run once bash has run the user's commands; the first that fails ends it."""
    if setup is None:
        return argv
    return ["bash", "-c", f'set -e\n{setup}\nset +e\nexec "$@"', "setup", *argv]
