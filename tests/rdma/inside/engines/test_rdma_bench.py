"""`pdctl bench transfer` over the machine's NICs. Its two processes are one here: each would have to import torch."""

import asyncio
import json
from collections.abc import Callable, Mapping

import pytest
from typer.testing import CliRunner

from engine.transfer.measure import blocks
from engine.transfer.measure.source import run_source
from engine.transfer.measure.target import run_target
from pdctl.bench.transfer import run
from pdctl.bench.transfer.messages import Event, Listening, SourceOrders, TargetOrders
from pdctl.bench.transfer.sweep import Sweep
from pdctl.cli.main import app

KIB = 1024


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_sweep(
        sweep: Sweep, environment: Mapping[str, str], on_event: Callable[[Event], None], **sides: object
    ) -> None:
        assert set(sides.values()) == {run.HERE}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        listening: asyncio.Queue[Listening] = asyncio.Queue()
        serving = asyncio.create_task(run_target(TargetOrders(run.LOOPBACK), listening.put_nowait))
        there = await listening.get()
        what = (list(sweep.transports), list(sweep.block_sizes), list(sweep.in_flight), sweep.seconds)
        await run_source(SourceOrders(run.LOOPBACK, there.port, there.key, *what), on_event)
        await serving

    monkeypatch.setattr(run, "run_sweep", run_sweep)
    monkeypatch.setattr(blocks, "_LEAST_BYTES", 2**20)  # of a pool


def test_rdma_is_measured_over_all_nics_that_work_in_software():
    options = ["--transports", "rdma", "--block-sizes", "1K,16K", "--in-flight", "1,8", "--seconds", "0.05", "--json"]
    done = CliRunner().invoke(app, ["bench", "transfer", *options])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["unusable"], data["failed"]) == ({}, {})
    assert data["links"]["rdma"] == {"name": "rxe0:1 in software, rxe1:1 in software", "gigabytes_s": None}
    assert [(cell["transport"], cell["block_bytes"], cell["in_flight"]) for cell in data["cells"]] == [
        ("rdma", size * KIB, count) for size in (1, 16) for count in (1, 8)
    ]
    assert all(cell["gigabytes_s"] > 0 for cell in data["cells"])
