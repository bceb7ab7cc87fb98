"""FastDeploy's D: acts on P's messages; its own copy of the request only waits for them."""

import asyncio
from collections import defaultdict
from typing import Any

from standin_answers import Asked
from standin_faults import Strike, fault_of, seconds
from standin_links import Link, Message, PeerError, listen
from standin_server import Engine, ViolationError

from fastdeploy.standin_body import check_identity, check_pair
from fastdeploy.standin_instance import Instance

_PEER_S = 300.0


class Sequence:
    """One sequence of a request, between P and the request's own copy."""

    def __init__(self) -> None:
        self.request: asyncio.Future[Message] = asyncio.get_running_loop().create_future()  # P's message
        self.first: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # or PeerError
        self.blocks: list[int] = []
        self.awaited = False  # the request's own copy is here


class Decode(Engine):
    """Reserves blocks when P asks, and answers when P's first token and the request are there."""

    early_head = True

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._sequences: defaultdict[str, Sequence] = defaultdict(Sequence)
        self._free = list(range(instance.arguments.blocks))
        self._used: set[str] = set()
        self._gone: set[str] = set()  # requests that P has dropped, or whose own copy has ended
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Let P ask."""
        if self._instance.pd_comm is not None:
            self._server = await listen(self._instance.pd_comm, self._hear)

    @property
    def free_blocks(self) -> int:
        """Of all that there are."""
        return len(self._free)

    def identity(self, body: dict[str, Any]) -> str:
        """The router's id."""
        return check_identity(body)

    def check(self, asked: Asked) -> None:
        """A new request, with this engine as D."""
        check_pair(asked.body, self._instance)
        identity = check_identity(asked.body)
        if identity in self._used:
            raise ViolationError(f"request_id {identity} was used before")
        self._used.add(identity)

    async def meet(self, asked: Asked, strike: Strike) -> list[str]:
        """Wait for P's messages of every sequence."""
        identity = asked.body["request_id"]
        names = [f"{identity}_{index}" for index in range(len(asked.sequences))]
        limit = seconds("STANDIN_PEER_S", _PEER_S)
        if identity in self._gone:
            raise PeerError("PD Error: the prefill dropped the request")
        for name in names:
            self._sequences[name].awaited = True
        try:
            async with asyncio.timeout(limit):
                for name in names:
                    request = await self._sequences[name].request
                    if request["digest"] != asked.digest:
                        raise ViolationError(f"P and D got different bodies for request {identity}")
                await strike.at("met")
                return [await self._sequences[name].first for name in names]
        except TimeoutError:
            raise PeerError(f"PD Error: waited {limit:g} s for the prefill of {identity}") from None
        finally:
            self._release(identity)

    def forget(self, body: dict[str, Any]) -> None:
        """Give back what P has asked for, or asks for later."""
        self._release(str(body.get("request_id")))

    def held(self) -> int:
        """Sequences that wait for P, for their first token, or for their own copy."""
        return len(self._sequences)

    async def _hear(self, link: Link) -> None:
        """One sequence's messages from P."""
        asked = await link.receive()
        if asked is None:
            return
        name = asked["request_id"]
        identity = _request_of(name)
        if identity in self._gone:
            await link.send({"request_id": name, "error_msg": "the request was aborted"})
            return
        answer = self._reserve(name, asked)
        await link.send(answer)
        if "error_msg" in answer:
            return
        told = await link.receive()
        sequence = self._sequences.get(name)
        if told is None or sequence is None:
            return  # P is dead, and nobody says so; or the request's own copy has ended
        if told["type"] == "decode":
            sequence.first.set_result(told["token"])
        elif sequence.awaited:
            sequence.first.set_exception(PeerError("PD Error: the prefill dropped the request"))
            sequence.first.exception()  # which need not be asked for: another sequence may have failed before
        else:
            self._release(identity)

    def _reserve(self, name: str, asked: Message) -> Message:
        arguments = self._instance.arguments
        fault = None
        if "standin" in asked["body"]:
            fault = fault_of(asked["body"], "decode", arguments.port)
        if len(self._free) < asked["blocks"] or (fault is not None and fault.fail == "no-blocks"):
            return {"request_id": name, "error_msg": "Not enough resources"}
        sequence = self._sequences[name]
        sequence.blocks = [self._free.pop() for _ in range(asked["blocks"])]
        sequence.request.set_result(asked)
        return {
            "type": "cache_sync",
            "request_id": name,
            "device_ids": list(arguments.gpus),
            "ip": self._instance.host_ip,
            "rdma_ports": self._instance.rdma_ports,
            "transfer_protocol": asked["body"]["disaggregate_info"]["transfer_protocol"],
            "dest_block_ids": sequence.blocks,
            "decode_tp_size": arguments.tp,
        }

    def _release(self, identity: str) -> None:
        self._gone.add(identity)
        for name in [name for name in self._sequences if _request_of(name) == identity]:
            self._free.extend(self._sequences.pop(name).blocks)


def _request_of(name: str) -> str:
    """The request of a sequence."""
    return name.rpartition("_")[0]
