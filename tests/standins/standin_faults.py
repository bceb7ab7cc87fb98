"""How to make a stand-in misbehave.

A request's body may have a member `standin`, which the router passes on as it does any other:

    {"fail": "hang", "when": "met", "role": "prefill", "port": 30000, "after": 1, "status": 500}

fail    refuse      an error with `status`; where the stream has begun, an error event
        hang        nothing happens any more
        drop        the connection is closed
        die         the process ends at once, as if killed
        no-blocks   (FastDeploy's decode) "Not enough resources", as long as it is asked
when    arrived     (default) before the request is looked at: it leaves no trace
        met         when both legs have found each other, before any KV moves
        streaming   after `after` tokens (default 1) of a stream, or in the middle of a whole answer
role, port          only at servers of this role, only at the server with this API port; default: at all

The environment variable STANDIN_FAIL, with the same JSON, holds for every request of a process. Others:

    STANDIN_START_S     seconds between the start of the process and its readiness (0)
    STANDIN_TOKEN_S     seconds between two tokens (0)
    STANDIN_START_FAULT out-of-memory: CUDA's message after STANDIN_START_S, and exit 1
                        no-bootstrap: SGLang's prefill has no bootstrap server
                        never-register: FastDeploy does not tell the router of itself
    STANDIN_REGISTER_S  seconds between two registrations of FastDeploy (5)
    STANDIN_PEER_S      seconds that FastDeploy's decode waits for the prefill's messages (300)
    STANDIN_HOST_IP     which host of `--ips` this is, where one machine plays several

SGLang's own SGLANG_DISAGGREGATION_* and FastDeploy's FD_PREFILL_WAIT_DECODE_RESOURCE_SECONDS shorten the other waits.
"""

import asyncio
import os
import sys
from typing import Literal

import msgspec
from aiohttp import web

Role = Literal["prefill", "decode", "mixed"]
When = Literal["arrived", "met", "streaming"]
START_FAULTS = ("", "out-of-memory", "no-bootstrap", "never-register")


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to go wrong with a request, when and where."""

    fail: Literal["refuse", "hang", "drop", "die", "no-blocks"]
    when: When = "arrived"
    role: Role | None = None
    port: int | None = None
    after: int = 1
    status: int = 500

    def holds_at(self, role: Role, port: int) -> bool:
        """Whether a server is meant."""
        return self.role in (None, role) and self.port in (None, port)


class EndError(Exception):
    """This process cannot go on, and has said why."""


class RefusedError(Exception):
    """A refusal that was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__("the stand-in was told to refuse")
        self.status = status


class Strike:
    """One request's fault at one server, if there is any."""

    def __init__(self, fault: Fault | None, request: web.Request) -> None:
        self.fault = fault
        self._request = request

    def due(self, when: When) -> bool:
        """Whether something is to happen at this moment."""
        return self.fault is not None and self.fault.when == when and self.fault.fail != "no-blocks"

    async def at(self, when: When) -> None:
        """Let it happen if this is the moment. RefusedError if the answer is to be an error."""
        if self.fault is None or not self.due(when):
            return
        if self.fault.fail == "refuse":
            raise RefusedError(self.fault.status)
        print_error(f"told to {self.fault.fail} ({when})")
        if self.fault.fail == "die":
            os._exit(1)
        if self.fault.fail == "drop" and self._request.transport is not None:
            self._request.transport.abort()
        await asyncio.Event().wait()  # until the connection is closed, which cancels the request


def fault_of(body: dict[str, object], role: Role, port: int) -> Fault | None:
    """The fault that a request has here, by its body or by the environment. msgspec.ValidationError if it is none."""
    fault = None
    if "standin" in body:
        fault = msgspec.convert(body["standin"], Fault)
    elif os.environ.get("STANDIN_FAIL"):
        fault = msgspec.json.decode(os.environ["STANDIN_FAIL"], type=Fault)
    return fault if fault is not None and fault.holds_at(role, port) else None


def start_fault() -> str:
    """What is to go wrong with this process. ValueError if there is no such fault."""
    fault = os.environ.get("STANDIN_START_FAULT", "")
    if fault not in START_FAULTS:
        raise ValueError(f"STANDIN_START_FAULT is {fault!r}, which is none of {START_FAULTS}")
    return fault


async def start() -> None:
    """Take as long as the start is to take. EndError if it is to fail."""
    await asyncio.sleep(seconds("STANDIN_START_S", 0.0))
    if start_fault() == "out-of-memory":
        print_error("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")
        raise EndError


def seconds(name: str, default: float) -> float:
    """A time from the environment."""
    return float(os.environ.get(name, default))


def print_error(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
