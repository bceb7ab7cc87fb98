"""FastDeploy's stand-in by itself: what it takes, what it refuses, what it tells a router, and when it starts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fastdeploy.standin_arguments import parse
from router_mocks import answer_at_once, engine, message
from standin_fastdeploy_pair import MODEL, MODULE, Pair, engines, fd
from standin_processes import (
    ASKED,
    StandIn,
    answer,
    free_ports,
    run,
    standin,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(logs: Path) -> AsyncIterator[Pair]:
    """A pair whose router is the test."""
    async with engine() as registers, engines(registers.port, logs) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed(logs: Path) -> AsyncIterator[StandIn]:
    async with standin(MODULE, *MODEL, port=free_ports(1)[0], FD_LOG_DIR=str(logs / "mixed")) as found:
        await found.healthy()
        yield found


async def test_what_an_engine_tells_of_itself_when_it_is_ready(logs: Path):
    port, comm, queue, cache, *rdma = free_ports(6)
    flags = ("--tensor-parallel-size", 2, "--pd-comm-port", comm, "--engine-worker-queue-port", queue)
    flags = (*flags, "--cache-queue-port", cache, "--cache-transfer-protocol", "rdma", "--metrics-port", port)
    flags = (*flags, "--rdma-comm-ports", ",".join(map(str, rdma)))
    env = {"CUDA_VISIBLE_DEVICES": "4,6", "KVCACHE_RDMA_NICS": "mlx5_0,mlx5_1", "STANDIN_START_S": "0.1"}
    async with engine(answer_at_once) as mock, fd("prefill", mock.port, *flags, logs=logs, **env) as prefill:
        turn = await mock.turn()
        assert (turn.method, turn.target) == ("POST", "/register")
        assert (await prefill.get("/health")).status_code == 200
        assert turn.json == {
            "role": "prefill",
            "host_ip": "127.0.0.1",
            "port": prefill.port,
            "metrics_port": port,
            "connector_port": comm,
            "engine_worker_queue_port": queue,
            "transfer_protocol": ["rdma"],
            "rdma_ports": [str(number) for number in rdma],
            "device_ids": ["4", "6"],
            "tp_size": 2,
            "version": "",
            "is_paused": False,
            "connected_decodes": [],
        }
        assert (await mock.turn()).json == turn.json, "again and again"


# What an engine holds a router to.


@pytest.mark.parametrize(
    ("role", "changes", "said"),
    [
        ("decode", {"decode_connector_port": 1}, "decode_connector_port is 1, this engine registered"),
        ("decode", {"decode_device_ids": ["0"]}, "decode_device_ids is ['0'], this engine registered ['1']"),
        ("decode", {"decode_rdma_ports": [1]}, "decode_rdma_ports is [1], this engine registered"),
        ("decode", {"decode_tp_size": 2}, "decode_tp_size is 2, this engine registered 1"),
        ("decode", {"decode_ip": "10.0.0.1"}, "decode_ip is 10.0.0.1"),
        ("prefill", {"prefill_ip": "10.0.0.1"}, "prefill_ip is 10.0.0.1"),
        ("prefill", {"prefill_connector_port": None}, "prefill_connector_port: None is not of the right type"),
        ("prefill", {"transfer_protocol": "tcp"}, "transfer_protocol tcp is none of ipc,rdma"),
        ("prefill", {"decode_ip": "10.0.0.2"}, "ipc needs one host"),
        ("prefill", {"decode_tp_size": 2}, "decode_tp_size 2 at a prefill of 1"),
    ],
)
async def test_a_request_that_is_not_the_protocols(pair: Pair, role: str, changes: dict[str, object], said: str):
    found = getattr(pair, role)
    response = await found.post(pair.body("wrong", **changes))
    assert response.status_code == 400
    assert said in message(response)
    assert (await found.violations())[-1] == message(response)


async def test_neither_role_can_serve_alone(pair: Pair, mixed: StandIn):
    for found in (pair.prefill, pair.decode):
        assert (await found.post(ASKED | {"request_id": "alone"})).status_code == 400
    assert (await mixed.post(pair.body("paired"))).status_code == 400


async def test_both_legs_must_be_the_same_and_new(pair: Pair):
    other = pair.body("same") | {"max_tokens": 2}
    legs = await asyncio.gather(pair.prefill.post(pair.body("same")), pair.decode.post(other))
    assert "P and D got different bodies" in message(legs[1])
    response = await pair.prefill.post(pair.body("same"))
    assert (response.status_code, message(response)) == (400, "request_id same was used before")


async def test_d_waits_for_p_whichever_comes_first(pair: Pair):
    late = asyncio.create_task(pair.decode.post(pair.body("d-first")))
    await pair.decode.holds()
    early = await pair.prefill.post(pair.body("d-first"))
    assert [len(text.split()) for text in answer(early)] == [1]
    assert [len(text.split()) for text in answer(await late)] == [4]
    assert answer(await pair.prefill.post(pair.body("p-first")))
    await pair.decode.holds()
    assert answer(await pair.decode.post(pair.body("p-first")))
    await pair.decode.idle()


async def test_a_p_that_is_to_ask_once_gives_up(pair: Pair, logs: Path):
    async with engine(answer_at_once) as nowhere:
        [comm] = free_ports(1)
        env = {"PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES": "0"}
        async with fd("prefill", nowhere.port, "--pd-comm-port", comm, logs=logs, **env) as impatient:
            await impatient.healthy()
            body = pair.body("once", prefill_connector_port=comm) | {"standin": {"fail": "no-blocks"}}
            response = await impatient.post(body)
            assert response.status_code == 500
            assert message(response) == "PD Error: prefill failed to apply for resource from decode"


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
        (["--innode-prefill-ports", "1"], "unrecognized arguments: --innode-prefill-ports 1"),
        (["--scheduler-name", "splitwise"], "unrecognized arguments: --scheduler-name splitwise"),
        (["--splitwise-role", "prefill"], "--router: needed with --splitwise-role prefill"),
        (["--splitwise-role", "prefil"], "invalid choice: 'prefil'"),
        (["--rdma-comm-ports", "7671,7672"], "2 given, but 1 needed (1 x 1 ranks)"),
        (["--pd-comm-port", "2334,2335"], "2 given, but 1 needed (data parallel size 1)"),
        (["--cache-queue-port", "1,1"], "names a port twice"),
        (["--cache-transfer-protocol", "ipc,tcp"], "is not of ipc,rdma"),
        (["--router", "9000"], "is not host:port"),
        (["--tensor-parallel-size", "2"], "1 GPUs, but 2 needed"),
        (["--data-parallel-size", "2"], "multi_api_server and FD_ENABLE_MULTI_API_SERVER=1 are needed"),
        (["--ips", "10.0.0.1,10.0.0.2"], "--engine-worker-queue-port: needed with --ips"),
        (["--ips", "192.0.2.1"], "does not name this host"),
    ],
)
async def test_a_wrong_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
):
    assert said in refused(monkeypatch, capsys, *flags)


async def test_a_wrong_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "FD_LOG_DIR is not set" in refused(monkeypatch, capsys, FD_LOG_DIR="")
    assert "FD_LOG_DIR=/dev/null/x" in refused(monkeypatch, capsys, FD_LOG_DIR="/dev/null/x")
    assert "not a list of NICs" in refused(monkeypatch, capsys, KVCACHE_RDMA_NICS="mlx5_0:1")


async def test_what_keeps_it_from_starting(pair: Pair, logs: Path):
    env = {"FD_LOG_DIR": str(logs / "late")}
    role = ("--splitwise-role", "prefill", "--router", "127.0.0.1:9000")
    comm, decode, memory = await asyncio.gather(
        run(MODULE, *MODEL, "--port", free_ports(1)[0], *role, "--pd-comm-port", pair.decode_comm, **env),
        run(MODULE, *MODEL, "--port", free_ports(1)[0], *role, "--rdma-comm-ports", pair.decode_rdma, **env),
        run(MODULE, *MODEL, "--port", free_ports(1)[0], STANDIN_START_FAULT="out-of-memory", **env),
    )
    for code, said in (comm, decode):
        assert code == 1
        assert "[Errno 98] address already in use" in said
    assert memory[0] == 1
    assert memory[1].startswith("torch.OutOfMemoryError: CUDA out of memory")


async def test_an_engine_on_two_hosts_is_ready_when_both_are_there(logs: Path):
    port, queue = free_ports(2)
    flags = (*MODEL, "--tensor-parallel-size", 2, "--ips", "127.0.0.1,127.0.0.2", "--engine-worker-queue-port", queue)
    env = {"FD_LOG_DIR": str(logs / "nodes")}
    async with (
        standin(MODULE, *flags, port=port, **env, STANDIN_HOST_IP="127.0.0.2") as follower,
        standin(MODULE, *flags, port=port, **env, STANDIN_HOST_IP="127.0.0.1") as head,
    ):
        await head.healthy()
        assert answer(await head.post(ASKED))
        follower.process.kill()
        assert await head.exit() == 1
        assert b"lost node 1" in head.log
