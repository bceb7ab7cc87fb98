"""Reading the figures that processes publish."""

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdctl.deployment.load import Sample, parse_samples, scrape, select
from pdctl.deployment.models import Load

TEXT = """# HELP pdctl:tokens_total by source
# TYPE pdctl:tokens_total counter
pdctl:tokens_total{source="kv_transfer",engine="a b"} 12.0
pdctl:tokens_total{source="local_compute"} 3 1700000000
pdctl:kv_cache_usage_perc 0.25
pdctl:odd{text="a \\"quoted\\" {brace}, comma"} +Inf

not a sample
"""


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("pdctl:tokens_total", 15),
        ('pdctl:tokens_total{source="kv_transfer"}', 12),
        ('pdctl:tokens_total{source="local_compute"}', 3),
        ('pdctl:tokens_total{source="none"}', None),
        ("pdctl:kv_cache_usage_perc", 0.25),
        ("pdctl:kv_cache", None),
        ("pdctl:odd", float("inf")),
    ],
)
def test_selecting(selector: str, expected: float | None) -> None:
    assert select(parse_samples(TEXT), selector) == expected


NAMES = st.from_regex(r"[a-z_:][a-z0-9_:]{0,8}", fullmatch=True)
LABELS = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True), st.text("ab{},= 1", max_size=6))
SAMPLES = st.lists(st.builds(Sample, NAMES, LABELS, st.floats(allow_nan=False, allow_infinity=False)), max_size=5)


def line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
    return f"{sample.name}{{{labels}}} {sample.value}" if labels else f"{sample.name} {sample.value}"


@settings(max_examples=50)
@given(SAMPLES)
def test_every_sample_is_read_back(samples: list[Sample]) -> None:
    assert parse_samples("\n".join(map(line, samples))) == samples


@pytest.mark.parametrize("status", [200, 404])
async def test_what_cannot_be_had_is_left_out(status: int) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text="a 1\n")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        load = await scrape(client, "http://x/metrics", {"running": "a", "waiting": "b"})
    assert load == Load(running=1 if status == 200 else None)


async def test_nobody_there() -> None:
    async with httpx.AsyncClient() as client:
        assert await scrape(client, "http://127.0.0.1:1/metrics", {"running": "a"}) == Load()


async def test_how_full_the_caches_of_several_ranks_are_is_their_mean() -> None:
    text = 'kv{rank="0"} 0.6\nkv{rank="1"} 0.7\nrunning{rank="0"} 1\nrunning{rank="1"} 2\n'
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=text))
    async with httpx.AsyncClient(transport=transport) as client:
        load = await scrape(client, "http://x/metrics", {"kv_usage": "kv", "running": "running", "waiting": "none"})
    assert (load.kv_usage, load.running, load.waiting) == (pytest.approx(0.65), 3, None)


async def test_the_transports_in_use_are_those_with_a_connection() -> None:
    text = """
links{transport="tcp",peer="a"} 2
links{transport="ipc",peer="a"} 1
links{transport="ipc",peer="b"} 0
links{transport="rdma",peer="b"} 0
"""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=text))
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await scrape(client, "http://x/metrics", {"transports": "links"})).transports == ["ipc", "tcp"]
        assert (await scrape(client, "http://x/metrics", {"transports": "others"})).transports == []
