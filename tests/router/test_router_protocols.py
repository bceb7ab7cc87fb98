"""What each protocol writes into the bodies of a request's legs, byte for byte where it matters."""

import json
from typing import Any

import pytest
from router_mocks import PROMPT
from router_protocol_mocks import pair_of

from pdctl.router.engines.pairs import Pair
from pdctl.router.protocols import PROTOCOLS, PdProtocol
from pdctl.router.requests.body import Body, parse_body

HOSTILE = {
    "request_id": "somebody-elses",
    "disaggregate_info": {"decode_ip": "10.6.6.6"},
    "resume": {"id": "x", "created": 1, "token_ids": [1]},
    "prefill_on_decode": True,
    "kv_transfer_params": {"remote_host": "10.6.6.6"},
    "bootstrap_host": "10.6.6.6",
    "bootstrap_port": 666,
    "bootstrap_room": 7,
}
WANTED = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


def parsed(**fields: Any) -> Body:
    return parse_body(json.dumps(PROMPT | fields).encode(), chat=True)


def names(raw: bytes) -> list[str]:
    """The names of an object's members; a name that stands there twice is in the list twice."""
    return [name for name, _ in json.loads(raw, object_pairs_hook=list)]


def both_bodies(pair: Pair, body: Body, resume: bytes = b"") -> tuple[bytes, bytes]:
    """Of a protocol that sends both legs at once, for a request with the id `r`."""
    bodies = pair.protocol.bodies(body, "r", pair, resume)
    assert bodies.prefill is not None
    assert bodies.decode is not None
    return bodies.prefill, bodies.decode


async def legs(protocol: str, body: Body, resume: bytes = b"") -> tuple[bytes, bytes]:
    """Both bodies, of a request with the id `r` and a pair with a bootstrap port."""
    pair = pair_of(protocol, {"bootstrap_port": 8998})
    bodies = pair.protocol.bodies(body, "r", pair, resume)
    assert bodies.prefill is not None
    decode = bodies.decode
    if decode is None:
        answer = b'{"id":"1","choices":[],"kv_transfer_params":{"remote_port": 5600}}'
        decode = pair.protocol.follow_up(body, pair, answer).body
    return bodies.prefill, decode


# Of every protocol.


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_a_client_says_to_engines_is_taken_out_and_never_doubled(protocol: str):
    for raw in await legs(protocol, parsed(**HOSTILE)):
        assert len(names(raw)) == len(set(names(raw)))
        assert b"10.6.6.6" not in raw
        assert b"somebody-elses" not in raw
        assert json.loads(raw).get("bootstrap_room") != 7
        assert "resume" not in names(raw)
        assert "prefill_on_decode" not in names(raw)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_escaped_name_is_taken_out_like_a_plain_one(protocol: str):
    hostile = rb'{"model":"m","prompt":"x","kv_transfer_p\u0061rams":{"remote_host":"10.6.6.6"},"r\u0065sume":{}}'
    for raw in await legs(protocol, parse_body(hostile, chat=True)):
        assert b"10.6.6.6" not in raw
        assert "resume" not in names(raw)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_members_that_no_router_knows_stay_as_they_were(protocol: str):
    body = parse_body(
        b'{"model":"m","prompt":"x","big":12345678901234567890123,"f":1.10,"s":"\\u00e4 \\"","l":[1, 2]}', chat=False
    )
    for raw in await legs(protocol, body):
        for member in (b'"big":12345678901234567890123', b'"f":1.10', b'"s":"\\u00e4 \\""', b'"l":[1, 2]'):
            assert member in raw


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_local_body_names_no_other_engine(protocol: str):
    raw = PROTOCOLS[protocol].local(parsed(**HOSTILE), "r", b"")
    left = json.loads(raw)
    assert {name: left[name] for name in PROMPT} == PROMPT
    assert set(left) - set(PROMPT) <= {"request_id", "prefill_on_decode"}
    assert left.get("request_id", "r") == "r"


async def test_an_empty_object_is_completed_too():
    prefill, decode = await legs("sglang", parse_body(b" { } ", chat=True))
    assert prefill == decode
    assert names(prefill) == ["bootstrap_host", "bootstrap_port", "bootstrap_room"]
    assert PROTOCOLS["vllm-nixl"].local(parse_body(b"{}", chat=True), "r", b"") == b"{}"


# FastDeploy and the builtin engine.


async def test_fastdeploy_gets_one_body_with_the_pair():
    prefill, decode = await legs("fastdeploy", parsed(stream=True))
    assert prefill is decode
    info = json.loads(prefill)["disaggregate_info"]
    assert (info["prefill_ip"], info["decode_ip"], info["transfer_protocol"]) == ("10.0.0.1", "10.0.0.2", "rdma")
    assert names(prefill)[-2:] == ["request_id", "disaggregate_info"]
    assert "return_token_ids" not in names(prefill)


