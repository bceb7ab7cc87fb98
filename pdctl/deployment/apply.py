"""Applying a plan: agent, router, engines, one step after the other, until every pair has served a request."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any

import httpx

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.store import DeploymentFolder, ProcessId, State, new_run_id
from pdctl.deployment.verify import Engine, pairs, verify
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import PdctlError, StepTimeoutError, VerifyError
from pdctl.planning.plan import ROUTER_PLACEHOLDER, Plan, ProcessPlan

TOKEN_FILE = "PDCTL_TOKEN_FILE"
REGISTER_TIMEOUT_S = 30.0
DEATH_S = 5.0  # for a process to end that has answered with an error
LOG_LINES = 20  # of each process that was awaited in vain
_POLL_S = 0.1
_POLL_TIMEOUT_S = 5.0

Report = Callable[[str], None]


def prepare(plan: Plan, folder: DeploymentFolder) -> Deployment:
    """Record the start of a deployment. The caller holds the folder's lock until `apply` has ended."""
    folder.create_token()
    folder.write_plan(plan)
    state = State(run_id=new_run_id(), phase="starting", owner=ProcessId.own(), started=time())
    folder.write_state(state)
    return Deployment(folder, plan)


async def apply(deployment: Deployment, *, timeout_s: float | None = None, report: Report = lambda text: None) -> None:
    """Start everything and verify it, each step within its own limit and all within ``timeout_s``.

    Whatever it raises, the caller is to tear the deployment down.
    """
    start = _Start(deployment, report)
    try:
        await _within(timeout_s, start)
    except (StepTimeoutError, VerifyError) as error:
        error.detail = await start.last_lines()
        raise


async def _within(timeout_s: float | None, start: "_Start") -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await start.run()
    except TimeoutError:
        raise StepTimeoutError(f"not ready within {timeout_s:g} s: it was waiting for {start.waiting_for}") from None


