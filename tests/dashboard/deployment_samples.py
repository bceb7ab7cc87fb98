"""Deployments and sources for the dashboard's tests."""

import asyncio
from collections.abc import AsyncIterator

from pdctl.deployment.models import DeploymentStatus, Load, LogLine, ProcessStatus, Progress
from pdctl.planning.plan import HostPlan, Plan, ProcessPlan


def process(name, role=None, **fields):
    return ProcessStatus(
        **{"name": name, "role": role or name.split("-")[0], "host": "here", "state": "ready"} | fields
    )


def deployment(*processes, **fields):
    return DeploymentStatus(
        **{"name": "chat", "state": "ready", "endpoint": "http://127.0.0.1:8000", "model": "tiny-llama"} | fields,
        processes=list(processes)
        or [
            process("router", pid=101, port=8000, cpu_percent=3.2, memory_bytes=50_000_000, uptime_s=100),
            process("prefill-0", pid=102, port=31000, load=Load(running=1, waiting=4)),
            process(
                "decode-0",
                pid=103,
                port=31001,
                restarts=2,
                load=Load(running=3, waiting=0, kv_usage=0.83, transports=["ipc", "tcp"]),
            ),
        ],
    )


def starting(done, total=200, step="loading weights"):
    return process("prefill-0", state="starting", progress=Progress(step=step, done=done, total=total))


def a_plan():
    argv = ("/opt/py/bin/python", "-m", "engine", "--model", "tiny-llama", "--port", "0")
    engines = [
        ProcessPlan(
            name=name,
            role=name.split("-")[0],
            host="here",
            argv=argv,
            env={"OMP_NUM_THREADS": "2", "HF_API_KEY": "hf_secret"},
            ports={"api": 0},
            gpus=(3,),
        )
        for name in ("prefill-0", "decode-0")
    ]
    router = ProcessPlan(name="router", role="router", host="here", argv=("/opt/py/bin/python", "-m", "pdctl.router"))
    return Plan(
        name="chat",
        model="tiny-llama",
        engine="builtin",
        hosts={"here": HostPlan(name="here")},
        router=router,
        engines=tuple(engines),
    )


def line(text, name="router"):
    return LogLine(process=name, time=0.0, text=text)


class FakeSource:
    """A deployment whose state and log lines the test sets."""

    def __init__(self, status=None):
        self.now = status or deployment()
        self.failure: Exception | None = None
        self.lines: asyncio.Queue[LogLine | None] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.reading = 0
        self.states_end = False  # no state is given after the first
        self.asked_for: list[str] = []  # operations
        self.answer: asyncio.Future[None] | None = None  # to an operation; None: it is done at once

    async def status(self) -> DeploymentStatus:
        if self.asked.is_set() and self.states_end:
            await asyncio.Event().wait()
        self.asked.set()
        if self.failure is not None:
            raise self.failure
        return self.now

    async def logs(self, *, follow: bool, tail: int) -> AsyncIterator[LogLine]:
        self.reading += 1
        try:
            while (entry := await self.lines.get()) is not None:
                yield entry
        finally:
            self.reading -= 1

    def plan(self) -> Plan:
        return a_plan()

    async def restart(self, process: str) -> None:
        await self._operate(f"restart {process}")

    async def drain(self, process: str) -> None:
        await self._operate(f"drain {process}")

    async def undrain(self, process: str) -> None:
        await self._operate(f"undrain {process}")

    async def _operate(self, what: str) -> None:
        self.asked_for.append(what)
        if self.answer is not None:
            await self.answer
