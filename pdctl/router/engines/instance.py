"""An engine that has registered: what it says about itself, and what the router knows about it."""

import ipaddress
from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from pdctl.router.engines.breaker import Breaker
from pdctl.router.engines.load import Load
from pdctl.router.protocols import PROTOCOLS
from pdctl.router.settings import Limits, Role
from pdctl.router.upstream.pool import Pool, address

Transfer = Literal["ipc", "rdma", "tcp"]
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
    protocol: str = "fastdeploy"  # how prefill and decode of this kind work together: a file in protocols/
    bootstrap_port: OptionalPort = 0  # of a prefill, where its decode asks for the KV
    prefill_on_decode: bool = False  # a decode that can compute a prompt itself, when the request says so
    kv_events: bool = False  # it publishes at /kv_events which prefixes it holds

    def __post_init__(self) -> None:
        """Refuse a host that would have to be looked up while requests wait."""
        try:
            ipaddress.ip_address(self.host_ip)
        except ValueError:
            raise ValueError(f"host_ip is {self.host_ip!r}, which is no IP address") from None
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {self.protocol!r}, which is none of {', '.join(PROTOCOLS)}")

    def says_the_same(self, other: "Registration") -> bool:
        """Whether nothing has changed that matters here: a prefill's connections to decodes come and go."""
        return msgspec.structs.replace(other, connected_decodes=self.connected_decodes) == self


class ServedModel(NamedTuple):
    """What an engine says of its model when it is asked."""

    name: str
    max_model_len: int | None = None


class Reported(NamedTuple):
    """What an engine said last about its load, and when (event loop time)."""

    running: float  # requests
    waiting: float  # requests
    in_flight: int  # requests that the router counted at it at that moment
    at: float


class Instance:
    """One engine. Only the registry changes `registration`, `live`, `reason`, `draining` and the breaker."""

    __slots__ = (
        "breaker",
        "draining",
        "engine_id",
        "failed",
        "failures",
        "fixed",
        "key",
        "last_heartbeat",
        "live",
        "load",
        "pool",
        "protocol",
        "reason",
        "registration",
        "reported",
        "served",
        "successes",
    )

    def __init__(self, registration: Registration, limits: Limits, load: Load, *, fixed: bool = False) -> None:
        self.registration = registration
        self.key = address(registration.host_ip, registration.port)
        self.protocol = PROTOCOLS[registration.protocol]
        self.load = load
        self.pool = Pool(registration.host_ip, registration.port, limits)
        self.fixed = fixed  # named on the command line: it sends no heartbeats
        self.served: ServedModel | None = None  # what it said when it was asked, having no name in its registration
        self.live = False  # answers; else `reason` says why not
        self.reason = "not checked yet"
        self.draining = False  # an operator wants it to end what it has
        self.breaker = Breaker()
        self.reported: Reported | None = None  # with the policy metrics_score
        self.engine_id = ""  # with protocols that need it
        self.failures = 0  # health probes, consecutively
        self.successes = 0  # likewise
        self.failed: Counter[str] = Counter()  # requests, by kind of failure
        self.last_heartbeat = 0.0

    @property
    def url(self) -> str:
        """Its API's base URL."""
        return f"http://{self.key}"

    @property
    def bootstrap_url(self) -> str:
        """Where decodes ask for its KV, with protocols that have such a place."""
        return f"http://{address(self.registration.host_ip, self.registration.bootstrap_port)}"

    @property
    def ready(self) -> bool:
        """Whether it gets requests, if its breaker admits them."""
        return self.live and not self.draining and not self.registration.is_paused

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.registration.role} instance {self.url}"

    @property
    def is_asked(self) -> bool:
        """Whether it has to be asked which model it serves, whenever it comes back."""
        return self.fixed or self.served is not None

    def named(self, registration: Registration) -> Registration:
        """A registration of this engine, with what it said of its model if the registration names none."""
        if registration.model or self.served is None:
            return registration
        name, max_model_len = self.served
        return msgspec.structs.replace(registration, model=name, max_model_len=max_model_len)

    def change(self, registration: Registration) -> None:
        """Take what it says about itself now."""
        self.registration = registration
        self.protocol = PROTOCOLS[registration.protocol]


def parse_registration(body: bytes) -> Registration:
    """Read a registration; msgspec.DecodeError says what is wrong with it."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    if isinstance(fields.get("role"), str):
        fields["role"] = fields["role"].lower()
    return msgspec.convert(fields, Registration, strict=False)
