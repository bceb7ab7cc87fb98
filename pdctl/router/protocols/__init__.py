"""How a prefill and a decode engine serve a request together: one file per protocol.

An instance says at its registration which one it speaks. Mixed instances need none: they get the client's request.
"""

from pdctl.router.protocols.base import Bodies, FollowUp, PdProtocol
from pdctl.router.protocols.builtin import Builtin, FastDeploy
from pdctl.router.protocols.sglang import Sglang
from pdctl.router.protocols.vllm_mooncake import VllmMooncake
from pdctl.router.protocols.vllm_nixl import VllmNixl

PROTOCOLS: dict[str, PdProtocol] = {
    protocol.name: protocol for protocol in (Builtin(), FastDeploy(), Sglang(), VllmMooncake(), VllmNixl())
}

__all__ = ["PROTOCOLS", "Bodies", "FollowUp", "PdProtocol"]