async def test_builtin_streams_tell_their_tokens_and_other_answers_do_not():
    for stream in (True, False):
        prefill, decode = await legs("builtin", parsed(stream=stream))
        assert prefill is decode
        assert ("return_token_ids" in names(prefill)) == stream


async def test_a_resumed_stream_has_what_was_generated_on_both_legs():
    resume = b'{"id":"first","created":5,"token_ids":[1,2]}'
    for raw in await legs("builtin", parsed(stream=True, **HOSTILE), resume):
        assert json.loads(raw)["resume"] == {"id": "first", "created": 5, "token_ids": [1, 2]}
        assert json.loads(raw)["request_id"] == "r"
    local = json.loads(PROTOCOLS["builtin"].local(parsed(stream=True), "r", resume))
    assert (local["resume"]["id"], local["prefill_on_decode"]) == ("first", True)


async def test_a_builtin_decode_prefills_only_if_it_says_so():
    for says in (True, False):
        decode = pair_of("builtin", decode={"prefill_on_decode": says}).decode
        assert decode.protocol.can_prefill(decode) == says
    decode = pair_of("fastdeploy", decode={"prefill_on_decode": True}).decode
    assert not decode.protocol.can_prefill(decode), "FastDeploy's own engines do not know the field"


# vLLM.


@pytest.mark.parametrize("protocol", ["vllm-nixl", "vllm-mooncake"])
async def test_a_vllm_prefill_makes_one_token_of_one_choice(protocol: str):
    prefill, _ = await legs(
        protocol,
        parsed(
            stream=True,
            stream_options={"include_usage": True},
            n=4,
            best_of=4,
            min_tokens=9,
            max_tokens=100,
            max_completion_tokens=100,
            temperature=0.5,
        ),
    )
    sent = json.loads(prefill)
    assert sent.pop("kv_transfer_params")["do_remote_decode"] is True
    assert sent == PROMPT | {"stream": False, "n": 1, "max_tokens": 1, "max_completion_tokens": 1, "temperature": 0.5}


@pytest.mark.parametrize("protocol", ["vllm-nixl", "vllm-mooncake"])
async def test_a_vllm_prefill_gets_no_member_that_the_client_did_not_send(protocol: str):
    prefill, _ = await legs(protocol, parsed())
    assert set(json.loads(prefill)) == {*PROMPT, "stream", "max_tokens", "kv_transfer_params"}


async def test_a_nixl_prefill_is_asked_for_its_blocks():
    prefill, _ = await legs("vllm-nixl", parsed())
    assert json.loads(prefill)["kv_transfer_params"] == WANTED


async def test_a_nixl_decode_gets_the_clients_body_and_the_prefills_parameters_as_they_were_written():
    body = parsed(stream=True, stream_options={"include_usage": True}, n=2, max_tokens=7)
    params = b'{"remote_block_ids": [[1,2],[3]], "new": {"deep": 1.50}, "remote_host":"10.0.0.1" , "s":"\\u00e4"}'
    pair = pair_of("vllm-nixl")
    follow = pair.protocol.follow_up(body, pair, b'{"choices":[{"text":"x"}],"kv_transfer_params":%b}' % params)
    assert follow.body == body.opened + b'"kv_transfer_params":' + params + b"}"
    assert follow.fallback is None


@pytest.mark.parametrize("answer", [b"{}", b'{"kv_transfer_params":null}', b'{"kv_transfer_params": null, "id":"1"}'])
async def test_a_nixl_prefill_without_parameters_leaves_it_all_to_the_decode(answer: bytes):
    body, pair = parsed(n=2), pair_of("vllm-nixl")
    follow = pair.protocol.follow_up(body, pair, answer)
    assert json.loads(follow.body) == PROMPT | {"n": 2}
    assert follow.fallback == "no_kv_transfer_params"
    assert pair.protocol.release(body, pair, answer) is None, "there is nothing to release"


async def test_nixl_blocks_are_released_by_a_decode_of_one_token():
    pair = pair_of("vllm-nixl")
    body = parsed(stream=True, n=3, max_tokens=50, **HOSTILE)
    release = pair.protocol.release(body, pair, b'{"kv_transfer_params":{"remote_port": 5600}}')
    assert release is not None
    sent = json.loads(release)
    assert (sent["max_tokens"], sent["n"], sent["stream"]) == (1, 1, False)
    assert sent["kv_transfer_params"] == {"remote_port": 5600}


