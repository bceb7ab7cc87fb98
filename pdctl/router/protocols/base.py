"""What a protocol is."""

from typing import TYPE_CHECKING

import msgspec

from pdctl.router.requests.body import Body, completed

if TYPE_CHECKING:
    from pdctl.router.engines.instance import Instance
    from pdctl.router.engines.pairs import Pair


class Bodies(msgspec.Struct, frozen=True, gc=False):
    """The bodies of a request's legs. No prefill leg: None. A decode leg that follows the prefill's answer: None."""

    prefill: bytes | None
    decode: bytes | None


class FollowUp(msgspec.Struct, frozen=True, gc=False):
    """The decode leg that follows from a prefill's answer."""

    body: bytes
    fallback: str | None  # why the decode computes the prompt itself, after all


class PdProtocol:
    """How a prefill and a decode engine of one kind serve a request together. Subclasses say what differs."""

    name = ""
    resumable = False  # a broken stream can go on at another pair
    takes_aborts = False  # its engines have POST /v1/abort_requests
    stream_error = b""  # how a stream begins whose status was sent before the engine knew that it fails
    splits_choices = True  # several choices, or several prompts, can be asked for with a pair
    splits_prompt_output = True  # logprobs of the prompt can be asked for with a pair

    @property
    def splits_all(self) -> bool:
        """Whether any request can be sent to a pair."""
        return self.splits_choices and self.splits_prompt_output

    def mismatch(self, prefill: "Instance", decode: "Instance") -> str | None:
        """Why these two cannot work together; None if they can."""
        return None

    def describe(self, prefill: "Instance", decode: "Instance") -> bytes:
        """What requests say of a pair, as JSON; made once for each pair."""
        return b""

    async def learn(self, instance: "Instance") -> None:
        """Ask a healthy engine for what `describe` needs. FetchError says what is wrong."""

    def bodies(self, body: Body, request_id: str, pair: "Pair", resume: bytes) -> Bodies:
        """The bodies for the pair's engines. `resume` is JSON: what has been generated; empty at a beginning."""
        raise NotImplementedError

    def follow_up(self, body: Body, pair: "Pair", answer: bytes) -> FollowUp:
        """The decode leg after the prefill's answer, where `bodies` gave none."""
        raise NotImplementedError

    def release(self, body: Body, pair: "Pair", answer: bytes) -> bytes | None:
        """The body that makes a decode take and drop what a prefill's answer holds; None: it holds nothing."""
        return None

    def can_prefill(self, decode: "Instance") -> bool:
        """Whether a decode engine can compute a prompt itself."""
        return False

    def local(self, body: Body, request_id: str, resume: bytes) -> bytes:
        """The body for an engine that computes the prompt itself: a mixed one, or a decode that can."""
        return completed(body, b"")
