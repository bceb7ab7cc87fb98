"""Two legs that meet in the very moment in which one of them leaves."""

import asyncio

import pytest
from transfer_harness import LIMITS, PREFILL, DecodeCoreDouble, TransferLimits, within

from engine.errors import TransferError
from engine.transfer.blocks import Fit
from engine.transfer.inbound import Inbound, Prefill
from engine.transfer.rendezvous import Rendezvous
from engine.transfer.wire import Message, Reserve


@pytest.fixture
def core(pool) -> DecodeCoreDouble:
    return DecodeCoreDouble(pool)


@pytest.fixture
async def inbound(core: DecodeCoreDouble) -> Inbound:
    said: list[Message] = []
    return Inbound(Reserve("r", 1, [1]), Prefill(PREFILL, "ipc", Fit(1, 1, 0, 0, 1)), core, said.append, lambda _: None)


async def waiting_claim(rendezvous: Rendezvous) -> "asyncio.Task[Inbound]":
    claim = asyncio.create_task(rendezvous.claim(PREFILL, "r"))
    await asyncio.wait({claim}, timeout=0.01)
    return claim


async def ends_cancelled(claim: "asyncio.Task[Inbound]") -> None:
    with pytest.raises(asyncio.CancelledError):
        await within(claim)


async def test_a_reservation_for_a_request_that_has_just_left_is_refused(inbound: Inbound):
    rendezvous = Rendezvous(LIMITS)
    claim = await waiting_claim(rendezvous)
    claim.cancel()
    with pytest.raises(TransferError, match="the request was cancelled"):
        rendezvous.bring(inbound)
    await ends_cancelled(claim)
    assert not rendezvous._waiting


async def test_a_request_that_leaves_as_its_reservation_comes_drops_it(inbound: Inbound):
    rendezvous = Rendezvous(LIMITS)
    claim = await waiting_claim(rendezvous)
    rendezvous.bring(inbound)
    claim.cancel()
    await ends_cancelled(claim)
    assert inbound.dropped


async def test_a_request_that_leaves_as_prefill_is_lost(inbound: Inbound):
    rendezvous = Rendezvous(LIMITS)
    claim = await waiting_claim(rendezvous)
    claim.cancel()
    rendezvous.lose(PREFILL, TransferError("prefill is lost"))
    await ends_cancelled(claim)

    claim = await waiting_claim(rendezvous)
    rendezvous.lose(PREFILL, TransferError("prefill is lost"))
    claim.cancel()
    await ends_cancelled(claim)
    assert not rendezvous._waiting


async def test_the_end_of_an_old_connection_fails_nobody_while_the_next_one_lives():
    rendezvous = Rendezvous(LIMITS)
    rendezvous.join(PREFILL)
    rendezvous.join(PREFILL)
    claim = await waiting_claim(rendezvous)
    rendezvous.lose(PREFILL, TransferError("the old connection is lost"))
    assert not claim.done()
    rendezvous.lose(PREFILL, TransferError("the last connection is lost"))
    with pytest.raises(TransferError, match="the last connection"):
        await within(claim)


@pytest.mark.parametrize(("connected", "waited"), [(False, "0.1 s for prefill .* to connect"), (True, "0.2 s for")])
async def test_a_prefill_engine_that_never_reserves_is_not_waited_for_as_long_as_for_kv(connected: bool, waited: str):
    rendezvous = Rendezvous(TransferLimits(silence_s=0.1, join_s=0.2))
    if connected:
        rendezvous.join(PREFILL)
    with pytest.raises(TransferError, match=f"waited {waited}") as failure:
        await within(rendezvous.claim(PREFILL, "r"))
    assert failure.value.status == 504
    assert not rendezvous._waiting
