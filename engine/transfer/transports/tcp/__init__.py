"""KV over TCP: the way that always works. Several streams a pair, from one pool's memory into the other's."""

from engine.transfer.transports.tcp.transport import TcpTransport

__all__ = ["TcpTransport"]
