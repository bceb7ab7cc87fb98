"""Other numbers of engines in a topology."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.errors import TopologyError
from pdctl.topology.models import EngineGroup, Topology
from pdctl.topology.resizing import Place, resize, turn, with_one_more


def topology_of(**sections: Any) -> Topology:
    return Topology.model_validate({"prefill": 1, "decode": 1, "hosts": {"here": {}, "far": {"ssh": "far"}}} | sections)


def replicas(groups: list[EngineGroup]) -> list[int]:
    return [group.replicas for group in groups]


@pytest.mark.parametrize(
    ("counts", "prefill", "decode"),
    [
        ({("prefill", None): 3}, [2, 1], [1]),
        ({("prefill", None): 2, ("decode", None): 4}, [2, 0], [4]),
        ({("prefill", 0): 1}, [1, 2], [1]),
        ({("prefill", 0): 0, ("prefill", 1): 3}, [0, 3], [1]),
    ],
)
def test_a_role_grows_and_shrinks_in_its_last_group(counts: dict[Place, int], prefill: list[int], decode: list[int]):
    topology = resize(topology_of(prefill=[{"replicas": 2}, {"replicas": 2}]), counts)
    assert (replicas(topology.prefill), replicas(topology.decode)) == (prefill, decode)


@pytest.mark.parametrize(
    ("sections", "counts", "said"),
    [
        ({}, {("mixed", None): 1}, "mixed: the deployment has no such role, only prefill, decode"),
        ({}, {("decode", 1): 1}, r"decode\[1\]: the role has 1 group\(s\), counted from 0"),
        ({}, {("decode", None): 0}, "prefill: there is no decode role: add `decode: 1`, or use mixed"),
        (
            {"prefill": [{"replicas": 2}, {}]},
            {("prefill", None): 1},
            "prefill=1: its groups before the last one have 2 engines: give the number of one group",
        ),
        (
            {"prefill": {"replicas": 2, "gpus": [0, 1]}},
            {("prefill", None): 3},
            r"prefill\[0\].gpus: it names the GPUs of 2 engine\(s\), and 3 are wanted: name more of them",
        ),
    ],
)
def test_numbers_that_cannot_be(sections: dict[str, Any], counts: dict[Place, int], said: str):
    with pytest.raises(TopologyError, match=said):
        resize(topology_of(**sections), counts)


def test_a_group_that_lists_its_gpus_keeps_the_first():
    topology = topology_of(prefill={"replicas": 3, "tp": 2, "gpus": [5, 4, 3, 2, 1, 0]})
    assert resize(topology, {("prefill", None): 1}).prefill[0].gpus == [5, 4]


def test_an_engine_joins_a_group_alike():
    args = {"args": {"size": 1}}
    topology = topology_of(prefill={"replicas": 2}, decode=[{}, {"host": "far"}, args])
    turned = turn(topology, "prefill", 0, (), "decode")
    assert (replicas(turned.prefill), replicas(turned.decode)) == ([1], [1, 1, 2])
    assert turned.decode[2].args == {"size": 1}


def test_an_engine_makes_a_group_where_none_is_alike():
    topology = topology_of(
        prefill=[{}, {"host": "far", "replicas": 2, "tp": 2, "gpus": [0, 1, 2, 3], "args": {"a": 1}}]
    )
    turned = turn(topology, "prefill", 1, (0, 1), "decode")
    assert (turned.prefill[1].replicas, turned.prefill[1].gpus) == (1, [2, 3])
    joined = turned.decode[1]
    assert (joined.replicas, joined.host, joined.tp, joined.gpus, joined.args) == (1, "far", 2, [0, 1], {"a": 1})


def test_gpus_go_with_the_engine():
    topology = topology_of(prefill={"replicas": 2, "gpus": [0, 1]}, decode={"gpus": [2]})
    turned = turn(topology, "prefill", 0, (0,), "decode")
    assert (turned.prefill[0].gpus, turned.decode[0].gpus) == ([1], [2, 0])


def test_the_last_of_a_role_stays():
    with pytest.raises(TopologyError, match="decode: there is no prefill role"):
        turn(topology_of(), "prefill", 0, (), "decode")


def test_room_for_one_more():
    topology = topology_of(decode={"gpus": [0]})
    larger = with_one_more(topology, "prefill", 0)
    assert larger is not None
    assert replicas(larger.prefill) == [2]
    assert with_one_more(topology, "decode", 0) is None, "which GPU would it have?"
    assert with_one_more(topology, "prefill", 1) is None


@given(
    st.fixed_dictionaries(
        {
            "prefill": st.lists(st.fixed_dictionaries({"replicas": st.integers(1, 3)}), min_size=1, max_size=3),
            "hosts": st.sampled_from([{}, {"a": {"ssh": "a"}, "box": "local"}]),
            "router": st.sampled_from([{}, {"kind": "vllm-router", "port": 9000}, {"port": 0, "drain_secs": 1}]),
        }
    )
)
def test_what_is_kept_of_a_topology_is_all_of_it(sections: dict[str, Any]):
    topology = Topology.model_validate({"decode": {"gpus": "auto"}} | sections)
    kept = resize(topology, {("decode", None): 2}).model_dump_json(exclude_unset=True)
    assert Topology.model_validate_json(kept) == resize(topology, {("decode", None): 2})
