"""The engine's errors."""


class EngineError(Exception):
    """An error to be shown as one line; the process exits with status 1."""


class ModelError(EngineError):
    """The model is missing, damaged, or of a kind that this engine does not run."""


class RequestError(Exception):
    """A request cannot be served; becomes an OpenAI error object with this HTTP status."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class TransferError(RequestError):
    """A request's KV did not arrive: refused, aborted, timed out, or its peer died."""

    def __init__(self, message: str, *, status: int = 502, code: str | None = "kv_transfer_failed") -> None:
        super().__init__(message, status=status, code=code)
