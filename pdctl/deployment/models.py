"""What `pdctl status --json` prints and the dashboard shows."""

from typing import Literal

from pydantic import BaseModel

from pdctl.planning.plan import Role

DeploymentState = Literal["starting", "ready", "degraded", "down"]
ProcessState = Literal["starting", "ready", "stopping", "exited", "restarting", "failed", "unreachable", "unknown"]


class Progress(BaseModel):
    """How far a starting process is."""

    step: str
    done: int
    total: int


class Load(BaseModel):
    """A process's own figures; None where it does not publish one."""

    running: float | None = None  # requests
    waiting: float | None = None  # requests
    kv_usage: float | None = None  # 0..1
    prompt_tokens: float | None = None  # since start
    generated_tokens: float | None = None  # since start
    transferred_tokens: float | None = None  # prompt tokens whose KV came from a prefill engine, since start
    locally_computed_tokens: float | None = None  # prompt tokens computed here, since start
    transferred_bytes: float | None = None  # KV bytes received, since start
    transports: list[str] = []  # by which KV comes or goes now: ipc, rdma, tcp
    requests: float | None = None  # requests finished, since start (router)
    ttft_seconds: float | None = None  # of all requests together, since start: time to their first token
    ttft_count: float | None = None  # the requests that these are of
    tpot_seconds: float | None = None  # of all tokens but the first ones together, since start
    tpot_count: float | None = None  # the tokens that these are of
    fallbacks: list[str] = []  # why decode engines computed prompts, on the router's word (router)
    draining: list[str] = []  # addresses of the engines that are given no new requests (router)


class ProcessStatus(BaseModel):
    """One process of a deployment."""

    name: str
    role: Role
    host: str
    pid: int | None = None
    port: int | None = None  # of its HTTP API
    metrics_port: int | None = None
    state: ProcessState = "unknown"
    restarts: int = 0
    restart_in_s: float | None = None  # while it is restarting: how long it still waits
    draining: bool = False  # the router gives it no new requests
    uptime_s: float = 0.0
    exit_code: int | None = None  # negative: the signal that ended it
    stopped: bool = False  # it has ended, or is ending, because it was told to
    last_end: str | None = None  # how it ended, or while it lives its last life: "was killed by SIGKILL"
    last_line: str | None = None  # of its log, if it has ended
    cpu_percent: float = 0.0  # of one core, the whole process tree
    memory_bytes: int = 0  # resident, the whole process tree
    progress: Progress | None = None
    warning: str | None = None  # e.g. its log cannot be written
    load: Load = Load()


class DeploymentStatus(BaseModel):
    """A deployment as it is now."""

    name: str
    state: DeploymentState
    endpoint: str | None = None  # the router's URL
    model: str = ""
    reason: str | None = None  # why it is not ready
    processes: list[ProcessStatus] = []


class LogLine(BaseModel):
    """One line that a process wrote."""

    process: str
    time: float  # seconds since the epoch, when the agent read it
    text: str
