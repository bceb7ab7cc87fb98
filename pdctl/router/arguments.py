"""The command line of `python -m pdctl.router`."""

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from pdctl.errors import PdctlError
from pdctl.router.access.api_keys import load_api_keys
from pdctl.router.access.tokens import load_token
from pdctl.router.policies import NAMES
from pdctl.router.protocols import PROTOCOLS
from pdctl.router.settings import FixedInstance, Limits, Role, Settings
from pdctl.router.upstream.pool import address

_MAX_WORKERS = 64


def parse(argv: Sequence[str] | None) -> tuple[Settings, bool]:
    """The settings, and whether everything is to be logged. PdctlError if a file or a host is wrong."""
    arguments = _parser().parse_args(argv)
    fixed = (
        *_fixed("prefill", arguments.prefill),
        *_fixed("decode", [[url] for url in arguments.decode]),
        *_fixed("mixed", [[url] for url in arguments.mixed]),
    )
    splitwise = arguments.splitwise or any(instance.role != "mixed" for instance in fixed)
    if splitwise and any(instance.role == "mixed" for instance in fixed):
        raise PdctlError("--mixed does not go with --splitwise, --prefill or --decode: run a router for each")
    if (arguments.ssl_certfile is None) != (arguments.ssl_keyfile is None):
        raise PdctlError("--ssl-certfile and --ssl-keyfile go together")
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        splitwise=splitwise,
        protocol=arguments.protocol,
        fixed=fixed,
        admitted=dict(_admitted(role, url) for role, url in arguments.admit),
        prefill_policy=arguments.prefill_policy,
        decode_policy=arguments.decode_policy,
        mixed_policy=arguments.mixed_policy,
        pd_min_tokens=arguments.pd_min_tokens,
        engine_requests=arguments.engine_requests,
        queue_size=arguments.queue_size,
        queue_timeout=arguments.queue_timeout,
        request_timeout=arguments.request_timeout_secs,
        heartbeat_timeout=arguments.heartbeat_timeout,
        drain=arguments.drain_secs,
        token=load_token(),
        workers=arguments.workers,
        access_log=arguments.access_log,
        api_keys=load_api_keys(arguments.api_key),
        certificate=arguments.ssl_certfile,
        private_key=arguments.ssl_keyfile,
        otlp_endpoint=arguments.otlp_endpoint,
        limits=Limits(
            probe_interval=arguments.health_interval,
            probe_timeout=arguments.health_timeout,
            probe_failures=arguments.health_failures,
            probe_successes=arguments.health_successes,
        ),
    )
    return settings, arguments.debug


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pdctl.router", description="Forwards requests to engines.")
    defaults, limits = Settings(), Limits()
    add = parser.add_argument
    add("--host", default=defaults.host)
    add("--port", type=_port, default=defaults.port, help="0: a free one")
    add("--workers", type=_workers, default=defaults.workers, help="processes; 0: one for each core")
    add("--splitwise", action="store_true", help="serve with prefill and decode engines, not mixed ones")
    add("--prefill", nargs="+", action="append", default=[], metavar=("URL", "BOOTSTRAP_PORT"))
    add("--decode", action="append", default=[], metavar="URL")
    add("--mixed", action="append", default=[], metavar="URL")
    add("--admit", nargs=2, action="append", default=[], metavar=("ROLE", "URL"),
        help="a FastDeploy engine that registers, but cannot show the deployment's token")  # fmt: skip
    add("--protocol", choices=PROTOCOLS, default=defaults.protocol, help="of the engines named here")
    add("--prefill-policy", choices=NAMES, default=defaults.prefill_policy)
    add("--decode-policy", choices=NAMES, default=defaults.decode_policy)
    add("--mixed-policy", choices=NAMES, default=defaults.mixed_policy)
    add("--pd-min-tokens", type=_count, default=defaults.pd_min_tokens, metavar="N",
        help="let a decode that can prefill do so if fewer prompt tokens than this are not cached there")  # fmt: skip
    add("--engine-requests", type=_positive, default=defaults.engine_requests, metavar="N",
        help="requests at one engine; further ones wait")  # fmt: skip
    add("--queue-size", type=_count, default=defaults.queue_size, metavar="N", help="waiting requests for a model")
    add("--queue-timeout", type=_seconds, default=defaults.queue_timeout, metavar="S")
    add("--request-timeout-secs", type=_some_seconds, default=defaults.request_timeout, metavar="S")
    add("--heartbeat-timeout", type=_some_seconds, default=defaults.heartbeat_timeout, metavar="S")
    add("--health-interval", type=_some_seconds, default=limits.probe_interval, metavar="S")
    add("--health-timeout", type=_some_seconds, default=limits.probe_timeout, metavar="S")
    add("--health-failures", type=_positive, default=limits.probe_failures, metavar="N")
    add("--health-successes", type=_positive, default=limits.probe_successes, metavar="N")
    add("--drain-secs", type=_seconds, default=defaults.drain, metavar="S")
    add("--access-log", metavar="FILE", help="JSON lines, one for each request; -: standard output")
    add("--api-key", type=Path, metavar="FILE", help="YAML with the keys of clients; one alone: PDCTL_API_KEY")
    add("--ssl-certfile", metavar="FILE")
    add("--ssl-keyfile", metavar="FILE")
    add("--otlp-endpoint", metavar="URL", help="where traces go; needs pdctl[otel]")
    add("--debug", action="store_true", help="log more")
    return parser


def _fixed(role: Role, given: list[list[str]]) -> list[FixedInstance]:
    instances = []
    for url, *bootstrap in given:
        host, port = _host_and_port(role, url)
        if len(bootstrap) > 1 or not all(text.isdigit() and 0 < int(text) < 65536 for text in bootstrap):
            raise PdctlError(f"--{role} {url} {' '.join(bootstrap)}: after the URL comes its bootstrap port, if any")
        bootstrap_port = int(bootstrap[0]) if bootstrap else 0
        instances.append(FixedInstance(role, host, port, bootstrap_port))
    return instances


def _admitted(role: str, url: str) -> tuple[str, Role]:
    known = next((one for one in get_args(Role) if one == role), None)
    if known is None:
        raise PdctlError(f"--admit {role} {url}: before the URL comes the engine's role: {', '.join(get_args(Role))}")
    return address(*_host_and_port("admit", url)), known


def _host_and_port(flag: str, url: str) -> tuple[str, int]:
    """A URL's IP address, looked up once, not while requests wait, and its port."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or not port or parts.path.strip("/"):
        raise PdctlError(f"--{flag} {url}: not an engine's URL, such as http://10.0.0.1:8100")
    try:
        return str(socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError as error:
        raise PdctlError(f"--{flag}: {parts.hostname}: {error.strerror}") from None


def _port(text: str) -> int:
    port = _whole(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port")
    return port


def _workers(text: str) -> int:
    workers = _whole(text)
    if not 0 <= workers <= _MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{workers} is not between 0 and {_MAX_WORKERS}")
    return workers or len(os.sched_getaffinity(0))


def _count(text: str) -> int:
    count = _whole(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{count} is less than 0")
    return count


def _positive(text: str) -> int:
    count = _count(text)
    if count == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return count


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return seconds


def _some_seconds(text: str) -> float:
    seconds = _seconds(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError("0 s is too short")
    return seconds
