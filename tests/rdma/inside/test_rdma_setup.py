"""Choosing NICs and addresses, and refusing what does not fit."""

import msgspec
import numpy as np
import pytest
from rdma_pair import Memory, connected, decode_side, link_down, prefill_side, whole_blocks, within

from engine.errors import TransferError
from engine.transfer.base import Target
from engine.transfer.doorway import Doorway
from engine.transfer.transports.rdma.addresses import PortAddress
from engine.transfer.transports.rdma.queue_pairs import QueuePair
from engine.transfer.transports.rdma.transport import RdmaTransport
from engine.transfer.transports.rdma.wire import Offer

FIT = whole_blocks(4096)


def ports(offer: bytes) -> list[str]:
    return [port.name for port in msgspec.msgpack.decode(offer, type=Offer).ports]


async def refusal() -> str:
    with pytest.raises(TransferError) as caught:
        await RdmaTransport(Memory(4096), Doorway()).start()
    return str(caught.value)


async def test_all_active_ports_are_used_where_none_is_named():
    async with decode_side(Memory(4096)) as inlet:
        assert ports(inlet.offer) == ["rxe0:1", "rxe1:1"]


async def test_named_nics_are_used_in_their_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "rxe1, rxe0:1")
    async with decode_side(Memory(4096)) as inlet:
        assert ports(inlet.offer) == ["rxe1:1", "rxe0:1"]


async def test_a_named_nic_that_is_missing_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "mlx5_0,rxe0")
    async with decode_side(Memory(4096)) as inlet:
        assert ports(inlet.offer) == ["rxe0:1"]
    assert "mlx5_0 of KVCACHE_RDMA_NICS does not exist; this host has rxe0, rxe1" in caplog.text


async def test_without_a_usable_nic_the_transport_says_why(monkeypatch: pytest.MonkeyPatch):
    with link_down("dummy1"):
        monkeypatch.setenv("KVCACHE_RDMA_NICS", "rxe1,rxe0:2,rxe9")
        assert await refusal() == (
            "no NIC can be used: rxe1:1 cannot be used: it is DOWN, not ACTIVE; "
            "rxe0:2 of KVCACHE_RDMA_NICS does not exist; rxe0 has 1 port(s); "
            "rxe9 of KVCACHE_RDMA_NICS does not exist; this host has rxe0, rxe1"
        )


async def test_a_gid_that_the_nic_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVCACHE_RDMA_NICS", "rxe0")
    monkeypatch.setenv("KVCACHE_RDMA_GID_INDEX", "7")
    reason = await refusal()
    assert "rxe0:1 cannot be used: its GID 7 is no RoCE v2 GID; it has 0 (fe80::" in reason
    assert "1 (10.99.0.1)" in reason


async def test_addresses_that_do_not_reach_each_other_are_found_when_connecting(monkeypatch: pytest.MonkeyPatch):
    async with decode_side(Memory(4096)) as inlet:  # by their IPv4 addresses
        monkeypatch.setenv("KVCACHE_RDMA_GID_INDEX", "0")  # prefill by its link-local one
        monkeypatch.setenv("KVCACHE_IB_TIMEOUT", "12")
        transport = RdmaTransport(Memory(4096), Doorway())
        await transport.start()
        with pytest.raises(TransferError, match=r"no NIC is left: rxe0:1 \(fe80::.*\) to rxe0:1 \(10.99.0.1\): "):
            await within(transport.connect(inlet.offer, Target("127.0.0.1", 1, FIT)))
        await transport.close()


async def test_a_nic_that_does_not_answer_is_left_out_before_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    connect = QueuePair.connect

    def connect_with_nobody(self: QueuePair, peer: PortAddress, number: int, psn: int, timeout: int) -> None:
        connect(self, peer, number + 1000 if peer.name == "rxe1:1" else number, psn, timeout)

    monkeypatch.setattr(QueuePair, "connect", connect_with_nobody)
    monkeypatch.setenv("KVCACHE_IB_TIMEOUT", "31")  # hours
    async with connected(8192, FIT) as pair:
        assert "rxe1:1 (10.99.1.1) to rxe1:1 (10.99.1.1) failed: no answer within 1 s" in caplog.text
        await within(pair.writer.push([0, 1], [1, 0]))
        assert np.array_equal(pair.target.bytes[:4096], pair.source.bytes[4096:])


async def test_a_pool_smaller_than_the_handshake_says_is_refused():
    async with decode_side(Memory(4096)) as inlet:
        with pytest.raises(TransferError, match="its pool has 4096 bytes, less than 2 blocks, 8192 bytes"):
            async with prefill_side(Memory(8192), inlet.offer, FIT, 2):
                pass


async def test_an_inlet_takes_one_writer():
    async with connected(8192, FIT) as pair:
        with pytest.raises(TransferError):
            async with prefill_side(Memory(8192), pair.inlet.offer, FIT, 2):
                pass
        await within(pair.writer.push([0], [1]))


async def test_drained_without_any_writer_lets_nobody_in():
    async with decode_side(Memory(8192)) as inlet:
        await within(inlet.drained())
        with pytest.raises(TransferError):
            async with prefill_side(Memory(8192), inlet.offer, FIT, 2):
                pass
