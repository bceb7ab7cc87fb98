"""One reliable connection between two ports."""

import ctypes
import secrets
import socket

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from engine.transfer.transports.rdma.addresses import PortAddress
from engine.transfer.transports.rdma.completions import CompletionQueue
from engine.transfer.transports.rdma.enums import enums
from engine.transfer.transports.rdma.memory import Region
from engine.transfer.transports.rdma.ports import Port

_HOP_LIMIT = 64  # RoCE v2 may be routed; verbs' own default of 1 would end at the first router
_MIN_RNR_TIMER = 12  # 0.64 ms until a sender tries again that found no receive posted
_RETRIES = 7  # the most
_RNR_RETRIES = 7  # for ever: that no receive is posted is no fault of the path
_ACCESS = enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE
_SUBNET = len("fe80:0000:0000:0000")  # of a GID: InfiniBand routers are between those of two


class QueuePair:
    """Sends writes, or receives their immediate data. Owned by the event loop, but may be made in any thread."""

    def __init__(self, port: Port, region: Region, *, sends: int = 1, receives: int = 1) -> None:
        self._port = port
        self._region = region
        self.psn = secrets.randbits(24)
        self.completions = CompletionQueue(port.context, sends + receives)
        try:
            self._qp = self._make(sends, receives)
        except BaseException:
            self.completions.close()
            raise
        self._write = _idle.pop() if _idle else _WriteRequest()
        self._open = True

    @property
    def number(self) -> int:
        """What the other side connects to."""
        number: int = self._qp.qp_num
        return number

    def connect(self, peer: PortAddress, number: int, psn: int, timeout: int) -> None:
        """Go to ready-to-send. Raises PyverbsError; may take a second where the peer's address does not resolve."""
        attributes = self._attributes()
        attributes.path_mtu = min(self._port.address.mtu, peer.mtu)
        attributes.dest_qp_num = number
        attributes.rq_psn, attributes.sq_psn = psn, self.psn
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = _MIN_RNR_TIMER
        attributes.timeout = timeout
        attributes.retry_cnt, attributes.rnr_retry = _RETRIES, _RNR_RETRIES
        attributes.ah_attr = self._route(peer)
        self._qp.to_rts(attributes)

    def post_write(
        self, source: int, target: int, nbytes: int, rkey: int, *, immediate: int | None, wr_id: int, signaled: bool
    ) -> None:
        """Write from an offset in the region to a remote address; signaled: it makes a completion. Raises PyverbsError.

        With immediate data, it takes a receive that the other side has posted.
        """
        self._write.fill(self._region.address + source, nbytes, self._region.lkey)
        request = self._write.request
        request.set_wr_rdma(rkey, target)
        request.wr_id = wr_id
        request.send_flags = enums.IBV_SEND_SIGNALED if signaled else 0
        if immediate is None:
            request.opcode = enums.IBV_WR_RDMA_WRITE
        else:
            request.opcode = enums.IBV_WR_RDMA_WRITE_WITH_IMM
            request.imm_data = socket.htonl(immediate)
        self._qp.post_send(request)

    def post_receive(self) -> None:
        """Take one more immediate. Raises PyverbsError."""
        self._qp.post_recv(_receive)

    def close(self) -> None:
        """Destroy it: nothing is sent or received any more, what is under way included. Closing twice is allowed."""
        if not self._open:
            return
        self._open = False
        _idle.append(self._write)
        try:
            self._qp.close()
        finally:
            self.completions.close()

    def _make(self, sends: int, receives: int) -> QP:
        cap = QPCap(max_send_wr=sends, max_recv_wr=receives, max_send_sge=1, max_recv_sge=1)
        cq = self.completions.cq
        about = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=cq, rcq=cq, cap=cap, sq_sig_all=0)
        return QP(self._port.pd, about, self._attributes())

    def _attributes(self) -> QPAttr:
        attributes = QPAttr(port_num=self._port.number)
        attributes.qp_access_flags = _ACCESS
        return attributes

    def _route(self, peer: PortAddress) -> AHAttr:
        own = self._port.address
        if not own.ethernet and own.gid[:_SUBNET] == peer.gid[:_SUBNET]:
            return AHAttr(port_num=self._port.number, dlid=peer.lid)
        route = GlobalRoute(dgid=GID(peer.gid), sgid_index=self._port.gid_index, hop_limit=_HOP_LIMIT)
        return AHAttr(port_num=self._port.number, dlid=peer.lid, is_global=1, gr=route)


class _WriteRequest:
    """One work request, filled anew for each write: posting copies it.

    Released versions of pyverbs leak what a request points to, so these are few and used again. They are never freed:
    the request and its SGE share that memory, and a pyverbs that does free would do so twice.
    """

    def __init__(self) -> None:
        self._sge = SGE(0, 0, 0)
        self.request = SendWR(num_sge=1, sg=[self._sge])
        self.request.sg_list = self._sge
        for immortal in (self._sge, self.request):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(immortal))

    def fill(self, address: int, nbytes: int, lkey: int) -> None:
        """Say what is written."""
        self._sge.addr, self._sge.length, self._sge.lkey = address, nbytes, lkey


_idle: list[_WriteRequest] = []
_receive = RecvWR(num_sge=1, sg=[SGE(0, 0, 0)])  # no memory: immediate data comes with the completion