async def test_mooncakes_legs_name_the_same_transfer():
    pair = pair_of("vllm-mooncake", {"bootstrap_port": 8998})
    assert pair.prefill is not None
    pair.prefill.engine_id = "engine-1"
    pair.info = pair.protocol.describe(pair.prefill, pair.decode)
    prefill, decode = both_bodies(pair, parsed(n=2, stream=True))
    assert json.loads(prefill)["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "transfer_id": "xfer-r",
    }
    assert json.loads(decode) == PROMPT | {
        "n": 2,
        "stream": True,
        "kv_transfer_params": {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "remote_bootstrap_addr": "http://10.0.0.1:8998",
            "remote_engine_id": "engine-1",
            "transfer_id": "xfer-r",
        },
    }


async def test_mooncake_needs_a_bootstrap_port_and_the_engines_id():
    pair = pair_of("vllm-mooncake")
    assert pair.prefill is not None
    assert "bootstrap_port" in str(pair.protocol.mismatch(pair.prefill, pair.decode))
    pair = pair_of("vllm-mooncake", {"bootstrap_port": 8998})
    assert pair.prefill is not None
    assert "engine id" in str(pair.protocol.mismatch(pair.prefill, pair.decode))
    pair.prefill.engine_id = "engine-1"
    assert pair.protocol.mismatch(pair.prefill, pair.decode) is None


@pytest.mark.parametrize("protocol", ["vllm-nixl", "vllm-mooncake"])
async def test_vllm_decodes_can_prefill(protocol: str):
    decode = pair_of(protocol).decode
    assert decode.protocol.can_prefill(decode)


# SGLang.


async def test_sglangs_legs_meet_in_one_room():
    pair = pair_of("sglang", {"bootstrap_port": 8998})
    rooms = set()
    for _ in range(20):
        prefill, decode = both_bodies(pair, parsed())
        assert prefill is decode
        sent = json.loads(prefill)
        assert (sent["bootstrap_host"], sent["bootstrap_port"]) == ("10.0.0.1", 8998)
        assert 0 <= sent["bootstrap_room"] < 2**63
        rooms.add(sent["bootstrap_room"])
    assert len(rooms) == 20, "each attempt has a room of its own"


async def test_sglang_without_a_bootstrap_port_leaves_it_to_the_engine():
    pair = pair_of("sglang")
    for fields in ({}, {"n": 2}):
        prefill, _ = both_bodies(pair, parsed(**fields))
        assert json.loads(prefill)["bootstrap_port"] in (None, [None, None])


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"n": 3}, 3),
        ({"messages": None, "prompt": ["a", "b"]}, 2),
        ({"messages": None, "prompt": ["a", "b"], "n": 2}, 4),
        ({"messages": None, "prompt": [[1, 2], [3]]}, 2),
        ({"messages": None, "prompt": ["[1,2]", '"],["']}, 2),
    ],
)
async def test_sglang_has_a_room_for_each_sequence(fields: dict[str, Any], count: int):
    raw = json.dumps({k: v for k, v in (PROMPT | fields).items() if v is not None}, indent=1).encode()
    body = parse_body(raw, chat="messages" not in fields)
    pair = pair_of("sglang", {"bootstrap_port": 8998})
    prefill, _ = both_bodies(pair, body)
    sent = json.loads(prefill)
    assert (sent["bootstrap_host"], sent["bootstrap_port"]) == (["10.0.0.1"] * count, [8998] * count)
    assert len(set(sent["bootstrap_room"])) == count


@pytest.mark.parametrize("prompt", ["a", ["a"], [1, 2, 3], [[1, 2, 3]]])
async def test_sglang_has_one_room_for_one_sequence(prompt: object):
    body = parse_body(json.dumps({"model": "m", "prompt": prompt}).encode(), chat=False)
    pair = pair_of("sglang", {"bootstrap_port": 8998})
    prefill, _ = both_bodies(pair, body)
    assert isinstance(json.loads(prefill)["bootstrap_room"], int)


async def test_sglang_makes_no_list_of_as_many_rooms_as_a_client_likes():
    pair = pair_of("sglang", {"bootstrap_port": 8998})
    prefill, _ = both_bodies(pair, parsed(n=10**12))
    assert isinstance(json.loads(prefill)["bootstrap_room"], int), "engines make many of one"


async def test_an_sglang_decode_cannot_prefill():
    decode = pair_of("sglang", decode={"prefill_on_decode": True}).decode
    assert not decode.protocol.can_prefill(decode)


def test_every_protocol_is_listed_by_its_name():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}
    assert all(isinstance(protocol, PdProtocol) for protocol in PROTOCOLS.values())
    assert [name for name, protocol in PROTOCOLS.items() if protocol.resumable] == ["builtin"]
