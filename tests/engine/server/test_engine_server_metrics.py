import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from engine.server.app import make_metrics_app
from engine.transfer.counters import TransferCounters

PEER = "10.0.0.1:8101"
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def samples(client):
    async with client.get("/metrics") as response:
        assert response.status == 200
        text = await response.text()
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
def watched(state, core):
    counters = TransferCounters("received", failures=2, pending=7, mismatches=1)
    counters.pair("ipc", PEER).connected = 1
    for nbytes, seconds in ((3_000_000_000, 0.5), (1_000_000_000, 1.5)):
        counters.pair("ipc", PEER).pushed(nbytes, seconds)
    counters.pair("tcp", PEER)
    state.metrics.watch(core.stats, [counters], "dmabuf")


async def test_core_and_transfer_counters(client, watched):
    got = await samples(client)
    moved = (("direction", "received"), ("peer", PEER), ("transport", "ipc"))
    assert got["pdctl:num_requests_running",] == 3
    assert got["pdctl:num_requests_waiting",] == 2
    assert got["pdctl:num_requests_held",] == 5
    assert got["pdctl:num_requests_reserved",] == 6
    assert got["pdctl:kv_cache_usage_perc",] == 0.25
    assert got["pdctl:kv_blocks_total",] == 100
    assert got["pdctl:kv_blocks_free",] == 75
    assert got["pdctl:prompt_tokens_total",] == 50
    assert got["pdctl:generation_tokens_total",] == 9
    assert got["pdctl:num_preemptions_total",] == 1
    assert got["pdctl:prompt_tokens_by_source_total", ("source", "local_compute")] == 30
    assert got["pdctl:prompt_tokens_by_source_total", ("source", "local_cache_hit")] == 16
    assert got["pdctl:prompt_tokens_by_source_total", ("source", "kv_transfer")] == 4
    assert got["pdctl:kv_transfer_bytes_total", *moved] == 4e9
    assert got["pdctl:kv_transfer_seconds_total", *moved] == 2
    assert got["pdctl:kv_transfer_pushes_total", *moved] == 2
    assert got["pdctl:kv_transfer_gigabytes_per_second", *moved] == 2
    assert got["pdctl:kv_transfer_connections", *moved] == 1
    assert got["pdctl:kv_transfer_connections", moved[0], moved[1], ("transport", "tcp")] == 0
    assert got["pdctl:kv_transfer_pending",] == 7
    assert got["pdctl:kv_transfer_checksum_mismatches_total",] == 1
    assert got["pdctl:kv_transfer_failed_total",] == 2
    assert got["pdctl:kv_rdma_memory", ("memory", "dmabuf")] == 1


async def test_requests_are_measured(client):
    async with client.post(CHAT, json={"messages": HI}) as response:
        assert response.status == 200
    async with client.post(CHAT, json={"messages": HI, "max_tokens": 3, "stream": True}) as response:
        await response.read()
    got = await samples(client)
    assert got["pdctl:request_success_total", ("finish_reason", "stop")] == 1
    assert got["pdctl:request_success_total", ("finish_reason", "length")] == 1
    assert got["pdctl:time_to_first_token_seconds_count",] == 2
    assert got["pdctl:e2e_request_latency_seconds_count",] == 2
    assert got["pdctl:inter_token_latency_seconds_count",] <= len("Hello, world!") + 2
    assert got["pdctl:e2e_request_latency_seconds_sum",] >= got["pdctl:time_to_first_token_seconds_sum",] > 0


async def test_a_refused_request_is_no_success(client):
    async with client.post(CHAT, json={"messages": []}) as response:
        assert response.status == 400
    assert not any(name == "pdctl:request_success_total" for name, *_ in await samples(client))


async def test_the_metrics_port_serves_the_same(client, state, watched):
    async with TestClient(TestServer(make_metrics_app(state))) as metrics_client:
        assert (await samples(metrics_client)).keys() == (await samples(client)).keys()
        async with metrics_client.get("/v1/models") as response:
            assert response.status == 404
