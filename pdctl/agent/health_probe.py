"""Asking a process over HTTP whether it still answers."""

from __future__ import annotations

import asyncio
import socket
from typing import Dict, Optional, Tuple
from urllib.parse import urlsplit

SILENT = 0  # in place of a status
API_PORT = "{api}"  # in a URL: the port that the process has reported

_Family = socket.AddressFamily


class HealthProbe:
    """Sends a GET to one process of this host; its URL may contain API_PORT."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self.path = urlsplit(url).path
        self._timeout_s = timeout_s
        self._address: Optional[Tuple[_Family, str]] = None

    async def ask(self, ports: Dict[str, int]) -> Optional[int]:
        """The answer's status, or SILENT; None where silence would say nothing of the process.

        That is while its address is not one of this host, as its interface is down. ``ports``: what it has reported.
        """
        if API_PORT in self.url and "api" not in ports:
            return SILENT
        url = urlsplit(self.url.replace(API_PORT, str(ports.get("api"))))
        address = await self._resolved(url.hostname or "")
        if address is None or not _is_here(*address):
            return None
        request = f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n"
        try:
            return await asyncio.wait_for(_get(address[1], url.port or 80, request.encode()), self._timeout_s)
        except (asyncio.TimeoutError, TimeoutError, ConnectionError, ValueError):
            return SILENT
        except OSError:  # of this side: no file descriptor is free, the network is gone
            return None

    async def _resolved(self, host: str) -> Optional[Tuple[_Family, str]]:
        """Resolved once: an outage of DNS is none of the process."""
        if self._address is None:
            loop = asyncio.get_running_loop()
            try:
                found = await asyncio.wait_for(loop.getaddrinfo(host, None), self._timeout_s)
            except (OSError, asyncio.TimeoutError):
                return None
            self._address = _Family(found[0][0]), str(found[0][4][0])
        return self._address


def _is_here(family: _Family, address: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probing:
        try:
            probing.bind((address, 0))
        except OSError:
            return False
    return True


async def _get(address: str, port: int, request: bytes) -> int:
    """The status; raises ValueError for what is no HTTP."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(request)
        line = await reader.readline()
    finally:
        writer.close()
    protocol, status, *_ = line.split(None, 2)
    if not protocol.startswith(b"HTTP/"):
        raise ValueError(f"no HTTP: {line[:40]!r}")
    return int(status)
