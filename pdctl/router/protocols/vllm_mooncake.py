"""vLLM with MooncakeConnector: both legs at once; the prefill pushes KV to the decode that names the same transfer.

Protocol: vLLM's documentation of MooncakeConnector (docs/features/mooncake_connector_usage.md), as of 0.32.
"""

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from pdctl.router.protocols.base import Bodies, PdProtocol
from pdctl.router.protocols.vllm_nixl import one_token
from pdctl.router.requests.body import Body, completed
from pdctl.router.upstream.fetch import FetchError, fetch
from pdctl.router.upstream.pool import Pool

if TYPE_CHECKING:
    from pdctl.router.engines.instance import Instance
    from pdctl.router.engines.pairs import Pair


class _Rank(msgspec.Struct):
    engine_id: str


class VllmMooncake(PdProtocol):
    """The prefill's engine id comes from its bootstrap server; the registry asks for it whenever a prefill comes up."""

    name = "vllm-mooncake"
    splits_choices = False  # the prefill frees its blocks when the first of them has been fetched
    splits_prompt_output = False  # only the prefill has them, and asking a decode crashes some versions

    def mismatch(self, prefill: "Instance", decode: "Instance") -> str | None:
        """The decode needs to be told the prefill's bootstrap port and engine id."""
        if not prefill.registration.bootstrap_port:
            return f"{prefill.name} has registered no bootstrap_port"
        if not prefill.engine_id:
            return f"{prefill.name} has not told its engine id yet"
        return None

    async def learn(self, instance: "Instance") -> None:
        """Ask a prefill's bootstrap server for the engine's id; it is another one after a restart."""
        registration = instance.registration
        if registration.role != "prefill" or not registration.bootstrap_port:
            return
        pool = Pool(registration.host_ip, registration.bootstrap_port, instance.pool.limits)
        try:
            answer = await fetch(pool, b"GET", b"/query", timeout=pool.limits.probe_timeout)
            ranks = msgspec.json.decode(answer.body, type=dict[str, _Rank])
            instance.engine_id = ranks["0"].engine_id
        except FetchError as error:
            reason = f"its bootstrap server at {instance.bootstrap_url}: {error}"
            raise FetchError(reason, unreachable=error.unreachable) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
            raise FetchError(f"its bootstrap server at {instance.bootstrap_url} names no engine id: {error}") from None
        finally:
            pool.close()

    def describe(self, prefill: "Instance", decode: "Instance") -> bytes:
        """The decode's parameters but for the transfer's id."""
        params = {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "remote_bootstrap_addr": prefill.bootstrap_url,
            "remote_engine_id": prefill.engine_id,
        }
        return msgspec.json.encode(params)

    def bodies(self, body: Body, request_id: str, pair: "Pair", resume: bytes) -> Bodies:
        """Both name the transfer after the request."""
        transfer = b'"transfer_id":%b' % msgspec.json.encode(f"xfer-{request_id}")
        wanted = Raw(b'{"do_remote_decode":true,"do_remote_prefill":false,%b}' % transfer)
        decode = completed(body, b'"kv_transfer_params":%b,%b}' % (pair.info[:-1], transfer))
        return Bodies(one_token(body, wanted), decode)

    def can_prefill(self, decode: "Instance") -> bool:
        """Any vLLM engine can: without parameters it is an ordinary one."""
        return True
