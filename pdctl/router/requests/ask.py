"""What a policy may know of a request."""

from pdctl.router.engines.prefix_index import CHUNK_BYTES, prefix_keys

_INDEXED = 1024 * CHUNK_BYTES  # of a prompt, hashed in 1 ms; what follows counts as held by no engine


class Ask:
    """A request that wants an engine."""

    __slots__ = ("_prefix", "prompt", "session", "tokens")

    def __init__(self, tokens: int, session: bytes = b"", prompt: bytes = b"") -> None:
        self.tokens = tokens  # the prompt's, estimated
        self.session = session  # b"": the client names none
        self.prompt = prompt  # the JSON of `messages` or `prompt`, as sent
        self._prefix: list[bytes] | None = None

    @property
    def prefix(self) -> list[bytes]:
        """The prompt's prefix keys, computed at the first use."""
        if self._prefix is None:
            self._prefix = prefix_keys(self.prompt[:_INDEXED])
        return self._prefix

    def uncached(self, matched: int) -> int:
        """The tokens left to compute for an engine that holds this many leading keys of `prefix`."""
        if not matched:
            return self.tokens
        return self.tokens - self.tokens * matched * CHUNK_BYTES // len(self.prompt)
