"""The network interfaces and their addresses, asked of the kernel: sysfs may be that of another network namespace."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import Any, Dict, Iterator, List, Tuple

_RTM_GETADDR, _NLMSG_DONE, _NLMSG_ERROR = 22, 3, 2
_REQUEST_DUMP = 0x0301
_IFA_LOCAL = 2
_SIOCGIFMTU = 0x8921
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, pid
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index of the interface
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_BUFFER_BYTES = 1 << 16


def read_netdevs() -> List[Dict[str, Any]]:
    """Every IPv4 address of this host: ``address``, and the ``name`` and ``mtu`` of the interface that has it."""
    found = [(socket.if_indextoname(index), address) for index, address in _addresses()]
    return [{"name": name, "mtu": _mtu(name), "address": address} for name, address in found]


def _addresses() -> Iterator[Tuple[int, str]]:
    """Every IPv4 address of this network namespace, with the index of its interface."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        asked = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _RTM_GETADDR, _REQUEST_DUMP, 1, 0) + asked)
        while True:
            for kind, body in _messages(kernel.recv(_BUFFER_BYTES)):
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                index = _ADDRESS.unpack_from(body)[4]
                for attribute, value in _attributes(body[_ADDRESS.size :]):
                    if attribute == _IFA_LOCAL:
                        yield index, socket.inet_ntoa(value)


def _messages(data: bytes) -> Iterator[Tuple[int, bytes]]:
    while data:
        length, kind = _HEADER.unpack_from(data)[:2]
        yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[Tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _mtu(netdev: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFMTU, struct.pack("16sI12x", netdev.encode(), 0))
    return int(struct.unpack("16sI12x", answer)[1])
