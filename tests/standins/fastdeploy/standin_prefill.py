"""FastDeploy's P: asks D for blocks before it computes, and gives D the first token when the KV is there."""

import asyncio
from contextlib import suppress
from typing import Any

from standin_answers import Asked
from standin_faults import Strike
from standin_links import Link, Message, PeerError, connect
from standin_server import Engine, ViolationError

from fastdeploy.standin_body import blocks_of, check_identity, check_pair
from fastdeploy.standin_instance import Instance

_AGAIN_S = 0.05


class Prefill(Engine):
    """Answers with one token."""

    early_head = True

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._used: set[str] = set()
        self._asking = 0

    def identity(self, body: dict[str, Any]) -> str:
        """The router's id."""
        return check_identity(body)

    def check(self, asked: Asked) -> None:
        """A new request, with this engine as P."""
        check_pair(asked.body, self._instance)
        identity = check_identity(asked.body)
        if identity in self._used:
            raise ViolationError(f"request_id {identity} was used before")
        self._used.add(identity)

    async def meet(self, asked: Asked, strike: Strike) -> list[str]:
        """Send every sequence to D."""
        tasks = [asyncio.ensure_future(self._give(asked, index, strike)) for index in range(len(asked.sequences))]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    def held(self) -> int:
        """Sequences for which D has not answered."""
        return self._asking

    async def _give(self, asked: Asked, index: int, strike: Strike) -> str:
        info = asked.body["disaggregate_info"]
        name = f"{asked.body['request_id']}_{index}"
        self._asking += 1
        try:
            link = await self._reserve(asked, index, name, info)
        finally:
            self._asking -= 1
        token = asked.token(index, 0)
        try:
            await strike.at("met")
            await link.send({"type": "decode", "request_id": name, "token": token})
        except BaseException:
            await _drop(link, name)
            raise
        link.close()
        return token

    async def _reserve(self, asked: Asked, index: int, name: str, info: dict[str, Any]) -> Link:
        """Ask D for blocks until it has some, or once within the limit where it is not to be asked again."""
        wanted = blocks_of(asked, index)
        request = {"type": "prefill", "request_id": name, "body": asked.body, "digest": asked.digest, "blocks": wanted}
        limit = self._instance.arguments.wait_for_decode
        while True:
            try:
                async with asyncio.timeout(limit):
                    link, answer = await self._ask(info, request)
            except TimeoutError:
                link, answer = None, {"error_msg": "no answer"}
            if link is not None and "error_msg" not in answer:
                _check_sync(answer, name, info, wanted)
                return link
            if link is not None:
                link.close()
            if not self._instance.arguments.asks_decode_again:
                raise PeerError("PD Error: prefill failed to apply for resource from decode")
            await asyncio.sleep(_AGAIN_S)

    async def _ask(self, info: dict[str, Any], request: Message) -> tuple[Link, Message]:
        while True:  # a socket of ZeroMQ connects by itself, however often that takes
            try:
                link = await connect(info["decode_ip"], int(info["decode_connector_port"]))
                break
            except OSError:
                await asyncio.sleep(_AGAIN_S)
        try:
            await link.send(request)
            return link, await link.receive_or_wait()
        except BaseException:
            await _drop(link, request["request_id"])
            raise


async def _drop(link: Link, name: str) -> None:
    """Tell D that nothing more comes."""
    with suppress(PeerError):
        await link.send({"type": "drop", "request_id": name})
    link.close()


def _check_sync(answer: Message, name: str, info: dict[str, Any], wanted: int) -> None:
    """Compare D's answer with what the router said of D."""
    said = {
        "ip": info["decode_ip"],
        "rdma_ports": [str(port) for port in info["decode_rdma_ports"]],
        "device_ids": [str(gpu) for gpu in info["decode_device_ids"]],
        "decode_tp_size": info["decode_tp_size"],
        "transfer_protocol": info["transfer_protocol"],
        "request_id": name,
    }
    for member, value in said.items():
        if answer[member] != value:
            raise ViolationError(f"D's {member} is {answer[member]}, the router said {value}")
    if len(answer["dest_block_ids"]) != wanted:
        raise ViolationError(f"{len(answer['dest_block_ids'])} blocks of D for {wanted}")
