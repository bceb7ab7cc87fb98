"""What SGLang's engines read of a request's body about the pair."""

from typing import Any

from standin_answers import Asked
from standin_server import ViolationError

WARM_UP_HOST = "2.2.2.2"  # no prefill is there: the engine makes a token without KV
_DEFAULT_BOOTSTRAP_PORT = 8998
_MOST = 2**63
_NAMES = ("bootstrap_host", "bootstrap_port", "bootstrap_room")

Room = tuple[str, int, int]  # bootstrap server's host and port, number


def is_warm_up(body: dict[str, Any]) -> bool:
    """Whether an engine warms itself up."""
    return body.get("bootstrap_host") == WARM_UP_HOST


def check_alone(body: dict[str, Any]) -> None:
    """What an engine that serves alone must not be told."""
    for name in _NAMES:
        if name in body:
            raise ViolationError(f"{name} at an engine without --disaggregation-mode")


def rooms_of(asked: Asked) -> list[Room]:
    """The room of each sequence. ViolationError if the members are missing or do not fit the request."""
    count = len(asked.sequences)
    missing = [name for name in ("bootstrap_host", "bootstrap_room") if asked.body.get(name) is None]
    if missing:
        raise ViolationError(f"{' and '.join(missing)} missing: neither prefill nor decode can serve alone")
    hosts = _each(asked.body["bootstrap_host"], count, "bootstrap_host")
    ports = _each(asked.body.get("bootstrap_port"), count, "bootstrap_port")
    rooms = _each(asked.body["bootstrap_room"], count, "bootstrap_room")
    if not isinstance(asked.body["bootstrap_room"], list) and count > 1:
        rooms = [rooms[0] + index for index in range(count)]  # as the engine itself does
    if len(set(rooms)) != count:
        raise ViolationError(f"bootstrap_room: {rooms} are not {count} rooms")
    return [_room(*one) for one in zip(hosts, ports, rooms, strict=True)]


def _each(value: Any, count: int, name: str) -> list[Any]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ViolationError(f"{name}: {len(value)} for {count} sequences")
    return value


def _room(host: Any, port: Any, room: Any) -> Room:
    port = _DEFAULT_BOOTSTRAP_PORT if port is None else port
    if not isinstance(host, str) or not host:
        raise ViolationError(f"bootstrap_host: {host!r} is no host")
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ViolationError(f"bootstrap_port: {port!r} is no port")
    if not isinstance(room, int) or not 0 <= room < _MOST:
        raise ViolationError(f"bootstrap_room: {room!r} is not a number of 63 bits")
    return host, port, room
