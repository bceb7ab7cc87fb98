"""`python -m pdctl.router`."""

import argparse
import asyncio
import logging
import resource
import signal
import sys
from collections.abc import Sequence
from typing import get_args

import uvloop

from pdctl.errors import PdctlError
from pdctl.notify import Notifier
from pdctl.router.app import Router
from pdctl.router.listener import bind
from pdctl.router.settings import DecodePolicy, PrefillPolicy, Settings
from pdctl.router.tokens import load_token

log = logging.getLogger("pdctl.router")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until it is told to stop; its exit code."""
    arguments = _parse(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("asyncio").setLevel(logging.INFO)
    try:
        settings = _settings(arguments)
        _allow_many_connections()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except PdctlError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    notifier = Notifier()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    sock = bind(settings.host, settings.port)
    port = sock.getsockname()[1]
    router = Router(settings)
    await router.serve(sock)
    notifier.listening({"api": port})
    notifier.ready()
    log.info("listening on %s:%d, %s", settings.host, port, "splitwise" if settings.splitwise else "mixed")
    await signals.get()
    draining = loop.create_task(router.drain())
    again = loop.create_task(signals.get())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("stopping at once: %d requests are cut", len(router.in_flight))
    draining.cancel()
    again.cancel()
    router.close()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pdctl.router", description="Forwards requests to engines.")
    defaults = Settings()
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=_port, default=defaults.port, help="0: a free one")
    parser.add_argument(
        "--splitwise", action="store_true", help="serve with prefill and decode engines, not mixed ones"
    )
    parser.add_argument("--prefill-policy", choices=get_args(PrefillPolicy), default=defaults.prefill_policy)
    parser.add_argument("--decode-policy", choices=get_args(DecodePolicy), default=defaults.decode_policy)
    parser.add_argument("--mixed-policy", choices=get_args(DecodePolicy), default=defaults.mixed_policy)
    parser.add_argument("--request-timeout-secs", type=_seconds, default=defaults.request_timeout)
    parser.add_argument("--heartbeat-timeout", type=_seconds, default=defaults.heartbeat_timeout)
    parser.add_argument("--drain-secs", type=_seconds, default=defaults.drain)
    parser.add_argument("--debug", action="store_true", help="log every request")
    return parser.parse_args(argv)


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        host=arguments.host,
        port=arguments.port,
        splitwise=arguments.splitwise,
        prefill_policy=arguments.prefill_policy,
        decode_policy=arguments.decode_policy,
        mixed_policy=arguments.mixed_policy,
        request_timeout=arguments.request_timeout_secs,
        heartbeat_timeout=arguments.heartbeat_timeout,
        drain=arguments.drain_secs,
        token=load_token(),
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return seconds


def _allow_many_connections() -> None:
    """Every request takes up to three sockets; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
