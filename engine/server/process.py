"""The engine process from start to end: ports, model, ready, serve, drain."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

import pdctl
from engine.args import EngineArgs
from engine.errors import EngineError, RequestError
from engine.server.app import make_app, make_metrics_app
from engine.server.registration import Registration
from engine.server.sockets import bind, port_of, serving
from engine.server.startup import find_model, load
from engine.server.state import Backend, Phase, ServerState
from pdctl.notify import Notifier

if TYPE_CHECKING:
    from engine.loading.files import ModelFiles

TOKEN_FILE = "PDCTL_TOKEN_FILE"
DRAIN_S = 8.0  # for the requests being served when the process is told to end
FAILED_S = 2.0  # for telling the clients that the engine has failed

logger = logging.getLogger(__name__)


def run(args: EngineArgs) -> int:
    """Serve until told to end; return the exit status."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    try:
        token = _read_token()
        files = find_model(args)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(args, files, token))
    except (EngineError, MemoryError) as error:
        logger.error("%s", error)
        return 1


class Ending:
    """What ends the process: a signal, or a failure of the engine core."""

    def __init__(self, state: ServerState) -> None:
        self.failure: BaseException | None = None
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)

    def on_failure(self, error: BaseException) -> None:
        """Take the engine core's failure. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._fail, error)

    async def wait(self) -> None:
        """Wait until the process is to end, without a limit: this is its life."""
        await self._ended.wait()

    def _fail(self, error: BaseException) -> None:
        logger.critical("the engine core has failed: %r", error, exc_info=error)
        self.failure = error
        self._ended.set()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._ended.is_set() or self._state.phase == Phase.LOADING:
            logger.warning("%s: ended at once", number.name)
            os._exit(128 + number)
        logger.info("%s: finishing %d requests", number.name, self._state.in_flight)
        self._ended.set()


async def _serve(args: EngineArgs, files: "ModelFiles", token: str | None) -> int:
    state = ServerState(args, token, asyncio.get_running_loop())
    ending = Ending(state)
    notifier = Notifier()
    api = bind(args.host, args.port, "--port")
    metrics = bind(args.host, args.metrics_port, "--metrics-port")
    ports = {"api": port_of(api), "metrics": port_of(metrics)}
    async with serving(make_app(state), api), serving(make_metrics_app(state), metrics):
        notifier.listening(ports)
        logger.info("listening on %s:%d, metrics on %d", args.host, ports["api"], ports["metrics"])
        engine_id = f"{args.advertise_host}:{ports['api']}"
        loaded = await asyncio.to_thread(load, args, files, notifier)
        from engine.server.backend import running_backend  # with torch, which a missing model need not wait for

        async with running_backend(state, loaded, engine_id, ending.on_failure) as backend:
            if args.role == "decode":
                ports |= {"pd-comm": backend.pd_comm_port, "rdma-comm": backend.rdma_comm_port}
            notifier.listening(ports)
            state.ready(backend)
            notifier.ready()
            logger.info("ready: %s as %s", args.served_model_name, args.role)
            registration = _registration(state, backend, ports)
            await ending.wait()
            await _drain(state, registration, ending.failure)
    return 1 if ending.failure else 0


def _registration(state: ServerState, backend: Backend, ports: dict[str, int]) -> Registration | None:
    if state.args.router is None:
        return None
    meet = backend.sender.meet if backend.sender else None
    registration = Registration(state.args.router, state.token, lambda: _instance(state, backend, ports), meet)
    registration.start()
    return registration


def _instance(state: ServerState, backend: Backend, ports: dict[str, int]) -> dict[str, Any]:
    args = state.args
    return {
        "role": args.role,
        "protocol": "builtin",
        "host_ip": args.advertise_host,
        "port": ports["api"],
        "metrics_port": ports["metrics"],
        "connector_port": backend.pd_comm_port,
        "engine_worker_queue_port": 0,
        "transfer_protocol": list(backend.transports),
        "rdma_ports": [backend.rdma_comm_port] if backend.rdma_comm_port else [],
        "device_ids": [],
        "tp_size": 1,
        "version": pdctl.__version__,
        "is_paused": state.phase != Phase.READY,
        "connected_decodes": backend.sender.connected_decodes if backend.sender else [],
        "model": args.served_model_name,
        "max_model_len": backend.max_model_len,
        "prefill_on_decode": args.role == "decode",
        "kv_events": True,
    }


async def _drain(state: ServerState, registration: Registration | None, failure: BaseException | None) -> None:
    """Take no more requests, let the ones being served end, and fail those that cannot."""
    state.phase = Phase.FAILED if failure else Phase.DRAINING
    state.kv_events.end()
    if failure:
        state.streams.fail(None, RequestError("the engine has failed", status=500, code="engine_failed"))
    paused = asyncio.create_task(registration.stop()) if registration else None
    try:
        async with asyncio.timeout(FAILED_S if failure else DRAIN_S):
            await state.idle.wait()
    except TimeoutError:
        logger.warning("%d requests have not ended in time", state.in_flight)
        state.streams.fail(None, RequestError("the engine is shutting down", status=503, code="shutting_down"))
    if paused:
        await paused


def _read_token() -> str | None:
    path = os.environ.get(TOKEN_FILE)
    if path is None:
        return None
    try:
        token = Path(path).read_text().strip()
    except OSError as error:
        raise EngineError(f"{TOKEN_FILE}={path}: {error.strerror}") from None
    if not token:
        raise EngineError(f"{TOKEN_FILE}={path}: the file is empty")
    return token
