"""A deployment as others see it: its state and its logs, whoever started it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Self

import httpx

from pdctl.deployment.follow import HostLogs, merged
from pdctl.deployment.load import scrape
from pdctl.deployment.models import DeploymentStatus, Load, LogLine
from pdctl.deployment.remote_http import AgentTransport
from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.status import Findings, make_status, port_of
from pdctl.deployment.store import DeploymentFolder, State
from pdctl.deployment.together import together
from pdctl.errors import HostUnreachableError, NotFoundError, StateError, StepTimeoutError
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.hosts.host import Host
from pdctl.hosts.open import open_host
from pdctl.planning.plan import HostPlan, Plan, ProcessPlan

DEFAULT_TAIL = 100
TOKEN = "token"  # what the agents call the deployment's token among their secrets
HEALTH_TIMEOUT_S = 2.0
LIST_TIMEOUT_S = 3.5  # with the connection to the agent; together with what follows, an answer takes 5 s at most
SWEEP_WAIT_S = 3.0  # for a guardian that is ending what its dead agent left
REST_TIMEOUT_S = 10.0  # for all of a sweep


class Deployment:
    """A started deployment: its files, and a connection to each of its agents while there is one."""

    def __init__(self, folder: DeploymentFolder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.name = plan.name
        self.hosts: dict[str, Host] = {name: _open(host) for name, host in sorted(plan.hosts.items())}
        self._http: dict[str, httpx.AsyncClient] = {}
        self._clients: dict[str, AgentClient] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._ended: set[str] = set()  # hosts whose agent has ended and left nothing
        self._unreachable: set[str] = set()  # hosts that the last look did not reach
        self._left: dict[str, list[str]] = {}  # by host whose agent has ended: what could not be ended with it

    @classmethod
    def attach(cls, folder: DeploymentFolder) -> Self:
        """Find a deployment that was started before; raises NotFoundError where there was none."""
        state, plan = folder.read_state(), folder.read_plan()
        if state is None or plan is None:
            raise NotFoundError(f"there is no deployment {folder.name!r}: start one with `pdctl up`")
        local = any(host.ssh is None for host in plan.hosts.values())
        if local and state.phase != "down" and state.machine != socket.gethostname():
            raise StateError(
                f"deployment {folder.name!r} runs on the machine {state.machine}, with which this one shares"
                f" {folder.path.parent}: use it from there, or choose another folder with PDCTL_STATE_DIR"
            )
        return cls(folder, plan)

    def take_plan(self, plan: Plan) -> None:
        """Go by another plan of the same run."""
        self.plan = plan
        self.hosts = {name: self.hosts.get(name) or _open(host) for name, host in sorted(plan.hosts.items())}

    @property
    def state(self) -> State:
        """What is recorded of it now."""
        state = self.folder.read_state()
        if state is None:
            raise NotFoundError(f"the deployment {self.name!r} is gone: its folder {self.folder.path} was removed")
        return state

    async def status(self) -> DeploymentStatus:
        """Look at every process, and at the router's health."""
        state = self.state
        if state.phase == "down":
            return make_status(self.plan, state, Findings(False, (), (), {}, {}, None))
        owner_lives = state.phase != "verified" and state.owner.is_alive()
        self._unreachable.clear()
        answers = await asyncio.gather(*(self._snapshots(name, state, owner_lives) for name in self.hosts))
        missing = [name for name, answer in zip(self.hosts, answers, strict=True) if answer is None]
        left = [f"{process} on host {name}" for name in missing for process in self._left.get(name, ())]
        gone = [name for name in missing if name in self._ended or self._left.get(name)]
        silent = [name for name in missing if name not in gone and name not in self._unreachable]
        unreachable = sorted(self._unreachable)
        snapshots = {snapshot.name: snapshot for answer in answers for snapshot in answer or ()}
        problem, loads = await asyncio.gather(
            self._router_problem(state.endpoint),
            asyncio.gather(*(self._load(process, snapshots) for process in self.plan.processes)),
        )
        by_process = {process.name: load for process, load in zip(self.plan.processes, loads, strict=True)}
        return make_status(
            self.plan, state, Findings(owner_lives, gone, silent, snapshots, by_process, problem, left, unreachable)
        )

    async def logs(
        self, processes: Sequence[str] = (), *, tail: int = DEFAULT_TAIL, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        """The last lines of the processes (none named: of all) in the order of their time, then, if wanted, new ones.

        Following ends when no agent runs any more, and waits for one while the deployment is being started.
        """
        self._check_names(processes)
        sources = [
            HostLogs(host, self.agent_folder(name), self.agent_run(name), names, tail, self._is_starting)
            for name, host in self.hosts.items()
            if (names := [p.name for p in self.plan.processes if p.host == name and p.name in (processes or [p.name])])
        ]
        try:
            recorded = await asyncio.gather(*(source.recorded(follow=follow) for source in sources))
            for line in sorted((line for lines in recorded for line in lines), key=lambda line: line.time):
                yield line
            async with aclosing(merged([source.new_lines() for source in sources])) as new_lines:
                async for line in new_lines:
                    yield line
        finally:
            await asyncio.gather(*(source.close() for source in sources))

    async def client(self, host: str) -> AgentClient:
        """The connection to a host's agent; raises AgentGoneError when none runs."""
        async with self._connecting.setdefault(host, asyncio.Lock()):
            client = self._clients.get(host)
            if client is None or client.is_closed:
                if client is not None:
                    await client.close()
                self._clients[host] = client = await self.connect(host)
        return client

    async def start_agents(self, hosts: Collection[str] | None = None) -> None:
        """Start an agent on each host (None: on all), and give it what it needs to start processes."""

        async def start(name: str) -> None:
            await self.hosts[name].start_agent(self.agent_folder(name), self.agent_run(name))
            client = await self.client(name)
            await client.call("keep", name=TOKEN, text=self.folder.read_token())

        await together(start(name) for name in (self.hosts if hosts is None else hosts))

    async def connect(self, host: str) -> AgentClient:
        """A connection of the caller's own to a host's agent."""
        return await self.hosts[host].connect(self.agent_folder(host))

    def agent_folder(self, host: str) -> Path:
        """The folder of a host's agent, there."""
        return self.hosts[host].folder_of(self.folder.path)

    def agent_run(self, host: str) -> str:
        """The tag of a host's processes: two hosts may turn out to be one machine."""
        return f"{self.state.run_id}-{host}"

    def http(self, host: str) -> httpx.AsyncClient:
        """What sends requests to the processes of a host: from there, as their addresses need not reach us here."""
        if host not in self._http:
            remote = self.plan.hosts[host].ssh is not None
            transport = AgentTransport(partial(self.client, host)) if remote else None
            # A proxy must not come between us and our own processes.
            self._http[host] = httpx.AsyncClient(trust_env=False, transport=transport)
        return self._http[host]

    async def close(self) -> None:
        """Close the connections; the deployment goes on."""
        clients, self._clients = self._clients, {}
        senders, self._http = self._http, {}
        await asyncio.gather(*(sender.aclose() for sender in senders.values()))
        await asyncio.gather(*(client.close() for client in clients.values()))

    def url(self, process: ProcessPlan, snapshot: Snapshot, purpose: str) -> str | None:
        """The URL of a process's port, once it is known."""
        port = port_of(process, snapshot, purpose)
        return f"http://{process.address}:{port}" if port else None

    def _is_starting(self) -> bool:
        state = self.state
        return state.phase == "starting" and state.owner.is_alive()

    def _check_names(self, processes: Sequence[str]) -> None:
        known = [process.name for process in self.plan.processes]
        for name in processes:
            if name not in known:
                raise NotFoundError(f"deployment {self.name!r} has no process {name!r}, only {', '.join(known)}")

    async def _snapshots(self, host: str, state: State, owner_lives: bool) -> list[Snapshot] | None:
        """None when the host's agent is gone; then nothing of the run may be left there."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                client = await self.client(host)
                answers = await client.call("list")
            return [Snapshot.model_validate(answer) for answer in answers]
        except HostUnreachableError:
            self._unreachable.add(host)
        except TimeoutError:
            if self.plan.hosts[host].ssh is not None:  # to ask another way would take as long
                self._unreachable.add(host)
            elif not owner_lives and host not in self._ended:
                await self._look_for_rest(host)
        except AgentGoneError:
            if not owner_lives and host not in self._ended:
                await self._look_for_rest(host)
        return None

    async def _look_for_rest(self, host: str) -> None:
        """Of an agent that does not answer: nothing may be left if it is dead."""
        try:
            folder, run = self.agent_folder(host), self.agent_run(host)
            async with asyncio.timeout(REST_TIMEOUT_S):
                sweep = await self.hosts[host].sweep(folder, run, SWEEP_WAIT_S, force=False)
        except (HostUnreachableError, StepTimeoutError, TimeoutError):
            self._unreachable.add(host)
            return
        self._left[host] = sweep.left
        self._ended |= set() if sweep.agent_lives or sweep.left else {host}

    async def _load(self, process: ProcessPlan, snapshots: dict[str, Snapshot]) -> Load:
        snapshot = snapshots.get(process.name)
        if snapshot is None or not snapshot.lives or not process.metrics:
            return Load()
        url = self.url(process, snapshot, "metrics") or self.url(process, snapshot, "api")
        return await scrape(self.http(process.host), f"{url}/metrics", process.metrics) if url else Load()

    async def _router_problem(self, endpoint: str | None) -> str | None:
        if endpoint is None:
            return "the router has not reported its port"
        if self.plan.router.host in self._unreachable:
            return "the router's host cannot be reached"
        path = self.plan.router.readiness.path
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                answer = await self.http(self.plan.router.host).get(endpoint + path)
        except (httpx.HTTPError, TimeoutError) as error:
            return f"the router's {path} does not answer: {type(error).__name__}"
        if answer.status_code == httpx.codes.OK:
            return None
        return f"the router's {path} answers {answer.status_code}: {' '.join(answer.text.split())[:200]}"


def _open(host: HostPlan) -> Host:
    return open_host(host.name, host.ssh, python=host.python, accept_new=host.accept_new)
