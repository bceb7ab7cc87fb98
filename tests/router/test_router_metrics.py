"""The figures at /metrics."""

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families
from router_mocks import CHAT, PROMPT, Running, Turn, hold, running, split


async def figures(at: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await at.http.get("/metrics")).text
    return {
        (sample.name.removeprefix("pdctl_router_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**pairs: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pairs.items()))


async def test_requests_by_route_and_status():
    async def take_time(turn: Turn) -> None:
        await asyncio.sleep(0.02)
        await turn.answer({})

    async with split(on_decode=take_time) as pair:
        for _ in range(3):
            await pair.at.post()
        await pair.at.http.post("/v1/completions", content=b"nonsense")
        now = await figures(pair.at)
        assert now["requests_total", labels(route=CHAT, model="m", status="200")] == 3
        assert now["requests_total", labels(route="/v1/completions", model="", status="400")] == 1
        assert now["request_duration_seconds_count", labels(model="m")] == 3, "what was refused took no time"
        assert now["request_duration_seconds_bucket", labels(le="+Inf", model="m")] == 3
        assert 0.03 < now["request_duration_seconds_sum", labels(model="m")] < 30
        assert now["pd_requests_total", labels(prefill=pair.prefill.key, decode=pair.decode.key)] == 3


async def test_what_is_in_flight():
    async with split(on_prefill=hold, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post({"prompt": "x" * 4000}, path="/v1/completions"))
        p, d = await pair.prefill.turn(), await pair.decode.turn()
        now = await figures(pair.at)
        prefill, decode = (
            labels(role=role, instance=mock.key) for role, mock in (("prefill", pair.prefill), ("decode", pair.decode))
        )
        assert now["requests_in_flight", ()] == 1
        assert now["instance_requests_in_flight", prefill] == now["instance_requests_in_flight", decode] == 1
        assert 900 <= now["instance_tokens_in_flight", prefill] <= 1100
        assert now["instance_up", prefill] == 1
        assert now["instance_connections", prefill] == 1
        await p.answer({})
        await d.answer({})
        await request
        now = await figures(pair.at)
        assert now["requests_in_flight", ()] == now["instance_requests_in_flight", prefill] == 0
        assert now["instance_requests_total", prefill] == 1


async def test_failures():
    async with split(on_prefill=hold) as pair:
        await pair.decode.stop()
        assert (await pair.at.post(PROMPT)).status_code == 502
        now = await figures(pair.at)
        assert now["leg_failures_total", labels(role="decode", kind="connect")] == 1
        assert now["instance_up", labels(role="decode", instance=pair.decode.key)] == 0


async def test_the_pairs_of_an_engine_that_is_gone_are_forgotten():
    async with split() as pair:
        await pair.at.post()
        names = {"pd_requests_total", "prefill_seconds_count", "decode_seconds_count"}
        both = labels(prefill=pair.prefill.key, decode=pair.decode.key)
        assert {name for name, found in await figures(pair.at) if found == both} >= names
        await pair.at.idle()
        assert (await pair.at.http.delete(f"/instances/{pair.decode.key}")).status_code == 200
        assert not [name for name, found in await figures(pair.at) if pair.decode.key in str(found)]


async def test_every_name_has_the_prefix_a_type_and_help():
    async with running() as at:
        text = (await at.http.get("/metrics")).text
        helped, typed = re.findall(r"# HELP (\S+) \S", text), re.findall(r"# TYPE (\S+) \S", text)
        assert helped == typed
        assert len(set(helped)) == len(helped)
        assert all(name.startswith("pdctl_router_") for name in helped)
        assert {"pdctl_router_retries_total", "pdctl_router_client_connections"} <= set(helped)
