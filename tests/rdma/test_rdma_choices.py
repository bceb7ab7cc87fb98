"""What the rdma transport decides without any NIC."""

import random
from ipaddress import IPv6Address
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TransferError
from engine.transfer.blocks import Copy
from engine.transfer.transports.rdma import pyverbs_package
from engine.transfer.transports.rdma.addresses import Gid, PortAddress, choose_gid, pair_ports
from engine.transfer.transports.rdma.settings import Settings, read_settings
from engine.transfer.transports.rdma.stripes import messages_of, share_out

LINK_LOCAL, GLOBAL, V4 = (IPv6Address(address) for address in ("fe80::1", "2001:db8::1", "::ffff:10.0.0.5"))
KIB, MIB = 1 << 10, 1 << 20


def port(name: str, *, ethernet: bool) -> PortAddress:
    return PortAddress(name, ethernet, 0 if ethernet else 7, V4.exploded, 5)


@pytest.mark.parametrize(
    ("gids", "place"),
    [
        ([Gid(0, LINK_LOCAL, False), Gid(1, LINK_LOCAL, True), Gid(2, V4, False), Gid(3, V4, True)], 3),
        ([Gid(0, LINK_LOCAL, True), Gid(1, GLOBAL, True)], 1),
        ([Gid(0, LINK_LOCAL, False), Gid(1, LINK_LOCAL, True)], 1),
    ],
)
def test_on_ethernet_the_gid_of_widest_scope_is_chosen_of_those_that_are_roce_v2(gids: list[Gid], place: int):
    assert choose_gid(gids, ethernet=True, asked=None).place == place


def test_on_infiniband_the_first_gid_is_chosen():
    assert choose_gid([Gid(0, LINK_LOCAL, False), Gid(1, GLOBAL, False)], ethernet=False, asked=None).place == 0


def test_the_gid_that_is_asked_for_is_chosen():
    assert choose_gid([Gid(0, LINK_LOCAL, True), Gid(1, V4, True)], ethernet=True, asked=0).place == 0


@pytest.mark.parametrize("asked", [0, 5])
def test_a_gid_that_cannot_be_used_is_refused_with_those_that_can(asked: int):
    with pytest.raises(TransferError, match=rf"its GID {asked} is no RoCE v2 GID; it has 1 \(10.0.0.5\)"):
        choose_gid([Gid(0, V4, False), Gid(1, V4, True)], ethernet=True, asked=asked)


def test_an_interface_without_address_is_refused():
    with pytest.raises(TransferError, match="it has no RoCE v2 GID: its interface needs an IP address"):
        choose_gid([Gid(0, LINK_LOCAL, False)], ethernet=True, asked=None)


def test_ports_are_paired_by_their_places_and_kinds():
    roce, ib = [port(f"r{n}", ethernet=True) for n in range(3)], [port(f"i{n}", ethernet=False) for n in range(3)]
    assert pair_ports(roce, roce) == [(0, 0), (1, 1), (2, 2)]
    assert pair_ports(roce, roce[:2]) == [(0, 0), (1, 1), (2, 0)]
    assert pair_ports(ib[:1], ib) == [(0, 0), (0, 1), (0, 2)]
    assert pair_ports([roce[0], ib[0]], [ib[0], roce[0], roce[1]]) == [(1, 0), (0, 1), (0, 2)]
    with pytest.raises(TransferError, match=r"no link in common: prefill has r0 \(Ethernet\), decode has i0 \(Infini"):
        pair_ports(roce[:1], ib[:1])


@given(
    st.lists(st.tuples(st.integers(1, 9 * MIB), st.integers(0, 3 * MIB)), max_size=20),
    st.lists(st.integers(0, 1 << 30), min_size=1, max_size=8),
)
def test_all_bytes_are_shared_out_in_messages_that_are_not_too_large(runs: list[tuple[int, int]], pending: list[int]):
    lanes, wanted, at = [SimpleNamespace(pending=nbytes) for nbytes in pending], [], 0
    for nbytes, gap in runs:
        wanted.append(Copy(at, at + 5, nbytes))
        at += nbytes + gap
    shares = share_out(messages_of(wanted, len(lanes)), lanes)
    pieces = sorted(message for _, share in shares for message in share)
    joined: list[Copy] = []
    for piece in pieces:
        assert piece.nbytes <= 4 * MIB
        assert piece.target == piece.source + 5
        if joined and joined[-1].source + joined[-1].nbytes == piece.source:
            joined[-1] = Copy(joined[-1].source, joined[-1].target, joined[-1].nbytes + piece.nbytes)
        else:
            joined.append(piece)
    assert sum(run.nbytes for run in joined) == sum(run.nbytes for run in wanted)
    assert {run.source for run in joined} <= {run.source for run in wanted}


def test_lanes_get_as_much_as_makes_them_equal():
    blocks = [Copy(n * MIB, n * MIB, MIB) for n in range(20)]
    random.shuffle(blocks)
    lanes = [SimpleNamespace(pending=nbytes * MIB) for nbytes in (0, 0, 8)]
    shares = share_out(blocks, lanes)
    assert [sum(message.nbytes for message in share) // MIB for _, share in shares] == [10, 9, 1]


def test_a_small_push_takes_one_lane_and_a_large_block_all():
    lanes = [SimpleNamespace(pending=0), SimpleNamespace(pending=0)]
    assert len(share_out(messages_of([Copy(0, 0, 64 * KIB)], 2), lanes)) == 1
    large = share_out(messages_of([Copy(0, 0, 2 * MIB)], 2), lanes)
    assert [[message.nbytes for message in share] for _, share in large] == [[MIB], [MIB]]


def test_settings_are_read_from_the_environment():
    assert read_settings({}) == Settings((), None, 16)
    assert read_settings({"KVCACHE_RDMA_NICS": "mlx5_1, mlx5_0:2,,mlx5_1"}).nics == ("mlx5_1", "mlx5_0:2")
    assert read_settings({"KVCACHE_RDMA_GID_INDEX": "3", "KVCACHE_IB_TIMEOUT": "20"}) == Settings((), 3, 20)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("KVCACHE_IB_TIMEOUT", "32"), ("KVCACHE_IB_TIMEOUT", "0"), ("KVCACHE_RDMA_GID_INDEX", "-1")],
)
def test_a_setting_that_is_out_of_range_is_refused(variable: str, value: str):
    with pytest.raises(TransferError, match=f"{variable} is '{value}': it must be a number from"):
        read_settings({variable: value})


@pytest.fixture
def _without_pyverbs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pyverbs_package.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("_without_pyverbs")
def test_without_pyverbs_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(pyverbs_package, "_DEBIAN", tmp_path / "missing")
    with pytest.raises(TransferError, match="pyverbs is missing: apt-get install python3-pyverbs rdma-core"):
        pyverbs_package.make_importable()


@pytest.mark.usefixtures("_without_pyverbs")
def test_debians_pyverbs_for_another_python_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "device.cpython-27-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(pyverbs_package, "_DEBIAN", tmp_path)
    with pytest.raises(TransferError, match="is for another Python than this one"):
        pyverbs_package.make_importable()
