"""SGLang's stand-in by itself: what it takes, what it refuses, and when it starts."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import pytest_asyncio
from router_mocks import message
from sglang.standin_arguments import parse
from standin_processes import (
    ASKED,
    answer,
    eventually,
    free_ports,
    run,
    standin,
)
from standin_sglang_pair import MODEL, MODULE, Pair, engines, prefill_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone() -> AsyncIterator[Pair]:
    """A pair whose router is the test."""
    async with engines(SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT="0.3") as found:
        yield found


async def test_an_engine_warms_itself_up_without_a_peer(alone: Pair):
    body = ASKED | {"bootstrap_host": "2.2.2.2", "bootstrap_room": 0}
    for engine in (alone.prefill, alone.decode):
        assert (await engine.get("/health_generate")).status_code == 200
        assert answer(await engine.post(body))


# What an engine holds a router to.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bootstrap_host": None}, "bootstrap_host missing"),
        ({"bootstrap_room": None}, "bootstrap_room missing"),
        ({"bootstrap_room": 2**63}, "not a number of 63 bits"),
        ({"bootstrap_room": "1"}, "not a number of 63 bits"),
        ({"bootstrap_port": "8998"}, "is no port"),
        ({"n": 2, "bootstrap_room": [1, 2, 3]}, "3 for 2 sequences"),
        ({"n": 2, "bootstrap_room": [1, 1]}, "are not 2 rooms"),
        ({"bootstrap_port": 1}, "is not this prefill's"),
        ({"bootstrap_host": "10.0.0.1"}, "is not this prefill's"),
    ],
)
async def test_a_request_that_is_not_the_protocols(alone: Pair, changes: dict[str, object], said: str):
    response = await alone.prefill.post(alone.body(**changes))
    assert response.status_code == 400
    assert said in message(response)
    assert (await alone.prefill.violations())[-1] == message(response)


async def test_a_room_is_used_once(alone: Pair):
    assert [answer(one) for one in await both(alone, bootstrap_room=11)]
    response = await alone.prefill.post(alone.body(bootstrap_room=11))
    assert (response.status_code, message(response)) == (400, "bootstrap_room 11 was used before")


async def test_both_legs_must_be_the_same(alone: Pair):
    prefill, decode = await both(alone, alone.body(bootstrap_room=12, max_tokens=1), bootstrap_room=12)
    assert (prefill.status_code, decode.status_code) == (400, 500)
    assert "different bodies" in message(prefill)


async def test_a_room_for_several_sequences_is_counted_up(alone: Pair):
    prefill, decode = await both(alone, bootstrap_room=100, n=3)
    assert [len(text.split()) for text in answer(prefill)] == [1, 1, 1]
    assert [len(text.split()) for text in answer(decode)] == [4, 4, 4]


async def both(alone: Pair, prefill: dict[str, Any] | None = None, **changes: object) -> list[httpx.Response]:
    """Send both legs at once."""
    body = alone.body(**changes)
    return await asyncio.gather(alone.prefill.post(prefill or body), alone.decode.post(body))


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_leg_waits_for_the_other_one_and_then_gives_up(alone: Pair, role: str):
    response = await getattr(alone, role).post(alone.body(bootstrap_room=20 if role == "prefill" else 21))
    assert response.status_code == 500
    assert "timed out after 0.3s in KVPoll.Bootstrapping" in message(response)
    await alone.prefill.idle()


async def test_a_stream_without_kv_is_an_error_event_with_status_200(alone: Pair):
    response = await alone.decode.post(alone.body(bootstrap_room=22, stream=True))
    assert response.status_code == 200
    assert response.text.startswith("data: {'error': {'message': 'KVTransferError(bootstrap_room=22)")
    assert response.text.count("data: ") == 1, "no [DONE]"


async def test_a_bootstrap_server_that_is_not_there(alone: Pair):
    response = await alone.decode.post(alone.body(bootstrap_port=free_ports(1)[0]))
    assert response.status_code == 500
    assert "Could not fetch prefill parallel info from bootstrap server" in message(response)


async def test_a_request_is_aborted_by_its_name(alone: Pair):
    body = alone.body(bootstrap_room=30, rid="mine", standin={"fail": "hang", "when": "met", "role": "prefill"})
    legs = [asyncio.create_task(engine.post(body)) for engine in (alone.prefill, alone.decode)]
    await alone.prefill.says("told to hang (met)")
    assert (await alone.prefill.post({"rid": "mine"}, "/abort_request")).status_code == 200
    assert message(await legs[0]) == "the request was aborted"
    assert "the prefill failed: aborted" in message(await legs[1])


async def test_a_decode_gives_up_a_prefill_whose_bootstrap_server_is_gone(alone: Pair):
    async with prefill_engine() as (prefill, bootstrap):
        fault = {"fail": "hang", "when": "met", "role": "prefill"}
        body = alone.body(bootstrap_port=bootstrap, standin=fault)
        legs = [asyncio.create_task(engine.post(body)) for engine in (prefill, alone.decode)]
        await prefill.says("told to hang (met)")
        prefill.process.kill()
        response = await legs[1]
        assert response.status_code == 500
        assert "Losing connection with prefill instance" in message(response)
        with pytest.raises(httpx.TransportError):
            await legs[0]


async def test_a_prefill_without_its_bootstrap_server(alone: Pair):
    async with prefill_engine(STANDIN_START_FAULT="no-bootstrap") as (_, bootstrap):
        response = await alone.decode.post(alone.body(bootstrap_port=bootstrap))
        assert "Could not fetch prefill parallel info from bootstrap server" in message(response)


# Starting.


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str, **env: str) -> str:
    """What the command line says before it exits with 2."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        parse([*MODEL, *flags])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prefill-only"], "unrecognized arguments: --prefill-only"),
        (["--disagg", "prefill"], "unrecognized arguments: --disagg"),
        (["--disaggregation-mode", "mixed"], "invalid choice: 'mixed'"),
        (["--disaggregation-transfer-backend", "rdma"], "invalid choice: 'rdma'"),
        (["--disaggregation-bootstrap-port", "0"], "is no port"),
        (["--disaggregation-ib-device", "mlx5_0:1"], "names no NICs"),
        (["--disaggregation-ib-device", "mlx5_0,"], "names no NICs"),
        (["--disaggregation-ib-device", '{"3": "mlx5_0"}'], "names no NICs"),
        (["--tp-size", "2"], "1 GPUs, but 2 needed"),
        (["--dp-size", "2"], "1 GPUs, but 2 needed"),
        (["--base-gpu-id", "1"], "1 GPUs, but 2 needed"),
        (["--nnodes", "2", "--tp-size", "2"], "--dist-init-addr: needed"),
        (["--nnodes", "2", "--node-rank", "2", "--dist-init-addr", "h:1"], "is not below --nnodes 2"),
    ],
)
async def test_a_wrong_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
):
    assert said in refused(monkeypatch, capsys, *flags)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, "not a list of different GPUs"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "not a list of different GPUs"),
        ({"UCX_NET_DEVICES": "mlx5_0:1,"}, "not a list of UCX devices"),
        ({"SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "soon"}, "not a number"),
        ({"SGLANG_DISAGGREGATION_WAITING_TIMEOUTS": "1"}, "is no variable of SGLang"),
    ],
)
async def test_a_wrong_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str], said: str
):
    assert said in refused(monkeypatch, capsys, **env)


