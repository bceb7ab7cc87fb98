"""What clients send: OpenAI's request bodies, checked. Unknown fields are tolerated; known ones that cannot be
honoured are refused by name."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from engine.errors import RequestError

MAX_CHOICES = 8
MAX_STOP_STRINGS = 16

_PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
_Temperature = Annotated[float, msgspec.Meta(ge=0.0)]
_TopP = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
_TopK = Annotated[int, msgspec.Meta(ge=-1)]
_Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_StopString = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_StopStrings = Annotated[list[_StopString], msgspec.Meta(max_length=MAX_STOP_STRINGS)]
_RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Invalid(RequestError):
    """A body that is refused with 400; ``param`` names the field."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, status=400, code=code)
        self.param = param


class DisaggregateInfo(msgspec.Struct, frozen=True):
    """Where the two legs of a request run, as the router adds it."""

    prefill_ip: str
    decode_ip: str
    prefill_port: int = 0
    decode_port: int = 0
    prefill_connector_port: int = 0
    decode_connector_port: int = 0


class Resume(msgspec.Struct, frozen=True):
    """A stream of this very request that broke on another engine, as far as its client has it."""

    id: _RequestId  # the request's id there, at the first attempt
    created: _NotNegative  # seconds since the epoch
    token_ids: list[_NotNegative]  # generated there


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """A piece of a message; only text is served."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    max_tokens: _PositiveInt | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: _TopK | None = None
    seed: _Seed | None = None
    n: _Choices | None = None
    stop: _StopString | _StopStrings | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    request_id: _RequestId | None = None
    disaggregate_info: DisaggregateInfo | None = None
    prefill_on_decode: bool | None = None
    resume: Resume | None = None

    @property
    def stop_strings(self) -> list[str]:
        """The strings that end a choice."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatRequest(_Common, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _PositiveInt | None = None


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[Any]


class AbortRequest(msgspec.Struct, frozen=True):
    """The body of POST /v1/abort_requests."""

    req_ids: list[str] = []
    abort_all: bool = False


# Fields that change the answer and are not built, each with the values that mean "off".
_REFUSED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}

_Request = TypeVar("_Request")


def parse(body: bytes, kind: type[_Request]) -> _Request:
    """Decode a request's body; anything wrong raises :class:`Invalid` naming the field."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Invalid("the body is not a JSON object")
    _refuse_unbuilt(fields)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None


def _refuse_unbuilt(fields: dict[str, Any]) -> None:
    for name in fields.keys() & _REFUSED.keys():
        if not _is_off(fields[name], _REFUSED[name]):
            raise Invalid(f"{name} is not supported by this engine", param=name, code="unsupported_parameter")


def _is_off(value: object, off: tuple[Any, ...]) -> bool:
    """Compare as JSON does: false is not 0."""
    return value is None or any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in off)


def _invalid_field(message: str) -> Invalid:
    """msgspec says "Expected `int`, got `str` - at `$.max_tokens`" or "Object missing required field `messages`"."""
    reason, _, path = message.partition(" - at `$")
    param = path.rstrip("`").lstrip(".") or None
    if param is None and "`" in reason:
        param = reason.split("`")[1]
        return Invalid(f"{param} is missing", param=param, code="missing_required_parameter")
    return Invalid(f"{param or 'body'}: {reason}", param=param, code="invalid_value")
