"""An engine that has registered: what it says about itself, and what the router knows about it."""

import ipaddress
from typing import Annotated, Any, Literal

import msgspec

from pdctl.router.load import Load
from pdctl.router.settings import Limits
from pdctl.router.upstream import Pool

Role = Literal["prefill", "decode", "mixed"]
Transfer = Literal["ipc", "rdma"]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
OptionalPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine posts to /register. Unknown keys are ignored; ports may be strings of digits."""

    role: Role
    host_ip: str
    port: Port
    metrics_port: OptionalPort = 0
    connector_port: OptionalPort = 0
    engine_worker_queue_port: OptionalPort = 0
    transfer_protocol: list[Transfer] = []
    rdma_ports: list[Port] = []
    device_ids: list[int | str] = []
    tp_size: PositiveInt = 1
    version: str = ""
    is_paused: bool = False
    connected_decodes: list[Any] = []
    model: str = ""
    max_model_len: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Refuse a host that would have to be looked up while requests wait."""
        try:
            ipaddress.ip_address(self.host_ip)
        except ValueError:
            raise ValueError(f"host_ip is {self.host_ip!r}, which is no IP address") from None


class Instance:
    """One engine. Only the registry changes `registration`, `live` and `reason`."""

    __slots__ = ("_host_port", "failures", "key", "last_heartbeat", "live", "load", "pool", "reason", "registration")

    def __init__(self, registration: Registration, limits: Limits) -> None:
        self.registration = registration
        self.key = address(registration.host_ip, registration.port)
        self.load = Load()
        self.pool = Pool(registration.host_ip, registration.port, limits)
        self.live = False  # answers; else `reason` says why not
        self.reason = "not checked yet"
        self.failures = 0  # health probes, consecutively
        self.last_heartbeat = 0.0
        self._host_port = self.key.encode()

    @property
    def url(self) -> str:
        """Its API's base URL."""
        return f"http://{self.key}"

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.registration.role} instance {self.url}"

    def request_head(self, method: bytes, target: bytes, headers: bytes, length: int) -> bytes:
        """The head of a request to it; `headers` are whole lines."""
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            method,
            target,
            self._host_port,
            headers,
            length,
        )


def parse_registration(body: bytes) -> Registration:
    """Read a registration; msgspec.DecodeError says what is wrong with it."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    if isinstance(fields.get("role"), str):
        fields["role"] = fields["role"].lower()
    return msgspec.convert(fields, Registration, strict=False)


def address(host: str, port: int) -> str:
    """`host:port`, as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