async def test_data_parallel_attention_shares_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setenv("UCX_NET_DEVICES", "mlx5_0:1,mlx5_1:1")
    flags = ["--tp-size", "2", "--dp-size", "2", "--enable-dp-attention", "--disaggregation-ib-device"]
    assert parse([*MODEL, *flags, '{"0": "mlx5_0", "1": "mlx5_1,mlx5_2"}']).dp == 2


async def test_what_keeps_it_from_starting(alone: Pair):
    wrong, taken, bootstrap, memory = await asyncio.gather(
        run(MODULE, "--model", "m", "--bogus"),
        run(MODULE, *MODEL, "--port", alone.decode.port),
        run(MODULE, *MODEL, "--port", free_ports(1)[0], "--disaggregation-mode", "prefill",
            "--disaggregation-bootstrap-port", alone.bootstrap),
        run(MODULE, *MODEL, "--port", free_ports(1)[0], STANDIN_START_FAULT="out-of-memory"),
    )  # fmt: skip
    assert wrong[0] == 2
    for code, said in (taken, bootstrap):
        assert code == 1
        assert "[Errno 98] address already in use" in said
    assert memory[0] == 1
    assert memory[1].startswith("torch.OutOfMemoryError: CUDA out of memory")


async def test_data_parallel_attention_binds_a_row_of_ports():
    """By itself 233 after its API's, which is in the way of the next engine's; it can be told a place of its own."""
    flags = (*MODEL, "--tp-size", "2", "--dp-size", "2", "--enable-dp-attention")
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1"}
    first = free_row(500)
    async with standin(MODULE, *flags, port=first, **gpus) as one:
        await one.healthy()
        for near in (2, 6, 13):
            code, said = await run(MODULE, *flags, "--port", first + near, **gpus)
            assert (code, "address already in use" in said) == (1, True)
        row = first + 300
        told = ("--dist-init-addr", f"127.0.0.1:{row}")
        async with standin(MODULE, *flags, *told, port=first + 2, **gpus) as other:
            await other.healthy()
            taken = [port - row for port in range(row, row + 16) if not is_free(port)]
            assert taken == [0, 1, 2, 3, 4, 5, 6, 13]


def free_row(count: int) -> int:
    """The first of as many free ports in a row, below those that Linux gives out by itself."""
    return next(first for first in range(21000, 32000, count) if all(map(is_free, range(first, first + count))))


def is_free(port: int) -> bool:
    with socket.socket() as probing:
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probing.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


async def test_an_engine_on_two_hosts_is_ready_when_both_are_there():
    port, rendezvous = free_ports(2)
    flags = (*MODEL, "--tp-size", "2", "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{rendezvous}")
    async with standin(MODULE, *flags, "--node-rank", "0", port=port) as head, AsyncExitStack() as stack:

        async def starting() -> bool:
            try:
                return (await head.get("/health")).status_code == 503
            except httpx.TransportError:
                return False

        await eventually(starting, "the head to wait")
        assert (await head.get("/ready")).status_code == 503
        assert (await head.post(ASKED)).status_code == 503
        follower = await stack.enter_async_context(standin(MODULE, *flags, "--node-rank", "1", port=port))
        await head.healthy()
        head.process.terminate()
        assert await head.exit() == 0
        assert await follower.exit() == 1
