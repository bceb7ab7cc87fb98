"""`pdctl bench transfer`: how a sweep is written, what is shown of it, and the NICs beside it."""

from io import StringIO

import pytest
from rich.console import Console

from pdctl.bench.transfer.links import rdma_environment, rdma_link
from pdctl.bench.transfer.messages import Cell, Failed, Link, Links, Unusable
from pdctl.bench.transfer.report import Findings, render, to_json
from pdctl.bench.transfer.sweep import Sweep, parse_counts, parse_sizes, parse_transports, show_size
from pdctl.planning.inventory import Gid, Inventory, Nic

SWEEP = Sweep(("ipc", "rdma", "tcp"), (64 << 10, 1 << 20), (1, 8), 0.3)


def findings() -> Findings:
    found = Findings(SWEEP, links={"rdma": Link("mlx5_0:1 400 Gb/sec (4X NDR)", 50.0)})
    for event in (
        Links({"ipc": Link("memcpy", 8.0), "tcp": Link("loopback")}),
        Cell("ipc", 64 << 10, 1, 10**9, 0.5),
        Cell("ipc", 64 << 10, 8, 3 * 10**9, 0.5),
        Cell("ipc", 1 << 20, 1, 2 * 10**9, 0.5),
        Failed("ipc", "the contents differ"),
        Unusable("rdma", "no RDMA device [1]"),
        Cell("tcp", 1 << 20, 8, 10**9, 0.5),
    ):
        found.add(event)
    return found


def test_the_table():
    output = StringIO()
    Console(file=output, width=200).print(render(findings()))
    assert [line.split() for line in output.getvalue().splitlines()] == [
        line.split()
        for line in (
            "transport block x 1 x 8 link GB/s of link link",
            "ipc 64 KiB 2.00 6.00 8.00 75% memcpy",
            "ipc 1 MiB 4.00 - 8.00 50% memcpy",
            "tcp 1 MiB - 2.00 - - loopback",
            "rdma not usable: no RDMA device [1]",
            "ipc failed: the contents differ",
        )
    ]


def test_nothing_but_reasons_where_nothing_was_measured():
    output = StringIO()
    Console(file=output, width=200).print(render(Findings(SWEEP, unusable={"tcp": "no route"})))
    assert output.getvalue() == "tcp        not usable: no route\n"


def test_everything_as_json():
    data = to_json(findings())
    assert data["cells"][0] == {
        "transport": "ipc",
        "block_bytes": 65536,
        "in_flight": 1,
        "bytes": 10**9,
        "seconds": 0.5,
        "gigabytes_s": 2.0,
    }
    assert len(data["cells"]) == 4
    assert data["seconds"] == 0.3
    assert data["links"] == {
        "rdma": {"name": "mlx5_0:1 400 Gb/sec (4X NDR)", "gigabytes_s": 50.0},
        "ipc": {"name": "memcpy", "gigabytes_s": 8.0},
        "tcp": {"name": "loopback", "gigabytes_s": None},
    }
    assert (data["unusable"], data["failed"]) == ({"rdma": "no RDMA device [1]"}, {"ipc": "the contents differ"})


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("64K,1M", (65536, 1048576)),
        ("64KiB, 64kb, 65536", (65536,)),
        ("1g", (1 << 30,)),
        ("1MiB,3k", (1048576, 3072)),
    ],
)
def test_sizes(text: str, sizes: tuple[int, ...]):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["", ",", "0", "1000", "64Q", "-1K", "1.5M", "K"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match=r"is empty|is not a"):
        parse_sizes(text)


def test_counts_and_transports():
    assert parse_counts("8, 1,8") == (8, 1)
    assert parse_transports("tcp,ipc") == ("tcp", "ipc")
    for text in ("0", "x", "1.5", ""):
        with pytest.raises(ValueError, match=r"is empty|is not a whole number of at least 1"):
            parse_counts(text)
    with pytest.raises(ValueError, match="'rmda' is none of ipc, rdma, tcp"):
        parse_transports("ipc,rmda")


@pytest.mark.parametrize(("nbytes", "shown"), [(1024, "1 KiB"), (1536 << 10, "1536 KiB"), (4 << 20, "4 MiB")])
def test_sizes_are_shown_in_the_largest_unit(nbytes: int, shown: str):
    assert show_size(nbytes) == shown


def host(*nics: Nic, environment: str | None = None) -> Inventory:
    return Inventory(
        hostname="a",
        address="10.0.0.1",
        cpus=8,
        memory_bytes=2**34,
        nics=nics,
        nics_in_environment=environment,
        python="python3",
        free_disk_bytes=2**34,
    )


def nic(device: str, rate: str, *, software: bool = False) -> Nic:
    gid = Gid(index=3, gid="0000:0000:0000:0000:0000:ffff:0a00:0001", type="RoCE v2", netdev="eth0")
    return Nic(device=device, port=1, rate=rate, link_layer="Ethernet", gids=(gid,), software=software)


def test_the_nics_that_rdma_uses_are_its_link():
    pair = host(nic("mlx5_0", "200 Gb/sec (4X HDR)"), nic("mlx5_1", "200 Gb/sec (4X HDR)"))
    assert rdma_link(pair) == Link("mlx5_0:1 200 Gb/sec (4X HDR), mlx5_1:1 200 Gb/sec (4X HDR)", 50.0)
    assert rdma_environment(pair) == {"KVCACHE_RDMA_NICS": "mlx5_0,mlx5_1"}


@pytest.mark.parametrize("given", ["mlx5_1", "mlx5_1:1"])
def test_nics_given_by_the_user_are_the_link(given: str):
    pair = host(nic("mlx5_0", "200 Gb/sec (4X HDR)"), nic("mlx5_1", "100 Gb/sec (4X EDR)"), environment=given)
    assert rdma_link(pair) == Link("mlx5_1:1 100 Gb/sec (4X EDR)", 12.5)
    assert rdma_environment(pair) == {"KVCACHE_RDMA_NICS": given}


def test_a_host_without_nics_has_no_link():
    assert rdma_link(host()) is None
    assert rdma_environment(host()) == {}


def test_what_works_in_software_has_no_rate_of_its_own():
    assert rdma_link(host(nic("rxe0", "2.5 Gb/sec (1X SDR)", software=True))) == Link("rxe0:1 in software")
