"""What FastDeploy's engines read of a request's body about the pair."""

from typing import Any

from standin_answers import Asked, tokens_of
from standin_server import ViolationError

from fastdeploy.standin_instance import Instance

_BLOCK_TOKENS = 64
_MEMBERS: dict[str, type | tuple[type, ...]] = {  # of disaggregate_info; ports may be text, as in registrations
    "prefill_ip": str,
    "decode_ip": str,
    "prefill_connector_port": (int, str),
    "decode_connector_port": (int, str),
    "decode_device_ids": list,
    "decode_rdma_ports": list,
    "transfer_protocol": str,
    "decode_tp_size": int,
}


def check_identity(body: dict[str, Any]) -> str:
    """The request's id, which the router gives."""
    identity = body.get("request_id")
    if not isinstance(identity, str) or not identity:
        raise ViolationError(f"request_id: {identity!r} is no id")
    return identity


def check_alone(body: dict[str, Any]) -> None:
    """What a mixed engine must not be told."""
    if "disaggregate_info" in body:
        raise ViolationError("disaggregate_info at a mixed engine")


def check_pair(body: dict[str, Any], instance: Instance) -> dict[str, Any]:
    """`disaggregate_info`, compared with what this engine has registered; ViolationError if they do not fit."""
    info = body.get("disaggregate_info")
    if not isinstance(info, dict):
        raise ViolationError("disaggregate_info missing: neither prefill nor decode can serve alone")
    for name, kind in _MEMBERS.items():
        if not isinstance(info.get(name), kind):
            raise ViolationError(f"disaggregate_info.{name}: {info.get(name)!r} is not of the right type")
    check = _check_prefill if instance.arguments.role == "prefill" else _check_decode
    check(info, instance)
    _check_transfer(info, instance)
    return info


def blocks_of(asked: Asked, index: int) -> int:
    """How many KV blocks a sequence's prompt takes."""
    return -(-tokens_of(asked.sequences[index][0]) // _BLOCK_TOKENS)


def _check_prefill(info: dict[str, Any], instance: Instance) -> None:
    _compare(info, "prefill_ip", instance.host_ip)
    _compare(info, "prefill_connector_port", str(instance.pd_comm_port))
    if info["decode_tp_size"] not in (1, instance.arguments.tp):
        raise ViolationError(f"decode_tp_size {info['decode_tp_size']} at a prefill of {instance.arguments.tp}")
    if len(info["decode_rdma_ports"]) != info["decode_tp_size"]:
        raise ViolationError(f"decode_rdma_ports {info['decode_rdma_ports']} are not {info['decode_tp_size']}")


def _check_decode(info: dict[str, Any], instance: Instance) -> None:
    _compare(info, "decode_ip", instance.host_ip)
    _compare(info, "decode_connector_port", str(instance.pd_comm_port))
    _compare(info, "decode_tp_size", str(instance.arguments.tp))
    _compare_list(info, "decode_device_ids", list(instance.arguments.gpus))
    _compare_list(info, "decode_rdma_ports", instance.rdma_ports)


def _check_transfer(info: dict[str, Any], instance: Instance) -> None:
    transfer = info["transfer_protocol"]
    if transfer not in instance.arguments.transfers:
        raise ViolationError(f"transfer_protocol {transfer} is none of {','.join(instance.arguments.transfers)}")
    same = info["prefill_ip"] == info["decode_ip"] and info["decode_tp_size"] == instance.arguments.tp
    if transfer == "ipc" and not same:
        raise ViolationError("transfer_protocol ipc needs one host and equal tensor parallelism")


def _compare(info: dict[str, Any], name: str, own: str) -> None:
    if str(info[name]) != own:
        raise ViolationError(f"disaggregate_info.{name} is {info[name]}, this engine registered {own}")


def _compare_list(info: dict[str, Any], name: str, own: list[str]) -> None:
    if [str(one) for one in info[name]] != own:
        raise ViolationError(f"disaggregate_info.{name} is {info[name]}, this engine registered {own}")
