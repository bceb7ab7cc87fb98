"""A request from end to end: a prefill and a decode engine in processes of their own, whose KV goes over both NICs."""

import http.client
import json
import multiprocessing
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine.__main__ import main

HOST = "127.0.0.1"
SLOW_S = 180  # the processor is emulated
FLAGS = ("--max-model-len", "256", "--num-gpu-blocks-override", "32", "--threads", "1")
RDMA = ("--cache-transfer-protocol", "rdma")
API = {"prefill": 8101, "decode": 8102}
METRICS = {"prefill": 9101, "decode": 9102}
PD_COMM = 8202


def run_engine(flags: list[str]) -> None:
    sys.argv = ["engine", *flags]
    sys.exit(main())


@pytest.fixture
def engines() -> Iterator[None]:
    """One of each role, with a tiny random model; decode keeps no prefixes, so that it computes what it is asked to."""
    own = {
        "prefill": ("--splitwise-role", "prefill", "--kv-checksum"),
        "decode": ("--splitwise-role", "decode", "--pd-comm-port", str(PD_COMM), "--no-prefix-caching"),
    }
    started = []
    for role, flags in own.items():
        ports = ("--port", str(API[role]), "--metrics-port", str(METRICS[role]))
        every = ["--model", os.environ["MODEL"], *FLAGS, *RDMA, *ports, *flags]
        started.append(multiprocessing.get_context("forkserver").Process(target=run_engine, args=(every,)))
        started[-1].start()
    for role in own:
        until_ready(role)
    yield
    for process in started:
        process.terminate()
    for process in started:
        process.join(SLOW_S)
        assert process.exitcode == 0


def until_ready(role: str) -> None:
    deadline = time.monotonic() + SLOW_S
    while not is_ready(role):
        assert time.monotonic() < deadline, f"{role} is not ready after {SLOW_S} s"
        time.sleep(0.1)


def is_ready(role: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{API[role]}/health", timeout=SLOW_S):
            return True
    except OSError:  # it does not listen yet, or says that it is loading
        return False


def post(role: str, body: dict[str, Any]) -> Any:
    connection = http.client.HTTPConnection(HOST, API[role], timeout=SLOW_S)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 200, answer
    return answer


def metric(role: str, name: str, *labels: str) -> float:
    """The sum of all values of that name that have the labels."""
    with urllib.request.urlopen(f"http://{HOST}:{METRICS[role]}/metrics", timeout=SLOW_S) as response:
        lines = response.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(name) and all(label in line for label in labels)
    )


@pytest.mark.timeout(2 * SLOW_S)
def test_a_prompt_computed_by_prefill_is_decoded_from(engines: None):
    body = {"prompt": list(range(100, 200)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    pair = {
        "prefill_ip": HOST,
        "prefill_port": API["prefill"],
        "decode_ip": HOST,
        "decode_port": API["decode"],
        "decode_connector_port": PD_COMM,
    }
    split = {**body, "request_id": "split", "disaggregate_info": pair}
    with ThreadPoolExecutor() as threads:
        first, answer = threads.map(post, ("prefill", "decode"), (split, split))
    assert first["object"] == "prefill"
    assert metric("decode", "pdctl:prompt_tokens_by_source_total", 'source="kv_transfer"') == 100
    assert metric("decode", "pdctl:kv_transfer_checksum_mismatches_total") == 0
    sent, received = (
        metric(role, "pdctl:kv_transfer_bytes_total", 'transport="rdma"') for role in ("prefill", "decode")
    )
    assert sent == received > 0
    alone = post("decode", {**body, "request_id": "alone", "prefill_on_decode": True})
    assert answer["choices"] == alone["choices"]
    assert metric("decode", "pdctl:prompt_tokens_by_source_total", 'source="local_compute"') == 100
