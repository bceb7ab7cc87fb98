"""Which engines fit together, and what a request tells them about each other."""

import msgspec
import pytest

from pdctl.router.engines.instance import Instance, Registration, parse_registration
from pdctl.router.engines.load import Load
from pdctl.router.engines.pairs import Pair, mismatch
from pdctl.router.settings import Limits


def instance(role: str, port: int, **fields: object) -> Instance:
    payload = {"role": role, "host_ip": "127.0.0.1", "port": port} | fields
    return Instance(msgspec.convert(payload, Registration), Limits(), Load())


def disaggregate_info(pair: Pair) -> dict[str, object]:
    """What a body says of the pair, once `info` is a member of it."""
    return msgspec.json.decode(b"{%b}" % pair.info)["disaggregate_info"]


async def test_disaggregate_info():
    prefill = instance("prefill", 8001, connector_port=9001, transfer_protocol=["ipc"])
    decode = instance(
        "decode", 8002, connector_port=9002, transfer_protocol=["ipc", "rdma"], device_ids=[3, "4"], rdma_ports=[7001]
    )
    pair = Pair(prefill, decode)
    assert disaggregate_info(pair) == {
        "prefill_ip": "127.0.0.1",
        "prefill_port": 8001,
        "decode_ip": "127.0.0.1",
        "decode_port": 8002,
        "prefill_connector_port": 9001,
        "decode_connector_port": 9002,
        "decode_device_ids": [3, "4"],
        "decode_rdma_ports": [7001],
        "transfer_protocol": "ipc",
        "decode_tp_size": 1,
    }
    assert pair.headers == (
        b"x-router-prefill-url: http://127.0.0.1:8001\r\nx-router-decode-url: http://127.0.0.1:8002\r\n"
    )


async def test_a_mixed_engine_has_no_pair():
    pair = Pair(None, instance("mixed", 8001))
    assert (pair.info, pair.headers) == (b"", b"x-router-decode-url: http://127.0.0.1:8001\r\n")


@pytest.mark.parametrize(
    ("prefill", "decode", "transfer"),
    [
        ({"transfer_protocol": ["ipc"]}, {"transfer_protocol": ["ipc"]}, "ipc"),
        ({"transfer_protocol": ["ipc", "rdma"]}, {"transfer_protocol": ["rdma"]}, "rdma"),
        (
            {"transfer_protocol": ["ipc", "rdma"]},
            {"transfer_protocol": ["ipc", "rdma"], "host_ip": "127.0.0.2"},
            "rdma",
        ),
        ({"transfer_protocol": ["ipc", "rdma"], "tp_size": 2}, {"transfer_protocol": ["ipc", "rdma"]}, "rdma"),
        ({}, {}, "rdma"),
        ({"transfer_protocol": ["ipc"]}, {"transfer_protocol": ["ipc"], "host_ip": "127.0.0.2"}, None),
        ({"transfer_protocol": ["ipc"]}, {"transfer_protocol": ["rdma"]}, None),
        ({"transfer_protocol": ["ipc", "tcp"]}, {"transfer_protocol": ["ipc", "tcp"], "host_ip": "127.0.0.2"}, "tcp"),
        ({"transfer_protocol": ["rdma", "tcp"]}, {"transfer_protocol": ["tcp", "rdma"]}, "rdma"),
        ({"transfer_protocol": ["rdma"]}, {"transfer_protocol": ["tcp"]}, None),
        ({"tp_size": 2}, {"tp_size": 2}, "rdma"),
        ({"tp_size": 2}, {"tp_size": 1}, "rdma"),
        ({"tp_size": 1}, {"tp_size": 2}, None),
        ({"protocol": "builtin"}, {"protocol": "builtin"}, "rdma"),
        ({"protocol": "builtin"}, {"protocol": "fastdeploy"}, None),
        ({"model": "a"}, {"model": "b"}, None),
        ({"model": "a"}, {"model": ""}, "rdma"),
    ],
)
async def test_how_the_kv_gets_from_one_to_the_other(prefill: dict, decode: dict, transfer: str | None):
    p, d = instance("prefill", 8001, **prefill), instance("decode", 8002, **decode)
    if transfer is None:
        reason = mismatch(p, d)
        assert reason is not None
        assert "8001" in reason
        assert "8002" in reason
    else:
        assert mismatch(p, d) is None
        assert disaggregate_info(Pair(p, d))["transfer_protocol"] == transfer


def test_a_registration_as_other_engines_write_it():
    registration = parse_registration(
        b'{"role": "PREFILL", "host_ip": "10.0.0.1", "port": "8100", "metrics_port": "0", "rdma_ports": ["7001"],'
        b'"transfer_protocol": ["ipc", "rdma"], "device_ids": ["0", 1], "tp_size": 2, "new_field": {"a": 1}}'
    )
    assert (registration.role, registration.port, registration.rdma_ports) == ("prefill", 8100, [7001])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"role": "router"}, "role"),
        ({"role": None}, "role"),
        ({"port": 0}, "port"),
        ({"port": 70000}, "port"),
        ({"port": "http"}, "port"),
        ({"host_ip": "localhost"}, "host_ip"),
        ({"host_ip": 5}, "host_ip"),
        ({"transfer_protocol": ["carrier pigeon"]}, "transfer_protocol"),
        ({"transfer_protocol": "ipc"}, "transfer_protocol"),
        ({"tp_size": 0}, "tp_size"),
        ({"is_paused": "perhaps"}, "is_paused"),
        ({"device_ids": 3}, "device_ids"),
        ({"max_model_len": -1}, "max_model_len"),
        ({"protocol": "telepathy"}, "protocol"),
        ({"bootstrap_port": 70000}, "bootstrap_port"),
        ({"prefill_on_decode": "perhaps"}, "prefill_on_decode"),
    ],
)
def test_a_wrong_registration_is_refused_by_name(change: dict[str, object], word: str):
    payload = {"role": "prefill", "host_ip": "127.0.0.1", "port": 8000} | change
    with pytest.raises(msgspec.DecodeError, match=word):
        parse_registration(msgspec.json.encode(payload))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"role": "prefill"}', b"\xff"])
def test_what_is_no_registration(body: bytes):
    with pytest.raises(msgspec.DecodeError):
        parse_registration(body)


async def test_an_ipv6_engine():
    engine = instance("prefill", 8001, host_ip="::1")
    assert engine.url == "http://[::1]:8001"
    asked = engine.pool.request(b"GET", b"/", b"x-a: 1\r\n", b"body")
    assert asked == b"GET / HTTP/1.1\r\nhost: [::1]:8001\r\nx-a: 1\r\ncontent-length: 4\r\n\r\nbody"
