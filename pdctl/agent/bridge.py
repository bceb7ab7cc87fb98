"""Joining stdin and stdout to an agent's socket, for a client on another host."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from pdctl.agent.paths import AgentError, read_agent_file

_BLOCK_BYTES = 64 * 1024


def bridge(folder: Path) -> None:
    """Copy both ways until the agent closes the connection. Blocks."""
    peer = _connect(folder)
    threading.Thread(target=_copy_stdin, args=(peer,), daemon=True).start()
    while True:
        data = peer.recv(_BLOCK_BYTES)
        if not data:
            return
        _write_all(1, data)


def _connect(folder: Path) -> socket.socket:
    try:
        path = read_agent_file(folder)["socket"]
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        raise AgentError(f"no agent serves {folder}") from None
    return peer


def _copy_stdin(peer: socket.socket) -> None:
    """The end of stdin ends the connection: the client is gone."""
    while True:
        data = os.read(0, _BLOCK_BYTES)
        if not data:
            peer.shutdown(socket.SHUT_RDWR)
            return
        peer.sendall(data)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