class _Start:
    """The steps of one start."""

    def __init__(self, deployment: Deployment, report: Report) -> None:
        self.waiting_for = "the agent"
        self._awaited: Sequence[str] = ()  # the processes among what it waits for
        self._deployment = deployment
        self._plan = deployment.plan
        self._report = report
        self._watch = ProcessWatch(deployment, _ProgressReport(report))
        self._endpoint = ""

    async def run(self) -> None:
        for name, host in self._deployment.hosts.items():
            await host.start_agent(self._deployment.folder.agent_folder(name), self._deployment.state.run_id)
        async with self._watch:
            await self._watch.unless_one_dies(self._steps())

    async def last_lines(self) -> str:
        """The end of the logs of the processes that it waited for."""
        if not self._awaited:
            return ""
        with suppress(PdctlError):  # what was waited for is said in any case
            lines = self._deployment.logs(self._awaited, tail=LOG_LINES)
            return "\n".join([f"{line.process} | {line.text}" async for line in lines])
        return ""

    async def _steps(self) -> None:
        await self._start_router()
        for engine in self._plan.engines:
            await self._start(engine)
        await self._wait_engines(monotonic())
        engines = await self._wait_registered()
        await self._verify(engines)
        self._write_state(phase="verified")

    async def _start_router(self) -> None:
        router = self._plan.router
        await self._start(router)
        await self._wait_ready(router, monotonic() + router.readiness.timeout_s)
        self._endpoint = self._url(router)
        self._write_state(endpoint=self._endpoint)
        self._report(f"router listens at {self._endpoint}")

    async def _start(self, process: ProcessPlan) -> None:
        address = self._endpoint.removeprefix("http://")
        client = await self._deployment.client(process.host)
        env = {key: value.replace(ROUTER_PLACEHOLDER, address) for key, value in process.env.items()}
        answer = await client.call(
            "start",
            name=process.name,
            argv=[argument.replace(ROUTER_PLACEHOLDER, address) for argument in process.argv],
            env={**env, TOKEN_FILE: str(self._deployment.folder.token_path)},
            grace=process.stop_grace_s,
        )
        self._watch.snapshots.setdefault(process.name, Snapshot.model_validate(answer))

    async def _wait_engines(self, started: float) -> None:
        """The shortest limit first, so that each is kept."""
        for engine in sorted(self._plan.engines, key=lambda engine: engine.readiness.timeout_s):
            await self._wait_ready(engine, started + engine.readiness.timeout_s)
            self._report(f"{engine.name} is ready after {monotonic() - started:.1f} s")

    async def _wait_ready(self, process: ProcessPlan, deadline: float) -> None:
        self._wait_for("become ready", process.name)
        if process.readiness.kind == "notify":
            await self._wait_notice(process, deadline)
        else:
            await self._wait_http(process, deadline)

    def _wait_for(self, what: str, *processes: str) -> None:
        self.waiting_for = f"{', '.join(processes)} to {what}"
        self._awaited = processes

    async def _wait_notice(self, process: ProcessPlan, deadline: float) -> None:
        def is_ready(snapshot: Snapshot) -> bool:
            return snapshot.state == "ready"

        what = f"become ready within {process.readiness.timeout_s:g} s"
        await self._watch.until(process.name, is_ready, deadline - monotonic(), what)

    async def _wait_http(self, process: ProcessPlan, deadline: float) -> None:
        while True:
            url = self._known_url(process)  # a port that is reported comes late
            if url is not None and await self._get(url + process.readiness.path) is not None:
                return
            if monotonic() > deadline:
                why = f"no 200 from {url}{process.readiness.path}" if url else "it did not say on which port it listens"
                limit = process.readiness.timeout_s
                raise StepTimeoutError(f"{process.name} did not become ready within {limit:g} s: {why}")
            await asyncio.sleep(_POLL_S)  # the process announces nothing

    async def _wait_registered(self) -> dict[str, list[Engine]]:
        """The engines of each role as the router knows them, once it knows all."""
        deadline = monotonic() + REGISTER_TIMEOUT_S
        self._wait_for("register at the router", *(engine.name for engine in self._plan.engines))
        while True:
            answer = await self._get(f"{self._endpoint}/registered")
            found, missing = self._match(answer.json() if answer is not None else {})
            if not missing:
                self._report(f"{len(self._plan.engines)} engines registered at the router")
                return found
            self._wait_for("register at the router", *missing)
            if monotonic() > deadline:
                what = f"{', '.join(missing)} did not register at the router within {REGISTER_TIMEOUT_S:g} s"
                raise StepTimeoutError(what)
            await asyncio.sleep(_POLL_S)  # the router tells only who asks

    def _match(self, registered: dict[str, list[dict[str, Any]]]) -> tuple[dict[str, list[Engine]], list[str]]:
        """Pair the router's entries with the plan's engines, by role and port."""
        found: dict[str, list[Engine]] = {"prefill": [], "decode": [], "mixed": []}
        missing = []
        for engine in self._plan.engines:
            url = self._url(engine)
            entries = {f"http://{e['host_ip']}:{e['port']}": e for e in registered.get(engine.role, [])}
            if url in entries:
                found[engine.role].append(Engine(engine.name, url, entries[url].get("model") or self._plan.model))
            else:
                missing.append(engine.name)
        return found, missing

    async def _verify(self, engines: dict[str, list[Engine]]) -> None:
        all_pairs = list(pairs(engines))
        self.waiting_for = f"a request to go through {', '.join(map(str, all_pairs))}"
        self._awaited = [process.name for process in self._plan.processes]
        token = self._deployment.folder.read_token()
        try:
            await verify(self._deployment.http, self._endpoint, token, all_pairs)
        except VerifyError as error:
            self._awaited = [self._plan.router.name, *error.processes]
            await self._expect_a_death(error)
            raise
        self._report(f"a request went through {', '.join(map(str, all_pairs))}")

    async def _expect_a_death(self, error: VerifyError) -> None:
        """A process that fails answers first and ends then: its end is the better reason, and cancels this wait."""
        with suppress(StepTimeoutError):
            await self._watch.until(error.processes[-1], lambda _: False, DEATH_S, "end")

    async def _get(self, url: str) -> httpx.Response | None:
        """The answer if it is a 200."""
        try:
            answer = await self._deployment.http.get(url, timeout=_POLL_TIMEOUT_S)
        except httpx.HTTPError:  # it does not listen yet
            return None
        return answer if answer.status_code == httpx.codes.OK else None

    def _url(self, process: ProcessPlan) -> str:
        url = self._known_url(process)
        if url is None:
            raise StepTimeoutError(f"{process.name} said that it is ready, but not on which port it listens")
        return url

    def _known_url(self, process: ProcessPlan) -> str | None:
        return self._deployment.url(process, self._watch.snapshots[process.name], "api")

    def _write_state(self, **changes: object) -> None:
        state = self._deployment.state
        self._deployment.folder.write_state(state.model_copy(update=changes))


class _ProgressReport:
    """Reports a process's progress at each quarter of a step."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._said: set[tuple[str, str, int]] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        progress = snapshot.progress
        if progress is None or progress.total <= 0:
            return
        quarter = 4 * progress.done // progress.total
        if (snapshot.name, progress.step, quarter) not in self._said:
            self._said.add((snapshot.name, progress.step, quarter))
            self._report(f"{snapshot.name}: {progress.step} {25 * quarter}%")
