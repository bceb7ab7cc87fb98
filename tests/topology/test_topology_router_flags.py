"""Flags of other routers in a topology."""

from pathlib import Path

import pytest

from pdctl.errors import TopologyError
from pdctl.topology.loading import load_topology


def write(folder: Path, kind: str, args: str) -> Path:
    path = folder / "chat.yaml"
    path.write_text(
        f"model: some/model\nengine: vllm\nprefill: 1\ndecode: 1\nrouter:\n  kind: {kind}\n  args:\n    {args}\n"
    )
    return path


@pytest.mark.parametrize("flag", ["prefill", "decode", "worker-urls", "worker_urls", "vllm-pd-disaggregation"])
def test_what_follows_from_the_roles_is_refused(tmp_path: Path, flag: str):
    path = write(tmp_path, "vllm-router", f"{flag}: http://10.0.0.1:8100")
    with pytest.raises(TopologyError) as caught:
        load_topology(path)
    assert str(caught.value) == f"{path}:8: router.args.{flag}: {flag} cannot be given here: it follows from the roles"


@pytest.mark.parametrize("flag", ["prefill-policy", "decode-policy", "kv-connector", "workers", "ssl-certfile"])
def test_all_else_is_the_routers_own_affair(tmp_path: Path, flag: str):
    topology = load_topology(write(tmp_path, "vllm-router", f"{flag}: x"))
    assert topology.router.args == {flag: "x"}


def test_a_flag_with_a_value_that_holds_where_there_are_prefill_and_decode_can_be_changed(tmp_path: Path):
    assert load_topology(write(tmp_path, "lmdeploy-proxy", "link-type: IB")).router.args == {"link-type": "IB"}


def test_a_kind_that_is_none_is_all_that_is_said(tmp_path: Path):
    with pytest.raises(TopologyError, match="unknown router 'vllm-ruter'"):
        load_topology(write(tmp_path, "vllm-ruter", "prefill: x"))
