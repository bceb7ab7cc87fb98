"""Mock engines in one process, so quick that they are not what is measured: prefill, decode, and one that does both.

python -m benchmarks.router.mock [--prefills 2] [--decodes 2] [--register URL [--protocol builtin]]

Every engine has a free port of its own; the first line of the output names them:
{"prefill": [ports], "decode": [ports], "direct": [port]}. The process ends on SIGTERM.

A streamed answer's 32 chunks and [DONE], each an HTTP chunk of its own, are written in one go. A prompt with
`paced-chunks=N` is answered with N chunks, one every 20 ms, each with its number and the time it was sent.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from typing import Literal, cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.router import messages
from benchmarks.router.machine import allow_many_connections

Role = Literal["prefill", "decode", "direct"]
REGISTER_EVERY_S = 5.0
CALL_TIMEOUT_S = 5.0

STREAM = messages.stream_answer(messages.CHUNKS)
PACED_EVENT = messages.paced_event_template()
PACED_END = messages.http_chunk(messages.DONE) + b"0\r\n\r\n"
SHORT_STREAM = messages.stream_answer(1)
PLAIN = messages.json_answer(messages.completion(" token" * messages.CHUNKS))
SHORT_PLAIN = messages.json_answer(messages.completion(" token"))
NIXL_PREFILL = messages.json_answer(
    messages.completion(" token", kv_transfer_params=messages.KV_TRANSFER_PARAMS, prompt_logprobs=None)
)
# What routers ask when they start, and to check health: the answer to any GET.
INFO = messages.json_answer(
    {
        "status": "ok",
        "object": "list",
        "data": [{"id": "m", "object": "model", "owned_by": "mock", "root": "m", "max_model_len": 8192}],
        "model_path": "m",
        "served_model_name": "m",
        "tokenizer_path": "m",
        "is_generation": True,
        "tp_size": 1,
        "dp_size": 1,
        "max_total_num_tokens": 1_000_000,
        "version": "0",
    }
)
NOT_CHUNKED = messages.json_answer({"error": "the mock reads no chunked requests"}, b"501 Not Implemented")
NOT_A_PAIR = messages.json_answer({"error": "the request says nothing of a pair, but went to one"}, b"400 Bad Request")


class Engine(asyncio.Protocol):
    """One connection to a mock engine."""

    __slots__ = ("_held", "_role", "_transport")
    _transport: asyncio.Transport

    def __init__(self, role: Role) -> None:
        self._role = role
        self._held = b""  # the beginning of a request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer every request that is there in whole."""
        data = self._held + data
        while data:
            head_end = data.find(b"\r\n\r\n") + 4
            if head_end < 4:
                break
            body_end = head_end
            if not data.startswith(b"GET "):
                length = _content_length(data[:head_end])
                if length is None:
                    self._transport.write(NOT_CHUNKED)
                    self._transport.close()
                    return
                body_end += length
            if len(data) < body_end:
                break
            self._answer(data[head_end:body_end])
            data = data[body_end:]
        self._held = data

    def _answer(self, body: bytes) -> None:
        if b'"messages":' not in body:
            answer = INFO
        elif self._role == "prefill":
            answer = _prefill_answer(body)
        elif self._role == "decode" and not _names_a_pair(body):
            answer = NOT_A_PAIR
        elif messages.PACED in body:
            PacedStream(self._transport, _paced_chunks(body))
            return
        else:
            answer = STREAM if b'"stream":true' in body else PLAIN
        self._transport.write(answer)


class PacedStream:
    """An answer of one chunk every 20 ms, by a clock that does not drift."""

    __slots__ = ("_chunks", "_due", "_loop", "_number", "_transport")

    def __init__(self, transport: asyncio.Transport, chunks: int) -> None:
        self._transport = transport
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._number = 0
        transport.write(messages.STREAM_HEAD)
        self._send()

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        if self._number == self._chunks:
            self._transport.write(PACED_END)
            return
        self._transport.write(PACED_EVENT % (self._number, time.monotonic_ns()))
        self._number += 1
        self._due += messages.PACE_S
        self._loop.call_at(self._due, self._send)


def _content_length(head: bytes) -> int | None:
    """What a request's head says; no body: 0; a chunked one: None."""
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        head = head.lower()
        start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return None if b"\r\ntransfer-encoding:" in head else 0
    start += 17
    return int(head[start : head.find(b"\r\n", start)])


def _prefill_answer(body: bytes) -> bytes:
    if b'"do_remote_decode":true' in body:
        return NIXL_PREFILL
    if not _names_a_pair(body):
        return NOT_A_PAIR
    return SHORT_STREAM if b'"stream":true' in body else SHORT_PLAIN


def _names_a_pair(body: bytes) -> bool:
    """Whether a router told the engine of its peer, in any of the protocols."""
    return b'"remote_engine_id":"' in body or b'"bootstrap_room":' in body or b'"disaggregate_info":' in body


def _paced_chunks(body: bytes) -> int:
    start = body.find(messages.PACED) + len(messages.PACED)
    return int(body[start : body.find(b'"', start)])


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    counts: dict[Role, int] = {"prefill": options.prefills, "decode": options.decodes, "direct": 1}
    ports = {role: [await _listen(role) for _ in range(count)] for role, count in counts.items()}
    print(json.dumps(ports), flush=True)
    registering = loop.create_task(_keep_registered(options, ports)) if options.register else None
    await stop.wait()
    if registering is not None:
        registering.cancel()


async def _listen(role: Role) -> int:
    server = await asyncio.get_running_loop().create_server(lambda: Engine(role), "127.0.0.1", 0, backlog=4096)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _keep_registered(options: argparse.Namespace, ports: dict[Role, list[int]]) -> None:
    """Register prefill and decode engines, from when the router listens until cancelled."""
    roles: tuple[Role, ...] = ("prefill", "decode")
    while True:
        try:
            for role in roles:
                for port in ports[role]:
                    await asyncio.wait_for(_register(options, role, port), CALL_TIMEOUT_S)
        except OSError:
            await asyncio.sleep(0.1)  # the router does not listen yet, or no more
            continue
        await asyncio.sleep(REGISTER_EVERY_S)


async def _register(options: argparse.Namespace, role: Role, port: int) -> None:
    fields: dict[str, object] = {"role": role, "host_ip": "127.0.0.1", "port": port, "model": "m"}
    fields |= {"transfer_protocol": ["ipc"]}
    if options.protocol != "builtin":
        fields |= {"protocol": options.protocol}
    if options.protocol == "sglang" and role == "prefill":
        fields |= {"bootstrap_port": 8998}
    address = urlsplit(options.register)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(messages.request("/register", fields))
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer[:20]:
            print(f"{options.register}/register refuses {fields}: {answer.decode()}", file=sys.stderr, flush=True)
    finally:
        writer.transport.abort()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router.mock", description=__doc__)
    parser.add_argument("--prefills", type=int, default=2)
    parser.add_argument("--decodes", type=int, default=2)
    parser.add_argument("--register", metavar="URL", help="register at this router every 5 s")
    parser.add_argument("--protocol", default="builtin", help="what to register as")
    allow_many_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
